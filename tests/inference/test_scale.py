"""estimate_scale, `msdask train | test | predict scale` and `--mpp estimate`."""

# ruff: noqa: E402
from __future__ import annotations

import json
import warnings
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from PIL import Image

torch = pytest.importorskip("torch")

import msdask as ms
from msdask.cli.app import main
from msdask.errors import MissingScaleError, MsdaskError, SlideError, SpecError
from msdask.inference.scale import _uncertainty, crop_origins, estimate_scale, load_regressor, magnifications_of
from msdask.models import ScaleRegressor
from msdask.models import files as weights
from msdask.models.files import load_released
from tests.tools.scale_tools import textured_image


def _reads_brightness() -> ScaleRegressor:
    """A model that says 10x for black, 20x for mid gray, 40x for white: what it sees can be worked out by hand."""
    model = ScaleRegressor("scalenet", target="log2").eval()
    model.forward = lambda images: np.log2(10) + 2 * images.float().mean((1, 2, 3)) / 255
    return model


def _plain(value: int, size: tuple[int, int] = (200, 200)) -> np.ndarray:
    return np.full((*size, 3), value, np.uint8)


def _toned(value: int, size: tuple[int, int] = (200, 200)) -> np.ndarray:
    """Squares of two purples, in a pattern of 12 px whose mean is `value`, in every crop of 96 or 60 px."""
    y, x = np.indices(size)
    light = np.where((y // 6 + x // 6) % 2, 8, -8)[..., None]
    return (value + np.array([15, -30, 15]) + light).astype(np.uint8)


def _write(path: Path, image: np.ndarray) -> Path:
    Image.fromarray(image).save(path)
    return path


@pytest.fixture
def tissue() -> np.ndarray:
    return textured_image(0, 300)


# --- estimate_scale --------------------------------------------------------------------------------------------------


def test_one_array_gives_one_estimate(tissue):
    found = estimate_scale(tissue, _reads_brightness())
    assert found.path == ""
    assert found.mpp == pytest.approx(10 / found.magnification)
    assert 10 < found.magnification < 40
    assert found.n_crops > 4
    assert 0 <= found.spread < 0.2


def test_file_slide_and_array_of_one_image_agree(tissue, tmp_path):
    path = _write(tmp_path / "a.png", tissue)
    model = _reads_brightness()
    by_array, by_file = estimate_scale(tissue, model), estimate_scale(path, model)
    by_slide = estimate_scale(ms.open_slide(path), model)
    assert by_file.path == by_slide.path == str(path)
    for other in (by_file, by_slide):
        assert other.magnification == pytest.approx(by_array.magnification, rel=1e-6)
        assert other.n_crops == by_array.n_crops


def test_median_and_spread_equal_those_of_a_plain_loop(tissue):
    model = _reads_brightness()
    found = estimate_scale(tissue, model, augment=False)
    values = []
    for y in np.linspace(0, 204, 6).round().astype(int):
        for x in np.linspace(0, 204, 6).round().astype(int):
            crop = tissue[y : y + 96, x : x + 96]
            values.append(10 * 4 ** (crop.astype(float).mean() / 255))
    assert found.n_crops == len(values)
    assert found.magnification == pytest.approx(np.median(values), rel=1e-4)
    low, high = np.percentile(values, [16, 84])
    assert found.spread == pytest.approx((high - low) / 2 / np.median(values), rel=1e-3)


def test_rows_come_in_input_order_whatever_the_batch_size(tmp_path):
    values = [190, 40, 120, 90, 160, 60]
    paths = [_write(tmp_path / f"{name}.png", _toned(v)) for name, v in zip("fcaebd", values, strict=True)]
    expected = [10 * 4 ** (v / 255) for v in values]
    for batch_size in (1, 3, 100):
        table = estimate_scale(paths, _reads_brightness(), batch_size=batch_size)
        assert list(table["path"]) == [str(p) for p in paths]
        assert table["magnification"].tolist() == pytest.approx(expected, rel=1e-5)
        assert (table["mpp"] * table["magnification"]).tolist() == pytest.approx([10.0] * 6)


def test_a_csv_is_read_in_its_order_and_a_folder_by_name(tmp_path):
    for name, v in (("b", 190), ("a", 40)):
        _write(tmp_path / f"{name}.png", _toned(v))
    (tmp_path / "list.csv").write_text("b.png\na.png\n")
    model = _reads_brightness()
    by_csv = estimate_scale(tmp_path / "list.csv", model)
    assert [Path(p).name for p in by_csv["path"]] == ["b.png", "a.png"]
    by_folder = estimate_scale(tmp_path, model)
    assert [Path(p).name for p in by_folder["path"]] == ["a.png", "b.png"]
    assert by_folder["magnification"].tolist() == by_csv["magnification"].tolist()[::-1]
    frame = estimate_scale(pd.DataFrame({"path": [tmp_path / "b.png"]}), model)
    assert frame["magnification"].tolist() == by_csv["magnification"].tolist()[:1]


def test_a_csv_may_have_more_columns_no_header_and_one_name_twice(tmp_path):
    for folder, v in (("x", 190), ("y", 40)):
        (tmp_path / folder).mkdir()
        _write(tmp_path / folder / "a.png", _toned(v))
    expected = [10 * 4 ** (v / 255) for v in (40, 190)]
    for text in ("y/a.png,40\nx/a.png,5\n", "label,path\n40,y/a.png\n5,x/a.png\n"):
        (tmp_path / "list.csv").write_text(text)
        found = estimate_scale(tmp_path / "list.csv", _reads_brightness())
        assert found["magnification"].tolist() == pytest.approx(expected, rel=1e-5)


def test_lists_without_an_image_are_refused(tmp_path):
    (tmp_path / "list.csv").write_text("path\n")
    with pytest.raises(SlideError, match="lists no image"):
        estimate_scale(tmp_path / "list.csv", _reads_brightness())
    with pytest.raises(SlideError, match="does not exist"):
        estimate_scale(tmp_path / "other.csv", _reads_brightness())
    with pytest.raises(SpecError, match="one named 'path'"):
        estimate_scale(pd.DataFrame({"file": ["a.png"]}), _reads_brightness())


def test_of_many_a_broken_image_becomes_a_row_with_the_reason_and_the_others_go_on(tmp_path, tissue):
    (tmp_path / "b.png").write_bytes(b"no image")
    good = [_write(tmp_path / f"{n}.png", tissue) for n in "ac"]
    table = estimate_scale([good[0], tmp_path / "b.png", _plain(9, (20, 300)), good[1]], _reads_brightness())
    assert np.isnan(table["magnification"]).tolist() == [False, True, True, False]
    assert "b.png" in table["error"][1]
    assert "at least 48 a side" in table["error"][2]
    assert table["error"][0] == table["error"][3] == ""
    with pytest.raises(SlideError, match=r"b\.png"):
        estimate_scale(tmp_path / "b.png", _reads_brightness())


def test_an_image_smaller_than_a_crop_is_looked_at_as_a_whole():
    found = estimate_scale(_toned(100, (60, 90)), _reads_brightness())
    assert found.magnification == pytest.approx(10 * 4 ** (100 / 255), rel=1e-5)
    assert estimate_scale(_toned(100, (60, 60)), _reads_brightness()).n_crops == 1


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((99, 99), np.uint8),
        np.zeros((99, 99, 4), np.uint8),
        np.zeros((99, 99, 3), np.uint16),
        np.full((99, 99, 3), 1.5),
        np.full((99, 99, 3), np.nan, np.float32),
        torch.zeros(3, 99, 99) - 1,
        torch.zeros(99, 99, 3, dtype=torch.int64),
        Image.new("I;16", (99, 99)),
    ],
)
def test_pixels_that_are_no_rgb_images_are_refused(image):
    with pytest.raises(SpecError, match="RGB"):
        estimate_scale(image, _reads_brightness())
    (row,) = estimate_scale([image], _reads_brightness())["error"]
    assert "RGB" in row


