"""What every command of `msdask` takes: names, short names and defaults are a promise to scripts that are written."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import pytest
from cyclopts import CycloptsError

from msdask.cli.app import app, main
from msdask.cli.classify_options import Branches, ClassifierRecipe, Tuples
from msdask.cli.options import Cut, Masks, TrainingRecipe, Where
from msdask.errors import SpecError

WHERE = """
--threads -p = None
--scheduler = None
--workers = None
--tries = 3
--timeout = None
--quiet -q = False
"""
MASKS = """
--masks -t = None
--labels = None
--values = None
"""
PARTS = """
--magnification -m = None
--batch-size -b = 128
--lists = None
--ratios = None
--seed = 0
"""
MAPPED = """
--magnification -m = None
--set = None
--classes -n = None
--batch-size -b = 8
--lists = None
--ratios = None
--seed = 0
"""
TUPLES = """
--relation -r = None
--magnification -m = None
--set = None
--classes -n = None
--batch-size -b = 64
--lists = None
--ratios = None
--mpp-range = None
--seed = 0
"""
PROMISED = {
    "info": """
--slide = None
--mpp = None
--slide-magnification = None
--missing-mpp = None
--region = None
--strict --no-strict = False
--readers = False
""",
    "mask": """
--slide
--output -o
--mask-magnification -w = 1.25
--min-area-um2 = 10000.0
--max-hole-um2 = 7500.0
--mpp = None
--slide-magnification = None
--missing-mpp = None
--region = None
""",
    "extract": f"""
--slides -i
--output -o
--magnification -m
--mode = None
--size -s = None
--threshold -x = 0.7
--gap -y = 0
--overlap = None
--roi -r = 'whole'
--mask-magnification -w = None
--min-area-um2 = 10000.0
--max-hole-um2 = 7500.0
--unlabeled = 'drop'
--label-maps = False
--codec = 'raw'
--source = 'coarsest'
--decode = 'scaled'
--allow-upsampling = False
--mpp = None
--slide-magnification = None
--missing-mpp = None
--name = None
--on-bad-tile = 'raise'
--overwrite = False
--resume = True
--report = None
--explain = False
--dry-run = False
{MASKS}{WHERE}""",
    "verify": f"""
--store
--repair = False
--slides -i = None
{MASKS}{WHERE}""",
    "freeze": """
--store
--name
""",
    "ls": """
--store
--set = None
""",
    "remove": """
--store
--set
--slides = None
""",
    "rename": """
--store
--to
--set = None
--slide = None
""",
    "merge": """
--store
--others
--set = None
--slides = None
--name = None
""",
    "export": """
--store
--output -o
--set = None
--slides = None
--format = 'png'
--quality = None
--layout = 'folders'
--lists = None
--all = False
--keep = None
--threads -p = None
--quiet -q = False
""",
    "demo": """
--output -o = PosixPath('demo')
--threads -p = None
""",
    "train scale": f"""
--input -i
--output -o
{PARTS}
--backbone -c = 'resnet34'
--weights = None
--embedding -f = 128
--dropout -d = 0.0
--target = 'linear'
--loss --loss_function = 'l1'
--delta = 1.0
--optimizer -optimizer = 'adam'
--lr -lr = 0.001
--weight-decay = 0.0
--schedule = 'constant'
--warmup = 0.0
--ema = 0.0
--keep = 'best'
--epochs -e = 10
--patience = 5
--precision = '32'
--augment = 'original'
--scale-augment = None
--emphasis = 0.3
--mosaic = 0.5
--patch-size -s = 64
--crop = 96
--workers -p = 0
--about = None
--resume = False
--quiet -q = False
""",
    "train classifier": f"""
--input -i
--output -o
{TUPLES}
--combine = 'features'
--backbone -c = 'resnet34'
--weights = 'auto'
--embedding -f = None
--dropout -d = 0.0
--fuse = 'logits'
--copies = 1
--losses = None
--loss-weights = None
--loss --loss_function = 'cross_entropy'
--monitor = 'loss'
--optimizer -optimizer = 'adam'
--lr -lr = 0.001
--weight-decay = 0.0
--schedule = 'step'
--warmup = 0.0
--ema = 0.0
--keep = 'best'
--epochs -e = 10
--patience = 5
--precision = '32'
--augment = 'original'
--workers -p = 0
--resume = False
--verbose -verbose = 'True'
--quiet -q = False
""",
    "test classifier": f"""
