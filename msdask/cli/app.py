"""`msdask ...`: its commands, its exit codes, and how errors and warnings are shown."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Any

from cyclopts import App, CoercionError, CycloptsError, MissingArgumentError, Parameter, UnknownOptionError

from msdask._version import __version__
from msdask.cli import classify_map, segment_train
from msdask.cli.demo import demo
from msdask.cli.experiment import experiment
from msdask.cli.extract import extract
from msdask.cli.groups import HELP, MODELS, PATCHES, SLIDES, STORES
from msdask.cli.segment import segment
from msdask.cli.slides import info, mask
from msdask.cli.store import export, freeze, verify
from msdask.cli.terminal import err
from msdask.cli.tidy import ls, merge, remove, rename
from msdask.errors import MsdaskError

__all__ = ["app", "main"]

_LEAST_TYPED = len("--x")

app = App(
    name="msdask",
    help="Multi-scale patches of whole-slide images, on Dask and Zarr.",
    version=__version__,
    version_flags=["--version"],
    help_flags=["--help", "-h"],
    default_parameter=Parameter(negative=()),  # no --no-quiet
    suppress_keyboard_interrupt=False,  # main says how to go on
)
for group, commands in {
    SLIDES: (info, mask),
    PATCHES: (extract, verify, export, demo),
    STORES: (ls, freeze, remove, rename, merge),
    MODELS: (segment, experiment),
}.items():
    for command in commands:
        app.command(command, group=group)
for models in (segment_train.train, segment_train.test, classify_map.predict):
    app.command(models)
for flag in ("--help", "--version"):
    app[flag].group = HELP


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave with its exit code: 0 done, 1 something failed, 2 wrong usage, 130 interrupted."""
    warnings.showwarning = _show_warning
    chain, err.flags = _command(sys.argv[1:] if arguments is None else arguments)
    try:
        code = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        err.print(f"msdask: {_usage(error)}", markup=False)
        err.print(f"try `{' '.join(('msdask', *chain))} --help`", markup=False)
        code = 2
    except (MsdaskError, OSError) as error:
        err.print(f"msdask: {error}", markup=False)
        code = 1
    except KeyboardInterrupt:
        err.print("msdask: interrupted; what is written stays, run the same command again to go on", markup=False)
        code = 130
    sys.exit(code or 0)


def _command(arguments: Sequence[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """The command that is meant, word by word, and its options; none where there is no such command."""
    chain: list[str] = []
    place = app
    for word in arguments:
        if word.startswith("-") or word not in list(place):
            break
        chain.append(word)
        place = place[word]
    if not chain or place.default_command is None:
        return tuple(chain), frozenset()
    taken = place.assemble_argument_collection(default_parameter=app.default_parameter)
    return tuple(chain), frozenset(name for argument in taken for name in argument.names)


def _usage(error: CycloptsError) -> str:
    """What is wrong with the command line: the option as it was typed, and what was expected."""
    if isinstance(error, CoercionError) and error.token is not None and (said := error.msg or _wanted(error)):
        typed = error.token.keyword or (error.argument.names[0] if error.argument is not None else "")
        return f"{typed} {error.token.value}: {said}"
    if isinstance(error, UnknownOptionError):
        typed = (error.token.keyword or error.token.value).partition("=")[0]
        # Who shortens an option means one that begins so, not the one of the most letters in common.
        options = {*err.flags, *app.help_flags, *app.version_flags}
        meant = sorted(name for name in options if name.startswith(typed)) if len(typed) >= _LEAST_TYPED else []
        return f"Unknown option: {typed}. Did you mean {' or '.join(meant)}?" if meant else str(error)
    if isinstance(error, MissingArgumentError) and error.argument is not None and not error.argument.tokens:
        names = error.argument.names
        place = app
        for word in error.command_chain or ():
            place = place[word]
        explained = place.assemble_argument_collection(default_parameter=app.default_parameter, parse_docstring=True)
        said = next((a.parameter.help for a in explained if a.names == names and a.parameter.help), "")
        return f"{' or '.join(names)} is missing{f': {said}' if said else ''}"
    return str(error)


def _wanted(error: CoercionError) -> str:
    """What an option that has no reader of its own expects, in words of people."""
    numbers: dict[Any, str] = {float: "expected a number, such as 20", int: "expected a whole number"}
    return numbers.get(error.target_type, "")


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if issubclass(category, UserWarning):
        err.print(f"warning: {message}", markup=False)