def test_pixels_of_every_kind_are_the_same_image(tissue):
    model = _reads_brightness()
    expected = estimate_scale(tissue, model)
    channels_first = np.ascontiguousarray(tissue.transpose(2, 0, 1))
    kinds = [
        channels_first,
        tissue.astype(np.float32) / 255,
        tissue / 255.0,
        torch.from_numpy(tissue),
        torch.from_numpy(channels_first),
        torch.from_numpy(channels_first) / 255,
        (torch.from_numpy(tissue) / 255).requires_grad_(),
        Image.fromarray(tissue),
        Image.fromarray(tissue).convert("RGBA"),
        xr.DataArray(tissue, dims=("y", "x", "band")),
    ]
    for image in kinds:
        assert estimate_scale(image, model) == expected
    table = estimate_scale(kinds, model)
    assert table["magnification"].tolist() == [expected.magnification] * len(kinds)
    batch = estimate_scale(torch.from_numpy(channels_first)[None].repeat(2, 1, 1, 1), model)
    assert batch["magnification"].tolist() == [expected.magnification] * 2


def test_what_is_transparent_lies_on_white():
    image = Image.fromarray(_plain(0)).convert("RGBA")
    image.putalpha(0)
    with pytest.raises(SlideError, match="found: 16 glass"):
        estimate_scale(image, _reads_brightness())


