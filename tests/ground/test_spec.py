"""ExtractionSpec: one value, one name, one hash; nonsense is refused with the field's name."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import fields

import numpy as np
import pytest

from msdask.errors import SpecError
from msdask.spec import ExtractionSpec, format_magnification


def test_magnifications_are_put_in_order() -> None:
    assert ExtractionSpec("centroids", (5, 20, 10)).magnifications == (20.0, 10.0, 5.0)


def test_one_magnification_may_be_given_as_a_number() -> None:
    assert ExtractionSpec("grid", 10).magnifications == (10.0,)


def test_stride_defaults_to_the_patch_size() -> None:
    assert ExtractionSpec("grid", (10,), patch_size=96).stride == 96


def test_names() -> None:
    assert ExtractionSpec("grid", (10,)).name == "grid-10x-224"
    assert ExtractionSpec("centroids", (20, 10, 5)).name == "centroids-20x-10x-5x-224"
    assert format_magnification(1.25) == "1.25x"


def test_hash_is_the_sha256_of_compact_sorted_json() -> None:
    spec = ExtractionSpec("grid", (10,), roi=(0, 0, 100, 200))
    document = json.dumps(spec.to_dict(), sort_keys=True, separators=(",", ":"))
    assert spec.hash == hashlib.sha256(document.encode()).hexdigest()


@pytest.mark.parametrize(
    "spec",
    [
        ExtractionSpec("grid", (10,)),
        ExtractionSpec("centroids", (20, 10, 5), stride=192, roi="auto", unlabeled="keep", inside=False, codec="jpeg"),
        ExtractionSpec("grid", (15,), roi=(1.5, 2, 300, 400)),
    ],
)
def test_dict_and_back_is_the_same_spec(spec: ExtractionSpec) -> None:
    back = ExtractionSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert back == spec
    assert back.hash == spec.hash


@pytest.mark.parametrize(
    "options",
    [
        {"min_tissue": 1},
        {"min_tissue": np.float32(1)},
        {"patch_size": np.int64(224)},
        {"inside": 1},
        {"inside": np.True_},
        {"stride": 224},
        {"roi": "whole"},
    ],
)
def test_equal_specs_have_equal_hashes(options: dict) -> None:
    plain = ExtractionSpec("grid", (10,), **{"min_tissue": 1.0} if "min_tissue" in options else {})
    other = ExtractionSpec("grid", (np.float64(10),), **options)
    assert other == plain
    assert other.hash == plain.hash


def test_the_spec_of_an_older_store_keeps_its_hash() -> None:
    """Written before specs had areas for masks; computed by that version."""
    document = (
        '{"allow_upsampling":false,"codec":"raw","decode":"scaled","inside":true,"magnifications":[10.0],'
        '"mask_mpp":8.0,"min_label":0.7,"min_tissue":0.7,"mode":"grid","pad":255,"patch_size":224,"roi":"whole",'
        '"source":"coarsest","stride":224,"tolerance":0.05,"unlabeled":"drop"}'
    )
    spec = ExtractionSpec.from_dict(json.loads(document))
    assert spec == ExtractionSpec("grid", (10,)) == ExtractionSpec("grid", (10,), min_area_um2=10_000)
    assert spec.to_json() == document
    assert spec.hash == "d22f0c2e0a1353b7a353f460410e2c23674a39dd050370048d019fc5b632184c"


def test_every_field_changes_the_hash() -> None:
    base = ExtractionSpec("centroids", (20, 10))
    changed = {
        "mode": "grid",
        "magnifications": (20.0, 5.0),
        "patch_size": 128,
        "stride": 128,
        "min_tissue": 0.5,
        "min_label": 0.5,
        "unlabeled": "keep",
        "roi": "auto",
        "inside": False,
        "pad": 0,
        "source": "finest",
        "decode": "exact",
        "allow_upsampling": True,
        "tolerance": 0.0,
        "mask_mpp": 4.0,
        "codec": "lossless",
        "min_area_um2": 5000.0,
        "max_hole_um2": 0.0,
        "label_maps": True,
    }
    assert set(changed) == {f.name for f in fields(base)}
    changed["mode"], one = "centroids", ExtractionSpec("grid", (20,))
    hashes = {ExtractionSpec.from_dict({**base.to_dict(), name: value}).hash for name, value in changed.items()}
    assert len(hashes | {one.hash}) == len(changed) + 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mode", "dense"),
        ("magnifications", ()),
        ("magnifications", (0,)),
        ("magnifications", (-20,)),
        ("magnifications", (math.nan,)),
        ("magnifications", (20, 20)),
        ("magnifications", (20, 10)),
        ("magnifications", (1e6,)),
        ("magnifications", "20"),
        ("magnifications", None),
        ("patch_size", 0),
        ("patch_size", -224),
        ("patch_size", 10**9),
        ("patch_size", 224.5),
        ("patch_size", "224"),
        ("patch_size", True),
        ("stride", 0),
        ("stride", 1.5),
        ("min_tissue", 1.5),
        ("min_tissue", -0.1),
        ("min_tissue", math.nan),
        ("min_tissue", "0.7"),
        ("min_label", 2),
        ("unlabeled", "maybe"),
        ("roi", "left"),
        ("roi", (0, 0, 10)),
        ("roi", (0, 0, 0, 10)),
        ("roi", (0, 0, math.inf, 10)),
        ("roi", 7),
        ("inside", "False"),
        ("pad", 256),
        ("source", "level 1"),
        ("decode", "fast"),
        ("tolerance", 0.5),
        ("mask_mpp", 0),
        ("min_area_um2", -1),
        ("max_hole_um2", math.inf),
        ("max_hole_um2", "7500"),
        ("codec", "png"),
    ],
)
def test_nonsense_is_refused_by_name(field: str, value: object) -> None:
    options = {"mode": "grid", "magnifications": (10,), field: value}
    with pytest.raises(SpecError, match=field):
        ExtractionSpec(**options)


def test_unknown_and_missing_fields_are_refused_by_name() -> None:
    with pytest.raises(SpecError, match="overlap"):
        ExtractionSpec.from_dict({"mode": "grid", "magnifications": [10], "overlap": 0.5})
    with pytest.raises(SpecError, match="magnifications"):
        ExtractionSpec.from_dict({"mode": "grid"})
