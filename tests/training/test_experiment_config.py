"""What an experiment is: its configuration from TOML, the grid of models, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("pytorch_lightning")

from msdask.errors import SpecError
from msdask.training import ExperimentConfig, Recipe
from msdask.training.experiments.experiment import _absolute
from msdask.training.experiments.rows import rows_of

SEED = """
store = "cohort.zarr"
output = "grid"
relation = "upper_region"
magnifications = [[20], [10], [5], [10, 5], [20, 10, 5]]
losses = ["one", "n+1"]
ratios = [60, 20, 20]
backbone = "scalenet"
"""


def config(**changes: object) -> ExperimentConfig:
    return ExperimentConfig.from_dict({"store": "s", "output": "o", "magnifications": [[20], [20, 5]], **changes})


def test_the_paper_s_grid_is_a_few_lines(tmp_path):
    (tmp_path / "grid.toml").write_text(SEED, encoding="utf-8")
    read = ExperimentConfig.read(tmp_path / "grid.toml")
    assert Path(read.store) == tmp_path / "cohort.zarr"
    assert Path(read.output) == tmp_path / "grid"
    assert read.scales == (20.0, 10.0, 5.0)
    assert read.recipe == Recipe(schedule="step")
    rows = rows_of(read, 5)
    assert [row.name for row in rows] == [
        *("single-5x-one", "single-10x-one", "single-20x-one"),
        *("features-10x-5x-one", "features-10x-5x-n+1", "features-20x-10x-5x-one", "features-20x-10x-5x-n+1"),
        *("predictions-10x-5x-one", "predictions-10x-5x-n+1", "predictions-20x-10x-5x-one"),
        "predictions-20x-10x-5x-n+1",
        *("matched-5x-2-branches-one", "matched-10x-2-branches-one"),
        *("matched-5x-3-branches-one", "matched-10x-3-branches-one", "matched-20x-3-branches-one"),
        *("pooled-10x-5x-one", "pooled-10x-5x-n+1", "pooled-20x-10x-5x-one", "pooled-20x-10x-5x-n+1"),
    ]


@pytest.mark.parametrize("models", [["features"], ["predictions", "features"], ["features", "attention"]])
def test_a_matched_baseline_has_the_parameters_of_the_largest_fusion(models):
    read = config(models=models, backbone="scalenet", weights="none", embedding=16)
    counts = {row: row.parameters(read, 4) for row in rows_of(read, 4)}
    fusions = [count for row, count in counts.items() if row.is_fusion]
    assert [count for row, count in counts.items() if row.kind == "matched"] == [max(fusions)] * 2
    assert all(sum(p.numel() for p in row.model(read, 4).parameters()) == count for row, count in counts.items())


def test_recipes_differ_between_splits_and_not_between_models():
    read = config(seed=7, recipe={"epochs": 3})
    assert [read.recipe_of(k).seed for k in range(3)] == [7, 8, 9]
    assert read.recipe == Recipe(epochs=3, schedule="step")


def test_losses_may_be_weighed():
    read = config(
        losses=["one", "n+1"], loss_weights=[1, 0.5], backbone="scalenet", weights="none", models=["features"]
    )
    tasks = {row.losses: row.task(read, ("a", "b")) for row in rows_of(read, 2) if row.kind == "features"}
    assert tasks["one"].loss_weights is None
    assert tasks["n+1"].loss_weights == (1.0, 0.5, 0.5)
    again = {"losses": ("one", "n+1"), "loss_weights": (1, 0.5), "models": ("features",), "weights": "none"}
    assert hash(read) == hash(config(**again, backbone="scalenet"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modles": ["single"]}, "'modles' is not known: did you mean 'models'"),
        ({"recipe": {"epoch": 3}}, "recipe: 'epoch' is not known: did you mean 'epochs'"),
        ({"recipe": {"seed": 3}}, "recipe: 'seed' is not known"),
        ({"recipe": {"epochs": 0}}, "recipe: epochs=0: expected a whole number"),
        ({"magnifications": [20, 10]}, r"magnifications: 20 is no list; expected lists of numbers .*\[10, 5\]\]"),
        ({"magnifications": [[20, 20]]}, "has one twice"),
        ({"magnifications": [[20], [20.0]]}, "is twice"),
        ({"magnifications": []}, "expected lists of numbers"),
        ({"magnifications": [[0]]}, "expected lists of numbers above 0"),
        ({"magnifications": [[20]], "models": ["features"]}, "none fits: 'single' and 'unet' take one magnification"),
        ({"models": ["feature"]}, "models: 'feature': expected some of single, features"),
        ({"models": "single"}, "models='single': expected a list"),
        ({"losses": ["two"]}, "losses: 'two': expected some of one, n"),
        ({"baselines": ["matched", "matched"]}, "expected one or more, each once"),
        ({"relation": "centroids"}, "relation='centroids': expected one of multicenter, upper_region"),
        ({"metric": "auc"}, "metric='auc': expected one of kappa"),
        ({"ablate": -1}, "ablate=-1: expected a whole number of at least 0"),
        ({"ratios": [60, 20, 20], "lists": "folder"}, "give one of them"),
        ({"repeats": 5}, "would be the same test every time"),
        ({"dropout": "much"}, "dropout='much'"),
        ({"store": 3}, "store=3: expected a text"),
        ({"output": "s3://bucket/out"}, "expected a folder that all processes see, no URL"),
        ({"loss_weights": [1, 1, 1]}, r"loss_weights=\(1, 1, 1\): expected two numbers"),
        ({"classes": "five"}, "classes='five': expected a list"),
        ({"pooled_set": 3}, "pooled_set=3: expected a list"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, message):
    with pytest.raises(SpecError, match=message):
        config(**changes)


def test_what_is_missing_or_no_toml_is_said(tmp_path):
    with pytest.raises(SpecError, match="experiment: output, magnifications missing"):
        ExperimentConfig.from_dict({"store": "s"})
    with pytest.raises(SpecError, match="no such file; expected a TOML file"):
        ExperimentConfig.read(tmp_path / "none.toml")
    (tmp_path / "broken.toml").write_text("store = ", encoding="utf-8")
    with pytest.raises(SpecError, match=r"broken.toml' is no TOML file"):
        ExperimentConfig.read(tmp_path / "broken.toml")


def test_paths_may_begin_at_home_wherever_the_file_lies(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    text = 'store = "~/s.zarr"\noutput = "out"\nlists = "~/lists"\nmagnifications = [[10]]\n'
    (tmp_path / "a.toml").write_text(text, encoding="utf-8")
    found = ExperimentConfig.read(tmp_path / "a.toml")
    home = str(tmp_path / "home")
    assert (found.store, found.output, found.lists) == (f"{home}/s.zarr", str(tmp_path / "out"), f"{home}/lists")
    absolute = _absolute(ExperimentConfig(store="~/s.zarr", output="~/out", magnifications=[[10]]))
    assert (absolute.store, absolute.output) == (f"{home}/s.zarr", f"{home}/out")
