"""Label maps of extracted patches: the class under every px at every magnification, whatever writes or repairs them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import xarray as xr
from distributed import Client

from msdask.cli import main
from msdask.cutting.lazy_patches import patches
from msdask.errors import SpecError, StoreError
from msdask.extraction import mending, slide_job
from msdask.extraction.cohort import extract
from msdask.extraction.repair import repair
from msdask.extraction.slide_job import begin_set, run_block
from msdask.extraction.slide_table import SlideRow
from msdask.masks.choice import MaskChoice, SlideMasks, masks_of_slide
from msdask.masks.label_plane import ArrayPlane
from msdask.sample.slides import make_slide
from msdask.spec import ExtractionSpec
from msdask.store import layout
from msdask.store.patch_store import PatchStore
from tests.tools.process_tools import use_faulty_processes
from tests.tools.store_tools import copy_store, target, tree, use_small_blocks

SIZE = 20
SPEC = ExtractionSpec(
    "centroids", (20, 5), patch_size=SIZE, stride=48, min_tissue=0.0, unlabeled="keep", label_maps=True
)
NAME, SLIDE = SPEC.name, "a.svs"
OPTIONS: dict[str, Any] = {"values": [50, 100, 150], "progress": False}
SHAPE = 512, 640
IMPULSE = 99, 28
"""Row and column of the 2 x 2 px of class 2 in the mask: 8 x 8 level-0 px, one px at 5x."""


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_blocks(monkeypatch)
    use_faulty_processes(monkeypatch)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide of 512 x 640 px, and its label mask of a quarter of that with an impulse of a class of its own."""
    folder = tmp_path_factory.mktemp("maps")
    make_slide(folder / "slides" / SLIDE, size=SHAPE, seed=5, levels=(1, 4), tile=128, associated=False)
    labels = np.kron(np.random.default_rng(0).integers(0, 3, (16, 20)), np.ones((8, 8))).astype(np.uint8) * 50
    labels[IMPULSE[0] : IMPULSE[0] + 2, IMPULSE[1] : IMPULSE[1] + 2] = 150
    (folder / "labels").mkdir()
    cv2.imwrite(str(folder / "labels" / "a.png"), labels)
    return folder


@pytest.fixture(scope="module")
def whole(folder: Path) -> Iterator[Path]:
    """The store that one block after the other gives; copy it before damaging it."""
    with pytest.MonkeyPatch.context() as patch:
        use_small_blocks(patch)
        store = folder / "whole.zarr"
        extracted(folder, store, threads=0)
        yield store


def extracted(folder: Path, store: Path, spec: ExtractionSpec = SPEC, **options: Any) -> None:
    report = extract(folder / "slides", store, spec, labels=folder / "labels", **OPTIONS, **options)
    assert report.is_complete, report.failures


def labels_of(folder: Path) -> np.ndarray:
    return cv2.imread(str(folder / "labels" / "a.png"), cv2.IMREAD_UNCHANGED) // 50


def shard(store: Path, name: str, block: int) -> Path:
    return store / NAME / SLIDE / name / "c" / str(block) / Path(*["0"] * (4 if name == "image" else 3))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)


# --- what is stored ---------------------------------------------------------------------------------------------------