--input -i
--model -p
{TUPLES}
--output -o = None
--all = False
--ablate = 0
--quiet -q = False
""",
    "train segmenter": f"""
--input -i
--output -o
{MAPPED}
--model = 'hooknet'
--filters = 16
--depth = 4
--bottleneck = None
--padding = 'valid'
--merge = 'concat'
--context-size = None
--loss-weights = None
--class-weights = 'none'
--monitor = 'macro_f1'
--optimizer -optimizer = 'adam'
--lr -lr = 0.002
--weight-decay = 0.0
--schedule = 'cosine'
--warmup = 0.1
--ema = 0.0
--keep = 'best'
--epochs -e = 20
--patience = 0
--precision = '32'
--augment = 'hed'
--balanced = 'pixels'
--workers -p = 0
--resume = False
--quiet -q = False
""",
    "test segmenter": f"""
--input -i
--model -p
{MAPPED}
--output -o = None
--all = False
--quiet -q = False
""",
    "experiment": """
--config
--ablate = None
--plan = False
--workers = None
--scheduler = None
--threads = None
--tries = 3
--quiet -q = False
""",
    "test scale": f"""
--input -i
--model -p
{PARTS}
--all = False
--quiet -q = False
""",
    "predict classifier": """
--model -p
--slides -i
--output -o
--masks -t = None
--stride = None
--size -s = None
--threshold -x = 0.7
--allow-upsampling = False
--names = None
--table = 'parquet'
--mpp = None
--slide-magnification = None
--missing-mpp = None
--batch-size -b = 64
--threads = 4
--device = None
--on-bad-tile = 'raise'
--overwrite = False
--scheduler = None
--workers = None
--quiet -q = False
""",
    "segment": """
--slides -i
--model -p
--output -o
--masks -t = None
--outline-mpp = 1.0
--outlines --no-outlines = True
--probabilities = None
--tile = None
--precision = 'float32'
--names = None
--batch-size -b = 1
--threads = 4
--device = None
--on-bad-tile = 'raise'
--overwrite = False
--scheduler = None
--workers = None
--quiet -q = False
""",
    "predict scale": """
