"""What the commands of `msdask` share: where they print, options of several of them, the cluster that they run on."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.console import Console

from msdask.cli.flags import in_flags
from msdask.cli.numbers import COUNT
from msdask.errors import MsdaskError

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["Quiet", "Scheduler", "Workers", "err", "open_client", "out", "print_dropped", "print_metrics"]


class Said(Console):
    """A console on which messages name the options of the command that runs, not arguments of Python.

    Attributes
    ----------
    flags : its options
    """

    flags: Collection[str] = ()

    def print(self, *objects: Any, **kwargs: Any) -> None:
        """Print; text in the words of the command line."""
        super().print(*(in_flags(o, self.flags) if isinstance(o, str) else o for o in objects), **kwargs)


out = Console(highlight=False, soft_wrap=True)
err = Said(stderr=True, highlight=False, soft_wrap=True)

Scheduler = Annotated[str | None, Parameter(name="--scheduler")]
Workers = Annotated[int | None, COUNT, Parameter(name="--workers")]
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


def print_dropped(dropped: Mapping[str, int], word: str) -> None:
    """Say how many of a store's patches or tuples are not learnt from, and why."""
    said = [f"{reason}: {count}" for reason, count in dropped.items() if count]
    out.print(f"{word} left out: {', '.join(said) if said else 'none'}", markup=False)


def print_metrics(metrics: Mapping[str, float]) -> None:
    """Print a metric a line."""
    for name, value in metrics.items():
        out.print(f"{name.replace('_', ' '):<24} {value:.4f}", markup=False)
