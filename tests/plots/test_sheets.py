"""A sheet by a column shows the patches of its lowest and highest values, and says which."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from msdask import plots
from msdask.errors import SpecError
from msdask.sample.slides import SampleSlide
from msdask.store.patch_set import PatchSet
from msdask.store.patch_store import PatchStore
from tests.tools.store_tools import lazy_tuples


@pytest.fixture
def patch_set(small_slide: SampleSlide, tmp_path: Path) -> PatchSet:
    store = PatchStore(tmp_path / "s.zarr")
    store.write(lazy_tuples(small_slide.path))
    return store[next(iter(store))]


def test_the_lowest_the_highest_and_some_between_are_shown(patch_set: PatchSet) -> None:
    table = patch_set.table().sort_values("blank", kind="stable")
    figure = plots.sheet(patch_set, by="blank", n=3)
    shown = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
    assert len(shown) == 9
    for first, rows in ((0, table["row"][:3]), (6, table["row"][-3:])):
        expected = patch_set.read(table["slide_id"].iloc[0], rows.to_numpy())[:, 0]
        np.testing.assert_array_equal(shown[first : first + 3], expected)
    words = [text.get_text() for text in figure.texts]
    assert [word for word in words if word.startswith("blank: ")] == [
        "blank: lowest",
        "blank: random",
        "blank: highest",
    ]
    assert f"blank {table['blank'].iloc[0]:.4g}, row {table['row'].iloc[0]}" in "\n".join(words)
    assert len(plots.sheet(patch_set, by="tissue", show="highest", n=2).axes) == 6


def test_a_column_that_is_none_is_refused_with_those_that_are(patch_set: PatchSet) -> None:
    with pytest.raises(SpecError, match=r"by='sharpness' .* brightness, contrast, filled, focus, blank, pen, dark"):
        plots.sheet(patch_set, by="sharpness")