--input -i
--model -p = 'default'
--output -o = None
--crops = 64
--batch-size -b = 128
""",
}
"""Of each command the names of every option, then its default where it has one."""


def _arguments(command: str) -> list[Any]:
    place = app
    for part in command.split():
        place = place[part]
    return [
        a
        for a in place.assemble_argument_collection(default_parameter=app.default_parameter, parse_docstring=True)
        if "*" not in a.names
    ]


def _parsed(arguments: str) -> dict[str, Any]:
    _, bound, _ = app.parse_args(arguments.split(), exit_on_error=False, print_error=False)
    bound.apply_defaults()
    return bound.arguments


def _leaves(place: Any, before: str = "") -> list[str]:
    """Commands below an app, as they are typed."""
    found = []
    for name in place:
        if not name.startswith("-"):
            below = _leaves(place[name], f"{before}{name} ")
            found += below or [f"{before}{name}"]
    return found


def test_every_command_is_promised():
    assert sorted(_leaves(app)) == sorted(PROMISED)


@pytest.mark.parametrize("command", PROMISED)
def test_a_command_takes_the_options_it_always_took(command):
    found = {
        " ".join(a.names) + ("" if a.field_info.default is inspect.Parameter.empty else f" = {a.field_info.default!r}")
        for a in _arguments(command)
    }
    assert found == {line for line in PROMISED[command].splitlines() if line}


@pytest.mark.parametrize("command", PROMISED)
def test_every_option_is_explained(command):
    assert [a.names[0] for a in _arguments(command) if not a.parameter.help] == []


@pytest.mark.parametrize("command", PROMISED)
def test_every_command_has_an_example_that_is_understood(command):
    place = app
    for word in command.split():
        place = place[word]
    text = " ".join((place.default_command.__doc__ or "").split())
    examples = [line for line in re.findall(r"`(msdask [^`]+)`", text) if line.startswith(f"msdask {command}")]
    assert examples
    for line in examples:
        if "..." not in line:
            _parsed(line.removeprefix("msdask "))


def test_options_of_every_day_stand_before_the_groups(capsys):
    with pytest.raises(SystemExit) as left:
        main(["extract", "--help"])
    assert not left.value.code
    shown = capsys.readouterr().out
    titles = ["Parameters", "Which patches", "Pixels and storage", "Size of a pixel", "What it runs on"]
    places = [shown.index(f" {title} ─") for title in titles]
    assert places == sorted(places)
    daily = shown[: places[1]]
    named = ("--slides", "--output", "--magnification", "--size", "--threshold", "--masks", "--threads", "--dry-run")
    assert [option for option in named if option not in daily] == []
    assert "--tries" not in daily


def test_the_original_s_line_means_what_it_meant():
    given = _parsed("extract -i s.csv -t masks -o c.zarr -m 20 10 5 -s 256 -x 0.6 -y -32 -w 1.25 -p 8 -r True")
    assert given["slides"] == ["s.csv"]
    assert given["masks"] == Masks(masks="masks")
    assert given["where"] == Where(threads=8)
    assert given["cut"] == Cut(
        magnification=[20, 10, 5], size=256, threshold=0.6, gap=-32, mask_magnification=1.25, roi="True"
    )
    (spec,) = given["cut"].specs()
    assert (spec.mode, spec.magnifications, spec.patch_size, spec.stride) == ("centroids", (20, 10, 5), 256, 224)
    assert (spec.min_tissue, spec.min_label, spec.roi, spec.mask_mpp) == (0.6, 0.6, "auto", 8.0)


def test_slides_may_come_first_without_a_name():
    assert _parsed("extract s.csv -o c.zarr -m 10")["slides"] == ["s.csv"]


def test_lists_of_numbers_follow_their_option():
    given = _parsed("train scale store -o run -m 20 10 --ratios 0.6 0.2 0.2 -optimizer sgd -lr 0.1 -e 3")
    assert given["parts"].magnification == [20, 10]
    assert given["parts"].ratios == [0.6, 0.2, 0.2]
    assert given["recipe"] == TrainingRecipe(optimizer="sgd", learning_rate=0.1, epochs=3)


def test_the_original_s_line_trains_a_classifier():
    given = _parsed(
        "train classifier -n 5 -i store -o run -c resnet34 -verbose True -m 10 5 -e 10 -f True -b 32 -d 0.2 -lr 0.001 "
        "-optimizer adam --loss_function cross_entropy -r multi_center"
    )
    assert given["tuples"] == Tuples(classes=5, magnification=[10, 5], batch_size=32, relation="multi_center")
    assert given["branches"] == Branches(embedding="True", dropout=0.2)
    assert given["recipe"] == ClassifierRecipe()
    assert given["recipe"].recipe(3).schedule == "step"


def test_an_unknown_option_is_refused():
    with pytest.raises(CycloptsError, match="--no-quiet"):
        _parsed("extract s.csv -o c.zarr -m 10 --no-quiet")


@pytest.mark.parametrize(
    ("magnifications", "mode", "expected"),
    [
        ([10], None, [("grid", (10,))]),
        ([5, 20, 10], None, [("centroids", (20, 10, 5))]),
        ([5, 20, 20], "grid", [("grid", (20,)), ("grid", (5,))]),
    ],
)
def test_one_magnification_is_a_grid_and_several_are_tuples(magnifications: Sequence[float], mode, expected):
    specs = Cut(magnification=list(magnifications), mode=mode).specs()
    assert [(s.mode, s.magnifications) for s in specs] == expected


@pytest.mark.parametrize(
    ("text", "roi"),
    [("whole", "whole"), ("False", "whole"), ("AUTO", "auto"), ("true", "auto"), ("1,2,30,40", (1, 2, 30, 40))],
)
def test_a_region_of_interest_is_a_word_or_four_numbers(text, roi):
    assert Cut(magnification=[10], roi=text).specs()[0].roi == roi


@pytest.mark.parametrize("text", ["everywhere", "1,2,3", "1,2,3,x"])
def test_any_other_region_is_refused(text):
    with pytest.raises(SpecError, match="x,y,width,height"):
        Cut(magnification=[10], roi=text).specs()


def test_groups_of_options_can_be_defaults():
    """They are shared between calls: a command must not be able to change them."""
    groups = (Branches, ClassifierRecipe, Cut, Masks, TrainingRecipe, Tuples, Where)
    assert all(is_dataclass(group) and group.__dataclass_params__.frozen for group in groups)


def test_nothing_heavy_is_loaded_before_a_command_runs():
    code = "import sys, msdask.cli.app; print(*sys.modules)"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert not loaded & {"numpy", "pandas", "dask", "distributed", "zarr", "torch", "matplotlib", "cv2"}


def test_output_is_a_path_where_files_are_written():
    assert isinstance(_parsed("demo -o somewhere")["output"], Path)
