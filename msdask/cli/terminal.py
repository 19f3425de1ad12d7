"""What the commands of `msdask` share: where they print, options of several of them, the cluster that they run on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Console

from msdask.errors import MsdaskError

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["Quiet", "Scheduler", "Workers", "err", "open_client", "out"]

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

Scheduler = Annotated[str | None, Parameter(name="--scheduler")]
Workers = Annotated[int | None, Parameter(name="--workers")]
Quiet = Annotated[bool, Parameter(name=["--quiet", "-q"], negative=())]


@contextmanager
def open_client(scheduler: str | None) -> Iterator[Client | None]:
    """A client of the scheduler that was named, or none."""
    if scheduler is None:
        yield None
        return
    from distributed import Client

    try:
        client = Client(scheduler)
    except (OSError, ValueError) as error:
        raise MsdaskError(f"no Dask scheduler answers at '{scheduler}': {error}") from error
    with client:
        err.print(f"dashboard: {client.dashboard_link}", markup=False)
        yield client
