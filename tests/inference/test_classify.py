"""classify_slide and `msdask predict classifier`: maps against patches one by one, their bytes, and their format."""

# ruff: noqa: E402
from __future__ import annotations

import hashlib
import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr
from PIL import Image

torch = pytest.importorskip("torch")

import msdask as ms
from msdask.cli.app import main
from msdask.errors import MsdaskError, SpecError, StoreError, TileError
from msdask.inference import classifier, loading, ome_zarr
from msdask.models import AttentionFusion, FeatureFusion, SingleScale, save_model
from msdask.selection.coverage import outside_shares
from tests.tools.killed import assert_gone_on_with
from tests.tools.s3_server import BUCKET, keys, s3_server
from tests.tools.slide_damage import damage_tile
from tests.tools.store_tools import tree

SCALES = (20.0, 10.0, 5.0)
SIZE = 32
NAMES = ["gland", "stroma", "fat"]


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small slide then has a dozen of shards."""
    monkeypatch.setattr(ome_zarr, "SHARD", 8)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide at 20x whose tissue reaches its edges: contexts leave it."""
    path = tmp_path_factory.mktemp("slide") / "a.svs"
    ms.sample.make_slide(path, size=(420, 610), mpp=0.5, seed=4, tissue_fraction=0.9, levels=(1, 2, 4), tile=64)
    return path


@pytest.fixture(scope="module")
def mask(path: Path) -> np.ndarray:
    """All tissue but a strip."""
    mask = np.ones((42, 61), bool)
    mask[:, 30:40] = False
    return mask


def _network(model=AttentionFusion, scales=SCALES, **options):
    torch.manual_seed(0)
    network = model(3, scales, backbone="scalenet", embedding=16, **options).eval()
    with torch.no_grad():  # new ones say much the same of every patch
        for branch in network.branches:
            branch.embedding.weight *= 30
    return network


def _map(path: Path, output: Path | None = None, **options) -> xr.Dataset:
    given = {"patch_size": SIZE, "stride": 16, "batch_size": 20, "classes": NAMES, "threads": 2}
    return ms.classify_slide(path, options.pop("model", None) or _network(), output, **{**given, **options})