def test_every_px_has_the_class_under_its_center(folder: Path, whole: Path) -> None:
    found, labels = PatchStore(whole)[NAME].open(SLIDE), labels_of(folder)
    maps, sides = found["label_map"].to_numpy(), (SIZE * 2, SIZE * 8)
    assert maps.shape == (*found["x0"].shape, SIZE, SIZE)
    assert maps.dtype == np.uint8
    x0, y0 = found["x0"].to_numpy(), found["y0"].to_numpy()
    outside = np.ones(maps.shape, bool)
    for i, m, j, k in np.ndindex(*maps.shape):
        side = sides[m] / SIZE
        y, x = y0[i, m] + (j + 0.5) * side, x0[i, m] + (k + 0.5) * side
        outside[i, m, j, k] = not (0 <= y < SHAPE[0] and 0 <= x < SHAPE[1])
        expected = 0 if outside[i, m, j, k] else labels[int(y // 4), int(x // 4)]
        assert maps[i, m, j, k] == expected, (i, m, j, k)
    shares = found["outside"].to_numpy()
    np.testing.assert_allclose(shares, outside.mean((2, 3)), atol=0.05)
    assert found["outside"].dtype == np.float32
    assert shares[:, 0].max() == 0
    assert shares[:, 1].max() > 0.5
    counts = np.stack([(maps[:, 0] == k).sum((1, 2)) for k in range(4)], axis=1)
    np.testing.assert_array_equal(found["label_pixels"].to_numpy(), counts)
    assert found["label_pixels"].dtype == np.uint32


def test_an_impulse_of_the_mask_lands_on_its_px_at_every_magnification(whole: Path) -> None:
    found = PatchStore(whole)[NAME].open(SLIDE)
    maps, x0, y0 = (found[name].to_numpy() for name in ("label_map", "x0", "y0"))
    top, left = (4 * at for at in IMPULSE)
    seen = set()
    for i, m in np.ndindex(*x0.shape):
        side = (2, 8)[m]
        y, x = (np.arange(SIZE) + 0.5) * side + y0[i, m], (np.arange(SIZE) + 0.5) * side + x0[i, m]
        inside = np.logical_and.outer((y >= top) & (y < top + 8), (x >= left) & (x < left + 8))
        np.testing.assert_array_equal(maps[i, m] == 3, inside)
        seen |= {m} if inside.any() else set()
    assert seen == {0, 1}


def test_nothing_else_changes_and_nothing_is_there_without(folder: Path, whole: Path, tmp_path: Path) -> None:
    extracted(folder, tmp_path / "plain.zarr", replace(SPEC, label_maps=False), threads=0)
    plain, maps = (tree(store / NAME / SLIDE) for store in (tmp_path / "plain.zarr", whole))
    own = ("label_map/", "label_map_crc/", "label_pixels/", "outside/")
    assert {name for name in maps if not name.startswith(own)} == plain.keys()
    assert {name for name in plain if plain[name] != maps[name]} == {"zarr.json"}
    with pytest.raises(StoreError, match=r"was made with label_maps=False, not label_maps=True: .*-20-label-maps'"):
        extracted(folder, tmp_path / "plain.zarr", threads=0)


def test_verify_freeze_and_table(whole: Path, tmp_path: Path) -> None:
    store = PatchStore(copy_store(whole, tmp_path / "s.zarr"))
    assert store.verify() == {NAME: []}
    store.freeze("v1")
    assert PatchStore(store.path, at="v1")[NAME].open(SLIDE)["label_map"].shape[1] == 2
    assert ("spec", "centroids, 20 px") not in store[NAME].facts()
    assert "label_maps True" in dict(store[NAME].facts())["spec"]
    plain = xr.open_zarr(f"{store.path}/{NAME}/{SLIDE}", chunks=None)
    assert plain["label_pixels"].dims == ("patch", "label_value")
    np.testing.assert_array_equal(plain["label_map"], store[NAME].open(SLIDE)["label_map"])
    table = store[NAME].table()
    np.testing.assert_array_equal(table["outside_5x"], store[NAME].columns(SLIDE, ["outside"])[0][:, 1])


# --- who writes them --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["threads", "processes", "cluster"])
def test_every_engine_writes_the_same_bytes(engine: str, folder: Path, whole: Path, tmp_path: Path) -> None:
    if engine == "cluster":
        with Client(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as client:
            extracted(folder, tmp_path / "s.zarr", client=client)
    else:
        extracted(folder, tmp_path / "s.zarr", **({"threads": 2} if engine == "threads" else {"workers": 2}))
    assert tree(tmp_path / "s.zarr") == tree(whole)


def test_a_run_goes_on_where_it_was_stopped(
    folder: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, write = 0, slide_job.write_maps

    def stops(*arguments: Any) -> None:
        nonlocal count
        count += 1
        if count == 4:
            raise OSError("disk full")
        write(*arguments)

    store = tmp_path / "s.zarr"
    monkeypatch.setattr(slide_job, "write_maps", stops)
    with pytest.raises(AssertionError, match="disk full"):
        extracted(folder, store, threads=0)
    # What a power cut may take of the blocks that were written: rows of the counts, and a shard.
    (store / NAME / SLIDE / "label_pixels" / "c" / "0" / "0").unlink()
    shard(store, "label_map", 1).write_bytes(b"")
    count = -100
    extracted(folder, store, threads=0)
    assert count == -100 + len(list((whole / NAME / SLIDE / "measured" / "c").iterdir())) - 1  # block 2 was whole
    assert tree(store) == tree(whole)


def test_slides_without_labels_fail_and_say_so(folder: Path, tmp_path: Path) -> None:
    report = extract(folder / "slides", tmp_path / "s.zarr", SPEC, threads=0, progress=False)
    assert "label maps were asked for, but it has no mask of its own: give annotated masks" in report.failures[SLIDE]
    labels = np.zeros((128, 160), np.uint16)
    labels[0, :256] = np.resize(np.arange(256), 160)
    labels[1] = 256
    (tmp_path / "labels").mkdir()
    cv2.imwrite(str(tmp_path / "labels" / "a.png"), labels)
    report = extract(
        *(folder / "slides", tmp_path / "t.zarr", SPEC),
        labels=tmp_path / "labels",
        values=list(range(1, 257)),
        threads=0,
        progress=False,
    )
    assert "class 255 (label 256); label maps hold labels from 0 to 255" in report.failures[SLIDE]


def test_lazy_patches_of_such_a_spec_need_labels(folder: Path) -> None:
    row = SlideRow(str(folder / "slides" / SLIDE), SLIDE)
    choice = MaskChoice.of(None, folder / "labels", [50, 100, 150])
    slide, (table,), _ = slide_job.plan_slide(row, [SPEC], choice)
    with pytest.raises(SpecError, match="asks for label maps: give what they show"):
        patches(slide, table)


# --- repair -----------------------------------------------------------------------------------------------------------


def test_broken_label_maps_are_cut_again_from_the_stored_mask(folder: Path, whole: Path, tmp_path: Path) -> None:
    store = copy_store(whole, tmp_path / "s.zarr")
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*") if path.is_file()}
    broken = [
        shard(store, "label_map", 1),
        shard(store, "label_map", 2),
        shard(store, "image", 2),
        shard(store, "image", 3),
    ]
    flip(broken[0])
    broken[1].unlink()
    flip(broken[2])
    flip(broken[3])
    assert PatchStore(store)[NAME].verify()
    report = repair(store, threads=0, progress=False)
    assert [(r.action, r.blocks) for r in report.repairs] == [("blocks", (1, 2, 3))], report.failures
    rows = PatchStore(store)[NAME].arrays(SLIDE)
    assert report.repairs[0].patches == sum(rows.block(b).stop - rows.block(b).start for b in (1, 2, 3))
    assert tree(store) == tree(whole)
    assert {path for path, time in before.items() if path.stat().st_mtime_ns != time} == set(broken)


def test_a_slide_whose_tables_are_broken_is_extracted_afresh(folder: Path, whole: Path, tmp_path: Path) -> None:
    store = copy_store(whole, tmp_path / "s.zarr")
    flip(store / NAME / SLIDE / "label_pixels" / "c" / "1" / "0")
    report = repair(store, labels=folder / "labels", values=OPTIONS["values"], threads=0, progress=False)
    assert [r.action for r in report.repairs] == ["slide"], report.failures
    assert tree(store) == tree(whole)


# --- outlines ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stripes:
    """A plane that is drawn: stripes of level-0 px that no mask of this size could hold."""

    width: float
    shape: tuple[int, int] = SHAPE
    classes: tuple[str, ...] = ("even", "odd", "none")

    def cut(self, x0: np.ndarray, y0: np.ndarray, footprints: Sequence[float], patch_size: int) -> np.ndarray:
        centers = (np.arange(patch_size) + 0.5) * (np.asarray(footprints) / patch_size)[:, None]
        stripe = np.floor((x0[..., None] + centers) / self.width).astype(int) % 2 + 1
        return np.broadcast_to(stripe[..., None, :], (*stripe.shape[:-1], patch_size, patch_size)).astype(np.uint8)


def test_what_is_drawn_travels_and_is_read_again_for_a_repair(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    width = 3.0

    def drawn(*arguments: Any, **options: Any) -> SlideMasks:
        return masks_of_slide(*arguments, **options)._replace(plane=Stripes(width))

    monkeypatch.setattr(slide_job, "masks_of_slide", drawn)
    monkeypatch.setattr(mending, "masks_of_slide", drawn)
    store = tmp_path / "s.zarr"
    extracted(folder, store, threads=0)
    found = PatchStore(store)[NAME].open(SLIDE)
    assert found.attrs["labels_from"].startswith("outlines ")
    plane = Stripes(width)
    expected = plane.cut(found["x0"].values, found["y0"].values, (SIZE * 2, SIZE * 8), SIZE)
    np.testing.assert_array_equal(found["label_map"].to_numpy(), expected)
    whole = copy_store(store, tmp_path / "copy" / "s.zarr")
    flip(shard(store, "label_map", 1))
    width = 5.0
    again: dict[str, Any] = {"values": OPTIONS["values"], "threads": 0, "progress": False}
    report = repair(store, **again)
    assert ["what it is now is not what was stored" in why for why in report.failures.values()] == [True]
    width = 3.0
    assert repair(store, **again).is_complete
    assert tree(store) == tree(whole)
    flip(shard(store, "image", 1))  # images need no outlines: they may be gone
    (tmp_path / "gone").mkdir()
    assert repair(store, threads=0, progress=False, masks=tmp_path / "gone").is_complete
    assert tree(store) == tree(whole)
    # A file that was written anew may have other outlines than a coarse mask of it shows.
    (tmp_path / "labels").mkdir()
    other = str(tmp_path / "labels" / "a.png")
    cv2.imwrite(other, labels_of(folder) * 50, [cv2.IMWRITE_PNG_COMPRESSION, 0])
    report = extract(folder / "slides", store, SPEC, labels=tmp_path / "labels", threads=0, **OPTIONS)
    assert "was made with another mask" in report.failures[SLIDE]


def test_a_job_carries_no_mask(folder: Path, tmp_path: Path) -> None:
    row = SlideRow(str(folder / "slides" / SLIDE), SLIDE)
    choice = MaskChoice.of(None, folder / "labels", [50, 100, 150])
    slide, (table,), _ = slide_job.plan_slide(row, [SPEC], choice)
    plane = ArrayPlane.of(labels_of(folder), SHAPE, ["a", "b", "c"], what="mask")
    job = begin_set(slide, table, target(tmp_path), plane=plane)
    assert not isinstance(job.plane, ArrayPlane)
    assert job.plane is not None
    assert run_block(job, job.todo[0]) > 0
    x0, y0 = layout.read_columns(job.arrays.path, ["x0", "y0"])
    arguments = (x0, y0, job.cutter.footprints, SIZE)
    np.testing.assert_array_equal(job.plane.cut(*arguments), plane.cut(*arguments))
    with pytest.raises(SpecError, match="nothing says what they are cut from"):
        begin_set(slide, table, target(tmp_path / "other"))


# --- the command line -------------------------------------------------------------------------------------------------


def test_from_a_shell(folder: Path, tmp_path: Path) -> None:
    store = str(tmp_path / "s.zarr")
    arguments = ["extract", str(folder / "slides"), "-o", store, "-m", "40", "20", "-x", "0", "--label-maps", "-q"]
    labelled = ["--labels", str(folder / "labels"), "--values", "50", "100", "150", "--unlabeled", "keep", "-p", "1"]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, *labelled])
    assert ended.value.code == 0
    (name,) = PatchStore(store)
    assert name == "centroids-40x-20x-284"
    found = PatchStore(store)[name]
    assert found.spec.label_maps
    assert found.open(SLIDE)["label_map"].shape[1:] == (2, 284, 284)
