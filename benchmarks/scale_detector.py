"""The scale detector on organs that it never saw: leave one out, find mislabelled images, train what is released.

    python benchmarks/scale_detector.py                    # everything; two turns at a time on two cores
    python benchmarks/scale_detector.py --seeds 1          # one seed instead of two
    python benchmarks/scale_detector.py --release          # also write the models that come with msdask

Needs MoNuSeg's crops and CMU-1-Small-Region.svs in $MSDASK_DATA_DIR (default ../shared/data). Every turn's estimates
are kept in `--work`: a second call goes on where the first one stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))

from scale_report import report

import msdask as ms

ROOT = Path(__file__).parents[1]
ORGANS = {
    "breast": ("A7-A13E", "A7-A13F", "AR-A1AK", "AR-A1AS", "E2-A14V", "E2-A1B5"),
    "kidney": ("B0-5698", "B0-5710", "B0-5711", "HE-7128", "HE-7129", "HE-7130"),
    "lung": ("18-5592", "21-5784", "21-5786", "38-6178", "44-2665", "49-4488", "50-5931"),
    "prostate": ("CH-5767", "G9-6336", "G9-6348", "G9-6356", "G9-6362", "G9-6363"),
    "brain": ("FG-A4MU", "HT-8564"),
}
TESTED = ("breast", "kidney", "lung", "prostate")
MISLABELLED = ("HE-7128", "HE-7129", "HE-7130")
"""Stated as 40x, scanned at 20x: never learnt from, and measured apart."""
VALIDATION = ("E2-A1B5", "B0-5711", "50-5931", "G9-6363")
"""One image an organ is validated on, so far as its organ is trained on."""
STATED = 40.0
PATCH = 96
"""px a side of the patches that are measured; training crops have 64, see docs/scale_detector.md."""
STEPS = 1000
BATCH = 192
COMMAND = (
    "-c scalenet -d 0.2 --target log2 --loss huber --delta 0.25 --optimizer adamw -lr 3e-3 --weight-decay 0.02 "
    "--schedule cosine --warmup 0.05 --ema 0.99 --keep last --patience 0 --augment strong"
)
"""`msdask train scale -i images.csv -o run` with these options is how every model here is made."""


@dataclass(frozen=True)
class Turn:
    """One training and what it is measured on."""

    name: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    seed: int
    is_free: bool = False


def turns(seeds: int) -> list[Turn]:
    """All of them, the most wanted first."""
    every = tuple(ORGANS)
    found = []
    for seed in range(seeds):
        for organ in TESTED:
            found.append(Turn(f"{organ}-{seed}", tuple(o for o in every if o != organ), (organ,), seed))
        found.append(Turn(f"two-{seed}", ("breast", "kidney"), ("lung", "prostate"), seed))
        found.append(Turn(f"other-two-{seed}", ("lung", "prostate"), ("breast", "kidney"), seed))
        if seed == 0:
            found.append(Turn("default", every, (), 0))
            found.append(Turn("free", (), every, 0, is_free=True))
    return found


def data_folder() -> Path:
    """Where the images are."""
    return Path(os.environ.get("MSDASK_DATA_DIR", ROOT / "../shared/data")).resolve()


def monuseg(names: tuple[str, ...], split: str = "test") -> list[dict[str, Any]]:
    """Rows of a table of images, by their short names."""
    found = [next((data_folder() / "monuseg/images").glob(f"TCGA-{name}-*.tif")) for name in names]
    return [{"path": os.fspath(path), "magnification": STATED, "split": split} for path in found]


def cmu() -> dict[str, Any]:
    """CMU-1-Small-Region, whose file states its scale."""
    return {"path": os.fspath(data_folder() / "CMU-1-Small-Region.svs")}


def free_images(folder: Path) -> list[dict[str, Any]]:
    """Images of 20x and below that anybody may use, written into a folder: for training, for validation."""
    import skimage.data
    from PIL import Image

    def image(name: str, pixels: np.ndarray, magnification: float, split: str = "train") -> dict[str, Any]:
        Image.fromarray(pixels).save(folder / f"{name}.png")
        return {"path": os.fspath(folder / f"{name}.png"), "magnification": magnification, "split": split}

    slide = ms.open_slide(cmu()["path"])
    pixels = slide.levels[0].compute()
    places = [(y, x) for y in (0, 989, 1978) for x in (0, 1110)]
    rows = [
        image(f"cmu-{i}", pixels[y : y + 989, x : x + 1110], 10 / slide.mpp, "valid" if i == 5 else "train")
        for i, (y, x) in enumerate(places)
    ]
    # Nobody states the scale of this one. Taken as 20x, as its nuclei suggest, it gives a higher validation loss.
    ihc = skimage.data.immunohistochemistry()[..., :3]
    rows.append(image("ihc", ihc.reshape(256, 2, 256, 2, 3).mean((1, 3)).round().astype(np.uint8), 20.0))
    for seed in range(2):
        sample = ms.sample.make_slide(
            folder / f"{seed}.svs", size=(1536, 1536), mpp=0.5, seed=seed, tissue_fraction=0.95, quality=95
        )
        drawn = ms.open_slide(sample.path).levels[0].compute()[200:1336, 200:1336]
        rows.append(image(f"sample-{seed}", drawn, 20.0))
    return rows


def table(turn: Turn, folder: Path) -> Path:
    """The CSV of images that a turn learns from."""
    if turn.is_free:
        rows = free_images(folder)
    else:
        names = tuple(n for o in turn.train for n in ORGANS[o] if n not in MISLABELLED)
        rows = monuseg(tuple(n for n in names if n not in VALIDATION), "train")
        rows += monuseg(tuple(n for n in names if n in VALIDATION), "valid")
    pd.DataFrame(rows).to_csv(folder / "images.csv", index=False)
    return folder / "images.csv"


def run(turn: Turn, work: Path) -> dict[str, Any]:
    """Train and measure one turn in this process, with one thread: two at a time are faster than two threads."""
    import torch

    torch.set_num_threads(1)
    from msdask.cli.app import main as msdask
    from msdask.data import PatchDataset
    from msdask.data.images import image_patches
    from msdask.models.files import load_model
    from msdask.scale import SCALE_CLASSES

    wall, cpu = time.perf_counter(), time.process_time()
    classes = tuple(m for m in SCALE_CLASSES if m <= 20) if turn.is_free else SCALE_CLASSES
    folder = work / f"{turn.name}-images"
    folder.mkdir(exist_ok=True)
    images = table(turn, folder)
    rows = pd.read_csv(images)
    learnt = rows[rows["split"] == "train"].to_dict("records")
    steps = math.ceil(len(PatchDataset(image_patches(learnt, patch_size=64))) / BATCH)
    epochs = math.ceil(STEPS / steps)
    (folder / "about.json").write_text(json.dumps(about(turn)), encoding="utf-8")
    options = f"train scale -i {images} -o {work / turn.name} {COMMAND} -b {BATCH} -e {epochs} --seed {turn.seed}"
    scales = ["-m", *(f"{m:g}" for m in classes)]
    try:
        msdask([*options.split(), *scales, "--about", f"{folder / 'about.json'}", "--resume", "--quiet"])
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"msdask {options}: exit code {end.code}") from end
    model, described = load_model(work / turn.name)
    facts = {"train_s": time.perf_counter() - wall, "train_cpu_s": time.process_time() - cpu}
    found = {
        "turn": turn.name,
        "train": turn.train,
        "test": turn.test,
        "seed": turn.seed,
        "valid": described["metrics"]["valid"],
    }
    found |= {"crops": epochs * steps * BATCH, "images": len(learnt), **facts}
    tested = tuple(n for o in (*turn.test, *(("brain",) if turn.is_free else ())) for n in ORGANS[o])
    found["estimates"] = {name: estimates(model, monuseg((name,)), classes) for name in dict.fromkeys(tested)}
    if not turn.is_free:
        found["estimates"]["CMU-1"] = estimates(model, [cmu()], classes, side=6, least_stained=0.5)
    (work / f"{turn.name}.json").write_text(json.dumps(found), encoding="utf-8")
    return found


def about(turn: Turn) -> dict[str, Any]:
    """What a released model says of itself."""
    common = {"name": turn.name, "task": "scale"}
    if turn.name == "default":
        return common | {
            "data": "MoNuSeg 2018 (Kumar et al., IEEE TMI 2017 and 2020): 20 of its H&E crops of breast, kidney, lung, "
            "prostate and brain, from TCGA",
            "licence": "CC BY-NC-SA 4.0",
            "notice": "the scale detector's default weights were learnt from MoNuSeg and carry its licence, "
            "CC BY-NC-SA 4.0: not for commercial use; model='free' has no such limit, but is less good and ends at 20x",
        }
    return common | {
        "data": "CMU-1-Small-Region (CC0), scikit-image's immunohistochemistry image, slides generated by msdask",
        "licence": "MIT",
    }


def estimates(
    model: Any, images: list[dict[str, Any]], classes: tuple[float, ...], side: int = 4, least_stained: float = 0.0
) -> dict[str, list[float]]:
    """Estimated magnification of `side` x `side` patches of each magnification, by stated magnification.

    Patches with a smaller share of px that are no glass than `least_stained` are left out.
    """
    from msdask.data import PatchDataset
    from msdask.data.images import image_lattice
    from msdask.inference.scale import magnifications_of
    from msdask.masks.tissue import stained_share

    sets = image_lattice(images, magnifications=classes, patch_size=PATCH, side=side)
    dataset = PatchDataset(sets, target="magnification")
    crops = dataset.__getitems__(range(len(dataset)))["image"][:, 0].permute(0, 2, 3, 1).numpy()
    is_tissue = stained_share(crops) >= least_stained
    values, truth = magnifications_of(crops[is_tissue], model), dataset.class_of[is_tissue]
    return {f"{m:g}": [round(float(v), 3) for v in values[truth == m]] for m in sorted(set(truth.tolist()))}


def release(work: Path) -> None:
    """Copy the two models that come with msdask."""
    from msdask.models import load_model, released, save_model

    for known in released("scale"):
        model, described = load_model(work / known.name)
        save_model(model, known.path, about=described)


def main() -> int:
    """Run what is missing, then report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", nargs="*", help="names of turns")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "msdask-scale-detector")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results")
    parser.add_argument("--figure", type=Path, default=ROOT / "docs/images/scale_detector.png")
    parser.add_argument("--release", action="store_true")
    options = parser.parse_args()
    if not (data_folder() / "monuseg/images").is_dir():
        print(f"no monuseg/images in {data_folder()}: set MSDASK_DATA_DIR", file=sys.stderr)
        return 2
    options.work.mkdir(parents=True, exist_ok=True)
    planned = [t for t in turns(options.seeds) if options.only is None or t.name in options.only]
    waiting = [t for t in planned if not (options.work / f"{t.name}.json").exists()]
    began = time.perf_counter()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.workers, mp_context=context) as pool:
        for future in as_completed([pool.submit(run, turn, options.work) for turn in waiting]):
            found = future.result()
            valid = {k: round(found["valid"][k], 3) for k in ("r2", "kappa")}
            print(f"{found['turn']}: {found['train_s']:.0f} s, validation {valid}", flush=True)
            report(sorted(options.work.glob("*.json")), options.output, options.figure, mislabelled=MISLABELLED)
    minutes = math.ceil((time.perf_counter() - began) / 60)
    print(report(sorted(options.work.glob("*.json")), options.output, options.figure, mislabelled=MISLABELLED))
    print(f"{len(waiting)} turns in {minutes} minutes with {options.workers} processes of one thread")
    if options.release:
        release(options.work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
