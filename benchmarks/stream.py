"""Patches into a training loop, measured: random class-balanced batches from a store, against what people know.

    pip install -e ".[torch]" h5py               # h5py is needed by the benchmark only
    python benchmarks/stream.py                  # about 8 minutes on 2 cores
    python benchmarks/stream.py --quick          # fewer patches, one round

It makes its own slides (real histology texture, three classes), extracts them at 40x and as tuples of 40x, 20x and 10x,
and writes the same patches as PNG files, as an HDF5 file and as an array in memory. Everything is read once before, so
all files are in the page cache. Contestants take turns within a round, and every ratio is a median over rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tensorstore
import torch
import zarr
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler

sys.path.insert(0, str(Path(__file__).parents[1]))

from verdict import machine

import msdask as ms
from msdask.data import Augment, PatchDataset
from msdask.store.patch_set import PatchSet

BATCH, SIZE = 64, 224
TUPLE = (40.0, 20.0, 10.0)
SIDE, SLIDES, QUICK_SLIDES = 8192, 4, 1
OURS = "msdask, threads"
Batches = Iterator[Any]


@dataclass(frozen=True)
class Contestant:
    """One way of getting batches.

    Attributes
    ----------
    group : contestants that are compared: "raw", "augmented" or "tuples"
    name : of the way
    workers : processes
    start : gives batches without end
    lead : batches that may lie ready before the clock starts, left out of the count
    """

    group: str
    name: str
    workers: int
    start: Callable[[], Batches]
    lead: int = 4


@dataclass(frozen=True)
class Patches:
    """The same patches in every form; arrays are indexed by patch."""

    sets: dict[str, PatchSet]
    pngs: list[str]
    hdf5: Path | None
    array: NDArray[np.uint8]
    labels: NDArray[np.int64]
    places: list[tuple[str, int]]


def endless(make: Callable[[], Any]) -> Batches:
    """Epoch after epoch."""
    loader = make()
    while True:
        yield from loader


def random_batches(labels: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Class-balanced batches of indices without end."""
    from msdask.data.order import balanced_draws

    random = np.random.default_rng(1)
    while True:
        yield balanced_draws(labels, BATCH, random)


