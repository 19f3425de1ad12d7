"""`msdask ...`: its commands, its exit codes, and how errors and warnings are shown."""

from __future__ import annotations

import sys
import warnings
from typing import Any

from cyclopts import App, CycloptsError, Parameter

from msdask._version import __version__
from msdask.cli import classify_map, segment_train
from msdask.cli.demo import demo
from msdask.cli.experiment import experiment
from msdask.cli.extract import extract
from msdask.cli.segment import segment
from msdask.cli.slides import info, mask
from msdask.cli.store import export, freeze, verify
from msdask.cli.terminal import err
from msdask.errors import MsdaskError

__all__ = ["app", "main"]

app = App(
    name="msdask",
    help="Multi-scale patches of whole-slide images, on Dask and Zarr.",
    version=__version__,
    version_flags=["--version"],
    help_flags=["--help", "-h"],
    default_parameter=Parameter(negative=()),  # no --no-quiet
    suppress_keyboard_interrupt=False,  # main says how to go on
)
commands = (
    info,
    mask,
    extract,
    verify,
    freeze,
    export,
    segment_train.train,
    segment_train.test,
    classify_map.predict,
    segment,
    experiment,
    demo,
)
for command in commands:
    app.command(command)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave with its exit code: 0 done, 1 something failed, 2 wrong usage, 130 interrupted."""
    warnings.showwarning = _show_warning
    try:
        code = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        err.print(f"msdask: {error}", markup=False)
        err.print("try `msdask --help`", markup=False)
        code = 2
    except (MsdaskError, OSError) as error:
        err.print(f"msdask: {error}", markup=False)
        code = 1
    except KeyboardInterrupt:
        err.print("msdask: interrupted; what is written stays, run the same command again to go on", markup=False)
        code = 130
    sys.exit(code or 0)


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if issubclass(category, UserWarning):
        err.print(f"warning: {message}", markup=False)
