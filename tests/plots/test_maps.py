"""Figures of maps: what lies where, what the legend says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from PIL import Image

import msdask as ms
from msdask.errors import SpecError


@pytest.fixture
def slide(tmp_path: Path) -> ms.Slide:
    Image.fromarray(np.full((200, 300, 3), 230, np.uint8)).save(tmp_path / "a.png")
    return ms.open_slide(tmp_path / "a.png", mpp=0.5)


@pytest.fixture
def found() -> xr.Dataset:
    predicted = np.array([[0, 1, -1], [1, 1, -1]], np.int16)
    coords = {"y": [50.0, 150.0], "x": [50.0, 150.0, 250.0], "class": ["gland", "fat"]}
    return xr.Dataset({"predicted": (("y", "x"), predicted)}, coords, {"shape": [200, 300]})


def test_classes_lie_where_they_were_found_and_the_legend_has_their_shares(slide, found):
    figure = ms.plots.class_map(slide, found, opacity=0.4)
    axes = figure.axes[0]
    drawn = axes.images[1]
    assert drawn.get_extent() == [0, 300, 200, 0]
    colors = drawn.get_array()
    assert (colors[..., 3] == [[0.4, 0.4, 0], [0.4, 0.4, 0]]).all()
    assert (colors[0, 1] == colors[1, 0]).all()
    assert (colors[0, 0] != colors[0, 1]).any()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["class gland (25.0%)", "class fat (75.0%)"]
    (bar,) = [patch for patch in axes.patches if patch.get_gid() == "scale bar"]
    assert bar.get_width() * 0.5 in (10, 20, 50)  # um


def test_values_are_colored_and_what_is_not_known_is_clear(slide, found):
    values = xr.DataArray([[0.0, 1.0, np.nan], [0.5, 0.2, 0.1]], coords={"y": found["y"], "x": found["x"]})
    figure = ms.plots.heat_map(slide, values, title="attention to 10x")
    colors = figure.axes[0].images[1].get_array()
    assert (colors[..., 3] == [[0.6, 0.6, 0], [0.6, 0.6, 0.6]]).all()
    assert figure.axes[0].get_title(loc="left") == "a.png: attention to 10x"
    with pytest.raises(SpecError, match="choose one"):
        ms.plots.heat_map(slide, values.expand_dims(magnification=2))


def test_a_map_of_another_slide_is_refused(slide, found):
    with pytest.raises(SpecError, match="300 x 200 px, the map is of one of 30 x 20"):
        ms.plots.class_map(slide, found.assign_attrs(shape=[20, 30]))
