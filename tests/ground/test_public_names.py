"""The face of the package: `dir(ms)`, laziness, star imports, and that every public name leads somewhere."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import msdask as ms
from msdask.extras import how_to_install

LISTED = [
    alias.asname or alias.name
    for node in ast.parse(Path(ms.__file__).with_suffix(".pyi").read_text(encoding="utf-8")).body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
]
"""What type checkers and editors see."""


def _printed_by(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_dir_shows_what_type_checkers_see_and_nothing_else():
    assert dir(ms) == sorted(LISTED)
    assert [name for name in dir(ms) if name.startswith("_")] == ["__version__"]


def test_names_that_were_public_once_stay():
    classes = "ExtractionSpec PatchStore ScaleEstimate Slide"
    errors = (
        "CorruptChunkError MaskError MissingScaleError MsdaskError SlideError SpecError StoreError TileError "
        "UnreachableError WorkerLostError"
    )
    functions = (
        "centroids complete_tuples estimate_scale export extract grid link_upper_regions open_slide patches "
        "read_label_mask read_tissue_mask repair select tissue_mask"
    )
    rooms = "data models plots sample training"
    assert set(f"{classes} {errors} {functions} {rooms} __version__".split()) <= set(dir(ms))


@pytest.mark.parametrize("name", sorted(LISTED))
def test_a_public_name_leads_somewhere(name):
    if name in ("data", "models", "training"):
        pytest.importorskip("pytorch_lightning")
    found = getattr(ms, name)
    assert getattr(found, "__name__", name).rpartition(".")[2] == name


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = ms.no_such_name


def test_importing_loads_nothing_heavy():
    loaded = set(_printed_by("import sys, msdask; print(*sys.modules)"))
    heavy = {"torch", "distributed", "matplotlib", "numpy", "pandas", "dask", "zarr", "xarray", "cv2", "tensorstore"}
    assert not loaded & heavy


def test_one_name_loads_what_it_needs_and_no_more():
    loaded = set(_printed_by("import sys, msdask as ms; ms.open_slide; print(*sys.modules)"))
    assert "numpy" in loaded
    assert not loaded & {"torch", "distributed", "matplotlib"}


def test_a_star_import_gives_all_names():
    pytest.importorskip("pytorch_lightning")
    names = _printed_by("from msdask import *; print(*globals())")
    assert set(dir(ms)) <= set(names)
    assert not {"find_spec", "lazy_loader", "importlib"} & set(names)


def test_a_star_import_without_pytorch_leaves_out_the_rooms_that_need_it():
    code = (
        "import sys; sys.modules['torch'] = sys.modules['pytorch_lightning'] = None\n"
        "from msdask import *; print(*globals())"
    )
    names = set(_printed_by(code))
    assert set(dir(ms)) - names == {"data", "experiment", "models", "training"}


def test_a_room_that_needs_pytorch_says_so_where_it_is_missing():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import msdask as ms\n"
        "try: ms.data\n"
        "except ms.MsdaskError as error: print(error)"
    )
    assert how_to_install("torch") in " ".join(_printed_by(code))
