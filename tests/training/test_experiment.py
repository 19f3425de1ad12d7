"""Experiments from a store to a table: common test patches, going on after a kill, failures, and what is refused."""

# ruff: noqa: E402
from __future__ import annotations

import json
from pathlib import Path
from typing import IO

import numpy as np
import pandas as pd
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("pytorch_lightning")

import msdask as ms
from msdask.data import FeatureLoader, LinkedSet, TupleDataset
from msdask.errors import MsdaskError, SpecError
from msdask.models import load_model, save_model
from msdask.models.encoder import encoder_of
from msdask.storage.locks import held
from msdask.training import ExperimentConfig, ExperimentResult
from msdask.training.experiments import gpu
from msdask.training.experiments import run as run_module
from msdask.training.experiments.data import ExperimentData
from msdask.training.experiments.experiment import ExperimentPlan, RunOutcome
from msdask.training.experiments.frozen import FrozenFeatures
from msdask.training.experiments.gpu import free_gpu
from msdask.training.experiments.rows import Row
from tests.tools.class_tools import COHORT, write_class_cohort
from tests.tools.experiment_tools import result_files, small_config, write_store
from tests.tools.store_tools import copy_store, forge

ROWS = ["single-10x-one", "features-10x-5x-n+1", "matched-5x-2-branches-one", "matched-10x-2-branches-one"]
ROWS += ["pooled-10x-5x-n+1"]


