"""The figure of a confusion matrix."""

from __future__ import annotations

import numpy as np
import pytest

from msdask.errors import SpecError
from msdask.plots import confusion_matrix


def test_every_cell_has_its_count_and_the_color_of_its_share():
    figure = confusion_matrix(np.array([[1200, 400], [0, 0]]), ["benign", "cancer"], title="test")
    axes = figure.axes[0]
    assert [t.get_text() for t in axes.texts] == ["1,200", "400", "0", "0"]
    np.testing.assert_allclose(axes.images[0].get_array(), [[0.75, 0.25], [0, 0]])
    assert [t.get_text() for t in axes.get_xticklabels()] == ["benign", "cancer"]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("predicted", "true", "test")


def test_a_matrix_of_another_number_of_classes_is_refused():
    with pytest.raises(SpecError, match=r"shape \(2, 2\): expected a row and a column for 3"):
        confusion_matrix(np.eye(2, dtype=int), list("abc"))
