"""The scale detector's network, its backbones and its files."""

# ruff: noqa: E402
from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")

from msdask.errors import MsdaskError, SpecError
from msdask.models import ScaleNet, ScaleRegressor, make_backbone
from msdask.models.files import load_model, save_model


def _images(count: int = 2, size: int = 64, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


@pytest.fixture
def model() -> ScaleRegressor:
    torch.manual_seed(0)
    return ScaleRegressor("scalenet", embedding=16, dropout=0.5, target="log2")


def test_resnet34_with_an_embedding_of_128_is_the_default():
    model = ScaleRegressor()
    assert model.config == {"backbone": "resnet34", "embedding": 128, "dropout": 0.0, "target": "linear"}
    assert model.backbone.n_features == 512
    assert [m.out_features for m in model.head if isinstance(m, torch.nn.Linear)] == [128, 1]


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1_not", "shufflenet_v2_x0_5"])
def test_backbones_of_torchvision_by_name(name):
    if name.endswith("_not"):
        with pytest.raises(SpecError, match="similar ones: squeezenet1_1"):
            make_backbone(name)
        return
    backbone = make_backbone(name).eval()
    assert backbone(torch.zeros(1, 3, 64, 64)).shape == (1, backbone.n_features)


def test_a_network_without_a_last_linear_layer_is_refused():
    with pytest.raises(SpecError, match="does not end in a linear layer"):
        make_backbone("squeezenet1_1")


def test_embedding_none_puts_the_output_on_the_features():
    model = ScaleRegressor("scalenet", embedding=None)
    assert [m.in_features for m in model.head if isinstance(m, torch.nn.Linear)] == [ScaleNet().n_features]


def test_the_features_of_scalenet_are_mean_and_deviation_of_every_stage():
    net = ScaleNet(widths=(4, 6), depths=(1, 2)).eval()
    images = torch.rand(3, 3, 40, 40)
    expected, x = [], images
    for stage in net.stages:
        x = stage(x)
        expected += [x.mean((2, 3)), (((x - x.mean((2, 3), keepdim=True)) ** 2).mean((2, 3)) + 1e-4).sqrt()]
    torch.testing.assert_close(net(images), net.normalize(torch.cat(expected, 1)))
    assert net.n_features == 2 * (4 + 6)


def test_dropout_is_off_in_evaluation_and_on_in_training(model):
    images = _images()
    model.eval()
    assert torch.equal(model(images), model(images))
    model.train()
    torch.manual_seed(0)
    first = model.head(torch.ones(2, model.backbone.n_features))
    assert not torch.equal(first, model.head(torch.ones(2, model.backbone.n_features)))


def test_uint8_and_float_images_are_the_same_image(model):
    images = _images()
    torch.testing.assert_close(model.eval()(images), model(images.float() / 255))


@pytest.mark.parametrize(("target", "value"), [("linear", 20.0), ("log2", 4.321928)])
def test_targets(target, value):
    model = ScaleRegressor("scalenet", target=target)
    found = model.to_target(torch.tensor([20.0]))
    torch.testing.assert_close(found, torch.tensor([value]))
    torch.testing.assert_close(model.from_target(found), torch.tensor([20.0]))


def test_an_untrained_network_says_something_in_the_middle_of_the_range():
    for target in ("linear", "log2"):
        model = ScaleRegressor("scalenet", target=target).eval()
        assert ((model.magnification(_images()) > 8) & (model.magnification(_images()) < 24)).all()


def test_a_linear_output_below_zero_is_no_negative_magnification():
    model = ScaleRegressor("scalenet")
    assert (model.calibrated(torch.tensor([-3.0, 7.0])) > 0).all()


def test_calibration_is_the_least_squares_line_from_output_to_target(model):
    truth = torch.tensor([5.0, 10.0, 20.0, 40.0, 40.0])
    output = 0.5 * torch.log2(truth) + 1.5
    model.calibrate(output, truth)
    torch.testing.assert_close(model.calibration, torch.tensor([2.0, -3.0]))
    torch.testing.assert_close(model.calibrated(output), truth)


def test_calibration_needs_outputs_that_differ(model):
    with pytest.raises(SpecError, match="all alike"):
        model.calibrate(torch.ones(4), torch.tensor([5.0, 10.0, 20.0, 40.0]))


@pytest.mark.parametrize(
    ("options", "match"),
    [({"target": "log10"}, "target"), ({"dropout": 1.0}, "dropout"), ({"embedding": 0}, "embedding")],
)
def test_options_that_make_no_sense_are_refused(options, match):
    with pytest.raises(SpecError, match=match):
        ScaleRegressor("scalenet", **options)


def test_weights_that_cannot_be_had_say_what_to_do(monkeypatch, tmp_path):
    def offline(*_, **__):
        raise OSError("Name or service not known")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    with pytest.raises(MsdaskError, match=r"(?s)ImageNet weights cannot be loaded.*weights=None"):
        make_backbone("resnet18", weights="imagenet")
    with pytest.raises(SpecError, match="no ImageNet weights"):
        make_backbone("scalenet", weights="imagenet")


def test_backbone_weights_from_a_file(tmp_path):
    torch.manual_seed(1)
    source = make_backbone("scalenet")
    torch.save(source.network.state_dict(), tmp_path / "w.pt")
    loaded = make_backbone("scalenet", weights=tmp_path / "w.pt").eval()
    images = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(loaded(images), source.eval()(images))


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_backbone_weights_that_are_damaged_or_missing_are_named(tmp_path, ending):
    with pytest.raises(MsdaskError, match="no such file"):
        make_backbone("scalenet", weights=tmp_path / f"none{ending}")
    (tmp_path / f"w{ending}").write_bytes(b"not weights")
    with pytest.raises(MsdaskError, match="w" + ending):
        make_backbone("scalenet", weights=tmp_path / f"w{ending}")


def test_backbone_weights_of_another_network_are_refused(tmp_path):
    torch.save(make_backbone("resnet18").network.state_dict(), tmp_path / "w.pt")
    with pytest.raises(MsdaskError, match="are of another network"):
        make_backbone("scalenet", weights=tmp_path / "w.pt")


def test_a_pickled_object_is_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'sprung')!r}, 'w')",))

    torch.save({"x": Trap()}, tmp_path / "w.pt")
    with pytest.raises(MsdaskError, match="cannot be read as a state dict"):
        make_backbone("scalenet", weights=tmp_path / "w.pt")
    assert not (tmp_path / "sprung").exists()