class PngFiles(Dataset[Any]):
    """The seed's way: one PNG file a patch, read by PIL, one by one; tuples are several files."""

    def __init__(self, paths: list[list[str]], labels: NDArray[np.int64], augment: bool) -> None:
        self.paths, self.labels, self.augment = paths, labels, augment
        self.pipeline: Any = None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        images = [np.asarray(Image.open(path)) for path in self.paths[i]]
        if self.augment:
            images = [self._augmented(image) for image in images]
        return torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2).copy()), int(self.labels[i])

    def _augmented(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if self.pipeline is None:
            import albumentations as A

            self.pipeline = A.Compose(
                [
                    A.VerticalFlip(p=0.5),
                    A.HorizontalFlip(p=0.5),
                    A.RandomRotate90(p=0.5),
                    A.HueSaturationValue(
                        hue_shift_limit=(-15, 8), sat_shift_limit=(-30, 20), val_shift_limit=(-15, 15)
                    ),
                ]
            )
        return self.pipeline(image=image)["image"]


class Hdf5File(Dataset[Any]):
    """One HDF5 file, a chunk a patch, read patch by patch into the batch (faster than h5py's fancy indexing)."""

    def __init__(self, path: Path, labels: NDArray[np.int64]) -> None:
        self.path, self.labels = path, labels
        self.images: Any = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        import h5py

        if self.images is None:
            self.images = h5py.File(self.path, "r")["image"]
        out = np.empty((len(indices), 1, SIZE, SIZE, 3), np.uint8)
        for place, i in enumerate(indices):
            self.images.read_direct(out, np.s_[i], np.s_[place])
        return {"image": torch.from_numpy(out).movedim(-1, -3), "label": torch.from_numpy(self.labels[indices])}


def own_batches(patches: Patches, read: Callable[[NDArray[np.int64]], Any]) -> Batches:
    """Batches that are read in this thread, without a DataLoader."""
    for indices in random_batches(patches.labels):
        yield read(indices), torch.from_numpy(patches.labels[indices])


def from_memory(patches: Patches) -> Batches:
    """The floor: gather rows of an array in memory."""

    def read(indices: NDArray[np.int64]) -> torch.Tensor:
        out = np.empty((BATCH, *patches.array.shape[1:]), np.uint8)
        np.take(patches.array, indices, axis=0, out=out, mode="clip")
        return torch.from_numpy(out).movedim(-1, -3)

    return own_batches(patches, read)


def from_zarr(patches: Patches) -> Batches:
    """zarr-python's orthogonal indexing, one selection a slide."""
    path = Path(patches.sets["raw"].path)
    arrays = {s: zarr.open_array(path / s / "image", mode="r") for s in patches.sets["raw"].slides}

    def read(indices: NDArray[np.int64]) -> torch.Tensor:
        out = np.empty((BATCH, 1, SIZE, SIZE, 3), np.uint8)
        for slide_id, places in _by_slide(patches, indices).items():
            rows = np.array([patches.places[indices[p]][1] for p in places])
            out[places] = arrays[slide_id].oindex[rows]
        return torch.from_numpy(out).movedim(-1, -3)

    return own_batches(patches, read)


def from_tensorstore(patches: Patches) -> Batches:
    """TensorStore's batched reads of the same store, one a slide."""
    path = patches.sets["raw"].path
    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": 0}})
    arrays = {}
    for slide_id in patches.sets["raw"].slides:
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path}/{slide_id}/image/"}}
        arrays[slide_id] = tensorstore.open(spec, open=True, context=context).result()

    def read(indices: NDArray[np.int64]) -> torch.Tensor:
        out = np.empty((BATCH, 1, SIZE, SIZE, 3), np.uint8)
        for slide_id, places in _by_slide(patches, indices).items():
            rows = [patches.places[indices[p]][1] for p in places]
            out[places] = arrays[slide_id].oindex[rows].read().result()
        return torch.from_numpy(out).movedim(-1, -3)

    return own_batches(patches, read)


