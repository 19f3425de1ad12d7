"""Masks in a notebook: a picture, and what they hold."""

from __future__ import annotations

import base64
import pickle
import re

import cv2
import numpy as np
import pytest
import xarray as xr

from msdask.masks.shown import Mask


def picture(mask: Mask) -> np.ndarray:
    """(y, x, 3) uint8 RGB of the picture that is shown."""
    found = re.search("base64,([^']*)'", mask._repr_html_())
    assert found is not None
    return cv2.imdecode(np.frombuffer(base64.b64decode(found.group(1)), np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]


def test_tissue_is_where_it_is_in_the_mask() -> None:
    values = np.zeros((640, 1280), bool)
    values[160:320, 640:] = True
    shown = picture(Mask(values, dims=("y", "x"), name="tissue", attrs={"source": "msdask", "mpp": 8.0}))
    assert shown.shape == (160, 320, 3)
    is_tissue = (shown != shown[0, 0]).any(axis=2)
    np.testing.assert_array_equal(is_tissue, values[2::4, 2::4])


def test_classes_have_colours_and_their_share_of_the_slide() -> None:
    values = np.array([[0, 0, 1, 2]] * 2, np.uint8)
    mask = Mask(values, dims=("y", "x"), name="labels", attrs={"classes": ("<benign>", "tumour"), "source": "a.png"})
    assert len(np.unique(picture(mask).reshape(-1, 3), axis=0)) == 3
    text = mask._repr_html_()
    assert "class &lt;benign&gt;</th><td style='text-align:left'>25.0% of the slide" in text
    assert "unlabeled</th><td style='text-align:left'>50.0% of the slide" in text


@pytest.mark.parametrize("values", [np.ones((2, 2)), np.ones(3, bool), np.zeros((0, 3), bool)])
def test_what_is_no_mask_is_shown_as_any_array(values: np.ndarray) -> None:
    assert "<img" not in Mask(values)._repr_html_()


def test_it_is_a_data_array_in_all_else() -> None:
    mask = Mask(np.eye(3, dtype=bool), dims=("y", "x"), attrs={"mpp": 8.0})
    assert isinstance(mask, xr.DataArray)
    assert isinstance(~mask, Mask)
    assert pickle.loads(pickle.dumps(mask)).identical(mask)
    assert mask.mean().item() == pytest.approx(1 / 3)
