"""Damaged files by the thousand: no crash, no hang, no flood of memory; pixels that are right, or an error of ours."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from msdask.errors import StoreError
from msdask.store.patch_store import PatchStore
from tests.tools import fuzzing
from tests.tools.fuzz_corpus import SUBJECTS, make_corpus
from tests.tools.fuzz_mutations import mutate
from tests.tools.fuzzing import Verdict, Watchdog

SEEDS = 64
"""Of each subject; 32 subjects: 2,048 cases, about 25 s of processor time. benchmarks/fuzz.py goes on from there."""

REGRESSIONS = {
    # a PNG whose rows end early was read as black rows, slowly, in ten times the memory of its picture
    "slide-alpha.png": (53,),
    # a lie about samples or planes gave tiles of one channel instead of three
    "slide-planar.tiff": (17,),
    "slide-strips.tiff": (68, 76, 92),
    "slide-scn.tiff": (16,),
    "slide-philips.tiff": (76,),
    "slide-rgb-tables.tiff": (69,),
    "slide-svs.tiff": (91,),
    "slide-svs-jpeg2000.tiff": (61,),
    # values of wrong types in documents of arrays, documents nested 100,000 deep, arrays of other lengths than theirs,
    # attributes that are none: errors of zarr, xarray and json came through
    "store-raw": (1, 27, 31, 35, 37, 41, 65, 69, 79, 91, 95, 151),
    "store-lossless": (1, 27, 31, 35, 37, 41, 65, 69, 79, 91, 95, 1013),
    "store-jpeg": (1, 27, 31, 35, 37, 41, 65, 67, 69, 73, 79, 91, 95),
}
"""Cases that found a bug; they stay, whatever SEEDS is."""


@pytest.fixture(scope="module")
def watchdog(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watchdog]:
    folder = tmp_path_factory.mktemp("fuzz")
    dog = Watchdog(make_corpus(folder / "corpus"), folder / "scratch")
    yield dog
    dog.close()


def failures(verdicts: list[Verdict]) -> str:
    return "\n".join(str(v) for v in verdicts if not v.is_fine)


@pytest.mark.parametrize("kind", ["slide", "mask", "table", "store"])
def test_damaged_files_are_read_right_or_refused(kind: str, watchdog: Watchdog) -> None:
    subjects = [name for name in SUBJECTS if name.startswith(kind)]
    verdicts = list(watchdog.judge((name, seed) for seed in range(SEEDS) for name in subjects))
    assert len(verdicts) == SEEDS * len(subjects)
    assert not failures(verdicts)
    counts = Counter((v.subject, v.outcome) for v in verdicts)
    # damage that is never refused, or that nothing survives, would test nothing
    assert all(counts[name, "refused"] for name in subjects)
    assert sum(counts[name, "read"] for name in subjects) > len(verdicts) / 20


def test_cases_that_found_bugs_stay_fine(watchdog: Watchdog) -> None:
    cases = [(name, seed) for name, seeds in REGRESSIONS.items() for seed in seeds]
    verdicts = list(watchdog.judge(cases))
    assert len(verdicts) == len(cases)
    assert not failures(verdicts)


def test_a_flipped_bit_in_the_document_of_an_array_never_makes_patches_black(tmp_path: Path) -> None:
    """ "/" and "." differ by one bit; with the other separator every chunk has another name, and reads as zeros."""
    make_corpus(tmp_path, only=["store-raw"])
    store = PatchStore(tmp_path / "store-raw")
    (patch_set,) = store.values()
    (slide_id,) = patch_set.slides
    document = Path(patch_set.path, slide_id, "image", "zarr.json")
    data = bytearray(document.read_bytes())
    at = data.index(b"/", data.index(b"separator"))
    data[at] ^= 1
    assert data[at : at + 1] == b"."
    document.write_bytes(data)
    with pytest.raises(StoreError, match="image"):
        patch_set.open(slide_id)["image"].compute()
    assert patch_set.verify()


def test_a_case_is_the_same_bytes_anywhere() -> None:
    data = bytes(range(256)) * 8
    for kind in ("tiff", "png", "jpeg", "json", "text", "binary"):
        assert mutate(data, 7, kind=kind) == mutate(data, 7, kind=kind)
        assert len({mutate(data, seed, kind=kind) for seed in range(20)}) > 15


# --- the watchdog itself: a net with holes catches nothing ------------------------------------------------------------

TRAPS = """
import os, time
from fuzz_mutations import mutate
from msdask.errors import SlideError

def judge(good, scratch, seed):
    if seed == 1: os.abort()
    if seed == 2:
        while True: pass
    if seed == 3: bytearray(b"x") * (400 << 20)
    if seed == 4: raise KeyError("not ours")
    if seed == 5: raise SlideError("slide 'a.svs': damaged, and it says so")
    if seed == 6: raise SlideError("bad")

JUDGES = {"trap": judge}
"""


def test_the_watchdog_sees_crashes_hangs_floods_and_foreign_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fuzz_judges.py").write_text(TRAPS)
    for name in ("fuzzing.py", "fuzz_mutations.py"):
        shutil.copy(Path(fuzzing.__file__).with_name(name), tmp_path)
    monkeypatch.setattr(fuzzing, "CPU_LIMIT", 2.0)
    monkeypatch.setattr(fuzzing, "MEMORY_LIMIT", 250)
    dog = fuzzing.Watchdog(tmp_path, tmp_path / "scratch", script=tmp_path / "fuzzing.py")
    try:
        outcomes = {v.seed: v.outcome for v in dog.judge([("trap", seed) for seed in range(7)])}
    finally:
        dog.close()
    assert outcomes == {0: "read", 1: "crash", 2: "hang", 3: "memory", 4: "bug", 5: "refused", 6: "bug"}
