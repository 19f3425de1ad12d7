"""What a person types wrong: one rule for all commands, said in their words, before anything is written."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import pytest
from cyclopts import CycloptsError

import msdask as ms
from msdask.cli.app import _usage, app, main
from msdask.errors import FileWriteError, MaskError, SpecError
from msdask.sample.slides import SampleSlide, make_slide
from msdask.storage.files import check_folder_writable

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def msdask(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command; exit code, what it printed, and what it said beside."""

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main([str(a) for a in arguments])
        output = capsys.readouterr()
        return int(left.value.code or 0), output.out, output.err

    return run


@pytest.fixture(scope="module")
def store(small_slide: SampleSlide, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grid of one slide."""
    path = tmp_path_factory.mktemp("store") / "s.zarr"
    spec = ms.ExtractionSpec(mode="grid", magnifications=(5,), patch_size=64)
    ms.extract(small_slide.path, path, spec, threads=1, progress=False)
    return path


def _commands(place: Any = app, before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name in place:
        if not name.startswith("-"):
            below = list(_commands(place[name], (*before, name)))
            yield from below or [((*before, name), place[name])]


def _is_a(argument: Any, kind: type) -> bool:
    """Whether an option is one number of a kind, or nothing."""
    hint = argument.hint
    return kind in (get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,))


def _refusals(kind: type, *values: str) -> dict[str, str]:
    """What is said of values that are typed for every option that is a number of a kind, in any command."""
    said = {}
    for words, command in _commands():
        arguments = command.assemble_argument_collection(default_parameter=app.default_parameter)
        needed = [token for a in arguments if a.required for token in (a.names[0], "1")]
        for argument in arguments:
            for value in values if _is_a(argument, kind) else ():
                typed = [*words, *needed, argument.names[0], value]
                with pytest.raises(CycloptsError) as error:
                    app.parse_args(typed, exit_on_error=False, print_error=False)
                said[" ".join((*words, argument.names[0], value))] = _usage(error.value)
    return said


def test_whole_numbers_are_never_rounded():
    said = _refusals(int, "224.9")
    assert len(said) > 40
    assert {typed: text for typed, text in said.items() if ": expected a whole number" not in text} == {}


def test_numbers_out_of_range_are_refused():
    said = _refusals(float, "-1")
    assert len(said) > 25
    assert {typed: text for typed, text in said.items() if ": expected " not in text} == {}


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        (("--workers", 0), "msdask: --workers 0: expected a whole number, at least 1"),
        (("--workers", -1), "msdask: --workers -1: expected a whole number, at least 1"),
        (("-p", -3), "msdask: -p -3: expected a whole number, 0 or more"),
        (("-s", 224.9), "msdask: -s 224.9: expected a whole number, at least 1"),
        (("-m", "20x"), "msdask: -m 20x: expected a number, such as 20"),
        (("-x", 70), "msdask: -x 70: expected a fraction from 0 to 1: 0.7 for 70 %"),
        (("-y", -224), "msdask: --gap -224: expected more than -224"),
        (("--overlap", 0.5, "-y", 8), "msdask: --gap 8 and --overlap 0.5: give one of them"),
        (("--mpp", 0), "msdask: --mpp 0: expected um/px above 0, such as 0.25 for 40x, or estimate"),
        (("--mpp", 0.5, "--slide-magnification", 20), "say the same: give one of them"),
        (("--codec", "png"), 'Invalid value "png" for --codec. Choose from: "raw", "lossless", "jpeg"'),
        (("-p", 2, "--timeout", 5), "msdask: --timeout 5 needs workers or a client"),
        (("-t", "nowhere"), "there is no such folder; expected a folder with a mask for every slide"),
        (("--values", 1, 2), "msdask: --values says that masks are annotated, but there are none: give --labels or"),
        (("--report", "/dev/null/r.html"), "msdask: cannot write report '/dev/null/r.html'"),
        (("--report", "."), "msdask: cannot write report '.': it is a folder"),
    ],
)
def test_it_is_refused_before_anything_is_written(typed, answer, small_slide, tmp_path, msdask):
    code, _, said = msdask("extract", small_slide.path, "-o", tmp_path / "s.zarr", "-m", 10, "-q", *typed)
    assert (code in (1, 2), answer in said) == (True, True), said
    assert list(tmp_path.iterdir()) == []


def test_what_is_missing_is_named_with_what_it_is(msdask):
    code, _, said = msdask("extract", "a.svs", "-m", 10)
    assert (code, "msdask: --output or -o is missing: patch store to write" in said) == (2, True)
    code, _, said = msdask("extrat")
    assert (code, 'Did you mean "extract"?' in said, "try `msdask --help`" in said) == (2, True, True)


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        (("--mag", 20), "Unknown option: --mag. Did you mean --magnification?"),
        (("--mag=20",), "Unknown option: --mag. Did you mean --magnification?"),
        (("--over", 1), "Unknown option: --over. Did you mean --overlap or --overwrite?"),
        (("--magnificatoin", 20), "Unknown option: --magnificatoin. Did you mean --magnification?"),
        (("--vers",), "Unknown option: --vers. Did you mean --version?"),
    ],
)
def test_a_shortened_option_is_answered_with_those_that_begin_so(typed, answer, msdask):
    code, _, said = msdask("extract", "a.svs", "-o", "s.zarr", *typed)
    assert (code, answer in said) == (2, True), said


def test_python_is_told_of_arguments(small_slide, tmp_path):
    with pytest.raises(SpecError, match=r"^workers=0: expected a whole number, at least 1$"):
        ms.extract(small_slide.path, tmp_path / "s.zarr", ms.ExtractionSpec("grid", (10,)), workers=0)
    with pytest.raises(SpecError, match=r"min_tissue=70.0: expected a fraction from 0 to 1 \(0.7 for 70 %\)"):
        ms.ExtractionSpec("grid", (10,), min_tissue=70)
    with pytest.raises(MaskError, match=r"^masks='.*nowhere': there is no such folder"):
        ms.extract(small_slide.path, tmp_path / "s.zarr", ms.ExtractionSpec("grid", (10,)), masks=tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a.svs and b.svs in a folder, 0.5 um/px."""
    folder = tmp_path_factory.mktemp("typed") / "slides"
    folder.mkdir()
    for seed, name in enumerate("ab"):
        make_slide(folder / f"{name}.svs", size=(320, 400), seed=seed, levels=(1,), mpp=0.5, associated=False)
    return folder


@pytest.mark.parametrize("given", [("{}/a.svs", "{}/b.svs"), ("-i", "{}/a.svs", "{}/b.svs"), ("{}/*.svs",), ("{}",)])
def test_slides_are_a_folder_a_pattern_or_several(given, cohort, tmp_path, msdask):
    slides = [word.format(cohort) for word in given]
    code, printed, said = msdask("extract", *slides, "-o", tmp_path / "s.zarr", "-m", 10, "-s", 64, "-p", 0, "-q")
    assert (code, ": 2 complete; " in printed) == (0, True), said
    assert ms.PatchStore(tmp_path / "s.zarr")["grid-10x-64"].slides == ["a.svs", "b.svs"]


def test_slides_in_python_are_the_same(cohort):
    from msdask.extraction.slide_table import read_slides

    alone = read_slides(cohort)
    (cohort.parent / "list.csv").write_text("slides/a.svs\nslides/b.svs\n")
    assert (
        read_slides([cohort]) == read_slides(cohort / "[ab].svs") == read_slides([cohort.parent / "list.csv"]) == alone
    )
    with pytest.raises(ms.SlideError, match="nothing matches this pattern"):
        read_slides(cohort / "*.ndpi")


def test_two_settings_under_one_name_are_told_apart(cohort, tmp_path, msdask):
    common = ("extract", cohort / "a.svs", "-o", tmp_path / "s.zarr", "-m", 10, "-s", 64, "-p", 0, "-q")
    assert msdask(*common)[0] == 0
    code, _, said = msdask(*common, "-x", 0.5, "--overlap", 0.5, "-r", "0,0,320,300")
    assert code == 1
    assert "--threshold 0.7, not --threshold 0.5" in said
    assert said.count("--threshold") == 2
    assert "--roi whole, not --roi 0 0 320 300" in said
    assert "size + gap of 64 px, not size + gap of 32 px" in said
    assert "such as --name grid-10x-64-tissue0.5-roi0x0x320x300-stride32, or pass --overwrite" in said
    name = said.split("--name ")[1].split(",")[0]
    assert msdask(*common, "-x", 0.5, "--overlap", 0.5, "-r", "0,0,320,300", "--name", name)[0] == 0


def test_mpp_is_the_same_in_every_command(cohort, tmp_path, msdask):
    slide = cohort / "a.svs"
    code, printed, said = msdask("info", slide, "--mpp", 0.25)
    assert "mpp         0.25 um/px (user, user)" in printed
    assert f"warning: {slide}: 0.25 um/px is used, as was said; its file states 0.5 um/px" in said
    common = ("extract", slide, "-o", tmp_path / "s.zarr", "-m", 10, "-s", 64, "-p", 0, "-q")
    code, _, said = msdask(*common, "--mpp", 0.25)
    assert (code, "its file states 0.5 um/px" in said) == (0, True)
    assert ms.PatchStore(tmp_path / "s.zarr")["grid-10x-64"].attrs("a.svs")["mpp"] == 0.25
    # only where nothing is stated
    code, printed, said = msdask("info", slide, "--missing-mpp", 0.25)
    assert "mpp         0.5 um/px" in printed
    assert said == ""


def test_a_table_s_own_scale_goes_before(cohort, tmp_path, msdask):
    table = cohort.parent / "slides.csv"
    table.write_text("path,mpp\nslides/a.svs,0.4\nslides/b.svs,\n")
    msdask("extract", table, "-o", tmp_path / "s.zarr", "-m", 10, "-s", 64, "-p", 0, "-q", "--slide-magnification", 40)
    found = ms.PatchStore(tmp_path / "s.zarr")["grid-10x-64"]
    assert [found.attrs(name)["mpp"] for name in ("a.svs", "b.svs")] == [0.4, 0.25]


def test_tuples_are_counted_as_tuples(cohort, tmp_path, msdask):
    common = ("extract", cohort, "-o", tmp_path / "s.zarr", "-s", 64, "-p", 0, "-q", "-x", 0.1)
    _, printed, _ = msdask(*common, "-m", 20, 10)
    found = ms.PatchStore(tmp_path / "s.zarr")["centroids-20x-10x-64"]
    count = len(found.index()["row"])
    assert f"2 complete; {count:,} tuples written in " in printed
    assert ("tuples", f"{count:,}, {int(found.index()['keep'].sum()):,} of them to keep") in found.facts()
    _, printed, _ = msdask(*common, "-m", 10)
    assert f"; {len(ms.PatchStore(tmp_path / 's.zarr')['grid-10x-64'])} patches written in " in printed


@pytest.mark.parametrize(("overlap", "stride"), [(0, 224), (0.5, 112), (0.3, 157), (0.999, 1)])
def test_an_overlap_is_a_stride(overlap, stride, small_slide: SampleSlide):
    assert ms.ExtractionSpec("grid", (10,), overlap=overlap) == ms.ExtractionSpec("grid", (10,), stride=stride)
    if overlap == 0.5:
        opened = ms.open_slide(small_slide.path)
        table = ms.grid(opened, magnification=10, overlap=overlap)
        assert table.identical(ms.grid(opened, magnification=10, stride=stride))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"overlap": 1}, "from 0 to below 1"),
        ({"overlap": "half"}, "expected the share"),
        ({"overlap": 0.5, "stride": 112}, "give one of them"),
    ],
)
def test_other_overlaps_are_refused(given, message):
    with pytest.raises(SpecError, match=message):
        ms.ExtractionSpec("grid", (10,), **given)


