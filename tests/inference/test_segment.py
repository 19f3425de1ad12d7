"""segment_slide: every px against the network on a view of its own, whatever the tiles; files, resuming, and format."""

# ruff: noqa: E402
from __future__ import annotations

import gzip
import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import zarr

torch = pytest.importorskip("torch")

import msdask as ms
from msdask.cli.app import main
from msdask.errors import MsdaskError, SpecError, StoreError, TileError
from msdask.exports import label_outlines
from msdask.inference import segment
from msdask.inference.halving import halved_labels, halved_means
from msdask.inference.tiles import Tiling, Tissue, cheapest_tiling, mask_index, tiling
from msdask.inference.views import Views
from msdask.models import HookNet, UNet, save_model
from msdask.sample.svs import SvsLayout, write_svs
from tests.tools.killed import assert_gone_on_with
from tests.tools.slide_damage import damage_tile
from tests.tools.store_tools import tree

NAMES = ["gland", "stroma", "fat"]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide at 20x whose tissue reaches its edges: views leave it."""
    path = tmp_path_factory.mktemp("slide") / "a.svs"
    ms.sample.make_slide(
        path, size=(270, 410), mpp=0.5, seed=4, tissue_fraction=0.9, levels=(1, 4), tile=64, compression="deflate"
    )
    return path


@pytest.fixture(scope="module")
def mask() -> np.ndarray:
    """All tissue but a strip."""
    mask = np.ones((27, 41), bool)
    mask[:, 18:25] = False
    return mask


def _network(path: Path | None = None, kind=HookNet, magnifications=(20, 5), **options):
    """A network with batch norms that have seen something; with a path, one that finds all classes on that slide."""
    torch.manual_seed(0)
    network = kind(3, magnifications, filters=2, **options).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.2, 0.6)
    if path is not None:
        head = network.target.head
        spread, middle = (f(_logits(network, path), (1, 2)) for f in (torch.std, torch.mean))
        with torch.no_grad():
            head.weight /= spread[:, None, None, None]
            head.bias.copy_(-middle / spread)
    return network


def _logits(network, path: Path, on_bad_tile="raise") -> torch.Tensor:
    """(class, y, x) of the whole slide, from one view a magnification."""
    slide = ms.open_slide(path)
    tiles = tiling(network, -(-max(slide.shape) // network.lattice) * network.lattice)
    views = []
    for m, (size, ratio) in enumerate(zip(tiles.sizes, tiles.ratios, strict=True)):
        first = int(tiles.origins(np.zeros(1, np.int64))[0, m])
        view = np.empty((size, size, 3), np.uint8)
        Views.at(slide, float(ratio), on_bad_tile).read(first, first, view)
        views.append(torch.from_numpy(view).permute(2, 0, 1)[None])
    begin = tiles.crop + (0 if network.is_valid else tiles.margin)
    with torch.inference_mode():
        logits = network.forward_views(views).logits[0]
    return logits[:, begin : begin + slide.shape[0], begin : begin + slide.shape[1]].clone()


def _segment(path: Path, output: Path, **options):
    given = {"classes": NAMES, "tile": 64, "threads": 2, "overwrite": True}
    return ms.segment_slide(path, options.pop("model", None) or _network(), output, **{**given, **options})


@pytest.mark.parametrize("kind", ["hooknet", "unet", "same"])
def test_tiles_of_any_size_and_any_number_of_workers_say_the_same(path, mask, tmp_path, kind):
    kinds = {"hooknet": {}, "unet": {"kind": UNet, "magnifications": (20,)}, "same": {"padding": "same"}}
    network = _network(path, **kinds[kind])
    sizes = {"hooknet": (64, 128, 192, 256, 448), "unet": (48, 64, 160, 272, 416), "same": (64, 192, 448)}[kind]
    found = [
        _segment(path, tmp_path / f"{i}.ome.zarr", model=network, mask=mask, tile=tile, threads=1 + i % 3)
        for i, tile in enumerate(sizes)
    ]
    labels = [one["label"].values for one in found]
    assert np.bincount(labels[0].ravel(), minlength=4)[1:].min() > 500, "all classes are found"
    logits = _logits(network, path)
    best = logits.topk(2, 0).values
    ties = (best[0] - best[1] < 1e-5).numpy()
    assert ties.sum() < 50
    tissue = mask.repeat(10, 0).repeat(10, 1)
    for one in labels:
        assert np.array_equal(one > 0, tissue), "nothing outside of tissue"
        assert not ((one != logits.argmax(0).numpy() + 1) & tissue & ~ties).any()
    islands = np.zeros_like(mask)
    islands[2:5, 1:20] = islands[11:17, 30:33] = islands[25:, 12] = True  # of tiles a part goes through the network
    tissue = islands.repeat(10, 0).repeat(10, 1)
    for tile, batch_size in ((sizes[-1], 1), (sizes[1], 3)):
        options = {"model": network, "mask": islands, "tile": tile, "batch_size": batch_size}
        one = _segment(path, tmp_path / "islands.ome.zarr", **options)["label"].values
        assert np.array_equal(one > 0, tissue)
        assert not ((one != logits.argmax(0).numpy() + 1) & tissue & ~ties).any()


@pytest.mark.slow
def test_ten_sizes_of_tiles_on_one_two_and_four_threads(path, mask, tmp_path, capsys):
    network = _network(path)
    logits = _logits(network, path)
    best = logits.topk(2, 0).values
    ties = (best[0] - best[1] < 1e-5).numpy()
    said = logits.argmax(0).numpy() + 1
    tissue = mask.repeat(10, 0).repeat(10, 1)
    others: dict[int, int] = {}
    for tile in range(64, 641, 64):
        folders = [tmp_path / f"{tile}-{threads}.ome.zarr" for threads in (1, 2, 4)]
        for folder, threads in zip(folders, (1, 2, 4), strict=True):
            found = _segment(path, folder, model=network, mask=mask, tile=tile, threads=threads)
        assert tree(folders[0]) == tree(folders[1]) == tree(folders[2])
        differs = (found["label"].values != said) & tissue
        assert not (differs & ~ties).any()
        others[tile] = int(differs.sum())
    with capsys.disabled():
        near = f"{int((ties & tissue).sum())} px of {int(tissue.sum())} have two classes within 1e-5"
        print(f"\n{near}; px with another label than in one view, by tile: {others}")


@pytest.fixture
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small slide then has several."""
    monkeypatch.setattr(segment, "SHARD", 128)
    monkeypatch.setattr(segment, "CHUNK", 64)


