"""What a worker of a cluster does with a task: the function within its time, its result or error as small values."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from msdask.engines.deadline import deadline
from msdask.engines.portable import portable
from msdask.engines.software import OtherSoftwareError, Software, software

__all__ = ["Came", "at_work", "parcel"]


class Came(NamedTuple):
    """What comes back of a task.

    Attributes
    ----------
    value : what its function gave
    error : what it raised. As a value: a slide that cannot be read is no fault of the cluster, to be logged by it with
        a traceback, and an error that cannot be pickled would leave the client waiting
    worker : address
    seconds : how long it ran
    """

    value: Any
    error: Exception | None
    worker: str
    seconds: float


def parcel(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], *, timeout: float | None
) -> bytes:
    """A call of `at_work`: whoever opens it with `pickle.loads` makes it, and gets what came of it.

    So a worker without this msdask fails with the task. What a worker cannot open when it comes would end it.
    """
    from distributed.protocol.pickle import dumps

    parcel: bytes = dumps(_Call(function, args, kwargs, timeout, software()))
    return parcel


class _Call:
    """Arguments of `at_work`; opened, its result."""

    def __init__(self, *args: Any) -> None:
        self._args = args

    def __reduce__(self) -> tuple[Any, ...]:
        return at_work, self._args


def at_work(
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    timeout: float | None,
    expected: Software,
) -> Came:
    """Run a function on a worker, within its time.

    Parameters
    ----------
    function, args, kwargs : what to call
    timeout : seconds, or None
    expected : the msdask of the client; with another one nothing is run
    """
    from distributed import get_worker

    value, failure, began = None, None, time.monotonic()
    worker = str(get_worker().address)
    if (found := software()) != expected:
        return Came(None, OtherSoftwareError({worker: str(found)}, expected), worker, 0.0)
    try:
        with _own_threads(), deadline(timeout):
            value = function(*args, **kwargs)
    except Exception as error:
        failure = portable(error)
    return Came(value, failure, worker, time.monotonic() - began)


_own_setting = ExitStack()
_using_own = 0
_own_lock = threading.Lock()


@contextmanager
def _own_threads() -> Iterator[None]:
    """What a task computes with dask is computed in its own thread: dask would send it to the cluster as new tasks.

    Counted, since dask's setting is one for all threads of a process.
    """
    import dask

    global _using_own
    with _own_lock:
        if _using_own == 0:
            _own_setting.enter_context(dask.config.set(scheduler="synchronous"))
        _using_own += 1
    try:
        yield
    finally:
        with _own_lock:
            _using_own -= 1
            if _using_own == 0:
                _own_setting.close()
