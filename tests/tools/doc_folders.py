"""The folder in which the blocks of a page run: what the page takes for granted, under the names that it uses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

import msdask as ms
from msdask.sample.slides import make_slide, write_masks
from msdask.storage.tables import write_table

SIZE = (1792, 2240)
SPLITS = ("train", "valid", "test")
VALUES = (50, 100, 150, 200, 250)


def write_base(folder: Path) -> None:
    """What most pages speak of: ``slide.svs``, ``a.svs``, ``slides/``, ``masks/``, ``labels/``, ``slides.csv``."""
    (folder / "slides").mkdir()
    rows = []
    for seed, (name, split) in enumerate(zip(("slide", "a", "b"), SPLITS, strict=True)):
        sample = make_slide(folder / "slides" / f"{name}.svs", size=SIZE, seed=seed, tissue_fraction=0.9)
        write_masks(sample, folder / "masks")
        _write_labels(folder / "labels" / f"{name}.png", sample.mask.shape)
        rows.append((f"slides/{name}.svs", split, name.upper()))
    write_table(folder / "slides.csv", rows, header=("path", "split", "patient"))
    for name in ("slide", "a"):
        shutil.copy(folder / "slides" / f"{name}.svs", folder)


def _write_labels(path: Path, shape: tuple[int, int]) -> None:
    """Two classes side by side, the left one wide enough for a patch at 5x."""
    values = np.full(shape, VALUES[0], np.uint8)
    values[:, shape[1] * 6 // 10 :] = VALUES[1]
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(values).save(path)


def folder_of(page: Path, base: Path, folder: Path, *, slow: bool = False) -> None:
    """Fill the folder of a page, or of all of it with its slow blocks."""
    shutil.copytree(base, folder, dirs_exist_ok=True)
    (SLOW_FOLDERS | FOLDERS if slow else FOLDERS).get(page.stem, _nothing_more)(folder)


def _nothing_more(folder: Path) -> None:
    pass


def _stored_tuples(folder: Path) -> None:
    """A store of tuples at 20x, 10x and 5x, of ``slides.csv``."""
    spec = ms.ExtractionSpec("centroids", (20, 10, 5), 224)
    _extract(folder / "slides.csv", folder / "cohort.zarr", spec, masks=folder / "masks")


def _masks_of_all_kinds(folder: Path) -> None:
    """Tissue in ``histoqc/``, classes in ``annotated/`` and ``annotated.png`` by value and in ``coded/`` by number."""
    shutil.copytree(folder / "masks", folder / "histoqc")
    shutil.copytree(folder / "labels", folder / "annotated")
    shutil.copy(folder / "labels" / "slide.png", folder / "annotated.png")
    (folder / "coded").mkdir()
    for path in (folder / "labels").iterdir():
        values = np.asarray(Image.open(path)) // VALUES[0]
        Image.fromarray(values.astype(np.uint8)).save(folder / "coded" / path.name)


def _originals(folder: Path) -> None:
    """The inputs of Multi_Scale_Tools: ``annotated/``, ``partitions/`` and ``images/``."""
    shutil.copytree(folder / "labels", folder / "annotated")
    _write_partitions(folder)
    _lost_scales(folder)


def _write_partitions(folder: Path) -> None:
    (folder / "partitions").mkdir()
    for split, name in zip(SPLITS, ("slide", "a", "b"), strict=True):
        (folder / "partitions" / f"list_{split}.csv").write_text(f"{name}.svs\n", encoding="utf-8")


def _lists(folder: Path) -> None:
    """A store of labelled sets, and lists of its slides in ``partitions/``."""
    _stored_labels(folder)
    _write_partitions(folder)


def _stored_labels(folder: Path) -> None:
    """A store of labelled tuples, and of labelled, linked grids at 40x to 5x."""
    grids = [ms.ExtractionSpec("grid", (m,), 224) for m in (40, 20, 10, 5)]
    tuples = ms.ExtractionSpec("centroids", (20, 10, 5), 224)
    for spec in (grids, tuples):
        _extract(folder / "slides.csv", folder / "cohort.zarr", spec, masks=folder / "labels", values=VALUES[:2])


def _extract(table: Path, store: Path, spec: object, **options: object) -> None:
    report = ms.extract(table, store, spec, threads=2, progress=False, **options)  # type: ignore[arg-type]
    assert report.is_complete, report.failures


def _one_class_a_slide(folder: Path) -> None:
    """Small slides at 20x, each of one of five classes, five of each class; a store of their linked grids."""
    for name in ("slides", "masks"):
        shutil.rmtree(folder / name)
        (folder / name).mkdir()
    first = folder / "slides" / "s00.svs"
    make_slide(first, size=(900, 900), mpp=0.5, tissue_fraction=1, levels=(1, 4), associated=False)
    names = [f"s{n:02d}" for n in range(len(VALUES) ** 2)]
    for n, name in enumerate(names):
        if n:
            shutil.copy(first, folder / "slides" / f"{name}.svs")
        mask = np.full((57, 57), VALUES[n % len(VALUES)], np.uint8)
        Image.fromarray(mask).save(folder / "masks" / f"{name}.png")
    write_table(folder / "slides.csv", [(folder / "slides" / f"{name}.svs",) for name in names], header=("path",))
    grids = [ms.ExtractionSpec("grid", (m,), 224) for m in (20, 10, 5)]
    _extract(folder / "slides.csv", folder / "cohort.zarr", grids, masks=folder / "masks", values=VALUES)
    shutil.copytree(folder / "cohort.zarr", folder / "other.zarr")


def _lost_scales(folder: Path) -> None:
    """Images of tissue: ``lost.tif``, ``folder/``, ``images/``, and ``images.csv`` with scale and split of each."""
    for name in ("folder", "images"):
        (folder / name).mkdir()
    rows = []
    for seed, split in enumerate(SPLITS):
        lost = folder / "images" / f"{seed}.tif"
        make_slide(lost, size=(512, 512), seed=seed, tissue_fraction=1, levels=(1,), associated=False, write_mpp=False)
        rows.append((f"images/{seed}.tif", 40, split))
    write_table(folder / "images.csv", rows, header=("path", "magnification", "split"))
    shutil.copy(folder / "images" / "0.tif", folder / "lost.tif")
    shutil.copy(folder / "images" / "1.tif", folder / "folder")
    about = {"task": "scale", "data": "generated slides", "licence": "MIT", "notice": ""}
    (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")


FOLDERS: dict[str, Callable[[Path], None]] = {
    "store": _stored_tuples,
    "loaders": _stored_labels,
    "export": _lists,
    "from_multi_scale_tools": _originals,
    "masks": _masks_of_all_kinds,
    "scale_detector": _lost_scales,
}
SLOW_FOLDERS: dict[str, Callable[[Path], None]] = {"classification": _one_class_a_slide}