@pytest.mark.parametrize("image", [None, 3, float("nan"), {"path": "a.png"}])
def test_of_many_what_is_no_image_at_all_is_a_row_too(image, tissue):
    table = estimate_scale([image, tissue], _reads_brightness())
    assert f"an image of type {type(image).__name__}: expected a path" in table["error"][0]
    assert table["error"][1] == ""


def _no_tissue() -> list[tuple[str, np.ndarray]]:
    """What is found, and an image of it."""
    random, ramp, blobs = np.random.default_rng(0), np.arange(200, dtype=np.uint8), textured_image(1, 200)
    pink = np.array([200, 120, 180])
    gray = cv2.cvtColor(blobs, cv2.COLOR_RGB2GRAY)
    brown = np.where(blobs[..., :1] < 200, [150, 100, 50], [230, 190, 150])
    return [
        ("glass", _plain(255)),
        ("without structure", _plain(0)),
        ("without structure", np.broadcast_to(pink, (200, 200, 3)).astype(np.uint8)),
        ("without structure", np.broadcast_to(ramp[:, None, None], (200, 200, 3)).copy()),
        ("noise", random.integers(0, 256, (200, 200, 3), np.uint8)),
        ("noise", np.clip(pink + random.normal(0, 30, (200, 200, 3)), 0, 255).astype(np.uint8)),
        ("without color", np.repeat(gray[..., None], 3, 2)),
        ("greener than any stain", blobs[..., [1, 0, 1]]),
        ("without the pink, purple or blue of a stain", brown.astype(np.uint8)),
    ]


@pytest.mark.parametrize(("found", "image"), _no_tissue())
def test_what_is_no_tissue_has_no_estimate_and_the_error_says_what_was_found(found, image, tissue):
    model = _reads_brightness()
    with pytest.raises(SlideError, match=rf"shows no tissue in any of \d+ crops of 96 px \(found: \d+ {found}"):
        estimate_scale(image, model)
    table = estimate_scale([tissue, image, tissue], model)
    assert np.isnan(table["magnification"]).tolist() == [False, True, False]
    assert np.isnan(table["uncertainty"]).tolist() == [False, True, False]
    assert found in table["error"][1]


