"""Which data trained this model: the hash of what a dataset reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from msdask.data import PatchDataset, loader
from msdask.errors import MsdaskError
from msdask.models import ScaleRegressor
from msdask.store.frozen import hash_of
from msdask.store.slide_place import SlidePlace
from msdask.store.writing import update_facts
from msdask.training import Recipe, ScaleTask, fit
from tests.tools.stream_tools import GRID, Cohort, write_cohort


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return write_cohort(tmp_path_factory.mktemp("contents"), names=(GRID,))


def test_the_hash_of_a_whole_set_is_that_of_its_frozen_state(cohort: Cohort) -> None:
    frozen = cohort.store.freeze("v1")
    dataset = PatchDataset(cohort[GRID], keep=False)
    assert dataset.contents_hash == hash_of({GRID: frozen.sets[GRID]})
    some = PatchDataset(cohort[GRID], keep=False, slides=dataset.slide_ids[:1])
    assert some.contents_hash != dataset.contents_hash


def test_a_run_says_what_it_learnt_from_and_is_not_resumed_with_other_facts(cohort: Cohort, tmp_path: Path) -> None:
    def run(epochs: int, *, resume: bool) -> None:
        train = loader(PatchDataset(cohort[GRID], target="magnification", splits="train"), batch_size=8)
        valid = loader(PatchDataset(cohort[GRID], target="magnification"), batch_size=8)
        recipe = Recipe(epochs=epochs, accelerator="cpu")
        fit(
            ScaleRegressor("scalenet", embedding=8),
            ScaleTask(),
            train,
            valid,
            tmp_path / "run",
            recipe=recipe,
            resume=resume,
        )

    run(1, resume=False)
    said = json.loads((tmp_path / "run" / "hparams.json").read_text())["data"]
    assert said["valid"] == PatchDataset(cohort[GRID], target="magnification").contents_hash
    assert said["train"] != said["valid"]
    run(2, resume=True)
    slide_id = cohort[GRID].slides[0]
    update_facts(SlidePlace(cohort.store.path, GRID, slide_id), {"split": "train", "patient": "another"})
    with pytest.raises(MsdaskError, match=r"differs in data\."):
        run(3, resume=True)
