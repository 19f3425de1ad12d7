"""What the tests of stores share: small selections, many blocks, and the bytes of a whole tree."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from msdask.cutting.lazy_patches import patches
from msdask.extraction.slide_job import Target
from msdask.selection.select import centroids, grid
from msdask.slides.slide import open_slide
from msdask.spec import ExtractionSpec
from msdask.store import documents, layout, manifest
from msdask.store.integrity import digest_of, slide_checksum
from msdask.store.slide_place import SlidePlace
from msdask.store.sources import FOLDER

BLOCK = 16
"""Images a block in these tests: a small slide then has several shards."""


def use_small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut patch sets into blocks of at most 16 images."""
    monkeypatch.setattr("msdask.cutting.lazy_patches.MAX_PATCHES_PER_BLOCK", BLOCK)


def lazy_grid(path: Path, *, magnification: float = 10, patch_size: int = 64, **options: Any) -> xr.Dataset:
    """Lazy patches of a grid over the whole slide: 108 of the small slide."""
    slide = open_slide(path)
    return patches(slide, grid(slide, magnification=magnification, patch_size=patch_size, **options))


def lazy_tuples(path: Path, **options: Any) -> xr.Dataset:
    """Lazy tuples at 10x, 5x and 2.5x, whose contexts reach outside."""
    slide = open_slide(path)
    return patches(slide, centroids(slide, magnifications=[10, 5, 2.5], patch_size=64, **options))


def tree(path: Path) -> dict[str, str]:
    """Relative path -> sha256 of every file below `path`."""
    files = sorted(f for f in path.rglob("*") if f.is_file())
    return {f.relative_to(path).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def grid_specs(spec: ExtractionSpec, magnifications: Sequence[float]) -> tuple[ExtractionSpec, ...]:
    """One grid spec a magnification, otherwise like `spec`."""
    return tuple(replace(spec, mode="grid", magnifications=(float(m),)) for m in magnifications)


def copy_store(store: Path, target: Path) -> Path:
    """Copy a store with what lies beside it: where its slides were read."""
    shutil.copytree(store, target)
    sources = Path(store).parent / FOLDER
    if sources.is_dir() and sources.parent != Path(target).parent:
        shutil.copytree(sources, Path(target).parent / FOLDER, dirs_exist_ok=True)
    return target


def noted_source(store: Path, set_name: str, slide_id: str) -> Path:
    """The file that says where a stored slide was read."""
    fingerprint = documents.read_attrs(store / set_name / slide_id)["fingerprint"]
    return Path(store).parent / FOLDER / fingerprint / f"{slide_id}.json"


def target(folder: Path) -> Target:
    """Where a slide "s" goes in a store in a folder, in its place."""
    place = SlidePlace(str(folder), "set", "s")
    return Target(place, place.path)


def forge(
    store: Path,
    set_name: str,
    slide_id: str,
    columns: Mapping[str, np.ndarray] | None = None,
    change: Callable[[dict[str, Any]], object] | None = None,
) -> None:
    """Change a complete slide as msdask itself would: with digests, checksum, seal and manifest that fit."""
    place = SlidePlace(str(store), set_name, slide_id)
    attrs = documents.read_attrs(place.path)
    for name, values in (columns or {}).items():
        dims = documents.read_document(Path(place.path, name))["dimension_names"]  # type: ignore[index]
        layout.create_column(place.path, name, values, dims)
        attrs["digests"][name] = digest_of(values)
    if change is not None:
        change(attrs)
    inside = documents.array_documents(place.path, attrs["arrays"])
    attrs["checksum"] = slide_checksum(attrs, inside)
    documents.write_sealed(place.path, attrs, inside)
    manifest.enter_slide(place, attrs)
