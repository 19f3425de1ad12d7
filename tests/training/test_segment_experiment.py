"""Experiments of segmentation: U-Nets and HookNets in one table, judged on the same px."""

# ruff: noqa: E402
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("pytorch_lightning")

import msdask as ms
from msdask.errors import SpecError
from msdask.models import UNet
from msdask.training import ExperimentConfig, SegmentSource
from msdask.training.class_scores import macro_f1
from msdask.training.comparison import bootstrap_patients
from msdask.training.experiments.rows import rows_of
from msdask.training.segment_grid import GridTask
from tests.tools.segment_tools import SIZE, write_mapped_cohort


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ms.PatchStore:
    return write_mapped_cohort(tmp_path_factory.mktemp("mapped"))


def _config(store: ms.PatchStore, output: Path, **changes: Any) -> dict[str, Any]:
    return {
        "task": "segment",
        "store": store.path,
        "output": str(output),
        "magnifications": [[10], [20, 10]],
        "filters": 1,
        "depth": 2,
        "recipe": {"epochs": 1, "accelerator": "cpu"},
        **changes,
    }


def test_rows_are_those_of_the_papers_tables() -> None:
    wide = ExperimentConfig.from_dict(
        {
            "task": "segment",
            "store": "s",
            "output": "o",
            "magnifications": [[1.25], [2.5], [5], [10], [20], [20, 1.25], [20, 5]],
            "filters": 8,
        }
    )
    assert (wide.monitor, wide.augment, wide.recipe.schedule, wide.recipe.lr) == ("macro_f1", "hed", "cosine", 2e-3)
    rows = rows_of(wide, 4)
    assert [f"{row.title} {row.scales}" for row in rows] == [
        *(f"U-Net {m}" for m in ("1.25x", "2.5x", "5x", "10x", "20x")),
        "HookNet 20x, 5x",
        "HookNet 20x, 1.25x",
        "U-Net, as many parameters 20x",
    ]
    hooknet, matched = rows[5].parameters(wide, 4), rows[-1].parameters(wide, 4)
    assert abs(matched / hooknet - 1) < 0.1


def test_an_experiment_of_unets_and_hooknet_is_one_table(store: ms.PatchStore, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="one split"):
        result = ms.experiment(_config(store, tmp_path / "out"), threads=1)
    assert not result.failures
    assert result.table["row"].tolist() == ["unet-10x", "hooknet-20x-10x", "matched-20x"]
    assert "| model | magnifications | losses | parameters | F1 0 | F1 1 | macro F1 |" in result.text
    assert "All models are judged on the px that a 20x target shows" in result.text
    pixels = {row: pd.read_csv(tmp_path / f"out/runs/{row}/0/pixels.csv") for row in result.table["row"]}
    totals = {row: table.groupby("label")["pixels"].sum().tolist() for row, table in pixels.items()}
    assert len({tuple(total) for total in totals.values()}) == 1  # the same px
    counts = pixels["unet-10x"]["pixels"].to_numpy().reshape(2, 2)
    scores = result.judged.scores.set_index(["row", "split"])
    assert scores.loc[("unet-10x", 0), "macro_f1"] == pytest.approx(float(macro_f1(counts)))
    compared = result.comparisons
    assert set(compared["row"]) == {"hooknet-20x-10x"}
    assert set(compared["against"]) == {"best single scale", "same number of parameters"}
    assert set(compared["verdict"]) == {"not tested: one split"}
    with pytest.warns(UserWarning, match="one split"):
        again = ms.experiment(_config(store, tmp_path / "out"), threads=1)  # nothing is done twice
    pd.testing.assert_frame_equal(again.judged.scores, result.judged.scores)


def test_a_coarse_model_is_judged_on_fine_px(store: ms.PatchStore) -> None:
    source = SegmentSource(store.path)
    (batch, *_) = source.measured(["a.png"], batch_size=4)
    torch.manual_seed(0)
    model = UNet(2, [10], filters=2, depth=2).eval()
    task = GridTask(source.names, magnifications=(20, 10), size=SIZE - model.border)
    with torch.no_grad():
        _, (predictions, targets) = task.loss(model, batch)
        coarse = model(batch["image"][:, 1:]).logits.argmax(1)
    size = SIZE - model.border
    assert targets.shape[1:] == (size, size) == (22, 22)
    for b in range(len(coarse)):
        counts = np.zeros((2, 2), np.int64)
        for y, x in np.ndindex(size, size):
            label = int(batch["label_map"][b, 0, y + model.border // 2, x + model.border // 2]) - 1
            # px of both about the common middle
            v, u = ((axis + 0.5 - size / 2) / 2 + coarse.shape[-1] / 2 for axis in (y, x))
            if label >= 0:
                counts[label, int(coarse[b, int(v), int(u)])] += 1
        assert np.array_equal(predictions.counts[b].numpy(), counts)
    with pytest.raises(SpecError, match="expected one that covers 50 px at 20x"):
        GridTask(source.names, magnifications=(20, 10), size=50).loss(model, batch)


def test_patients_are_drawn_with_their_px() -> None:
    rng = np.random.default_rng(0)
    cells = [(p, t, g) for p in "ABC" for t in (0, 1) for g in (0, 1)]
    tables = []
    for _ in range(2):
        table = pd.DataFrame(cells, columns=["patient", "label", "predicted"])
        tables.append(table.assign(pixels=rng.integers(1, 30, len(cells))))
    long = [t.loc[t.index.repeat(t["pixels"])].drop(columns="pixels") for t in tables]
    assert bootstrap_patients(*tables, "macro_f1", draws=200) == bootstrap_patients(*long, "macro_f1", draws=200)


def test_what_segmentation_has_not_is_refused(store: ms.PatchStore, tmp_path: Path) -> None:
    for changes, said in (
        ({"models": ["features"]}, "models: 'features': expected some of unet, hooknet"),
        ({"baselines": ["pooled"]}, "baselines: 'pooled': expected some of matched"),
        ({"ablate": 2}, "with task='segment' expected"),
        ({"magnifications": [[10]], "models": ["hooknet"]}, "none fits"),
        ({"merge": "mean"}, "merge='mean': expected one of concat"),
    ):
        with pytest.raises(SpecError, match=said):
            ExperimentConfig.from_dict(_config(store, tmp_path, **changes))