def test_only_crops_with_tissue_are_estimated(tissue):
    image = np.broadcast_to(np.array([180, 90, 150], np.uint8), (300, 900, 3)).copy()
    image[:, :300] = tissue
    found, alone = estimate_scale(image, _reads_brightness()), estimate_scale(tissue, _reads_brightness())
    assert found.n_crops < 30
    assert found.magnification == pytest.approx(alone.magnification, rel=0.1)


def test_an_estimate_says_how_sure_it_is(tissue):
    one = estimate_scale(_toned(100, (60, 60)), _reads_brightness())
    many = estimate_scale(tissue, _reads_brightness())
    assert np.isnan(one.spread)
    assert 0.2 < many.uncertainty < one.uncertainty < 0.5
    known, beyond = (_uncertainty(magnification, 0.1, 16, [5, 40]) for magnification in (20, 60))
    assert known == pytest.approx(np.hypot(0.2, 0.05))
    assert beyond == pytest.approx(np.hypot(known, 0.5))


def test_glass_is_not_looked_at(tissue):
    image = _plain(245, (1200, 1200))
    image[700:1000, 100:400] = tissue
    model = _reads_brightness()
    found = estimate_scale(image, model)
    assert found.magnification == pytest.approx(estimate_scale(tissue, model).magnification, rel=0.05)


def test_an_image_of_glass_has_no_estimate(tmp_path):
    glass = np.random.default_rng(0).integers(225, 250, (300, 300, 3), np.uint8)
    with pytest.raises(SlideError, match="an image given as an array shows no tissue"):
        estimate_scale(glass, _reads_brightness())
    (error,) = estimate_scale([_write(tmp_path / "glass.png", glass)], _reads_brightness())["error"]
    assert "glass.png' shows no tissue in any of" in error


def test_no_more_crops_than_asked_for_spread_over_the_image():
    origins = crop_origins((2000, 3000), 96, 40)
    assert len(origins) == 40
    assert origins.min() == 0
    assert origins[:, 0].max() == 1904
    assert (np.histogram(origins[:, 0], 4)[0] >= 8).all()


def test_crops_lie_on_the_tissue_and_fall_back_to_where_most_of_it_is():
    mask = np.zeros((50, 50), bool)
    mask[10:30, 20:40] = True
    origins = crop_origins((500, 500), 50, 64, mask)
    centers = origins + 25
    assert len(origins) > 8
    assert ((centers[:, 0] >= 100) & (centers[:, 0] <= 300) & (centers[:, 1] >= 200) & (centers[:, 1] <= 400)).all()
    speck = np.zeros((50, 50), bool)
    speck[12, 33] = True
    (best, *_) = crop_origins((500, 500), 50, 4, speck)
    assert best[0] <= 120 < best[0] + 50
    assert len(crop_origins((500, 500), 50, 4, np.zeros((50, 50), bool))) == 4


def test_averaging_over_mirror_images_is_the_mean_in_target_space():
    torch.manual_seed(0)
    model = ScaleRegressor("scalenet", target="log2").eval()
    crops = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    mirrors = [crops, crops[:, ::-1], crops[:, :, ::-1], crops[:, ::-1, ::-1]]
    logs = [np.log2(magnifications_of(m, model, augment=False)) for m in mirrors]
    assert magnifications_of(crops, model).tolist() == pytest.approx((2 ** np.mean(logs, 0)).tolist(), rel=1e-4)


def test_dropout_is_off_and_the_model_is_left_as_it_was():
    model = ScaleRegressor("scalenet", dropout=0.5, target="log2").train()
    crops = np.zeros((2, 64, 64, 3), np.uint8)
    assert magnifications_of(crops, model).tolist() == magnifications_of(crops, model).tolist()
    assert model.training


@pytest.mark.parametrize("option", [{"n_crops": 0}, {"batch_size": 0}])
def test_options_that_make_no_sense_are_refused(option, tissue):
    with pytest.raises(SpecError, match=next(iter(option))):
        estimate_scale(tissue, _reads_brightness(), **option)


