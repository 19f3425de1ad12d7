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
STEPS_PER_EPOCH = 50


@dataclass(frozen=True)
class Turn:
    """One training and what it is measured on."""

    name: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    seed: int
    epochs: int
    is_free: bool = False


def turns(seeds: int, epochs: int) -> list[Turn]:
    """All of them, the most wanted first."""
    every = tuple(ORGANS)
    found = []
    for seed in range(seeds):
        for organ in TESTED:
            found.append(Turn(f"{organ}-{seed}", tuple(o for o in every if o != organ), (organ,), seed, epochs))
        found.append(Turn(f"two-{seed}", ("breast", "kidney"), ("lung", "prostate"), seed, epochs))
        found.append(Turn(f"other-two-{seed}", ("lung", "prostate"), ("breast", "kidney"), seed, epochs))
        if seed == 0:
            found.append(Turn("default", every, (), 0, epochs))
            found.append(Turn("free", (), every, 0, epochs, is_free=True))
    return found


def data_folder() -> Path:
    """Where the images are."""
    return Path(os.environ.get("MSDASK_DATA_DIR", ROOT / "../shared/data")).resolve()


def monuseg(names: tuple[str, ...]) -> list[Any]:
    """Images by their short names, as ScaleImage."""
    from msdask.training import ScaleImage

    images = []
    for name in names:
        (path,) = (data_folder() / "monuseg/images").glob(f"TCGA-{name}-*.tif")
        images.append(ScaleImage.of(ms.open_slide(path, magnification=STATED).levels[0].compute(), STATED))
    return images


def cmu() -> tuple[np.ndarray, float]:
    """CMU-1-Small-Region and its magnification."""
    slide = ms.open_slide(data_folder() / "CMU-1-Small-Region.svs")
    return slide.levels[0].compute(), 10 / slide.mpp


def free_images() -> tuple[list[Any], list[Any]]:
    """Images of 20x and below that anybody may use: for training, for validation."""
    import skimage.data

    from msdask.training import ScaleImage

    pixels, magnification = cmu()
    tiles = [ScaleImage.of(pixels[y : y + 989, x : x + 1110], magnification) for y in (0, 989, 1978) for x in (0, 1110)]
    # Nobody states the scale of this one. Taken as 20x, as its nuclei suggest, it gives a higher validation loss.
    ihc = ScaleImage.of(skimage.data.immunohistochemistry()[..., :3], 40.0)
    images = [*tiles[:5], ScaleImage.of(ihc.levels[1], 20.0)]
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(2):
            sample = ms.sample.make_slide(
                Path(folder) / f"{seed}.svs", size=(1536, 1536), mpp=0.5, seed=seed, tissue_fraction=0.95, quality=95
            )
            image = ms.open_slide(sample.path).levels[0].compute()
            images.append(ScaleImage.of(image[200:1336, 200:1336], 20.0))
    return images, tiles[5:]


def run(turn: Turn, work: Path) -> dict[str, Any]:
    """Train and measure one turn in this process, with one thread: two at a time are faster than two threads."""
    import torch

    torch.set_num_threads(1)
    from msdask.models import ScaleRegressor
    from msdask.training import Appearance, Recipe, ScaleCrops, ScaleLattice, ScaleTask, fit
    from msdask.training.scale_metrics import SCALE_CLASSES

    wall, cpu = time.perf_counter(), time.process_time()
    if turn.is_free:
        train, valid = free_images()
        magnifications, classes = (2.8, 30.0), tuple(m for m in SCALE_CLASSES if m <= 20)
    else:
        names = tuple(n for o in turn.train for n in ORGANS[o] if n not in MISLABELLED)
        train = monuseg(tuple(n for n in names if n not in VALIDATION))
        valid = monuseg(tuple(n for n in names if n in VALIDATION))
        magnifications, classes = (2.8, 60.0), SCALE_CLASSES
    appearance = Appearance(noise=0.0, blur=0.2, jpeg=0.2)
    loader = ScaleCrops(
        train,
        magnifications=magnifications,
        batches=STEPS_PER_EPOCH,
        appearance=appearance,
        seed=turn.seed,
    )
    torch.manual_seed(turn.seed)
    model = ScaleRegressor("scalenet", embedding=128, dropout=0.2, target="log2")
    recipe = Recipe(
        epochs=turn.epochs,
        optimizer="adamw",
        lr=3e-3,
        weight_decay=0.02,
        schedule="cosine",
        warmup=0.05,
        patience=None,
        ema=0.99,
        keep="last",
        precision="bf16",
        seed=turn.seed,
    )
    result = fit(
        model,
        ScaleTask("huber", delta=0.25, classes=classes),
        loader,
        ScaleLattice(valid, size=PATCH, magnifications=classes, side=2),
        work / turn.name,
        recipe=recipe,
        resume=True,
        about=about(turn, classes),
    )
    facts = {"train_s": time.perf_counter() - wall, "train_cpu_s": time.process_time() - cpu}
    found = {"turn": turn.name, "train": turn.train, "test": turn.test, "seed": turn.seed, "valid": result.valid}
    found |= {"crops": turn.epochs * STEPS_PER_EPOCH * loader.batch_size, "images": len(train), **facts}
    tested = tuple(n for o in (*turn.test, *(("brain",) if turn.is_free else ())) for n in ORGANS[o])
    found["estimates"] = {name: estimates(result.model, monuseg((name,)), classes) for name in dict.fromkeys(tested)}
    if not turn.is_free:
        found["estimates"]["CMU-1"] = cmu_estimates(result.model)
    (work / f"{turn.name}.json").write_text(json.dumps(found), encoding="utf-8")
    return found


def about(turn: Turn, classes: tuple[float, ...]) -> dict[str, Any]:
    """What a released model says of itself."""
    common = {"crop": PATCH, "magnifications": [min(classes), max(classes)]}
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


def estimates(model: Any, images: list[Any], classes: tuple[float, ...]) -> dict[str, list[float]]:
    """Estimated magnification of 4 x 4 patches of each magnification, by stated magnification."""
    from msdask.inference.scale import magnifications_of
    from msdask.training import ScaleLattice

    lattice = ScaleLattice(images, size=PATCH, magnifications=classes)
    values = magnifications_of(lattice.crops, model)
    return {f"{m:g}": [round(float(v), 3) for v in values[lattice.truth == np.float32(m)]] for m in classes}


def cmu_estimates(model: Any) -> dict[str, list[float]]:
    """Those of CMU-1, patches that are mostly glass left out."""
    from msdask.inference.scale import magnifications_of
    from msdask.masks.tissue import stained_share
    from msdask.training import ScaleImage, ScaleLattice

    pixels, magnification = cmu()
    lattice = ScaleLattice([ScaleImage.of(pixels, magnification)], size=PATCH, side=6)
    tissue = stained_share(lattice.crops) > 0.5
    values = magnifications_of(lattice.crops[tissue], model)
    truth = lattice.truth[tissue]
    return {f"{m:g}": [round(float(v), 3) for v in values[truth == m]] for m in sorted(set(truth.tolist()))}


def release(work: Path) -> None:
    """Copy the two models that come with msdask."""
    from msdask.models.files import RELEASED, load_model, save_model

    for name, stem in RELEASED.items():
        model, described = load_model(work / name)
        save_model(model, ROOT / f"msdask/weights/{stem}.safetensors", about=described)


def main() -> int:
    """Run what is missing, then report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=20, help=f"of {STEPS_PER_EPOCH} steps")
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
    planned = [t for t in turns(options.seeds, options.epochs) if options.only is None or t.name in options.only]
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
