"""As if the machine had fewer cores: this process and all that it starts are bound to some, and msdask counts those."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from unittest import mock

__all__ = ["all_cores", "can_bind", "powers_of_two", "some_cores"]

_TASKS = Path("/proc/self/task")


def can_bind() -> bool:
    """Whether processes can be bound to cores here: on Linux."""
    return hasattr(os, "sched_setaffinity") and _TASKS.is_dir()


def all_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if can_bind() else os.cpu_count() or 1


def powers_of_two(most: int) -> list[int]:
    """1, 2, 4 ... and `most` itself.

    >>> powers_of_two(24)
    [1, 2, 4, 8, 16, 24]
    """
    return sorted({most, *(1 << i for i in range(most.bit_length()) if 1 << i <= most)})


@contextmanager
def some_cores(count: int) -> Iterator[None]:
    """Use `count` cores within; where processes cannot be bound to them, msdask at least counts no more."""
    import msdask.extraction.cohort  # noqa: F401  whatever counts cores is imported, so that it can be told otherwise

    counting = [m for name, m in sys.modules.items() if name.startswith("msdask.engines") and hasattr(m, "CPU_COUNT")]
    with ExitStack() as stack:
        for module in counting:
            stack.enter_context(mock.patch.object(module, "CPU_COUNT", count))
        if can_bind():
            before = os.sched_getaffinity(0)
            stack.callback(_bind, before)
            _bind(set(sorted(before)[:count]))
        yield


def _bind(cores: set[int]) -> None:
    """Every thread of this process: those that they start later, and processes, inherit it."""
    for task in _TASKS.iterdir():
        with suppress(ProcessLookupError):  # it has just ended
            os.sched_setaffinity(int(task.name), cores)