@pytest.fixture(scope="module")
def unet(path: Path) -> UNet:
    return _network(path, kind=UNet, magnifications=(20,))


@pytest.mark.usefixtures("_small_shards")
def test_any_number_of_threads_gives_the_same_bytes(path, unet, tmp_path):
    given = {"model": unet, "tile": 128, "probabilities": "uint8", "batch_size": 4}
    for threads in (1, 2, 3):
        _segment(path, tmp_path / f"{threads}.ome.zarr", threads=threads, **given)
    assert tree(tmp_path / "1.ome.zarr") == tree(tmp_path / "2.ome.zarr") == tree(tmp_path / "3.ome.zarr")


# --- what a px shows -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mpp", "step"), [(0.5, 4.0), (0.4, 1.25), (0.2263, 2.2095)])
def test_views_show_the_same_px_wherever_they_begin_and_white_outside(tmp_path, mpp, step):
    path = tmp_path / "a.svs"
    ms.sample.make_slide(path, size=(301, 403), mpp=mpp, seed=3, tissue_fraction=0.9, levels=(1, 4), tile=64)
    slide = ms.open_slide(path)
    ratio = step if slide.mpp_used == mpp else step * mpp / slide.mpp_used
    whole = np.empty((500, 500, 3), np.uint8)
    Views.at(slide, ratio).read(-32, -32, whole)
    for row, column in ((-7, 13), (20, -20), (3, 60)):
        part = np.empty((96, 96, 3), np.uint8)
        Views.at(slide, ratio).read(row, column, part)
        assert np.array_equal(part, whole[32 + row : 128 + row, 32 + column : 128 + column])
    there = slide.at(mpp=ratio * slide.mpp_used).values
    height, width = (int(n / ratio) for n in slide.shape)  # px that lie in the slide whole
    assert np.array_equal(whole[32 : 32 + height, 32 : 32 + width], there[:height, :width])
    assert (whole[:32] == 255).all()
    assert (whole[32 + height + 2 :] == 255).all()
    assert (whole[:, 32 + width + 2 :] == 255).all()


