"""How the patches of a batch are dealt to threads."""

from __future__ import annotations

from concurrent.futures import Future
from functools import partial
from threading import get_ident

import pytest

from msdask.errors import CorruptChunkError
from msdask.store.reading_threads import PATCHES_A_TASK, Part, start


@pytest.mark.parametrize(
    ("patches", "waits", "tasks"),
    [
        ([1] * PATCHES_A_TASK, False, 1),
        ([1] * (PATCHES_A_TASK + 1), False, 2),
        ([PATCHES_A_TASK, 3, PATCHES_A_TASK, 2], False, 3),
        ([1, 1, 2], True, 3),
        ([], False, 0),
    ],
)
def test_small_parts_share_a_task_unless_a_server_is_waited_for(patches: list[int], waits: bool, tasks: int) -> None:
    done: list[tuple[int, int]] = []
    parts = [Part(n, waits, partial(lambda i: done.append((i, get_ident())), i)) for i, n in enumerate(patches)]
    futures = start(parts)
    for future in futures:
        future.result(timeout=60)
    assert len(futures) == tasks
    assert sorted(i for i, _ in done) == list(range(len(patches)))
    assert get_ident() not in {thread for _, thread in done}


def test_what_a_part_raises_comes_out_of_its_future_and_futures_of_others_are_handed_on() -> None:
    def fail() -> None:
        raise CorruptChunkError("array 'a' chunk (1, 0)")

    other: Future[None] = Future()
    futures = start([Part(1, False, lambda: None), other, Part(1, False, fail)])
    assert len(futures) == 2
    assert other in futures
    (mine,) = (future for future in futures if future is not other)
    with pytest.raises(CorruptChunkError, match="chunk"):
        mine.result(timeout=60)
