"""The progress bar of a cohort: slides, patches, patches per second, time left."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

from rich import progress as rich_progress

__all__ = ["Progress"]


class Progress:
    """Counts slides and patches, in a terminal or a notebook; may be told from any thread."""

    def __init__(self, slides: int, *, enabled: bool = True) -> None:
        self._lock = threading.Lock()
        self._patches = self._failed = 0
        self._bar = rich_progress.Progress(
            rich_progress.TextColumn("slides"),
            rich_progress.BarColumn(),
            rich_progress.MofNCompleteColumn(),
            rich_progress.TextColumn(
                "{task.fields[patches]:,} patches, {task.fields[rate]:,.0f}/s{task.fields[failed]}"
            ),
            rich_progress.TimeElapsedColumn(),
            rich_progress.TextColumn("left"),
            rich_progress.TimeRemainingColumn(),
            disable=not enabled,
        )
        self._task = self._bar.add_task("slides", total=slides, patches=0, rate=0.0, failed="")

    def patches_done(self, count: int) -> None:
        """A block of `count` patches is written."""
        with self._lock:
            self._patches += count
            self._show()

    def slide_done(self, *, failed: bool) -> None:
        """A slide is complete, or has failed."""
        with self._lock:
            self._failed += failed
            self._bar.advance(self._task)
            self._show()

    def _show(self) -> None:
        elapsed = self._bar.tasks[0].elapsed or 0.0
        rate = self._patches / elapsed if elapsed > 0 else 0.0
        failed = f", {self._failed} failed" if self._failed else ""
        self._bar.update(self._task, patches=self._patches, rate=rate, failed=failed)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