def test_a_model_that_cannot_be_written_leaves_the_one_that_was_there(model, tmp_path):
    path = save_model(model, tmp_path / "m.safetensors", about={"crop": 96})
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(TypeError):
        save_model(model, path, about={"crop": object()})
    with pytest.raises(MsdaskError, match=r"cannot write model '.*m\.safetensors"):
        save_model(model, path / "m.safetensors")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_saved_model_gives_the_same_outputs(model, tmp_path):
    model.calibrate(torch.tensor([1.0, 2.0]), torch.tensor([5.0, 30.0]))
    path = save_model(model, tmp_path / "m.safetensors", about={"crop": 96})
    for given in (path, tmp_path / "m.json"):
        loaded, about = load_model(given)
        assert not loaded.training
        assert torch.equal(loaded.magnification(_images()), model.eval().magnification(_images()))
        assert about == {"crop": 96}
        assert loaded.config == model.config


def test_others_may_read_the_weights_as_they_may_any_new_file(model, tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    path = save_model(model, tmp_path / "m.safetensors")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_run_folder_is_a_model(model, tmp_path):
    save_model(model, tmp_path / "model.safetensors")
    loaded, _ = load_model(tmp_path)
    assert torch.equal(loaded(_images()), model.eval()(_images()))


def test_damaged_model_files_are_named(model, tmp_path):
    path = save_model(model, tmp_path / "m.safetensors")
    with pytest.raises(MsdaskError, match=r"no file 'other\.safetensors'"):
        load_model(tmp_path / "other.safetensors")
    described = path.with_suffix(".json")
    content = json.loads(described.read_text())
    described.write_text(json.dumps({**content, "msdask_model": 99}))
    with pytest.raises(MsdaskError, match="update msdask"):
        load_model(path)
    described.write_text(json.dumps({**content, "config": {"backbone": "scalenet", "embedding": 8}}))
    with pytest.raises(MsdaskError, match="damaged or of another model"):
        load_model(path)
    described.write_text(json.dumps({**content, "class": "ScaleRegresor"}))
    with pytest.raises(MsdaskError, match=r"'ScaleRegresor' is not registered; there are ScaleRegressor"):
        load_model(path)
    described.write_text("{")
    with pytest.raises(MsdaskError, match="does not describe a model"):
        load_model(path)
    described.write_text(json.dumps(content))
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(MsdaskError, match="damaged"):
        load_model(path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"embedding": 10**12}, "tensors differ, such as"),
        ({"embedding": 10**30}, "does not describe a model|damaged or of another model"),
        ({"embedding": -1}, "does not describe a model|damaged or of another model"),
        ({"backbone": "../../x"}, "does not describe a model"),
    ],
)
def test_what_a_description_claims_is_held_against_the_weights_before_memory_is_taken(config, message, model, tmp_path):
    path = save_model(model, tmp_path / "m.safetensors")
    described = path.with_suffix(".json")
    content = json.loads(described.read_text())
    described.write_text(json.dumps({**content, "config": {**content["config"], **config}}))
    with pytest.raises(MsdaskError, match=message):
        load_model(path)


def test_a_description_names_no_other_file_and_no_download(model, tmp_path):
    path = save_model(model, tmp_path / "m.safetensors")
    described = path.with_suffix(".json")
    content = json.loads(described.read_text())
    for weights in ("/etc/passwd", "imagenet"):
        described.write_text(json.dumps({**content, "config": {**content["config"], "weights": weights}}))
        assert torch.equal(load_model(path)[0](_images()), model.eval()(_images()))


def test_a_description_that_is_nested_too_deeply_is_named(model, tmp_path):
    path = save_model(model, tmp_path / "m.safetensors")
    path.with_suffix(".json").write_text("[" * 200_000)
    with pytest.raises(MsdaskError, match=r"m\.json' does not describe a model"):
        load_model(path)
