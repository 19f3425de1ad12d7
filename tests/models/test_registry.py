"""The registry of models, and the models that come along: data, not code."""

# ruff: noqa: E402
from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import msdask as ms
from msdask.errors import SpecError
from msdask.models import files, registry
from msdask.models.files import load_model, load_released, released, save_model


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> type[torch.nn.Module]:
    """A class of models that msdask knows nothing of."""
    monkeypatch.setattr(registry, "_models", dict(registry._models))

    @ms.models.register
    class Scaler(torch.nn.Module):
        def __init__(self, *, width: int = 2) -> None:
            super().__init__()
            self.config = {"width": width}
            self.layer = torch.nn.Linear(width, 1)

    return Scaler


def test_models_are_listed_and_made_by_name(own: type[torch.nn.Module]) -> None:
    assert {"ScaleRegressor", "Scaler"} <= set(ms.models.list())
    assert isinstance(ms.models.create("Scaler", width=3), own)
    model = ms.models.create("ScaleRegressor", backbone="scalenet", target="log2")
    assert model.config["target"] == "log2"


def test_a_model_of_ones_own_is_saved_and_loaded_again(own: type[torch.nn.Module], tmp_path: Path) -> None:
    model = own(width=3)
    save_model(model, tmp_path / "m.safetensors", about={"task": "scaling", "licence": "MIT"})
    loaded, about = load_model(tmp_path / "m.json")
    assert isinstance(loaded, own)
    assert torch.equal(loaded.layer.weight, model.layer.weight)
    assert about == {"task": "scaling", "licence": "MIT"}


def test_names_that_nobody_registered_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="'ScaleRegresor' is not registered; there are ScaleRegressor"):
        ms.models.create("ScaleRegresor")
    with pytest.raises(SpecError, match="class Linear: only registered ones can be loaded again"):
        save_model(torch.nn.Linear(1, 1), tmp_path / "m.safetensors")


def test_two_classes_cannot_have_one_name(own: type[torch.nn.Module]) -> None:
    with pytest.raises(SpecError, match=r"'Scaler': .* has registered one of this name"):
        ms.models.register(type("Scaler", (torch.nn.Module,), {"__module__": "elsewhere"}))
    assert ms.models.register(own) is own  # a module that is imported again


def test_released_models_say_task_licence_data_and_metrics() -> None:
    found = {(r.task, r.name): r for r in ms.models.released()}
    assert set(found) == {("scale", "default"), ("scale", "free")}
    default = found["scale", "default"]
    assert default.licence == "CC BY-NC-SA 4.0"
    assert "not for commercial use" in default.notice
    assert "MoNuSeg" in default.data
    assert default.metrics["valid"]["r2"] > 0.85
    assert released("segmentation") == []


def test_two_files_are_a_released_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home = tmp_path / "models"
    shutil.copytree(Path(files.__file__).parent / "released", home / "released")
    model = ms.models.create("ScaleRegressor", backbone="scalenet")
    about = {"name": "tiny", "task": "scale", "licence": "CC0", "data": "none", "metrics": {}, "notice": "a test"}
    save_model(model, home / "released/tiny.safetensors", about=about)
    monkeypatch.setattr(files, "__file__", str(home / "files.py"))
    files._released.cache_clear()
    try:
        assert [r.name for r in released()] == ["default", "free", "tiny"]
        with pytest.warns(UserWarning, match="a test"):
            loaded, said = load_released("tiny")
        assert torch.equal(loaded.head[1].weight, model.head[1].weight)
        assert said["licence"] == "CC0"
    finally:
        files._released.cache_clear()


def test_a_file_of_format_1_has_task_and_metrics_where_they_are_now(tmp_path: Path) -> None:
    fixtures = Path(__file__).resolve().parents[1] / "fixtures"
    shutil.copy(fixtures / "model-1.safetensors", tmp_path)
    content = json.loads((fixtures / "model-1.json").read_text())
    assert content["msdask_model"] == 1
    content["about"]["valid"] = {"r2": 0.5}
    (tmp_path / "model-1.json").write_text(json.dumps(content))
    _, about = load_model(tmp_path / "model-1.safetensors")
    expected = {"task": "scale", "crop": 32, "magnifications": [5.0, 40.0], "licence": "MIT"}
    assert about == {**expected, "metrics": {"valid": {"r2": 0.5}}}


def test_an_unknown_released_model_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(SpecError, match="expected one of default, free, or a path"):
            load_released("best")
