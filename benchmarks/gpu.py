"""How much of a GPU a training gets: the GPU alone, fed with patches as they are, and fed with augmented ones.

    pip install -e ".[torch]"
    python benchmarks/gpu.py                     # about 3 minutes on a machine with a GPU
    python benchmarks/gpu.py --quick             # fewer patches, one round

Trains ResNet34 and the network of the scale detector (bf16, batches of 256 at 224 px) with steps of `fit`: on batches
that lie on the GPU already ("alone"), and on those of a loader over a store in the page cache, raw, with `Augment()`
and with `Augment.strong()` made there, and with `Augment()` made by the CPU. Contestants take turns within a round; a
ratio is the median of the rounds' own. Without a GPU it says so, and measures both ways of augmentation on the CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from skimage import data

sys.path.insert(0, str(Path(__file__).parents[1]))

from verdict import machine

import msdask as ms
from msdask.data import Augment, PatchDataset
from msdask.data.feed import Feed
from msdask.models import ScaleRegressor
from msdask.training import ScaleTask

SIZE = 224
NETWORKS = ("resnet34", "scalenet")
AUGMENTS: dict[str, Callable[[], Augment]] = {"Augment()": Augment, "Augment.strong()": Augment.strong}
TARGETS = {"raw": 0.95, "Augment()": 0.92, "Augment.strong()": 0.92}
Batches = Iterator[dict[str, torch.Tensor]]


def store_of(folder: Path, patches: int) -> ms.data.PatchDataset:
    """Patches of one generated slide, read once so that they are in the page cache."""
    side = SIZE * int(np.ceil(np.sqrt(1.6 * patches)))
    path, store = folder / f"slide-{side}.svs", ms.PatchStore(folder / f"patches-{side}.zarr")
    if not len(store):
        print(f"making a slide of {side:,} x {side:,} px", file=sys.stderr)
        ms.sample.make_slide(path, size=(side, side), seed=0, tissue_fraction=0.8)
        slide = ms.open_slide(path)
        store.write(ms.patches(slide, ms.grid(slide, magnification=40, patch_size=SIZE)))
    dataset = PatchDataset(next(iter(store.values())), target="magnification", keep=False)
    for _ in ms.data.loader(dataset, batch_size=64, shuffle=False):
        pass
    return dataset


def endless(loader: Any) -> Batches:
    """Epoch after epoch."""
    while True:
        yield from loader


def alone(batch: dict[str, torch.Tensor]) -> Batches:
    """The same batch again and again: what the GPU does if it never waits."""
    while True:
        yield batch


class Training:
    """Steps as `fit` makes them, in bf16."""

    def __init__(self, network: str, device: torch.device) -> None:
        torch.manual_seed(0)
        self.model = ScaleRegressor(network, target="log2").to(device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-4)
        self.task = ScaleTask("huber", delta=0.25)

    def step(self, batch: dict[str, torch.Tensor]) -> None:
        """One batch."""
        with torch.autocast("cuda", torch.bfloat16):
            loss, _ = self.task.loss(self.model, batch)
        if not torch.isfinite(loss):  # as TaskModule asks: the host waits for the forward pass here
            raise SystemExit("the loss is no number")
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def fed(training: Training, batches: Batches, seconds: float) -> float:
    """Images a second, after some steps that count for nothing."""
    for _ in range(10):
        training.step(next(batches))
    torch.cuda.synchronize()
    started, images = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        batch = next(batches)
        training.step(batch)
        images += len(batch["image"])
    torch.cuda.synchronize()
    return images / (time.perf_counter() - started)


def measure_gpu(dataset: PatchDataset, options: argparse.Namespace) -> dict[str, list[float]]:
    """Images/s of each network and way, one number a round."""
    device = torch.device("cuda")
    load = partial(ms.data.loader, dataset, batch_size=options.batch, drop_last=True)
    ways: dict[str, Callable[[], Batches]] = {
        "alone": partial(alone, next(iter(load(device=device)))),
        "raw": lambda: endless(load(device=device)),
        **{name: partial(_augmented, load, make, device) for name, make in AUGMENTS.items()},
        "Augment() by the CPU": lambda: Feed(device).ahead(endless(load(augment=Augment()))),
    }
    rates: dict[str, list[float]] = {}
    for network in NETWORKS:
        training = Training(network, device)
        for number in range(options.rounds):
            for name in list(ways) if number % 2 == 0 else list(ways)[::-1]:
                rate = fed(training, ways[name](), options.seconds)
                rates.setdefault(f"{network}, {name}", []).append(rate)
                print(f"round {number + 1}: {network}, {name}: {rate:,.0f}", file=sys.stderr)
    return rates


def _augmented(load: Callable[..., Any], make: Callable[[], Augment], device: torch.device) -> Batches:
    return endless(load(augment=make(), device=device))


def measure_cpu(options: argparse.Namespace) -> dict[str, list[float]]:
    """Images per second of processor time: both ways of augmentation, and what a GPU leaves to the CPU."""
    image = data.immunohistochemistry()
    corners = np.random.default_rng(0).integers(0, 512 - SIZE, (64, 2)).tolist()
    pixels = np.stack([image[y : y + SIZE, x : x + SIZE] for y, x in corners])[:, None]
    batch = {"image": torch.from_numpy(pixels).movedim(-1, -3), "seed": torch.arange(64)}
    feed, rates = Feed("cpu"), {}
    for _ in range(options.rounds):
        for name, make in AUGMENTS.items():
            augment = make()
            ways = {
                "patch by patch": partial(augment, batch),
                "whole batches": lambda augment=augment: feed.send(augment.begin(batch)),
                "what is left to the CPU where a GPU does the rest": partial(augment.begin, batch),
            }
            for way, work in ways.items():
                work()
                started, count = time.process_time(), 0
                while (passed := time.process_time() - started) < options.seconds / 2:
                    work()
                    count += 64
                rates.setdefault(f"{name}, {way}", []).append(count / passed)
    return rates


def table(rates: dict[str, list[float]]) -> list[str]:
    """Markdown: images/s, and shares of the GPU alone."""
    lines = ["| what | images/s | of the GPU alone | target |", "| --- | --- | --- | --- |"]
    for name, values in rates.items():
        network, _, way = name.partition(", ")
        whole = rates.get(f"{network}, alone")
        share = f"{statistics.median(a / b for a, b in zip(values, whole, strict=True)):.2f}" if whole else "-"
        target = TARGETS.get(way, "-") if whole else "-"
        lines.append(f"| {name} | {statistics.median(values):,.0f} | {share} | {target} |")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "msdask-benchmark-gpu")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--patches", type=int, default=8192)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each contestant in each round")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds, options.patches, options.seconds = 1, 2048, 2.0
    facts = machine()
    if torch.cuda.is_available():
        about = f"{torch.cuda.get_device_name()}; {facts['cpu']}, {os.cpu_count()} cores"
        options.folder.mkdir(parents=True, exist_ok=True)
        rates = measure_gpu(store_of(options.folder, options.patches), options)
    else:
        about = (
            f"**No GPU here** ({facts['cpu']}, {os.cpu_count()} cores): augmentation on the CPU only, images per "
            "second of processor time, one thread."
        )
        torch.set_num_threads(1)
        rates = measure_cpu(options)
    text = "\n".join(["# Feeding a GPU\n", about, "", *table(rates)])
    print(text)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "gpu.md").write_text(text + "\n", encoding="utf-8")
    (options.output / "gpu.json").write_text(json.dumps({"machine": facts, "rates": rates}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
