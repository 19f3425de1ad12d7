"""Work for engines, which workers import by name, and what may follow what in the events of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msdask.engines.engine import Engine
from msdask.errors import SlideError
from msdask.progress.events import BlockWritten, Event, RunBegun, RunDone, SlideBegun, SlideDone, Waiting, Warned

__all__ = ["check_order", "marked_block", "per_slide", "ran", "refused"]


def marked_block(job: Path, block: int, **options: Any) -> int:
    """A block that leaves a file behind; 3 in a folder called "bad" raises, after the others have had time to begin."""
    if job.name == "bad" and block == 3:
        raise SlideError(f"'{job.name}': block {block} is not there")
    (job / str(block)).write_text("")
    return 10 * block


def refused(message: str) -> None:
    """Raise an error that msdask raises on purpose."""
    raise SlideError(message)


def ran(engine: Engine, job: Path, blocks: Sequence[int]) -> tuple[list[tuple[int, int]], Exception | None]:
    """What `on_block` was told, sorted, and what a run of blocks raised."""
    told: list[tuple[int, int]] = []
    job.mkdir()
    failure = None
    with engine.job(0) as trace:
        try:
            engine.run("step: blocks", trace, marked_block, job, blocks, lambda *block: told.append(block))
        except Exception as error:
            failure = error
    return sorted(told), failure


def check_order(events: Sequence[Event]) -> None:
    """Raise unless these are the events of a whole run, in an order that the page of events promises."""
    begun, *between, done = events
    assert isinstance(begun, RunBegun)
    assert isinstance(done, RunDone)
    state: dict[tuple[str, tuple[str, ...]], str] = {}
    for event in between:
        if isinstance(event, Waiting):
            continue
        assert isinstance(event, SlideBegun | BlockWritten | Warned | SlideDone), event
        if isinstance(event, SlideBegun):
            assert (event.slide_id, event.sets) not in state, event
            state[event.slide_id, event.sets] = "begun"
        elif isinstance(event, SlideDone):
            assert state[event.slide_id, event.sets] == "begun", event
            assert {outcome.set_name for outcome in event.outcomes} <= set(event.sets), event
            state[event.slide_id, event.sets] = "done"
        else:
            name = event.set_name if isinstance(event, BlockWritten) else None
            own = [which for which in state if which[0] == event.slide_id and (name is None or name in which[1])]
            assert any(state[which] == "begun" for which in own), event
    assert set(state.values()) <= {"done"}
    assert len(state) == begun.slides


def per_slide(events: Sequence[Event], store: Path | None = None) -> dict[str, Counter[str]]:
    """The events of each slide as a multiset, without what may differ: durations, workers, the path of the store."""
    found: dict[str, Counter[str]] = {}
    for event in events:
        if isinstance(event, RunBegun | RunDone | Waiting):
            continue
        shown = repr(event)
        if isinstance(event, SlideDone):
            rows = [{k: v for k, v in o.row().items() if k not in ("seconds", "workers")} for o in event.outcomes]
            shown = f"done {event.order} {event.sets} {rows}"
        found.setdefault(event.slide_id, Counter())[shown.replace(str(store), "store")] += 1
    return found
