"""What the commands that apply a network to many slides have in common: how they run, and what they print."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msdask.cli.options import Elsewhere
from msdask.cli.terminal import err, out

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["print_slides", "running"]


@contextmanager
def running(elsewhere: Elsewhere, *, quiet: bool, unit: str | None = None) -> Iterator[dict[str, Any]]:
    """The arguments that say where a run is and who hears of it; its warnings are printed when it is over."""
    from msdask.progress.bar import Progress
    from msdask.progress.events import Event, Warned

    warned: list[Warned] = []

    def hear(event: Event) -> None:
        if isinstance(event, Warned):
            warned.append(event)

    named = {} if unit is None else {"unit": unit}
    with elsewhere.opened() as where, Progress(enabled=not quiet, **named) as bar:
        yield {**where, "listeners": [bar, hear]}
    for event in warned:
        err.print(f"warning: {event.slide_id}: {event.message}", markup=False)


def print_slides(found: pd.DataFrame, output: Path, said: Callable[[Mapping[Hashable, Any]], str]) -> int:
    """Print what became of every slide; 1 where one failed.

    Parameters
    ----------
    found : a row a slide, with slide_id, state and reason
    output : folder that has everything
    said : what there is to say of the row of a slide that did not fail
    """
    failed = found["state"] == "failed"
    for slide_id, reason in found.loc[failed, ["slide_id", "reason"]].itertuples(index=False):
        err.print(f"failed: {slide_id}: {reason}", markup=False)
    for row in found[~failed].to_dict("records"):
        out.print(f"{row['slide_id']}: {said(row)}", markup=False)
    out.print(f"{output}: {len(found)} slides{f', {int(failed.sum())} failed' if failed.any() else ''}", markup=False)
    return 1 if failed.any() else 0