def test_a_map_is_what_the_network_says_of_each_tuple_alone(path, mask):
    network = _network()
    found = _map(path, model=network, mask=mask)
    slide = ms.open_slide(path)
    table = ms.centroids(slide, mask, magnifications=SCALES, patch_size=SIZE, stride=16)
    images = torch.from_numpy(ms.patches(slide, table)["image"].values).movedim(-1, -3)
    assert found.attrs["tuples"] == len(images) > 500
    row, column = (table[name].values[:, 0] // 16 for name in ("y0", "x0"))
    seen = np.zeros(found["predicted"].shape, bool)
    seen[row, column] = True
    with torch.inference_mode():
        for k in range(0, len(images), 13):
            output = network(images[k : k + 1])
            said = output.logits.softmax(-1)[0].numpy()
            np.testing.assert_allclose(found["probability"].values[:, row[k], column[k]], said, atol=1e-5)
            np.testing.assert_allclose(found["attention"].values[:, row[k], column[k]], output.attention[0], atol=1e-5)
    assert np.array_equal(seen, found["predicted"].values >= 0)
    assert np.array_equal(np.isnan(found["probability"].values), np.broadcast_to(~seen, (3, *seen.shape)))
    best = np.where(seen, np.nan_to_num(found["probability"].values).argmax(0), -1)
    assert np.array_equal(found["predicted"].values, best)
    assert (np.nanstd(found["probability"].values, axis=(1, 2)) > 1e-3).all()  # it does not say one thing of all
    assert found["y"].values[:2].tolist() == [16.0, 32.0]  # centers of patches of 32 px
    assert found["x_um"].values[:2].tolist() == [8.0, 16.0]
    assert found["class"].values.tolist() == NAMES


def test_contexts_see_white_outside_and_the_share_of_it_is_counted(path):
    found = _map(path)
    shape = (420, 610)
    for scale, side in ((20.0, 32), (10.0, 64), (5.0, 128)):
        canvas = np.zeros((420 + 256, 610 + 256), bool)
        canvas[128 : 128 + 420, 128 : 128 + 610] = True
        for row, column in ((0, 0), (0, 20), (12, 3), (24, 36)):
            y, x = (int(found[name].values[i]) - side // 2 + 128 for name, i in (("y", row), ("x", column)))
            outside = 1 - canvas[y : y + side, x : x + side].mean()
            value = found["outside"].sel(magnification=scale).values[row, column]
            assert np.isnan(value) or value == pytest.approx(outside, abs=1e-6)
    shares = found.attrs["outside_share"]
    assert shares["20x"] == 0 < shares["10x"] < shares["5x"] < 0.5
    whole = outside_shares(np.array([[0, -64]]), np.array([[0, 420]]), (32.0, 64.0), shape)
    assert whole.tolist() == [[0.0, 1.0]]


def test_any_number_of_threads_gives_the_same_bytes(path, tmp_path):
    for threads in (1, 2, 5):
        _map(path, tmp_path / f"{threads}.ome.zarr", threads=threads)
    assert tree(tmp_path / "1.ome.zarr") == tree(tmp_path / "2.ome.zarr") == tree(tmp_path / "5.ome.zarr")


class _Stopped(Exception):
    pass


@pytest.mark.parametrize("shards", [1, 11])
def test_a_run_that_was_stopped_goes_on_and_leaves_the_same_bytes(path, tmp_path, shards):
    _map(path, tmp_path / "whole.ome.zarr")
    heard: list[int] = []

    def stop(shard: int, count: int, tuples: int) -> None:
        heard.append(shard)
        if len(heard) == shards:
            raise _Stopped

    with pytest.raises(_Stopped):
        _map(path, tmp_path / "map.ome.zarr", wrote=stop)
    with pytest.raises(StoreError, match="not complete: run the same command again"):
        ms.read_class_map(tmp_path / "map.ome.zarr")
    assert "ome" not in json.loads((tmp_path / "map.ome.zarr/zarr.json").read_text())["attributes"]
    (tmp_path / "map.ome.zarr/0/c/0/0/0.77-7.part").write_bytes(b"left by a killed writer")
    again: list[int] = []
    found = _map(path, tmp_path / "map.ome.zarr", wrote=lambda shard, *_: again.append(shard))
    assert not set(heard) & set(again)
    assert tree(tmp_path / "map.ome.zarr") == tree(tmp_path / "whole.ome.zarr")
    xr.testing.assert_identical(found, ms.read_class_map(tmp_path / "whole.ome.zarr"))


@pytest.mark.slow
@pytest.mark.parametrize("shards", [1, 9])
def test_a_killed_process_is_gone_on_with_to_the_same_bytes(path, tmp_path, shards):
    save_model(_network(), tmp_path / "model.safetensors", about={"patch_size": SIZE})
    code = (
        "from msdask.inference import ome_zarr; ome_zarr.SHARD = 8\n"
        "ms.classify_slide(slide, model, output, stride=16, batch_size=20, wrote=wrote)"
    )
    assert_gone_on_with(code, path, tmp_path / "model.safetensors", tmp_path, shards=shards)


# --- the format ------------------------------------------------------------------------------------------------------


def _attributes(folder: Path) -> dict:
    document = json.loads((folder / "zarr.json").read_text())
    assert document["zarr_format"] == 3
    return document["attributes"]


def _check_multiscales(folder: Path, dims: list[str]) -> list[zarr.Array]:
    """What the specification of OME-Zarr 0.5 asks of "multiscales", by hand."""
    ome = _attributes(folder)["ome"]
    assert ome["version"] == "0.5"
    (image,) = ome["multiscales"]
    assert [axis["name"] for axis in image["axes"]] == dims
    assert [axis["type"] for axis in image["axes"]] == ["channel"] * (len(dims) - 2) + ["space", "space"]
    assert {axis["unit"] for axis in image["axes"] if axis["type"] == "space"} == {"micrometer"}
    assert isinstance(image["name"], str)
    assert isinstance(image["type"], str)
    assert isinstance(image["metadata"], dict)
    arrays = []
    for dataset in image["datasets"]:
        array = zarr.open_array(folder / dataset["path"], mode="r")
        assert list(array.metadata.dimension_names) == dims
        scale, translation = dataset["coordinateTransformations"]
        assert (scale["type"], translation["type"]) == ("scale", "translation")
        assert len(scale["scale"]) == len(translation["translation"]) == array.ndim == len(dims)
        arrays.append(array)
    sizes = [array.shape[-1] for array in arrays]
    assert sizes == sorted(sizes, reverse=True)
    return arrays


def test_the_file_is_ome_zarr_that_lies_on_its_slide(path, tmp_path, monkeypatch):
    monkeypatch.setattr(ome_zarr, "_SMALLEST", 10)
    found = _map(path, tmp_path / "map.ome.zarr")
    folder = tmp_path / "map.ome.zarr"
    levels = _check_multiscales(folder, ["c", "y", "x"])
    labels = _check_multiscales(folder / "labels/class", ["y", "x"])
    attention = _check_multiscales(folder / "attention", ["c", "y", "x"])
    assert len(levels) == len(labels) == len(attention) == 3
    assert _attributes(folder / "labels")["ome"] == {"version": "0.5", "labels": ["class"]}
    assert all(array.dtype.kind == "u" for array in labels)
    assert np.array_equal(levels[0][...], found["probability"].values, equal_nan=True)
    assert np.array_equal(labels[0][...], found["predicted"].values + 1)
    assert np.array_equal(attention[0][...], found["attention"].values, equal_nan=True)
    for transforms, array in zip(_attributes(folder)["ome"]["multiscales"][0]["datasets"], levels, strict=True):
        (_, side, _), (_, top, left) = (t[t["type"]] for t in transforms["coordinateTransformations"])
        factor = 2 ** int(transforms["path"])
        assert side == 16 * factor * 0.5
        # The px (0, 0) of a level covers `factor` cells a side, the first of which begins 8 px into the slide; the
        # slide's own px (0, 0) has its center at 0.
        assert top == left == pytest.approx((8 + 16 * factor / 2 - 0.5) * 0.5)
        assert array.shape[1] == -(-found.sizes["y"] // factor)
    colors = _attributes(folder / "labels/class")["ome"]["image-label"]
    assert [one["label-value"] for one in colors["colors"]] == [0, 1, 2, 3]
    assert all(len(one["rgba"]) == 4 and 0 <= min(one["rgba"]) <= max(one["rgba"]) <= 255 for one in colors["colors"])
    assert [one["class"] for one in colors["properties"]] == ["not classified", *NAMES]
    assert colors["source"] == {"image": "../../"}
    channels = _attributes(folder)["ome"]["omero"]["channels"]
    assert [(c["label"], len(c["color"]), sorted(c["window"])) for c in channels] == [
        (name, 6, ["end", "max", "min", "start"]) for name in NAMES
    ]


def test_validators_of_others_take_the_file(path, tmp_path):
    yaozarrs = pytest.importorskip("yaozarrs")
    _map(path, tmp_path / "map.ome.zarr")
    yaozarrs.validate_zarr_store(str(tmp_path / "map.ome.zarr"))


def test_a_pyramid_is_the_mean_of_what_is_known():
    rng = np.random.default_rng(0)
    values = rng.random((2, 131, 70), np.float32)
    values[:, rng.random((131, 70)) < 0.5] = np.nan
    levels = ome_zarr.pyramid(values)
    assert [level.shape for level in levels] == [(2, 131, 70), (2, 66, 35), (2, 33, 18)]
    for finer, coarser in pairwise(levels):
        for i, j in np.ndindex(coarser.shape[1:]):
            four = finer[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
            known = ~np.isnan(four[0])
            expected = four[:, known].mean(1) if known.any() else np.full(2, np.nan)
            np.testing.assert_allclose(coarser[:, i, j], expected, rtol=1e-6)


def test_object_storage_holds_the_same_bytes_and_is_gone_on_with_too(path, tmp_path):
    with s3_server() as client:
        place = f"s3://{BUCKET}/map.ome.zarr"

        def stop(*_: int) -> None:
            raise _Stopped

        with pytest.raises(_Stopped):
            _map(path, place, stride=32, wrote=stop)
        found = _map(path, place, stride=32)
        local = _map(path, tmp_path / "map.ome.zarr", stride=32)
        stored = {
            key: hashlib.sha256(client.get_object(Bucket=BUCKET, Key=f"map.ome.zarr/{key}")["Body"].read()).hexdigest()
            for key in keys(client, place)
        }
        assert stored == tree(tmp_path / "map.ome.zarr")
        xr.testing.assert_identical(found, local)
        xr.testing.assert_identical(ms.read_class_map(place), local)


# --- what is refused, and what is not there --------------------------------------------------------------------------


def test_another_map_is_refused_and_replaced_where_that_is_asked_for(path, tmp_path):
    output = tmp_path / "map.ome.zarr"
    _map(path, output)
    with pytest.raises(StoreError, match=r"another map: spec.stride 16 there, 32 now; .*: give another path"):
        _map(path, output, stride=32, batch_size=10)
    _map(path, output, stride=32, overwrite=True)
    assert ms.read_class_map(output).attrs["step"] == 32
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.txt").write_text("mine")
    with pytest.raises(StoreError, match="exists and is no class map"):
        _map(path, tmp_path / "notes", overwrite=True)


def test_what_cannot_be_is_an_error_that_says_what_to_do(path, tmp_path):
    with pytest.raises(SpecError, match="patch_size=None, and the model does not say"):
        ms.classify_slide(path, _network())
    with pytest.raises(SpecError, match=r"coarser than the 0\.25 um/px of 40x"):
        _map(path, model=_network(FeatureFusion, (40.0, 10.0)))
    with pytest.raises(SpecError, match="too small for a patch of 1600 px"):
        _map(path, patch_size=1600)
    with pytest.raises(SpecError, match="the model has 3, expected a name of its own for each"):
        _map(path, classes=["a", "b"])
    with pytest.raises(MsdaskError, match="expected a classifier of tissue"):
        ms.classify_slide(path, ms.models.ScaleRegressor("scalenet"))
    with pytest.raises(StoreError, match="does not exist: expected a class map"):
        ms.read_class_map(tmp_path / "none.ome.zarr")


def test_a_slide_without_tissue_has_an_empty_map(path, tmp_path):
    found = _map(path, tmp_path / "map.ome.zarr", mask=np.zeros((4, 6), bool))
    assert found.attrs["tuples"] == 0
    assert (found["predicted"].values == -1).all()
    xr.testing.assert_identical(ms.read_class_map(tmp_path / "map.ome.zarr"), found)
    assert len(ms.prediction_table(found)) == 0


def test_a_network_is_left_in_the_mode_that_it_was_in(path):
    network = _network(FeatureFusion, dropout=0.5).train()
    first, second = (_map(path, model=network) for _ in range(2))
    assert network.training
    xr.testing.assert_identical(first, second)
    assert "attention" not in first


def test_a_table_has_a_row_for_every_tuple(path, mask):
    found = _map(path, mask=mask)
    rows = ms.prediction_table(found)
    assert len(rows) == found.attrs["tuples"]
    assert rows[["x0", "y0"]].drop_duplicates().shape[0] == len(rows)
    one = rows.iloc[100]
    values = found.sel(y=one["y0"] + 16, x=one["x0"] + 16)
    assert one["probability_stroma"] == values["probability"].sel({"class": "stroma"})
    assert one["attention_5x"] == values["attention"].sel(magnification=5)
    assert one["outside_5x"] == values["outside"].sel(magnification=5)
    assert one["predicted"] == NAMES[int(values["predicted"])]


# --- many slides -----------------------------------------------------------------------------------------------------


def test_one_bad_slide_never_stops_the_others(path, tmp_path, capsys):
    (tmp_path / "bad.svs").write_bytes(b"no slide")
    Image.fromarray(np.full((300, 300, 3), 240, np.uint8)).save(tmp_path / "scaleless.png")
    save_model(_network(SingleScale, (20,)), tmp_path / "m.safetensors", about={"patch_size": SIZE, "classes": NAMES})
    slides = [str(tmp_path / "bad.svs"), str(path), str(tmp_path / "scaleless.png")]
    arguments = ["predict", "classifier", str(tmp_path / "m.safetensors"), *slides, "-o", str(tmp_path / "out")]
    for _ in range(2):  # the second time, what is there is taken
        with pytest.raises(SystemExit) as left:
            main([*arguments, "-q", "--table", "csv", "--threads", "2"])
        said = capsys.readouterr()
        assert left.value.code == 1
        assert "failed: bad.svs: " in said.err
        assert "failed: scaleless.png: " in said.err
        assert "a.svs: " in said.out
        assert "3 slides, 2 failed" in said.out
    table = pd.read_csv(tmp_path / "out/slides.csv")
    assert table["state"].tolist() == ["failed", "complete", "failed"]
    assert table.loc[1, [f"share_{name}" for name in NAMES]].sum() == pytest.approx(1)
    rows = pd.read_csv(tmp_path / "out/predictions/a.svs.csv")
    assert (
        len(rows) == table.loc[1, "tuples"] == ms.read_class_map(tmp_path / "out/maps/a.svs.ome.zarr").attrs["tuples"]
    )
    assert set(rows["predicted"]) <= set(NAMES)
    assert (tmp_path / "out/overlays/a.svs.png").read_bytes()[:4] == b"\x89PNG"


def test_a_network_that_breaks_on_a_slide_does_not_stop_the_others(path, tmp_path, monkeypatch):
    other = Path(shutil.copy(path, tmp_path / "b.svs"))
    network, calls = _network(SingleScale, (20,)), []
    forward = type(network).forward

    def breaks_once(self, *arguments):
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("out of memory")
        return forward(self, *arguments)

    monkeypatch.setattr(type(network), "forward", breaks_once)
    found = ms.classify_slides([path, other], network, tmp_path / "out", patch_size=SIZE, threads=1)
    assert found["state"].tolist() == ["failed", "complete"]
    assert found.loc[0, "reason"] == "RuntimeError: out of memory"


def test_an_unreadable_tile_is_an_error_that_names_it(path, tmp_path, monkeypatch):
    path = Path(shutil.copy(path, tmp_path))  # whose tiles are not known yet
    slide = ms.open_slide(path)
    read = type(slide.reader).read_tile

    def broken(self, level, row, column, scale=1, **more):
        if (level, row, column) == (0, 3, 4):
            raise TileError("tile 3, 4 of level 0 cannot be decoded")
        return read(self, level, row, column, scale, **more)

    monkeypatch.setattr(type(slide.reader), "read_tile", broken)
    with pytest.raises(TileError, match="tile 3, 4"):
        _map(path, mask=np.ones((2, 2), bool))


@pytest.fixture
def damaged(path: Path, tmp_path: Path) -> Path:
    """The slide without tile (3, 4) of level 0 and tile (0, 2) of level 2, which is 256 level-0 px a side."""
    copy = Path(shutil.copy(path, tmp_path / "damaged.svs"))
    damage_tile(copy, 0, 3 * 10 + 4)
    damage_tile(copy, 2, 2)
    return copy


def test_what_cannot_be_read_gets_no_class_is_counted_and_changes_nothing_else(path, damaged, tmp_path):
    given = {"mask": np.ones((42, 61), bool), "stride": 32}
    with pytest.raises(TileError, match=r"damaged\.svs.*level"):
        _map(damaged, tmp_path / "map.ome.zarr", **given)
    sound = _map(path, **given, on_bad_tile="fill")
    assert sound.attrs["unread"] == {"tiles": 0, "tuples": 0}
    fresh = [tmp_path / f"{threads}.ome.zarr" for threads in (1, 3)]
    for threads, output in zip((1, 3), fresh, strict=True):
        with pytest.warns(UserWarning, match=r"'damaged\.svs': 2 tiles could not be read .*: [0-9]+ tuples over them"):
            found = _map(damaged, output, **given, on_bad_tile="fill", threads=threads)
    bad = np.zeros(found["predicted"].shape, bool)
    for i, j in np.ndindex(bad.shape):
        y, x = float(found["y"][i]), float(found["x"][j])
        for half, (top, left, side) in ((16, (192, 256, 64)), (64, (0, 512, 256))):  # at 20x and at 5x
            bad[i, j] |= y - half < top + side and y + half > top and x - half < left + side and x + half > left
    assert np.array_equal(found["predicted"], np.where(bad, -1, sound["predicted"]))
    assert np.array_equal(found["probability"], np.where(bad, np.nan, sound["probability"]), equal_nan=True)
    assert found.attrs["unread"] == {"tiles": 2, "tuples": int(bad.sum())}
    assert found.attrs["tuples"] == bad.size - bad.sum()
    said = _attributes(fresh[0])["msdask"]
    assert said["unread"] == {"tiles": [[0, 3, 4], [2, 0, 2]], "tuples": int(bad.sum())}

    def stop(shard: int, *_: int) -> None:
        if shard == 3:
            raise _Stopped

    with pytest.raises(_Stopped):  # where the run before has failed, which had not asked for it
        _map(damaged, tmp_path / "map.ome.zarr", **given, on_bad_tile="fill", wrote=stop)
    with pytest.warns(UserWarning, match="2 tiles could not be read"):
        _map(damaged, tmp_path / "map.ome.zarr", **given, on_bad_tile="fill")
    assert tree(tmp_path / "map.ome.zarr") == tree(fresh[0]) == tree(fresh[1])
    with pytest.warns(UserWarning, match="2 tiles could not be read"):  # what is complete says it, too
        xr.testing.assert_identical(_map(damaged, fresh[0], **given), found)


def test_the_shell_says_which_slide_has_tiles_that_cannot_be_read(damaged, tmp_path, capsys):
    save_model(_network(SingleScale, (20,)), tmp_path / "m.safetensors", about={"patch_size": SIZE, "classes": NAMES})
    given = ["predict", "classifier", str(tmp_path / "m.safetensors"), str(damaged), "-o", str(tmp_path / "out"), "-q"]
    # The mask is made of level 2, which is damaged, too.
    for options, code in (([], 1), (["--on-bad-tile", "fill"], 0)):
        with pytest.raises(SystemExit) as left:
            main([*given, *options])
        assert left.value.code == code
    said = capsys.readouterr().err
    assert "failed: damaged.svs: " in said
    assert 'warning: damaged.svs: 2 tiles could not be read (--on-bad-tile "fill"): ' in said
    table = pd.read_csv(tmp_path / "out/slides.csv")
    assert table["unread_tiles"].tolist() == [2]
    assert table["unread_tuples"][0] > 0


def test_workers_of_a_cluster_load_the_model_once_and_write_the_same_bytes(path, damaged, tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")
    network = _network(SingleScale, (20,))
    save_model(network, tmp_path / "m.safetensors", about={"patch_size": SIZE, "classes": NAMES})
    slides = [Path(shutil.copy(path, tmp_path / f"{name}.svs")) for name in "bc"]
    slides.insert(1, damaged)
    (tmp_path / "bad.svs").write_bytes(b"no slide")
    given = {"model": tmp_path / "m.safetensors", "batch_size": 20, "threads": 2}
    fails = ms.classify_slides([*slides, tmp_path / "bad.svs"], folder=tmp_path / "here", **given)
    loads: list[str] = []
    load = loading.load_network
    monkeypatch.setattr(loading, "_cache", type(loading._cache)())
    monkeypatch.setattr(classifier, "load_network", lambda *a, **k: loads.append(k["device"]) or load(*a, **k))
    events: list[object] = []
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0") as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        given |= {"client": client, "listeners": [events.append]}
        found = ms.classify_slides([*slides, tmp_path / "bad.svs"], folder=tmp_path / "there", **given)
        assert loads == ["cpu", None]  # once here, once for the workers of this test, which are one process
        again = ms.classify_slides([*slides, tmp_path / "bad.svs"], folder=tmp_path / "there", **given)
        with pytest.raises(SpecError, match=r"model of class SingleScale: workers load it from a file"):
            ms.classify_slides(slides, network, tmp_path / "no", client=client)
        with pytest.raises(SpecError, match="two ways to run"):
            ms.classify_slides(slides, given["model"], tmp_path / "no", client=client, workers=2)
    assert found["state"].tolist() == ["complete", "failed", "complete", "failed"]
    pd.testing.assert_frame_equal(found, fails)
    pd.testing.assert_frame_equal(again, fails)
    assert tree(tmp_path / "here/maps") == tree(tmp_path / "there/maps")
    assert tree(tmp_path / "here/predictions") == tree(tmp_path / "there/predictions")
    written = [e for e in events if isinstance(e, ms.events.BlockWritten) and e.slide_id == "b.svs"]
    assert sum(e.patches for e in written) == found["tuples"][0]
    assert events[-1].engine["kind"] == "cluster"
    assert events[-1].engine["device"] == "cpu"


def test_a_worker_refuses_another_model_than_the_run_began_with(tmp_path):
    save_model(_network(), tmp_path / "m.safetensors", about={"patch_size": SIZE})
    file = loading.ModelFile.of(tmp_path / "m.safetensors", ms.load_classifier, device="cpu", classes=None)
    save_model(_network(FeatureFusion), tmp_path / "m.safetensors", about={"patch_size": SIZE})
    with pytest.raises(MsdaskError, match=r"has SHA-256 .* on this worker, .* where the run began"):
        file.here()


def test_slides_of_a_cohort_get_masks_from_a_folder(path, tmp_path):
    mask = np.zeros((42, 61), np.uint8)
    mask[:, :30] = 255
    (tmp_path / "masks").mkdir()
    Image.fromarray(mask).save(tmp_path / "masks/a.png")
    network = _network(SingleScale, (20,))
    rows = ms.classify_slides([path], network, tmp_path / "out", masks=tmp_path / "masks", patch_size=SIZE)
    assert rows["state"].tolist() == ["complete"], rows["reason"].tolist()
    table = pd.read_parquet(tmp_path / "out/predictions")
    assert len(table) == rows["tuples"][0] > 50
    assert table["x0"].max() + 0.7 * SIZE <= 300 + 1e-6


def test_a_folder_at_home_gets_everything(path, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    ms.classify_slides([path], _network(), "~/out", patch_size=SIZE, threads=1)
    assert {folder.name for folder in (tmp_path / "out").iterdir()} == {"maps", "predictions", "overlays", "slides.csv"}
    assert not (tmp_path / "~").exists()