def test_a_model_that_is_none_is_refused(tissue, tmp_path):
    with pytest.raises(SpecError, match="Linear"):
        estimate_scale(tissue, torch.nn.Linear(1, 1))
    with pytest.raises(MsdaskError, match="one of default, free"):
        estimate_scale(tissue, tmp_path / "none.safetensors")


def test_the_estimate_opens_a_slide_that_lost_its_scale(tissue, tmp_path):
    path = _write(tmp_path / "lost.png", tissue)
    with pytest.raises(MissingScaleError, match="scale detector"):
        ms.open_slide(path).at(magnification=5)
    found = estimate_scale(path, _reads_brightness())
    slide = ms.open_slide(path, mpp=found.mpp)
    assert slide.at(magnification=5).shape[0] == pytest.approx(300 * 5 / slide.magnification, abs=1)


# --- the models that come along --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["default", "free"])
def test_released_models_are_small_described_and_work(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, about = load_released(name)
    (entry,) = (r for r in weights.released("scale") if r.name == name)
    assert entry.path.stat().st_size < 5_000_000
    assert {"task", "data", "licence", "metrics", "crop", "magnifications"} <= set(about)
    assert (entry.licence, entry.data, entry.metrics) == (about["licence"], about["data"], about["metrics"])
    assert isinstance(model, ScaleRegressor)
    assert 2 < float(magnifications_of(textured_image(0)[None, :96, :96], model)[0]) < 80


def test_the_default_models_licence_is_said_once(monkeypatch):
    monkeypatch.setattr(weights, "_said", set())
    with pytest.warns(UserWarning, match="CC BY-NC-SA 4.0"):
        load_regressor("default")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_regressor("default")
        load_regressor("free")


def test_the_licence_lies_beside_the_weights():
    folder = Path(weights.__file__).parent / "released"
    text = (folder / "scale-monuseg.LICENSE").read_text()
    assert "Attribution-NonCommercial-ShareAlike 4.0" in text


# --- the command line ----------------------------------------------------------------------------------------------


def _run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    return int(stop.value.code or 0)


@pytest.fixture
def stub(monkeypatch):
    """The released models, replaced by one whose answers are known."""
    monkeypatch.setattr(weights, "load_released", lambda name: (_reads_brightness(), {"crop": 96}))


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """Grid sets at 20x, 10x and 5x of three slides, with a split."""
    folder = tmp_path_factory.mktemp("cohort")
    lines = ["path,split,magnification"]
    for i, split in enumerate(("train", "valid", "test")):
        _write(folder / f"s{i}.png", textured_image(i, 512))
        lines.append(f"s{i}.png,{split},20")
        mask = Image.new("L", (512, 512), 255)
        (folder / "masks").mkdir(exist_ok=True)
        mask.save(folder / "masks" / f"s{i}.png")
    (folder / "slides.csv").write_text("\n".join(lines) + "\n")
    code = _run(
        *("extract", folder / "slides.csv", "-o", folder / "cohort.zarr", "-t", folder / "masks", "--quiet"),
        *("-m", 20, 10, 5, "--mode", "grid", "-s", 64, "-p", 1),
    )
    assert code == 0
    return folder / "cohort.zarr"


def test_predict_scale_writes_a_row_an_image_and_says_which_failed(stub, tmp_path, capsys):
    for name, v in (("b", 190), ("a", 40)):
        _write(tmp_path / f"{name}.png", _toned(v))
    (tmp_path / "c.png").write_bytes(b"no image")
    (tmp_path / "list.csv").write_text("b.png\nc.png\na.png\n")
    assert _run("predict", "scale", "-i", tmp_path / "list.csv", "-o", tmp_path / "out.csv") == 1
    table = pd.read_csv(tmp_path / "out.csv")
    assert [Path(p).name for p in table["path"]] == ["b.png", "c.png", "a.png"]
    assert table["magnification"].round(2).tolist()[::2] == [round(10 * 4 ** (v / 255), 2) for v in (190, 40)]
    assert "c.png" in capsys.readouterr().err
    assert _run("predict", "scale", "-i", tmp_path / "a.png") == 0
    assert capsys.readouterr().out.startswith("path,magnification,mpp,spread,n_crops")


def test_train_scale_leaves_a_run_that_test_and_predict_take(store, tmp_path, capsys):
    run = tmp_path / "run"
    common = ("-c", "scalenet", "-e", 2, "-b", 32, "-f", 16, "-d", 0.1, "-lr", 0.01, "--target", "log2", "--quiet")
    assert _run("train", "scale", "-i", store, "-o", run, *common) == 0
    assert json.loads((run / "hparams.json").read_text())["task"]["classes"] == [5, 10, 20]
    assert (run / "lists/list_test.csv").read_text() == "s2.png\n"
    assert "kappa" in capsys.readouterr().out
    assert _run("test", "scale", "-i", store, "-p", run, "--quiet") == 0
    assert set(json.loads((run / "metrics.json").read_text())["test"]) >= {"r2", "kappa", "balanced_accuracy"}
    assert _run("predict", "scale", "-i", store.parent / "s2.png", "-p", run) == 0
    assert _run("train", "scale", "-i", store, "-o", run, *common) == 1
    assert "holds a training run already" in capsys.readouterr().err


def test_a_cohort_of_test_slides_alone_is_enough_to_test_on(stub, store, tmp_path, capsys):
    lines = (store.parent / "slides.csv").read_text().splitlines()
    (store.parent / "test.csv").write_text("\n".join([lines[0], lines[3]]) + "\n")
    common = ("-t", store.parent / "masks", "-m", 20, 10, "--mode", "grid", "-s", 64, "-p", 1, "--quiet")
    assert _run("extract", store.parent / "test.csv", "-o", tmp_path / "other.zarr", *common) == 0
    assert _run("test", "scale", "-i", tmp_path / "other.zarr", "-p", "default", "--quiet") == 0
    assert _run("train", "scale", "-i", tmp_path / "other.zarr", "-o", tmp_path / "run") == 1
    assert "none for training or validation" in " ".join(capsys.readouterr().err.split())


def test_lists_and_ratios_at_once_are_refused(store, tmp_path, capsys):
    both = ("--lists", tmp_path, "--ratios", 1, 1, 1)
    assert _run("train", "scale", "-i", store, "-o", tmp_path / "run", *both) == 1
    assert "give one of them" in " ".join(capsys.readouterr().err.split())


def test_exact_scales_are_read_from_the_slides(store, tmp_path):
    common = ("-c", "scalenet", "-e", 1, "-b", 32, "-f", 0, "--scale-augment", "exact", "--ratios", 1, 1, 1, "--quiet")
    assert _run("train", "scale", "-i", store, "-o", tmp_path / "run", *common) == 0


def test_a_store_with_one_magnification_cannot_train_a_detector(store, tmp_path, capsys):
    assert _run("train", "scale", "-i", store, "-o", tmp_path / "run", "-m", 20) == 1
    assert "needs two or more magnifications" in " ".join(capsys.readouterr().err.split())


def test_mpp_estimate_gives_info_a_scale(stub, tmp_path, capsys):
    path = _write(tmp_path / "lost.png", _toned(100))
    assert _run("info", path) == 0
    assert "unknown: no resolution in the file" in capsys.readouterr().out
    assert _run("info", path, "--mpp", "estimate") == 0
    shown = capsys.readouterr()
    (line,) = (line for line in shown.out.splitlines() if line.startswith("mpp used"))
    assert float(line.split()[2]) == pytest.approx(4 ** (-100 / 255), rel=1e-4)
    assert "by the scale detector" in shown.err


def test_mpp_estimate_extracts_a_slide_that_lost_its_scale_and_leaves_the_others_alone(stub, tmp_path, tissue):
    _write(tmp_path / "lost.png", tissue)
    _write(tmp_path / "known.png", tissue)
    (tmp_path / "slides.csv").write_text("path,magnification\nlost.png,\nknown.png,20\n")
    common = ("-m", 5, "-s", 32, "-x", 0, "--quiet", "-p", 1)
    assert _run("extract", tmp_path / "slides.csv", "-o", tmp_path / "a.zarr", *common) == 1
    assert (
        _run("extract", tmp_path / "slides.csv", "-o", tmp_path / "a.zarr", *common, "--missing-mpp", "estimate") == 0
    )
    patches = ms.PatchStore(tmp_path / "a.zarr")["grid-5x-32"]
    found = estimate_scale(tissue, _reads_brightness()).mpp
    assert patches.attrs("lost.png")["mpp"] == pytest.approx(found)
    assert patches.attrs("known.png")["mpp"] == 0.5
    assert "by the scale detector" in patches.attrs("lost.png")["cohort"]["scale_estimate"]
    assert "scale_estimate" not in patches.attrs("known.png")["cohort"]


def test_mpp_estimate_says_what_the_file_states_and_why_there_is_no_estimate(stub, tmp_path, tissue, capsys):
    Image.fromarray(tissue).save(tmp_path / "known.tif", resolution=20000, resolution_unit=3)
    assert _run("info", tmp_path / "known.tif", "--mpp", "estimate") == 0
    assert "its file states 0.5 um/px" in " ".join(capsys.readouterr().err.split())
    _write(tmp_path / "tiny.png", _plain(9, (20, 20)))
    assert (
        _run(
            "extract", tmp_path / "tiny.png", "-o", tmp_path / "a.zarr", "-m", 5, "--missing-mpp", "estimate", "--quiet"
        )
        == 1
    )
    assert "its scale cannot be estimated" in " ".join(capsys.readouterr().err.split())


def test_train_scale_learns_from_images_and_says_what_it_was_told_of_them(tmp_path, capsys):
    lines = ["path,magnification,split"]
    for i, split in enumerate(("train", "train", "valid", "test")):
        _write(tmp_path / f"{i}.png", textured_image(i))
        lines.append(f"{i}.png,40,{split}")
    (tmp_path / "images.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "about.json").write_text(json.dumps({"data": "blobs", "licence": "CC0"}))
    run = tmp_path / "run"
    how = ("-c", "scalenet", "-e", 2, "-b", 64, "-f", 16, "--target", "log2", "--loss", "huber", "--delta", 0.25)
    small = ("-m", 10, 20, 40, "-s", 32, "--crop", 48, "--mosaic", 0.3, "--augment", "strong", "--quiet")
    recipe = ("--optimizer", "adamw", "--weight-decay", 0.02, "--schedule", "cosine", "--warmup", 0.05, "--ema", 0.9)
    last = ("--keep", "last", "--patience", 0, "--about", tmp_path / "about.json")
    assert _run("train", "scale", "-i", tmp_path / "images.csv", "-o", run, *how, *small, *recipe, *last) == 0
    said = json.loads((run / "model.json").read_text())["about"]
    assert (said["data"], said["licence"], said["crop"]) == ("blobs", "CC0", 48)
    hparams = json.loads((run / "hparams.json").read_text())
    assert hparams["recipe"]["ema"] == 0.9
    assert hparams["recipe"]["patience"] is None
    assert hparams["task"]["classes"] == [10, 20, 40]
    assert _run("test", "scale", "-i", tmp_path / "images.csv", "-p", run, "-m", 10, 20, 40, "--quiet") == 0
    assert "test" in json.loads((run / "metrics.json").read_text())
    (tmp_path / "about.json").write_text("[")
    assert _run("train", "scale", "-i", tmp_path / "images.csv", "-o", tmp_path / "b", *small, *last) == 1
    assert "cannot be read as JSON" in " ".join(capsys.readouterr().err.split())
