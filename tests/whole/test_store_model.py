"""A store against a model of it in memory: whatever is done to it, in any order, with kills on the way."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from msdask.errors import StoreError
from msdask.extraction.cohort import extract
from msdask.extraction.repair import repair
from msdask.sample.slides import make_slide
from msdask.spec import ExtractionSpec
from msdask.storage.local import LocalFolders
from msdask.storage.locks import slide_lock
from msdask.store.patch_store import PatchStore

SPECS = [ExtractionSpec(mode="grid", magnifications=(10.0,), patch_size=64, min_tissue=tissue) for tissue in (0.2, 0.6)]
IDS = ["a.svs", "b.svs"]
SPLITS = ["train", "test"]
A_SLIDE, A_SPEC = st.sampled_from(IDS), st.sampled_from([0, 1])
STEPS = int(os.environ.get("MSDASK_MODEL_STEPS", "10"))
EXAMPLES = int(os.environ.get("MSDASK_MODEL_EXAMPLES", "5"))


class _Killed(BaseException):
    """As a kill: nothing catches it, nothing is cleared away."""


class _Slides:
    """Slides and what is right to find in a store of them; made once a process."""

    _made: _Slides | None = None

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="msdask-model-"))
        self.paths = {i: make_slide(self.folder / i, size=(640, 768), seed=n).path for n, i in enumerate(IDS)}
        self.pixels: dict[tuple[str, int], np.ndarray[Any, Any]] = {}
        for number, spec in enumerate(SPECS):
            store = self.folder / f"{number}.zarr"
            assert extract(list(self.paths.values()), store, spec, name="set", progress=False).is_complete
            for i in IDS:
                self.pixels[i, number] = PatchStore(store)["set"].open(i)["image"].to_numpy()

    @classmethod
    def get(cls) -> _Slides:
        if cls._made is None:
            cls._made = cls()
        return cls._made


class StoreModel(RuleBasedStateMachine):
    """`model` is what must be there: id -> splits that a slide may have, of those that were complete once.

    There are several where a kill came while one was replaced by the other.
    """

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="msdask-model-"))
        self.slides = _Slides.get()
        self.store = self.folder / "s.zarr"
        self.spec: int | None = None
        self.model: dict[str, set[str]] = {}
        self.damaged: set[str] = set()

    def teardown(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _extract(self, slide_id: str, number: int, split: str, overwrite: bool) -> Any:
        table = [{"path": str(self.slides.paths[slide_id]), "split": split}]
        spec = SPECS[number]
        return extract(table, self.store, spec, name="set", progress=False, threads=0, overwrite=overwrite)

    def _after(self, slide_id: str, number: int, split: str) -> None:
        if self.spec != number:
            self.model.clear()
            self.damaged.clear()
        self.spec = number
        self.model[slide_id] = {split}
        self.damaged.discard(slide_id)

    @rule(slide_id=A_SLIDE, number=A_SPEC, split=st.sampled_from(SPLITS), over=st.booleans())
    def write(self, slide_id: str, number: int, split: str, over: bool) -> None:
        if self.spec not in (None, number) and not over:
            with pytest.raises(StoreError, match="was made with min_tissue="):
                self._extract(slide_id, number, split, over)
            return
        report = self._extract(slide_id, number, split, over)
        if slide_id in self.damaged and not over and not report.is_complete:
            return  # it says that its document is damaged
        assert report.is_complete, report.failures
        was_damaged = slide_id in self.damaged and report.outcomes[0].state == "present"
        self._after(slide_id, number, split)
        if was_damaged:
            self.damaged.add(slide_id)  # "present": nothing of its pixels was read

    @rule(slide_id=A_SLIDE, number=A_SPEC, over=st.booleans(), at=st.integers(0, 25))
    def write_and_be_killed(self, slide_id: str, number: int, over: bool, at: int) -> None:
        if self.spec not in (None, number):
            return
        with suppress(_Killed), _killing(at):
            self._extract(slide_id, number, "train", over)
        self.spec = self.spec if self.spec is not None or not (self.store / "set" / "zarr.json").exists() else number
        if slide_id in self.model:  # what was complete stays, as it was or as it was to be
            self.model[slide_id].add("train")
        elif self._found(slide_id) is not None:
            self.model[slide_id] = {"train"}

    def _found(self, slide_id: str) -> str | None:
        try:
            return str(PatchStore(self.store)["set"].attrs(slide_id)["cohort"]["split"])
        except StoreError:
            return None

    @precondition(lambda self: bool(self.model))
    @rule(slide_id=A_SLIDE, which=st.integers(0, 10**6), at=st.integers(0, 10**6))
    def damage(self, slide_id: str, which: int, at: int) -> None:
        files = sorted(p for p in (self.store / "set" / slide_id).rglob("*") if p.is_file() and p.stat().st_size)
        if slide_id not in self.model or not files:
            return
        path = files[which % len(files)]
        data = bytearray(path.read_bytes())
        data[at % len(data)] = (data[at % len(data)] + 1) % 256  # done twice, it must not be undone
        path.write_bytes(data)
        self.damaged.add(slide_id)

    @precondition(lambda self: bool(self.model))
    @rule(slide_id=A_SLIDE)
    def lose(self, slide_id: str) -> None:
        if slide_id in self.model:
            shutil.rmtree(self.store / "set" / slide_id, ignore_errors=True)
            self.damaged.add(slide_id)

    @precondition(lambda self: self.spec is not None)
    @rule()
    def mend(self) -> None:
        repair(self.store, progress=False, threads=0)
        self.damaged.clear()
        assert PatchStore(self.store).verify() == {"set": []}
        for slide_id in IDS:  # an unfinished slide is finished
            found = self._found(slide_id)
            if found is not None and slide_id not in self.model:
                self.model[slide_id] = {found}

    @precondition(lambda self: self.spec is not None)
    @rule(at=st.integers(0, 25))
    def mend_and_be_killed(self, at: int) -> None:
        with suppress(_Killed), _killing(at):
            repair(self.store, progress=False, threads=0)
        problems = PatchStore(self.store).verify()["set"]
        self.damaged = {i for i in self.damaged if any(i in problem for problem in problems)}
        for slide_id in IDS:
            if slide_id not in self.model and (found := self._found(slide_id)) is not None:
                self.model[slide_id] = {found}

    @precondition(lambda self: self.spec is not None)
    @rule()
    def remove(self) -> None:
        PatchStore(self.store).remove("set")
        self.model.clear()
        self.damaged.clear()
        self.spec = None

    @precondition(lambda self: self.spec is not None)
    @rule(slide_id=A_SLIDE)
    def two_writers(self, slide_id: str) -> None:
        assert self.spec is not None
        with slide_lock(str(self.store), "set", slide_id):
            with pytest.raises(StoreError, match="is being written"):
                PatchStore(self.store).remove("set")
            report = self._extract(slide_id, self.spec, "train", True)
            assert "is being written" in report.failures[slide_id]

    @invariant()
    def what_can_be_read_is_right(self) -> None:
        if getattr(self, "spec", None) is None:
            return
        patch_set = PatchStore(self.store)["set"]
        for slide_id in patch_set.slides:
            try:
                pixels = patch_set.open(slide_id)["image"].to_numpy()
            except StoreError:
                assert slide_id in self.damaged
                continue
            np.testing.assert_array_equal(pixels, self.slides.pixels[slide_id, self.spec])
        for slide_id, splits in self.model.items():
            if slide_id not in self.damaged:
                assert self._found(slide_id) in splits

    @invariant()
    def damage_is_seen(self) -> None:
        if getattr(self, "spec", None) is None:
            return
        problems = PatchStore(self.store).verify()["set"]
        for slide_id in self.damaged:
            assert any(slide_id in problem for problem in problems), (slide_id, problems)


class _killing:
    """Within it, the write after `at` others ends as a kill does."""

    def __init__(self, at: int) -> None:
        self.at, self.patch = at, pytest.MonkeyPatch()

    def __enter__(self) -> None:
        steps = [0]

        def dying(function: Callable[..., Any]) -> Callable[..., Any]:
            def step(*args: Any, **options: Any) -> Any:
                steps[0] += 1
                if steps[0] > self.at:
                    raise _Killed
                return function(*args, **options)

            return step

        for name in ("write", "placed", "remove_tree", "replace_tree"):
            self.patch.setattr(LocalFolders, name, dying(getattr(LocalFolders, name)))

    def __exit__(self, *error: object) -> None:
        self.patch.undo()


def test_a_store_is_what_its_model_is() -> None:
    run_state_machine_as_test(
        StoreModel,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            derandomize="MSDASK_MODEL_STEPS" not in os.environ,
            suppress_health_check=list(HealthCheck),
            database=None,
        ),
    )
