"""Messages in the shell name options, and every argument that a message names is known to be one or not."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import msdask
from msdask.cli.app import app
from msdask.cli.flags import ARGUMENTS, in_flags

OPTIONS = frozenset(known for known in ARGUMENTS.values() if isinstance(known, str))
PYTHON_ONLY = {
    "width",
    "height",
    "to",
    "names",
    *("ablate", "balanced", "by", "features", "object_type"),
    *("block_of", "center", "clip", "compression", "confidence", "draws", "drop_last", "epoch"),
    *("fine", "heads", "hed", "inside", "jpeg", "labeled", "layout", "levels", "listener"),
    *("models", "n", "n_test", "n_train", "num_workers", "output", "p", "points", "pooled_set", "prefetch"),
    *("quality", "rank", "repeats", "rows", "saturation", "scale", "score", "shuffle", "side", "size", "size_px"),
    *("slide", "split", "splits", "stain", "start", "start_method", "subsampling", "task"),
    *("tissue_fraction", "world_size"),
}
"""Arguments that no command has an option for."""


def _leaves(place, before=()):
    found = []
    for name in place:
        if not name.startswith("-"):
            below = _leaves(place[name], (*before, name))
            found += below or [place[name]]
    return found


def test_every_option_that_messages_may_name_is_one():
    options = {
        name
        for command in _leaves(app)
        for argument in command.assemble_argument_collection(default_parameter=app.default_parameter)
        for name in argument.names
    }
    assert OPTIONS - options == set()


def test_every_argument_that_a_message_names_is_known():
    """What is added must be put into one of the two lists, or the shell shows words of Python."""
    unknown = {}
    for path in sorted(Path(msdask.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Raise) or node.exc is None:
                continue
            texts = [n.value for n in ast.walk(node.exc) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
            names = {n for text in texts for n in re.findall(r"(?<![\w'/.{-])([a-z_0-9]+)=(?!=)", text)}
            if left := names - set(ARGUMENTS) - PYTHON_ONLY:
                unknown[path.name] = left
    assert unknown == {}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("min_tissue=70.0: expected a fraction", "--threshold 70: expected a fraction"),
        ("pass mpp=... (um/px) or magnification=..., or", "pass --mpp ... (um/px) or --slide-magnification ..., or"),
        ("give labels= or masks= (a folder)", "give --labels or --masks (a folder)"),
        ("masks='a b' is a file", "--masks 'a b' is a file"),
        ("masks='/data/m': is", "--masks /data/m: is"),
        ("pass overwrite=True to replace it", "pass --overwrite to replace it"),
        ("pass it (overwrite=True)", "pass it (--overwrite)"),
        ("magnifications=(20.0, 1.25): expected", "--magnification 20 1.25: expected"),
        ("mask_mpp=4.0, not", "--mask-magnification 2.5, not"),
        ("stride=112; ", "size + gap of 112 px; "),
        (
            "min_label=0.7, not min_label=0.5; min_tissue=0.7, not min_tissue=0.5: x",
            "--threshold 0.7, not --threshold 0.5: x",
        ),
        # what only looks like an argument
        ("'/data/mpp=0.5/a.svs': lost", "'/data/mpp=0.5/a.svs': lost"),
        ("'mpp=0.5/a.svs': lost", "'mpp=0.5/a.svs': lost"),
        ("mpp==0.5", "mpp==0.5"),
        ("client=..., at='v1'", "client=..., at='v1'"),
    ],
)
def test_arguments_are_shown_as_options(text, shown):
    assert in_flags(text, OPTIONS) == shown


def test_what_the_command_has_no_option_for_stays():
    assert in_flags("values=50 and overwrite=True", ["--overwrite"]) == "values=50 and --overwrite"
