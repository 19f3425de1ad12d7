"""Processor time of a patch on its way into training: raw, in tuples, augmented; and of its checksum alone.

    pip install -e ".[torch]"
    python benchmarks/stream_cost.py                       # about 1 minute
    python benchmarks/stream_cost.py --against ../before   # in turns with another checkout, about 2 minutes

Patches a second (benchmarks/stream.py) depend on what else the machine does; processor time does so less, and the
median of rounds in which two versions take turns less again. Each tree extracts its own store, so that both read what
they write, from a slide that is made once. Everything is read once before, so all files are in the page cache.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

EPOCHS = {"raw": 15, "tuples": 8, "augmented": 3}
BATCH, SIZE, SIDE = 64, 224, 8192
CHECKED = 2000
"""Checksums that are taken for their time alone."""


def make_store(folder: Path, slide: Path) -> Path:
    """Extract the slide at 40x and as tuples, unless that was done before; gives the store."""
    import msdask as ms

    store = folder / "patches.zarr"
    for mode, magnifications in (("grid", (40.0,)), ("centroids", (40.0, 20.0, 10.0))):
        ms.extract([str(slide)], str(store), ms.ExtractionSpec(mode, magnifications, SIZE), progress=False)
    return store


def measure(store: Path) -> dict[str, float]:
    """Processor us a patch (a tuple), over whole epochs, and us of one checksum."""
    import numpy as np
    import torch

    import msdask as ms
    from msdask.data import Augment, PatchDataset, loader
    from msdask.store.integrity import checksum

    torch.set_num_threads(1)
    sets = {one.spec.mode: one for one in ms.PatchStore(store).values()}
    found = {}
    for name, epochs in EPOCHS.items():
        dataset = PatchDataset(sets["centroids" if name == "tuples" else "grid"])
        augment = Augment() if name == "augmented" else None
        batches = loader(dataset, batch_size=BATCH, seed=1, augment=augment)
        for _ in batches:
            pass
        started, count = time.process_time(), 0
        for _ in range(epochs):
            count += sum(len(batch["image"]) for batch in batches)
        found[name] = 1e6 * (time.process_time() - started) / count
    patch = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    started = time.process_time()
    for _ in range(CHECKED):
        checksum(patch)
    return {**found, "checksum alone": 1e6 * (time.process_time() - started) / CHECKED}


def run(tree: Path, folder: Path) -> dict[str, float]:
    """Measure one checkout in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--once", "--folder", str(folder)]
    text = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in text.splitlines())}


def table(rounds: dict[str, list[dict[str, float]]]) -> str:
    """Markdown: median and least of each tree's rounds."""
    lines = ["| processor us a patch | " + " | ".join(rounds) + " |", "| --- |" + " --- |" * len(rounds)]
    for name in next(iter(rounds.values()))[0]:
        values = [[one[name] for one in some] for some in rounds.values()]
        cells = [f"{statistics.median(some):.1f} (least {min(some):.1f})" for some in values]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "msdask-benchmark-stream-cost")
    parser.add_argument("--against", type=Path, help="another checkout, measured in turns with this one")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--once", action="store_true", help="measure the msdask that is imported, in this process")
    options = parser.parse_args(arguments)
    slide = options.folder.parent / "slide.svs" if options.once else options.folder / "slide.svs"
    if options.once:
        print("\n".join(f"{name} {value:.3f}" for name, value in measure(make_store(options.folder, slide)).items()))
        return 0
    trees = {"this tree": Path(__file__).resolve().parents[1]}
    if options.against is not None:
        trees["the other"] = options.against.resolve()
    sys.path.insert(0, str(trees["this tree"]))
    import msdask as ms

    options.folder.mkdir(parents=True, exist_ok=True)
    if not slide.exists():
        ms.sample.make_slide(slide, size=(SIDE, SIDE), seed=5)
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
    for _ in range(options.rounds):
        for number, (name, tree) in enumerate(trees.items()):
            folder = options.folder / str(number)
            folder.mkdir(exist_ok=True)
            rounds[name].append(run(tree, folder))
    print(table(rounds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