pytestmark = [
    pytest.mark.filterwarnings("ignore:features are those of a scalenet with random weights"),
    pytest.mark.filterwarnings("ignore:one split. whether models differ"),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ms.PatchStore:
    return write_store(tmp_path_factory.mktemp("classes"))


@pytest.fixture(scope="module")
def found(store: ms.PatchStore, tmp_path_factory: pytest.TempPathFactory) -> ExperimentResult:
    """The small experiment, unbroken."""
    return ms.experiment(small_config(store.path, tmp_path_factory.mktemp("unbroken"), ablate=2))


def test_every_model_of_a_split_is_judged_on_the_same_patches(store, found):
    linked = LinkedSet([store[f"grid-{m}x-32"] for m in (10, 5)])
    for split in range(2):
        expected = None
        lists = pd.read_csv(found.folder / f"splits/{split}/list_test.csv", header=None)[0].tolist()
        for row in ROWS:
            rows = pd.read_parquet(found.folder / f"runs/{row}/{split}/predictions.parquet")
            place = list(rows[["slide", "row", "x0", "y0", "label"]].itertuples(index=False, name=None))
            expected = expected or place
            assert place == expected
        naive = [
            (slide, row, int(x), int(y), int(linked.labels(slide)[row, 0]))
            for slide in sorted(lists)
            for row, (x, y) in enumerate(
                zip(*(v[:, 0] for v in store["grid-10x-32"].columns(slide, ["x0", "y0"])), strict=True)
            )
            if linked.linked_rows(slide)[row].min() >= 0 and linked.labels(slide)[row].min() >= 0
        ]
        assert expected == naive


def test_the_table_has_every_row_with_its_parameters(found):
    assert found.table["row"].tolist() == ROWS
    assert (found.table["splits"] == 2).all()
    table = found.table.set_index("row")
    for row in ROWS:
        model, _ = load_model(found.folder / f"runs/{row}/0")
        assert table.loc[row, "parameters"] == sum(p.numel() for p in model.parameters())
    fusion = table.loc["features-10x-5x-n+1", "parameters"]
    assert (table.loc[ROWS[2:], "parameters"] == fusion).all()
    of_runs = [json.loads((found.folder / f"runs/{ROWS[0]}/{split}/metrics.json").read_text()) for split in (0, 1)]
    kappa = [run["test"]["kappa"] for run in of_runs]
    assert table.loc[ROWS[0], "kappa"] == pytest.approx(np.mean(kappa))
    assert table.loc[ROWS[0], "kappa_std"] == pytest.approx(np.std(kappa, ddof=1))


def test_fusions_are_compared_with_each_baseline(found):
    pairs = found.comparisons[["row", "against"]].values.tolist()
    assert pairs == [
        ["features-10x-5x-n+1", "best single scale"],
        ["features-10x-5x-n+1", "same number of parameters"],
        ["features-10x-5x-n+1", "fine patches for contexts"],
        ["pooled-10x-5x-n+1", "best single scale"],
    ]
    for row in found.comparisons.to_dict("records"):
        assert row["verdict"] == "no difference shown" or row["p_holm"] < 0.05


def test_a_run_is_a_model_that_maps_slides(store, tmp_path):
    config = small_config(store.path, tmp_path / "out", features="trained", models=["features"], baselines=[])
    config |= {"recipe": {"epochs": 1, "lr": 0.01, "accelerator": "cpu"}, "repeats": 1}
    ms.experiment(config)
    run = tmp_path / "out/runs/features-10x-5x-n+1/0"
    slide = ms.open_slide(Path(store.path).parent / "a0.png", mpp=0.5)
    found = ms.classify_slide(slide, run, min_tissue=0.0, device="cpu")
    assert found.attrs["spec"]["patch_size"] == 32
    assert list(found["class"].values) == ["0", "1"]
    assert (found["predicted"].values >= 0).all()


def test_heads_on_frozen_features_map_slides_with_their_backbone(store, found, tmp_path):
    run = found.folder / "runs" / ROWS[1] / "0"
    heads, about = load_model(run)
    images = torch.randint(0, 256, (3, 2, 3, 32, 32), dtype=torch.uint8)
    encoder = encoder_of("scalenet", "none", 0)
    assert about["encoder"] == encoder.about
    with torch.inference_mode():
        expected = heads.eval()(encoder(images.flatten(0, 1)).unflatten(0, (3, 2))).logits
        classifier = ms.load_classifier(run, device="cpu")
        torch.testing.assert_close(classifier.network.eval()(images).logits, expected, rtol=1e-3, atol=1e-4)
    slide = ms.open_slide(Path(store.path).parent / "a0.png", mpp=0.5)
    assert (ms.classify_slide(slide, classifier, min_tissue=0.0)["predicted"].values >= 0).all()
    with pytest.raises(MsdaskError, match=r"takes features \('features-.*nothing says of which backbone"):
        ms.load_classifier(heads)
    about["encoder"]["digest"] = "0"
    save_model(load_model(run)[0], tmp_path / "m.safetensors", about=about)
    with pytest.raises(MsdaskError, match="backbone 'scalenet': weights 'none' are others than those whose features"):
        ms.load_classifier(tmp_path / "m.safetensors")


def test_branches_and_ablation_are_in_the_results(found):
    assert found.judged.branches[["row", "branch"]].values.tolist() == [
        [row, scale] for row in (ROWS[1], ROWS[4]) for scale in ("10x", "5x")
    ]
    assert set(found.judged.ablation["row"]) == {ROWS[1], ROWS[4]}
    assert not (found.folder / f"runs/{ROWS[0]}/0/ablation.csv").exists()


def test_the_files_say_what_the_result_says(found):
    text = (found.folder / "table.md").read_text(encoding="utf-8")
    assert text == found.text
    tuples = int(found.table["splits"].max())
    assert f"over {tuples} splits by patient" in text
    assert "| combine features | 5x/10x | n + 1 | " in text
    assert "no parent at 5x: " in text
    assert "Best single scale in validation: single-10x-one." in text
    assert "pooled-10x-5x-n+1: share of the contexts that fine patches cover: 5x 100%." in text
    latex = (found.folder / "table.tex").read_text(encoding="utf-8")
    assert latex.count(r"\begin{tabular}") == 2
    assert r"$\pm$" in latex
    assert (found.folder / "table.png").read_bytes()[:4] == b"\x89PNG"
    assert pd.read_csv(found.folder / "table.csv")["row"].tolist() == ROWS


def test_an_experiment_that_was_interrupted_twice_gives_the_same_table(store, found, tmp_path, monkeypatch):
    config = small_config(store.path, tmp_path, ablate=2)
    batch, measure = FeatureLoader._batch, run_module.measure
    tested = []

    def dies_in_training(self, index):
        if self.order.group_of is not None and self.epoch == 1:  # in the second epoch of the first run
            raise KeyboardInterrupt
        return batch(self, index)

    def dies_in_testing(*arguments, **options):
        tested.append(arguments[0])
        if len(tested) == 4:
            raise KeyboardInterrupt
        return measure(*arguments, **options)

    monkeypatch.setattr(FeatureLoader, "_batch", dies_in_training)
    with pytest.raises(KeyboardInterrupt):
        ms.experiment(config)
    monkeypatch.undo()
    first = tmp_path / "runs" / ROWS[0] / "0"
    assert (first / "checkpoints/last.ckpt").exists()
    assert not (first / "model.safetensors").exists()
    monkeypatch.setattr(run_module, "measure", dies_in_testing)
    with pytest.raises(KeyboardInterrupt):
        ms.experiment(config)
    monkeypatch.undo()
    fourth = tmp_path / "runs" / ROWS[3] / "0"
    assert (fourth / "model.safetensors").exists()
    assert not (fourth / "done.json").exists()
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/*/done.json")}
    assert len(written) == 3
    outcomes: list[RunOutcome] = []
    ms.experiment(config, listener=outcomes.append)
    assert [one.state for one in outcomes] == ["kept"] * 3 + ["done"] * 7
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert result_files(tmp_path) == result_files(found.folder)


def test_a_run_that_fails_is_named_and_stops_no_other(store, found, tmp_path):
    config = small_config(store.path, tmp_path, baselines=[])
    broken = tmp_path / "runs/features-10x-5x-n+1/0"
    broken.mkdir(parents=True)
    (broken / "model.safetensors").write_bytes(b"none")
    result = ms.experiment(config)
    assert list(result.failures) == ["features-10x-5x-n+1, split 0"]
    assert "no file 'model.json' there" in result.failures["features-10x-5x-n+1, split 0"]
    assert "Traceback" in (broken / "error.txt").read_text(encoding="utf-8")
    assert result.table["splits"].tolist() == [2, 1]
    assert "combine features (1 of 2 splits)" in result.text
    assert "FAILED: features-10x-5x-n+1, split 0: " in result.text
    assert result.comparisons["verdict"].tolist() == ["not tested: one split"]
    assert "Left out by the configuration: the baselines matched and pooled." in result.text
    (broken / "model.safetensors").unlink()
    again = ms.experiment(config)
    assert again.is_complete
    assert not (broken / "error.txt").exists()
    expected = found.judged.scores.set_index(["row", "split"])["kappa"]
    assert again.judged.scores.set_index(["row", "split"])["kappa"].to_dict() == pytest.approx(
        {key: expected[key] for key in expected.index if key[0] in ROWS[:2]}
    )


def test_other_settings_in_the_same_folder_are_refused(store, found):
    changed = small_config(store.path, found.folder, ablate=2, dropout=0.5, batch_size=32)
    with pytest.raises(MsdaskError, match=r"other settings or data \(differs in dropout, batch_size\)"):
        ms.experiment(changed)


def test_two_at_once_in_one_folder_are_refused(store, found):
    with held(str(found.folder / "experiment.lock"), "it"), pytest.raises(MsdaskError, match="is being written by"):
        ms.experiment(small_config(store.path, found.folder, ablate=2))


def test_features_are_those_of_the_images(store, found):
    config = ExperimentConfig.read(small_config(store.path, found.folder))
    config = ExperimentPlan(config).config
    data = ExperimentData(config)
    encoder = encoder_of("scalenet", "none", 0)
    frozen = FrozenFeatures(config, data, FrozenFeatures.digest_of(data, encoder))
    for row in (Row("features", (10.0, 5.0)), Row("pooled", (10.0, 5.0))):
        dataset = data.dataset(["c.png"], row)
        (given,) = frozen.loader(dataset, row, batch_size=500)
        images = dataset.__getitems__(range(len(dataset)))
        count, seen = images["image"].shape[:2]
        with torch.inference_mode():
            of_each = encoder(images["image"].flatten(0, 1)).unflatten(0, (count, seen))
        area = images["area"] if row.kind == "pooled" else torch.eye(seen).expand(count, -1, -1)
        expected = torch.einsum("nmk,nkf->nmf", area / area.sum(2, keepdim=True), of_each)
        torch.testing.assert_close(given["features"], expected, rtol=1e-3, atol=1e-4)
        assert given["whole"].tolist() == images["whole"].tolist()


def test_features_that_are_there_are_not_made_again(store, found):
    plan = ExperimentPlan(ExperimentConfig.read(small_config(store.path, found.folder)))
    assert plan.encodings() == []
    (features,) = (found.folder / "features").iterdir()
    assert {path.name for path in features.iterdir()} == {"grid-10x-32-0", "grid-5x-32-0"}


def test_images_are_learnt_from_as_well(store, tmp_path):
    config = small_config(store.path, tmp_path, features="trained", baselines=["pooled"])
    config |= {"magnifications": [[10, 5]], "models": ["features"], "ratios": None, "repeats": None}
    config["recipe"] = {"epochs": 1, "accelerator": "cpu"}
    with pytest.warns(UserWarning, match="one split: whether models differ beyond chance cannot be tested"):
        result = ms.experiment(config)
    assert result.table["row"].tolist() == ["features-10x-5x-n+1", "pooled-10x-5x-n+1"]
    model, about = load_model(tmp_path / "runs/pooled-10x-5x-n+1/0")
    assert model.config["backbone"] == "scalenet"
    assert about["initial_weights"] == "none"
    assert result.comparisons["verdict"].tolist() == ["not tested: one split"]
    tested = TupleDataset(LinkedSet([store[f"grid-{m}x-32"] for m in (10, 5)]), slides=["d.png", "e.png"])
    assert json.loads((tmp_path / "runs/pooled-10x-5x-n+1/0/done.json").read_text())["test_tuples"] == len(tested)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"magnifications": [[40], [10, 5]]}, r"magnifications \[40.0, 10.0, 5.0\] asked for, .* has grid sets at"),
        ({"classes": 1}, r"label 1, out of range for 1 classes"),
        ({"classes": ["a", "b", "c"]}, r"split 0: class 2 is missing from 'train'"),
        ({"backbone": "resnet_18", "weights": "none"}, "no such network; similar ones"),
        ({"pooled_set": "fine"}, "pooled_set='fine': .* has no such set; it has"),
        ({"monitor": "kapa"}, "monitor='kapa': expected one of loss, kappa"),
        ({"models": ["attention"], "embedding": 6}, "heads=4: expected a divisor of the width of the features, 6"),
        ({"ratios": None, "repeats": None, "lists": "nowhere"}, "lists 'nowhere': none of list_train.csv"),
    ],
)
def test_what_cannot_be_is_refused_before_the_first_step(store, tmp_path, changes, message):
    with pytest.raises(MsdaskError, match=message):
        ms.experiment(small_config(store.path, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_data_that_no_experiment_can_be_made_of_is_refused_before_the_first_step(store, tmp_path):
    lists = {"train": ["a0", "b"], "valid": ["c"], "test": ["a1"]}
    for name, slides in lists.items():
        (tmp_path / f"list_{name}.csv").write_text("\n".join(slides) + "\n")
    config = small_config(store.path, tmp_path / "out", ratios=None, repeats=None, lists=str(tmp_path))
    with pytest.raises(
        SpecError, match=r"patient 'A' is in two parts: slide 'a0.png' is in 'train' and slide 'a1.png'"
    ):
        ms.experiment(config)
    with pytest.raises(MsdaskError, match=r"nothing.zarr' is no patch store"):
        ms.experiment({**config, "store": str(tmp_path / "nothing.zarr")})
    copy_store(store.path, tmp_path / "copied.zarr")
    for slide in COHORT:
        label = store["grid-10x-32"].columns(slide, ["label"])[0]
        forge(tmp_path / "copied.zarr", "grid-10x-32", slide, {"label": np.full_like(label, -1)})
    with pytest.raises(SpecError, match=r"no tuple is left .*no label at 10x"):
        ms.experiment(small_config(tmp_path / "copied.zarr", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_one_slide_a_class_is_refused_before_the_first_step(tmp_path):
    halves = {slide: (min(i, 3), min(i, 3)) for i, slide in enumerate(COHORT)}
    made = write_class_cohort(tmp_path, modes=["grid"], classes=halves, scales=(10.0,))
    config = small_config(made.path, tmp_path / "out", magnifications=[[10]], losses=["one"])
    with pytest.raises(SpecError, match=r"class [0-2] is missing .*slides with it: 1, of 1 patients .*, too few"):
        ms.experiment(config)
    assert not (tmp_path / "out").exists()


def test_processes_take_gpus_that_no_other_has(tmp_path, monkeypatch):
    held_here: list[IO[bytes]] = []
    monkeypatch.setattr(gpu, "_held", held_here)
    assert [free_gpu(2, tmp_path) for _ in range(2)] == [0, 1]
    assert free_gpu(2, tmp_path) in (0, 1)  # all are taken: one is shared
    for lock in held_here:
        lock.close()
    assert free_gpu(2, tmp_path) == 0
    held_here[-1].close()


def test_contexts_that_nothing_fine_covers_are_refused_and_a_set_that_does_is_named(tmp_path):
    task = ms.sample.make_scale_bits(tmp_path, "xor", slides=(1, 1, 1), side=4)
    store = ms.PatchStore(tmp_path / "bits.zarr")
    ms.extract(task.table, store, task.grids(), values=task.values, threads=1, progress=False)
    config = small_config(store.path, tmp_path / "out", magnifications=[[20, 5]], models=["features"])
    config |= {"ratios": None, "repeats": None, "baselines": ["pooled"]}
    with pytest.raises(SpecError, match=r"contexts at 5x cannot be replaced .* cover 6.2% .*pooled_set"):
        ms.experiment(config)
    assert not (tmp_path / "out").exists()
    fine = ms.ExtractionSpec("grid", (20.0,), 64)
    ms.extract(task.table, store, fine, values=task.values, threads=1, progress=False, name="fine")
    with pytest.raises(SpecError, match="several grids at one magnification"):
        ms.experiment(config)
    plan = ExperimentPlan(ExperimentConfig.read({**config, "pooled_set": "fine"}))
    assert [row.name for row in plan.rows] == ["features-20x-5x-n+1", "pooled-20x-5x-n+1"]
    assert plan.data.areas(plan.rows[1]).covered == {5.0: 1.0}
    assert {job.set_name for job in plan.encodings()} == {"fine", "grid-20x-64", "grid-5x-64"}


def test_no_model_knows_more_than_its_magnifications_show(tmp_path):
    task = ms.sample.make_scale_bits(tmp_path, "xor", slides=(2, 1, 1), side=4)
    store = ms.PatchStore(tmp_path / "bits.zarr")
    ms.extract(task.table, store, task.tuples(), values=task.values, threads=1, progress=False)
    config = small_config(store.path, tmp_path / "out", relation="multicenter", losses=["one"], baselines=["matched"])
    config |= {"magnifications": [[20], [5], [20, 5]], "ratios": None, "repeats": None}
    table = ms.experiment(config).table.set_index("row")["balanced_accuracy"]
    one_scale = [name for name in table.index if name.startswith(("single", "matched"))]
    assert len(one_scale) == 4
    assert (table[one_scale] == 0.5).all()  # exactly: sites come in groups that differ in the hidden bit
    assert table["features-20x-5x-one"] <= 0.75


def test_weights_are_decided_once_for_all_runs(store, tmp_path, monkeypatch):
    def none(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", none)
    config = small_config(store.path, tmp_path / "out", backbone="resnet18", features="trained", embedding=4)
    with pytest.warns(UserWarning, match="training begins with random weights: .*ImageNet weights cannot be loaded"):
        plan = ExperimentPlan(ExperimentConfig.read(config))
    assert plan.config.weights == "none"
    assert {job.config.weights for job in plan.runs()} == {"none"}
    with pytest.raises(MsdaskError, match=r"weights '.*gone.pt': no such file"):
        ExperimentPlan(ExperimentConfig.read({**config, "weights": str(tmp_path / "gone.pt")}))
