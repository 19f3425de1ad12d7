"""The progress bar: what it shows of the events that it is told."""

from __future__ import annotations

import pytest

from msdask.progress.bar import Progress
from msdask.progress.events import BlockWritten, Outcome, RunBegun, SlideDone, Waiting


def test_the_progress_bar_of_a_notebook_is_plain_html(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    class Cell:
        def update(self, bar: object) -> None:
            shown.append(bar.data)  # type: ignore[attr-defined]

    def display(bar: object, *, display_id: bool) -> Cell:
        shown.append(bar.data)  # type: ignore[attr-defined]
        return Cell()

    pytest.importorskip("IPython")
    monkeypatch.setattr("msdask.progress.bar._is_notebook", lambda: True)
    monkeypatch.setattr("IPython.display.display", display)
    with Progress() as bar:
        bar(RunBegun("extract", "s.zarr", ("grid",), 2))
        bar(BlockWritten("a", "grid", 0, 10))
        for block in range(100):
            bar(BlockWritten("a", "grid", block, 1))
        bar(SlideDone("a", ("grid",), 0, (Outcome("a", "grid", "complete"),)))
        bar(SlideDone("b", ("grid",), 1, (Outcome("b", "grid", "failed"),)))
    assert len(shown) < 10
    assert "2/2, 110 patches" in shown[-1]
    assert "1 failed" in shown[-1]


def test_the_progress_bar_says_why_a_run_waits() -> None:
    with Progress() as bar:
        bar(RunBegun("extract", "s.zarr", ("grid",), 2))
        bar(Waiting("the cluster has no workers"))
        assert bar._bar.tasks[0].fields["failed"] == "; the cluster has no workers"
        bar(Waiting(""))
        assert bar._bar.tasks[0].fields["failed"] == ""
