"""The progress of a run: slides, patches or tuples, these per second, time left; in a terminal or in a notebook."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self

from rich import progress as rich_progress

from msdask.progress.counting import counted
from msdask.progress.events import BlockWritten, Event, RunBegun, SlideDone, Waiting

__all__ = ["Progress"]

_NOTEBOOK_SECONDS = 0.5
"""Between two updates of a notebook's cell: each is a message to the browser."""


class Progress:
    """A listener that shows how far a run is, as long as it is open.

    Parameters
    ----------
    enabled : show anything
    unit : what blocks are made of; empty: patches, or tuples
    """

    def __init__(self, *, enabled: bool = True, unit: str = "") -> None:
        self._unit = unit
        self._slides, self._done, self._patches, self._failed = 0, 0, 0, 0
        self._rows: dict[int, int] = {}
        self._waiting = ""
        self._started = time.perf_counter()
        self._in_notebook = enabled and _is_notebook()
        self._cell: Any = None
        self._shown = 0.0
        self._bar = rich_progress.Progress(
            rich_progress.TextColumn("slides"),
            rich_progress.BarColumn(),
            rich_progress.MofNCompleteColumn(),
            rich_progress.TextColumn("{task.fields[written]}, {task.fields[rate]:,.0f}/s{task.fields[failed]}"),
            rich_progress.TimeElapsedColumn(),
            rich_progress.TextColumn("left"),
            rich_progress.TimeRemainingColumn(),
            disable=not enabled or self._in_notebook,
        )
        self._task = self._bar.add_task("slides", total=None, written=f"0 {unit or 'patches'}", rate=0.0, failed="")

    def __call__(self, event: Event) -> None:
        """Show what an event changes."""
        if isinstance(event, RunBegun):
            self._slides, self._started = event.slides, time.perf_counter()
            self._bar.update(self._task, total=event.slides)
        elif isinstance(event, BlockWritten):
            self._patches += event.patches
            self._rows[event.magnifications] = self._rows.get(event.magnifications, 0) + event.patches
            self._show()
        elif isinstance(event, Waiting):
            self._waiting = f"; {event.reason}" if event.reason else ""
            self._show()
        elif isinstance(event, SlideDone):
            self._done += 1
            self._failed += any(outcome.state == "failed" for outcome in event.outcomes)
            self._bar.advance(self._task)
            self._show()

    def _show(self) -> None:
        elapsed = time.perf_counter() - self._started
        rate = self._patches / elapsed if elapsed > 0 else 0.0
        written = f"{self._patches:,} {self._unit}"
        if not self._unit:
            written = counted((n, magnifications) for magnifications, n in self._rows.items())
        failed = (f", {self._failed} failed" if self._failed else "") + self._waiting
        if self._in_notebook:
            self._show_cell(f"{written}, {rate:,.0f}/s{failed}, {elapsed:.1f} s")
        else:
            self._bar.update(self._task, written=written, rate=rate, failed=failed)

    def _show_cell(self, text: str) -> None:
        """A bar of plain HTML: rich's needs ipywidgets, and leaves nothing in the stored notebook."""
        from IPython.display import HTML, display

        if self._cell is not None and time.perf_counter() - self._shown < _NOTEBOOK_SECONDS:
            return
        self._shown = time.perf_counter()
        bar = HTML(
            f"slides <progress value='{self._done}' max='{max(1, self._slides)}'></progress> "
            f"{self._done}/{self._slides}, {text}"
        )
        if self._cell is None:
            self._cell = display(bar, display_id=True)
        else:
            self._cell.update(bar)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if self._in_notebook:
            self._shown = 0.0
            self._show()


def _is_notebook() -> bool:
    """Whether a Jupyter kernel runs this code; never imports IPython itself."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")
