"""The figure of an experiment."""

from __future__ import annotations

import pytest

from msdask.errors import SpecError
from msdask.plots import experiment_scores


def test_each_score_has_a_panel_with_each_model():
    scores = {"kappa": {"a": [0.1, 0.3], "b": [0.5]}, "macro_f1": {"a": [0.2, 0.4], "b": [float("nan")]}}
    figure = experiment_scores(scores, baselines=["b"], title="two models")
    kappa, f1 = figure.axes
    assert (kappa.get_xlabel(), f1.get_xlabel()) == ("kappa", "macro F1")
    assert [label.get_text() for label in kappa.get_yticklabels()] == ["a", "b"]
    means = [line.get_xdata()[0] for line in kappa.lines if line.get_marker() == "D"]
    assert means == pytest.approx([0.2, 0.5])
    assert len([line for line in f1.lines if line.get_marker() == "D"]) == 1


def test_nothing_to_draw_is_refused():
    with pytest.raises(SpecError, match="no scores given"):
        experiment_scores({})
