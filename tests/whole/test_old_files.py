"""Stores and models that earlier versions wrote still open, with the same pixels, tables and outputs."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from msdask.models import ScaleRegressor
from msdask.models.files import load_model
from msdask.store import PatchStore

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
EXPECTED = json.loads((FIXTURES / "store-1.json").read_text())
"""Of each slide of each set, SHA-256 of every array as the version that wrote it read it (raw and lossless alike)."""


def _sha256(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


@pytest.fixture(params=["raw", "lossless", "jpeg"])
def old_store(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A store of schema 1: two slides, two linked grids and a set of tuples, labels, splits."""
    with tarfile.open(FIXTURES / f"store-1-{request.param}.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / f"store-{request.param}"


def test_a_store_of_schema_1_opens_with_every_array_as_it_was(old_store: Path) -> None:
    store = PatchStore(old_store)
    found = {}
    for name, patch_set in store.items():
        for slide_id in patch_set.slides:
            data = patch_set.open(slide_id).compute()
            arrays = {
                v: hashlib.sha256(np.ascontiguousarray(data[v].values).tobytes()).hexdigest() for v in data.variables
            }
            found[f"{name}/{slide_id}"] = arrays | {"patches": data.sizes["patch"]}
    if store.codec == "jpeg":  # its decoder may round otherwise
        expected = {key: {**arrays, "image": found[key]["image"]} for key, arrays in EXPECTED.items()}
    else:
        expected = EXPECTED
    assert found == expected


def test_a_store_of_schema_1_is_sound_and_lists_its_slides(old_store: Path) -> None:
    store = PatchStore(old_store)
    assert all(problems == [] for problems in store.verify().values())
    index = store["grid-10x-16"].index()
    assert (index.attrs["slides"], index.attrs["splits"]) == (["a.svs", "b.svs"], ["train", "test"])
    assert (
        len(store["grid-10x-16"].table())
        == EXPECTED["grid-10x-16/a.svs"]["patches"] + EXPECTED["grid-10x-16/b.svs"]["patches"]
    )
    columns = set(store["grid-10x-16"].table().columns)
    assert {"brightness", "contrast", "filled"} <= columns
    assert not {"focus", "blank", "pen", "dark"} & columns, "they were not measured then"


def test_zarr_itself_opens_a_store_of_schema_1_by_its_codecs_names(old_store: Path) -> None:
    image = zarr.open_array(store=old_store / "grid-10x-16" / "a.svs" / "image", mode="r")
    assert image[...].mean() > 100


def test_a_model_file_of_format_1_gives_the_outputs_that_it_gave() -> None:
    model, about = load_model(FIXTURES / "model-1.safetensors")
    assert isinstance(model, ScaleRegressor)
    assert about["licence"] == "MIT"
    images = torch.arange(2 * 3 * 32 * 32).remainder(251).to(torch.uint8).view(2, 3, 32, 32)
    assert model.magnification(images).tolist() == pytest.approx([14.16263198852539, 14.124591827392578], rel=1e-4)