@pytest.mark.parametrize(
    "typed",
    [
        ("extract", "{slide}", "-m", 10, "-o", "{out}"),
        ("extract", "{slide}", "-m", 10, "-o", "s.zarr", "--report", "{out}"),
        ("demo", "-o", "{out}"),
        ("mask", "{slide}", "-o", "{out}.png"),
        ("export", "{store}", "-o", "{out}"),
        ("export", "{store}", "-o", "{out}", "--layout", "flat"),
        ("export", "{store}", "-o", "{out}", "--format", "csv"),
        ("train", "scale", "-i", "none.zarr", "-o", "{out}"),
        ("train", "classifier", "-i", "none.zarr", "-o", "{out}"),
        ("train", "segmenter", "-i", "none.zarr", "-o", "{out}"),
        ("test", "classifier", "-i", "none.zarr", "--model", "none", "-o", "{out}"),
        ("test", "segmenter", "-i", "none.zarr", "--model", "none", "-o", "{out}"),
        ("predict", "scale", "-i", "none", "-o", "{out}"),
        ("predict", "classifier", "none", "none.svs", "-o", "{out}"),
        ("segment", "none.svs", "--model", "none", "-o", "{out}"),
        ("experiment", "config.toml"),
    ],
    ids=lambda typed: " ".join(map(str, typed[:2])),
)
def test_an_output_that_cannot_be_written_is_found_before_the_work(
    typed: tuple[object, ...],
    small_slide: SampleSlide,
    store: Path,
    tmp_path: Path,
    msdask: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is to be read is not there either, and is not looked at first."""
    if typed[0] in ("train", "test", "predict", "segment", "experiment"):
        pytest.importorskip("pytorch_lightning")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "config.toml").write_text(
        'store = "none.zarr"\noutput = "file/out"\nmagnifications = [[10]]\nratios = [60, 20, 20]\n'
    )
    before = sorted(tmp_path.rglob("*"))
    names = {"slide": small_slide.path, "store": store, "out": "file/out"}
    code, printed, said = msdask(*(str(word).format(**names) for word in typed))
    assert (code, printed) == (1, "")
    assert said.startswith(("msdask: cannot write ", "msdask: cannot export to 'file/out': cannot write "))
    assert "file/out" in said
    assert said.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_can_be_made_is_not_made_by_looking(tmp_path: Path) -> None:
    check_folder_writable(tmp_path / "a" / "b")
    check_folder_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(FileWriteError, match=r"cannot write run '.*b': '.*link' is no folder"):
        check_folder_writable(tmp_path / "link" / "b", what="run")