def _passing_contexts_on() -> HookNet:
    """A HookNet of two classes that says 1 of the 16 x 16 px whose context has a dark px, and 0 of all others."""
    network = HookNet(2, (20, 5), filters=1).eval()
    target, context = network.target, network.contexts[0]
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.weight.data.zero_()
            module.bias.data.zero_()

    def passes(layer, channel, value=1.0):
        conv = next(m for m in layer.modules() if isinstance(m, torch.nn.Conv2d))
        conv.weight.data[0, channel, conv.kernel_size[0] // 2, conv.kernel_size[1] // 2] = value

    for block in context.down:  # darkness of the first colour: 1.5 is white
        convs = [m for m in block.modules() if isinstance(m, torch.nn.Conv2d)]
        for conv in convs:
            conv.weight.data[0, 0, 1, 1] = 1.0
    first = next(m for m in context.down[0].modules() if isinstance(m, torch.nn.Conv2d))
    first.weight.data[0, 0, 1, 1], first.bias.data[0] = -1.0, 1.5
    for branch, level, channel in ((context, 2, context.widths[2]), *((target, k, 0) for k in range(4))):
        convs = [m for m in branch.join[level].modules() if isinstance(m, torch.nn.Conv2d)]
        convs[0].weight.data[0, channel, 1, 1] = convs[1].weight.data[0, 0, 1, 1] = 1.0
    for level in range(4):
        passes(target.up[level], target.n_bottleneck if level == 3 else 0)
    target.head.weight.data[1, 0], target.head.bias.data[0] = 1.0, 0.5
    return network


def test_what_a_context_shows_lands_on_the_px_of_the_target_that_it_lies_on(tmp_path):
    dark = [(52, 60), (56, 132), (128, 200), (196, 64), (212, 208), (60, 252)]

    def render(y: int, x: int, side: int) -> np.ndarray:
        pixels = np.full((side, side, 3), 255, np.uint8)
        for row, column in dark:
            pixels[max(0, row - y) : max(0, row + 4 - y), max(0, column - x) : max(0, column + 4 - x)] = 0
        return pixels

    path = tmp_path / "a.svs"
    write_svs(path, render, shape=(256, 320), mpp=0.5, layout=SvsLayout((1, 4), 64, "deflate"), associated=False)
    for tile in (64, 192):
        output = tmp_path / f"{tile}.ome.zarr"
        found = ms.segment_slide(path, _passing_contexts_on(), output, mask=np.ones((4, 5), bool), tile=tile)
        marked = found["label"].values == 2
        assert marked.sum() == 256 * len(dark)
        for row, column in dark:
            top, left = row // 16 * 16, column // 16 * 16  # of the px that are pooled together
            assert top <= row
            assert row + 4 <= top + 16
            assert marked[top : top + 16, left : left + 16].all()


# --- stopped, and gone on with ---------------------------------------------------------------------------------------


class _Stopped(Exception):
    pass


@pytest.mark.usefixtures("_small_shards")
def test_a_run_that_was_stopped_goes_on_and_leaves_the_same_bytes(path, unet, tmp_path):
    given = {"model": unet, "tile": 128, "batch_size": 4, "overwrite": False}
    _segment(path, tmp_path / "whole.ome.zarr", **given)
    heard: list[int] = []

    def stop(shard: int, count: int, px: int) -> None:
        heard.append(shard)
        if len(heard) == 5:
            raise _Stopped

    output = tmp_path / "a.ome.zarr"
    with pytest.raises(_Stopped):
        _segment(path, output, wrote=stop, **given)
    with pytest.raises(StoreError, match="not complete: run the same command again"):
        ms.open_segmentation(output)
    assert "ome" not in json.loads((output / "zarr.json").read_text())["attributes"]
    (output / "labels/class/0/c/0/0.77-7.part").write_bytes(b"left by a killed writer")
    again: list[int] = []
    _segment(path, output, wrote=lambda shard, *_: again.append(shard), **given)
    assert not set(heard) & set(again)
    assert tree(output) == tree(tmp_path / "whole.ome.zarr")


@pytest.mark.slow
@pytest.mark.parametrize("shards", [1, 7])
def test_a_killed_process_is_gone_on_with_to_the_same_bytes(path, tmp_path, shards):
    save_model(_network(), tmp_path / "model.safetensors")
    code = (
        "from msdask.inference import segment; segment.SHARD = 64\n"
        "ms.segment_slide(slide, model, output, tile=64, wrote=wrote)"
    )
    assert_gone_on_with(code, path, tmp_path / "model.safetensors", tmp_path, shards=shards)


# --- the format ------------------------------------------------------------------------------------------------------


def _ome(folder: Path) -> dict:
    return json.loads((folder / "zarr.json").read_text())["attributes"]["ome"]


@pytest.mark.usefixtures("_small_shards")
@pytest.mark.parametrize("probabilities", [None, "uint8", "float16"])
def test_the_file_is_a_label_pyramid_that_lies_on_its_slide(path, mask, unet, tmp_path, probabilities):
    folder = tmp_path / "a.ome.zarr"
    found = _segment(path, folder, model=unet, mask=mask, tile=128, probabilities=probabilities)
    assert found["label"].chunks is not None, "lazy"
    labels = folder / "labels/class"
    levels = [zarr.open_array(labels / str(k), mode="r") for k in range(4)]
    for finer, coarser in pairwise(levels):
        assert np.array_equal(coarser[...], halved_labels(finer[...]))
    assert levels[-1].shape == (34, 52)
    assert np.array_equal(levels[0][...], found["label"].values)
    (image,) = _ome(labels)["multiscales"]
    assert [axis["name"] for axis in image["axes"]] == ["y", "x"]
    for dataset in image["datasets"]:
        scale, move = (step[step["type"]] for step in dataset["coordinateTransformations"])
        factor = 2 ** int(dataset["path"])
        assert scale == [0.5 * factor] * 2
        assert move == pytest.approx([(factor - 1) / 2 * 0.5] * 2)  # the slide's first px has its center at 0
    classes = _ome(labels)["image-label"]["properties"]
    assert [one["class"] for one in classes] == ["not classified", *NAMES]
    assert _ome(folder / "labels") == {"version": "0.5", "labels": ["class"]}
    assert found.attrs["px"] == {n: int((found["label"].values == k + 1).sum()) for k, n in enumerate(NAMES)}
    assert found.attrs["area_mm2"]["fat"] == pytest.approx(found.attrs["px"]["fat"] * 0.25e-6)
    assert found["y_um"].values[:2].tolist() == [0.25, 0.75]
    assert found.attrs["levels"] == 4
    if probabilities is not None:
        values = found["probability"].values.astype(np.float64) / (255 if probabilities == "uint8" else 1)
        known = found["label"].values > 0
        logits = _logits(unet, path)
        assert np.abs(values - logits.softmax(0).numpy())[:, known].max() < 0.003
        assert (np.isnan(values) if probabilities == "float16" else values == 0)[:, ~known].all()
        finer = zarr.open_array(folder / "1", mode="r")[...]
        assert np.array_equal(finer, halved_means(found["probability"].values, levels[0][...]), equal_nan=True)
    yaozarrs = pytest.importorskip("yaozarrs")
    yaozarrs.validate_zarr_store(str(folder))
    models = pytest.importorskip("ome_zarr_models")
    models.open_ome_zarr(zarr.open_group(folder, mode="r"))


def test_labels_are_halved_by_majority():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, (31, 18)).astype(np.uint8)
    halved = halved_labels(labels)
    assert halved.shape == (16, 9)
    for i, j in np.ndindex(*halved.shape):
        four = labels[2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
        counts = np.bincount(four.ravel(), minlength=4)[1:]
        assert halved[i, j] == (counts.argmax() + 1 if counts.any() else 0)
    values = rng.random((2, 31, 18)).astype(np.float16)
    values[:, labels == 0] = np.nan
    means = halved_means(values, labels)
    for i, j in np.ndindex(*halved.shape):
        here = (slice(2 * i, 2 * i + 2), slice(2 * j, 2 * j + 2))
        known = labels[here] > 0
        expected = values[(slice(None), *here)][:, known].mean(1, dtype=np.float32) if known.any() else [np.nan] * 2
        np.testing.assert_allclose(means[:, i, j], expected, rtol=1e-3)


# --- tiles of the slide that cannot be read --------------------------------------------------------------------------


@pytest.fixture
def damaged(path: Path, tmp_path: Path) -> Path:
    """The slide without tile (1, 2) of level 0 and tile (1, 1) of level 1, which begins at px 256 of level 0."""
    copy = Path(shutil.copy(path, tmp_path / "damaged.svs"))
    damage_tile(copy, 0, 1 * 7 + 2)
    damage_tile(copy, 1, 3)
    return copy


@pytest.mark.usefixtures("_small_shards")
def test_px_that_cannot_be_read_get_no_class_and_are_counted(path, damaged, mask, tmp_path):
    network = _network(path)
    given = {"model": network, "mask": mask, "on_bad_tile": "fill", "probabilities": "uint8", "overwrite": False}
    with pytest.raises(TileError, match=r"damaged\.svs.*level 0.*row 1, column 2"):
        _segment(damaged, tmp_path / "s.ome.zarr", **given | {"on_bad_tile": "raise"})
    sound = _segment(path, tmp_path / "sound.ome.zarr", **given)
    assert sound.attrs["unread"] == {"tiles": 0, "px": 0}
    for threads in (1, 3):
        with pytest.warns(
            UserWarning, match=r"'damaged\.svs': 2 tiles could not be read .*: [0-9,]+ px over them have"
        ):
            found = _segment(damaged, tmp_path / f"{threads}.ome.zarr", threads=threads, **given)
    labels, tissue = found["label"].values, mask.repeat(10, 0).repeat(10, 1)
    bad = np.zeros(labels.shape, bool)
    bad[64:128, 128:192] = bad[256:268, 256:408] = True  # of the target at 20x; of the context at 5x, 67 x 102 px
    assert np.array_equal(labels > 0, tissue & ~bad)
    assert not found["probability"].values[:, ~tissue | bad].any()
    best = _logits(network, damaged, "fill").topk(2, 0)
    is_sure = (best.values[0] - best.values[1] > 1e-5).numpy() & (labels > 0)
    assert np.array_equal(labels[is_sure], best.indices[0].numpy()[is_sure] + 1), "others see white there"
    assert found.attrs["unread"] == {"tiles": 2, "px": int((tissue & bad).sum())}
    assert sum(found.attrs["px"].values()) == np.count_nonzero(labels)
    said = json.loads((tmp_path / "1.ome.zarr/zarr.json").read_text())["attributes"]["msdask"]["unread"]
    assert said == {"tiles": [[0, 1, 2], [1, 1, 1]], "px": found.attrs["unread"]["px"]}

    def stop(shard: int, *_: int) -> None:
        if shard == 2:
            raise _Stopped

    with pytest.raises(_Stopped):  # where the run before has failed, which had not asked for it
        _segment(damaged, tmp_path / "s.ome.zarr", wrote=stop, **given)
    with pytest.warns(UserWarning, match="2 tiles could not be read"):
        _segment(damaged, tmp_path / "s.ome.zarr", **given)
    assert tree(tmp_path / "s.ome.zarr") == tree(tmp_path / "1.ome.zarr") == tree(tmp_path / "3.ome.zarr")


@pytest.mark.parametrize("step", [1.0, 1.25, 2.2095])
def test_px_of_a_view_are_bad_where_any_that_they_are_averaged_from_is(damaged, step):
    view = np.empty((96, 96, 3), np.uint8)
    unread = Views.at(ms.open_slide(damaged), step, "fill").read(10, 70, view)
    assert unread.tiles == {(0, 1, 2)}
    covered = [
        [begin * step < first + 64 - 1e-6 and (begin + 1) * step > first + 1e-6 for begin in range(start, start + 96)]
        for start, first in ((10, 64), (70, 128))
    ]
    assert np.array_equal(unread.px[0, 0], np.outer(*covered))


@pytest.mark.slow
def test_worker_processes_write_the_same_bytes(path, unet, damaged, tmp_path):
    save_model(unet, tmp_path / "m.safetensors", about={"classes": NAMES})
    given = {"model": tmp_path / "m.safetensors", "threads": 1, "tile": 128, "on_bad_tile": "fill"}
    slides = [path, tmp_path / "absent.svs", damaged]
    (tmp_path / "absent.svs").write_bytes(b"no slide")
    here = ms.segment_slides(slides, folder=tmp_path / "here", **given)
    events: list[object] = []
    there = ms.segment_slides(slides, folder=tmp_path / "there", workers=2, listeners=[events.append], **given)
    assert there["state"].tolist() == ["complete", "failed", "complete"]
    assert there["unread_tiles"].tolist()[::2] == [0, 2]  # one is of the level that the mask is made of
    pd.testing.assert_frame_equal(here, there)
    for folder in ("segmentations", "outlines"):
        assert tree(tmp_path / "here" / folder) == tree(tmp_path / "there" / folder)
    (warned,) = [event for event in events if isinstance(event, ms.events.Warned)]
    assert (warned.slide_id, warned.message[:26]) == ("damaged.svs", "2 tiles could not be read ")


# --- tiles -----------------------------------------------------------------------------------------------------------


def test_views_have_the_specifications_sizes_and_lie_on_one_lattice():
    hooknet = HookNet(2, (20, 5), filters=1)
    assert tiling(hooknet, 832).sizes == (1052, 444)
    assert tiling(hooknet, 1856).sizes == (2076, 700)
    assert tiling(HookNet(2, (20, 1.25), filters=1), 256).sizes[0] == 476
    with pytest.raises(SpecError, match="tile=100: this model's tiles lie on a lattice of 64 px; take 64 or 128"):
        tiling(hooknet, 100)
    for network in (hooknet, HookNet(2, (20, 10, 1.25), filters=1), UNet(2, filters=1), UNet(2, filters=1, depth=2)):
        phases = set()
        for k in range(1, 9):
            tiles = tiling(network, k * network.lattice)
            first = tiles.origins(np.arange(-3, 4) * tiles.tile)
            phases |= {tuple(row) for row in (first % 2**network.depth).tolist()}
            assert tiles.sizes[0] - network.border - tiles.crop >= tiles.tile
            ends = first * tiles.ratios + np.array(tiles.sizes) * tiles.ratios
            assert np.array_equal(
                first * tiles.ratios + ends, np.repeat((first[:, :1] + ends[:, :1]), len(tiles.sizes), 1)
            )
        assert len(phases) == 1


def test_the_chosen_tiles_cost_the_fewest_px_within_the_memory():
    network = HookNet(2, (20, 5), filters=8)
    mask = np.zeros((100, 100), bool)
    mask[10:30, 20:90] = True
    small = cheapest_tiling(network, Tissue(mask), (4000, 4000), largest=2048, values=1, leaves_holes=True)
    assert small.tile == 64, "where none fits"
    limits = {"largest": 2048, "values": 6 * 8 * 1100**2, "leaves_holes": True}
    chosen = cheapest_tiling(network, Tissue(mask), (4000, 4000), **limits)
    assert chosen.sizes[0] <= 1100
    for tile in (64, 192, 448, 832):
        other = tiling(network, tile)
        assert _px(network, Tissue(mask), chosen) <= _px(network, Tissue(mask), other)


def test_many_tiles_are_cut_to_few_sizes_in_less_memory():
    network = UNet(2, filters=8)
    y, x = np.mgrid[:200, :200]
    mask = (y - 100) ** 2 + (x - 100) ** 2 < 90**2
    shape = (20_000, 20_000)
    limits = {"largest": 2048, "values": 6 * 8 * 1500**2}
    closely = cheapest_tiling(network, Tissue(mask), shape, **limits, leaves_holes=False)
    assert closely.unit == 64
    assert 1200 < closely.sizes[0] <= 1500
    chosen = cheapest_tiling(network, Tissue(mask), shape, **limits, leaves_holes=True)
    assert len(Tissue(mask).boxes(shape, chosen.tile, chosen.unit).tile) > 16
    assert chosen.sizes[0] <= 1200
    assert chosen.tile % chosen.unit == 0
    assert chosen.unit % network.lattice == 0
    assert chosen.tile // chosen.unit <= 8
    assert tiling(network, chosen.tile).unit < chosen.unit, "a tile size that is given is cut closely"
    wide = UNet(2, filters=64)
    narrow = cheapest_tiling(wide, Tissue(mask), shape, **limits, leaves_holes=True)
    assert 400 < narrow.sizes[0] <= 1500 / 8**0.5, "more px would cost more than the memory is worth"


def _px(network, tissue: Tissue, tiles: Tiling) -> int:
    """Px that go through the network, box by box."""
    boxes = tissue.boxes((4000, 4000), tiles.tile, tiles.unit)
    return sum(
        height * width
        for sides in boxes.side.tolist()
        for height, width in zip(*(tiling(network, side).sizes for side in sides), strict=True)
    )


@pytest.mark.parametrize(("tile", "unit"), [(16, 16), (48, 16), (96, 24), (128, 0)])
def test_boxes_are_the_smallest_around_the_tissue_of_their_tile(tile, unit):
    rng = np.random.default_rng(2)
    mask = rng.random((13, 31)) < 0.03
    shape = (260, 577)
    found = Tissue(mask).boxes(shape, tile, unit)
    rows, columns = (mask_index(np.arange(n), n, size) for n, size in zip(shape, mask.shape, strict=True))
    px = mask[np.ix_(rows, columns)]
    expected = []
    for i, j in Tissue(mask).tiles(shape, tile).tolist():
        y, x = np.nonzero(px[i * tile : (i + 1) * tile, j * tile : (j + 1) * tile])
        step = unit or tile
        (top, left), (bottom, right) = (
            [int(end) // step * step for end in ends] for ends in ((y.min(), x.min()), (y.max() + step, x.max() + step))
        )
        expected.append(([i, j], [i * tile + top, j * tile + left], [bottom - top, right - left]))
    assert list(zip(found.tile.tolist(), found.first.tolist(), found.side.tolist(), strict=True)) == expected
    assert not expected or len(expected) > 1


@pytest.mark.parametrize("tile", [16, 48, 100])
def test_tiles_are_those_with_a_px_over_tissue(tile):
    rng = np.random.default_rng(1)
    mask = rng.random((13, 31)) < 0.02
    shape = (260, 577)
    rows, columns = (mask_index(np.arange(n), n, size) for n, size in zip(shape, mask.shape, strict=True))
    px = mask[np.ix_(rows, columns)]
    naive = {(int(i) // tile, int(j) // tile) for i, j in np.argwhere(px)}
    assert {tuple(one) for one in Tissue(mask).tiles(shape, tile).tolist()} == naive
    assert np.array_equal(Tissue(mask).under(shape, range(3, 90), range(40, 577)), px[3:90, 40:577])


# --- what is refused -------------------------------------------------------------------------------------------------


def test_what_cannot_be_is_an_error_that_says_what_to_do(path, mask, unet, tmp_path):
    output = tmp_path / "a.ome.zarr"
    with pytest.raises(SpecError, match=r"has 0\.5 um/px, which is coarser than the 0\.25 um/px of 40x"):
        _segment(path, output, model=UNet(3, (40,), filters=1))
    for scale in (0.53, 0.2263 * 4):  # outside of the tolerance, and never taken for another
        with pytest.raises(SpecError, match=rf"has {scale:g} um/px, which is coarser than the 0\.5 um/px of 20x"):
            _segment(ms.open_slide(path, mpp=scale), output, model=unet)
    with pytest.raises(SpecError, match="the model has 3, expected a name of its own for each"):
        _segment(path, output, model=unet, classes=["a", "b"])
    with pytest.raises(MsdaskError, match="expected a segmentation model such as UNet or HookNet"):
        ms.segment_slide(path, ms.models.ScaleRegressor("scalenet"), output)
    with pytest.raises(SpecError, match="probabilities='float64': expected None or one of uint8, float16"):
        _segment(path, output, model=unet, probabilities="float64")
    assert not output.exists()
    _segment(path, output, model=unet, mask=mask)
    with pytest.raises(StoreError, match=r"another segmentation: .*tile 64 there, 128 now.*give another path"):
        _segment(path, output, model=unet, mask=mask, tile=128, overwrite=False)
    with pytest.raises(StoreError, match="is a Zarr group, but no class map"):
        ms.read_class_map(output)


def test_a_slide_without_tissue_has_an_empty_segmentation(path, unet, tmp_path):
    found = _segment(path, tmp_path / "a.ome.zarr", model=ms.Segmenter(unet), mask=np.zeros((4, 6), bool), tile=None)
    assert not found["label"].values.any()
    assert found.attrs["px"] == dict.fromkeys(NAMES, 0)


# --- many slides -----------------------------------------------------------------------------------------------------


def test_one_bad_slide_never_stops_the_others(path, unet, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(label_outlines, "BAND_PX", 128 * 410)
    (tmp_path / "bad.svs").write_bytes(b"no slide")
    save_model(unet, tmp_path / "m.safetensors", about={"classes": NAMES})
    given = ["segment", str(tmp_path / "bad.svs"), str(path), "--model", str(tmp_path / "m.safetensors")]
    for _ in range(2):  # the second time, what is there is taken
        with pytest.raises(SystemExit) as left:
            main([*given, "-o", str(tmp_path / "out"), "-q", "--threads", "2", "--outline-mpp", "0.5"])
        said = capsys.readouterr()
        assert left.value.code == 1
        assert "failed: bad.svs: " in said.err
        assert "a.svs: gland 0." in said.out
        assert "2 slides, 1 failed" in said.out
    table = pd.read_csv(tmp_path / "out/slides.csv")
    assert table["state"].tolist() == ["failed", "complete"]
    found = ms.open_segmentation(tmp_path / "out/segmentations/a.svs.ome.zarr")
    labels = found["label"].values
    assert table.loc[1, "px"] == np.count_nonzero(labels)
    assert (tmp_path / "out/overlays/a.svs.png").read_bytes()[:4] == b"\x89PNG"
    features = json.loads(gzip.decompress((tmp_path / "out/outlines/a.svs.geojson.gz").read_bytes()))["features"]
    assert len(features) == table.loc[1, "polygons"]
    areas = dict.fromkeys(NAMES, 0.0)
    for feature in features:
        for k, ring in enumerate(feature["geometry"]["coordinates"]):
            x, y = np.array(ring).T
            area = abs(np.dot(x[:-1], y[1:]) - np.dot(x[1:], y[:-1])) / 2
            areas[feature["properties"]["classification"]["name"]] += -area if k else area
    assert areas == found.attrs["px"], "every px lies in one polygon of its class"
    coarse = ms.open_segmentation(found.attrs["path"], level=1)
    np.testing.assert_array_equal(coarse["label"].values, halved_labels(labels))
    assert coarse["x"].values[0] == found["x"].values[:2].mean()
    with pytest.raises(SpecError, match=f"level 99; expected 0 to {found.attrs['levels'] - 1}"):
        ms.open_segmentation(found.attrs["path"], level=99)
    (axes,) = ms.plots.class_map(ms.open_slide(path), coarse).axes
    assert axes.get_title(loc="left") == f"a.svs: {sum(found.attrs['area_mm2'].values()):,.2f} mm²"