def _by_slide(patches: Patches, indices: NDArray[np.int64]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = defaultdict(list)
    for place, i in enumerate(indices.tolist()):
        found[patches.places[i][0]].append(place)
    return found


def torch_loader(dataset: Dataset[Any], labels: NDArray[np.int64], workers: int, collate: Any = None) -> Any:
    """PyTorch's loader with the weights 1 / count, as the seed has it."""
    counts = np.bincount(labels)
    sampler = WeightedRandomSampler((1 / counts[labels]).tolist(), len(labels))
    context = "forkserver" if workers else None
    return DataLoader(
        dataset,
        batch_size=BATCH,
        sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        multiprocessing_context=context,
        persistent_workers=bool(workers),
    )


def contestants(patches: Patches, tuples: Patches, workers: int) -> list[Contestant]:
    """Everybody."""
    found = []

    def msdask(group: str, name: str, part: PatchSet, count: int, **options: Any) -> None:
        dataset = PatchDataset(part, labels="labeled", keep=False)
        make = partial(ms.data.loader, dataset, batch_size=BATCH, balanced=True, num_workers=count, **options)
        found.append(Contestant(group, name, count, partial(endless, make), lead=4 * max(1, count)))

    def png(group: str, of: Patches, count: int, augment: bool) -> None:
        width = of.array.shape[1]
        dataset = PngFiles([of.pngs[i : i + width] for i in range(0, len(of.pngs), width)], of.labels, augment)
        make = partial(torch_loader, dataset, of.labels, count)
        found.append(Contestant(group, "PNG files, DataLoader", count, partial(endless, make), lead=4 * max(1, count)))

    msdask("raw", OURS, patches.sets["raw"], 0)
    msdask("raw", "msdask, workers", patches.sets["raw"], workers)
    for codec in ("lossless", "jpeg"):
        msdask("raw", f"msdask, threads, {codec}", patches.sets[codec], 0)
    found.append(Contestant("raw", "array in memory (the floor)", 0, partial(from_memory, patches)))
    found.append(Contestant("raw", "TensorStore, the same store", 0, partial(from_tensorstore, patches)))
    found.append(Contestant("raw", "zarr-python, the same store", 0, partial(from_zarr, patches), lead=1))
    if patches.hdf5 is not None:
        for count in (0, workers):
            make = partial(
                torch_loader, Hdf5File(patches.hdf5, patches.labels), patches.labels, count, PatchDataset.collate
            )
            found.append(
                Contestant("raw", "HDF5 file, DataLoader", count, partial(endless, make), lead=4 * max(1, count))
            )
    for count in (0, workers):
        png("raw", patches, count, augment=False)
    msdask("augmented", OURS, patches.sets["raw"], 0, augment=Augment())
    msdask("augmented", "msdask, workers", patches.sets["raw"], workers, augment=Augment())
    for count in (0, workers):
        png("augmented", patches, count, augment=True)
    msdask("tuples", OURS, tuples.sets["raw"], 0)
    found.append(Contestant("tuples", "array in memory (the floor)", 0, partial(from_memory, tuples)))
    png("tuples", tuples, 0, augment=False)
    png("tuples", tuples, workers, augment=False)
    return found


def rate(batches: Batches, lead: int, seconds: float) -> float:
    """Patches (or tuples) per second, without the batches that lay ready."""
    for _ in range(lead):
        next(batches)
    started, count = time.perf_counter(), 0
    while (passed := time.perf_counter() - started) < seconds or count == 0:
        next(batches)
        count += BATCH
    return count / passed


def make_patches(folder: Path, slides: int, side: int, *, tuples: bool) -> Patches:
    """Slides, stores, PNG files, HDF5 file and array; what is there from an earlier run is used again."""
    name = f"{'tuples' if tuples else 'grid'}-{side}"
    stores = {c: ms.PatchStore(folder / f"{name}-{c}.zarr", codec=c) for c in (("raw",) if tuples else CODECS)}
    for seed in range(slides):
        path = folder / f"slide-{side}-{seed}.svs"
        labels = folder / f"slide-{side}-{seed}.npy"
        if not labels.exists():
            print(f"making slide {seed + 1} of {slides}", file=sys.stderr)
            sample = ms.sample.make_slide(path, size=(side, side), seed=seed, tissue_fraction=0.8)
            np.save(labels, sample.labels // 50)
        slide, mask = ms.open_slide(path), np.load(labels)
        if tuples:
            selection = ms.centroids(slide, labels=mask, magnifications=TUPLE, patch_size=SIZE, stride=2 * SIZE)
        else:
            selection = ms.grid(slide, labels=mask, magnification=40, patch_size=SIZE)
        for store in stores.values():
            store.write(ms.patches(slide, selection))
    sets = {codec: next(iter(store.values())) for codec, store in stores.items()}
    parts = [sets["raw"].open(s) for s in sets["raw"].slides]
    array = np.concatenate([part["image"].to_numpy() for part in parts])
    labels_of = np.concatenate([part["label"].values[:, 0] for part in parts]).astype(np.int64)
    places = [(s, row) for s, part in zip(sets["raw"].slides, parts, strict=True) for row in range(part.sizes["patch"])]
    pngs = _write_pngs(folder / f"{name}-png-{slides}", array)
    return Patches(
        sets, pngs, None if tuples else _write_hdf5(folder / f"{name}-{slides}.h5", array), array, labels_of, places
    )


def _write_pngs(folder: Path, array: NDArray[np.uint8]) -> list[str]:
    paths = [str(folder / f"{i}-{m}.png") for i in range(len(array)) for m in range(array.shape[1])]
    if not folder.exists():
        print(f"writing {len(paths)} PNG files", file=sys.stderr)
        part = folder.with_name(f"part-{folder.name}")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        for path, image in zip(paths, array.reshape(-1, SIZE, SIZE, 3), strict=True):
            Image.fromarray(image).save(part / Path(path).name)
        part.rename(folder)
    for path in paths:  # into the page cache
        Path(path).read_bytes()
    return paths


def _write_hdf5(path: Path, array: NDArray[np.uint8]) -> Path | None:
    try:
        import h5py
    except ImportError:
        print("no h5py: HDF5 is left out", file=sys.stderr)
        return None
    with h5py.File(path, "w") as file:
        file.create_dataset("image", data=array[:, 0], chunks=(1, SIZE, SIZE, 3))
    return path


CODECS = ("raw", "lossless", "jpeg")
UNITS = {
    "raw": "Random class-balanced batches of 64, 224 px, no augmentation: patches/s",
    "augmented": "The same with flips, 90-degree turns and hue-saturation-value, p = 0.5 each: patches/s",
    "tuples": "Tuples of three magnifications, batches of 64 tuples: tuples/s (times 3 = images/s)",
}


def table(rates: dict[tuple[str, str, int], list[float]]) -> str:
    """Markdown: rates, and how many times faster our threads are."""
    lines = []
    for group, title in UNITS.items():
        ours = rates[group, OURS, 0]
        lines += [
            f"\n{title}.\n",
            "| way | workers | per second | our threads are faster by |",
            "| --- | --- | --- | --- |",
        ]
        for (of, name, workers), values in rates.items():
            if of == group:
                ratio = statistics.median(a / b for a, b in zip(ours, values, strict=True))
                lines.append(f"| {name} | {workers} | {statistics.median(values):,.0f} | {ratio:.2f} |")
    return "\n".join(lines)


def checks(rates: dict[tuple[str, str, int], list[float]]) -> list[str]:
    """Targets of the design, and whether they are reached."""
    ours = rates["raw", OURS, 0]

    lines = []

    def check(name: str, value: float, target: float) -> None:
        lines.append(f"{'reached' if value >= target else 'MISSED'}: {name} {value:,.2f}, target {target:,.0f}")

    check("patches/s from the store", statistics.median(ours), 8000.0)
    for name, target in (("PNG", 10.0), ("HDF5", 1.0)):
        others = [v for (group, of, _), v in rates.items() if group == "raw" and of.startswith(name)]
        if others:
            best = max(others, key=statistics.median)
            ratio = statistics.median(a / b for a, b in zip(ours, best, strict=True))
            check(f"times the best {name} DataLoader", ratio, target)
        else:
            lines.append(f"not measured: {name}, whose package is not installed")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "msdask-benchmark-stream")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each contestant in each round")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--side", type=int, default=SIDE, help=f"px of the slides' sides (default {SIDE:,})")
    options = parser.parse_args(arguments)
    rounds, slides = (1, QUICK_SLIDES) if options.quick else (options.rounds, SLIDES)
    load = os.getloadavg()[0]
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    patches = make_patches(options.folder, slides, options.side, tuples=False)
    tuples = make_patches(options.folder, slides, options.side, tuples=True)
    rates: dict[tuple[str, str, int], list[float]] = {}
    for number in range(rounds):
        everybody = contestants(patches, tuples, options.workers)
        for one in everybody if number % 2 == 0 else everybody[::-1]:
            batches = one.start()
            value = rate(batches, one.lead, options.seconds)
            batches.close()  # type: ignore[attr-defined]
            rates.setdefault((one.group, one.name, one.workers), []).append(value)
            print(f"round {number + 1}: {one.group} {one.name} {one.workers}: {value:,.0f}", file=sys.stderr)
    order = [(c.group, c.name, c.workers) for c in everybody]
    rates = {key: rates[key] for key in order}
    about = (
        f"{len(patches.labels):,} patches, {len(tuples.labels):,} tuples, {rounds} rounds of {options.seconds:g} s; "
    )
    facts = machine()
    about += f"load average before: {load:.1f}; {facts['cpu']}, {os.cpu_count()} cores"
    text = "\n".join(["# Streaming\n", about, table(rates), "", *(f"- {line}" for line in checks(rates))])
    print(text)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "stream.md").write_text(text + "\n", encoding="utf-8")
    rows = [{"group": g, "way": n, "workers": w, "rates": v} for (g, n, w), v in rates.items()]
    sizes = {"patches": len(patches.labels), "tuples": len(tuples.labels)}
    results = {"load": load, "machine": facts, **sizes, "rows": rows}
    (options.output / "stream.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return any(line.startswith("MISSED") for line in checks(rates))


if __name__ == "__main__":
    sys.exit(main())
