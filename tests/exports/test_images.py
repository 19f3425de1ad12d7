"""Export: PNG patches, tables and lists in Multi_Scale_Tools' layout, read back with pandas and PIL."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

import msdask as ms
from msdask.exports.image_form import ImageForm
from msdask.exports.images import export, export_table
from msdask.store import documents
from msdask.store.codecs import encode_jpeg
from tests.tools.store_tools import copy_store, forge

HEIGHT, WIDTH = 320, 352
SLIDES = ("a b.c.tif", "né, odd.tif", "third.v1.svs.tif")
SPLITS = ("train", "val", "test")
VALUES = {50: 0, 100: 1}


def make_slide(path: Path, seed: int) -> None:
    """Noise, with a white corner (not kept) where masks see tissue."""
    image = np.random.default_rng(seed).integers(40, 200, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    image[:64, :64] = 255
    tifffile.imwrite(path, image, photometric="rgb", compression="zlib")


def make_mask(path: Path, *, values: Sequence[int] = (50, 100), hole: bool = False) -> None:
    """Two classes that meet at x = 160, in the middle of a 10x patch; below y = 192 nothing where there is a hole."""
    mask = np.full((HEIGHT // 16, WIDTH // 16), values[0], np.uint8)
    mask[:, 10:] = values[1]
    if hole:
        mask[12:] = 0
    Image.fromarray(mask).save(path)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> ms.PatchStore:
    """Three labelled slides: linked grids at 20x and 10x, and tuples."""
    folder = tmp_path_factory.mktemp("cohort")
    rows = []
    for seed, (slide, split) in enumerate(zip(SLIDES, SPLITS, strict=True)):
        make_slide(folder / slide, seed)
        make_mask(folder / f"{slide}.png", hole=seed == 1)
        rows.append({"path": folder / slide, "mask": folder / f"{slide}.png", "mpp": 0.5, "split": split})
    store = ms.PatchStore(folder / "cohort.zarr")
    grids = [ms.ExtractionSpec(mode="grid", magnifications=(m,), patch_size=32) for m in (20.0, 10.0)]
    tuples = ms.ExtractionSpec(mode="centroids", magnifications=(20.0, 10.0, 2.5), patch_size=32)
    for spec in (grids, tuples):
        report = ms.extract(rows, store, spec, values=VALUES, threads=2, progress=False)
        assert report.is_complete, report.failures
    return store


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> ms.PatchStore:
    """One slide without labels: 440 patches in two shards, and tuples."""
    folder = tmp_path_factory.mktemp("plain")
    make_slide(folder / "plain.tif", seed=7)
    slide = ms.open_slide(folder / "plain.tif", mpp=0.5)
    store = ms.PatchStore(folder / "plain.zarr")
    store.write(ms.patches(slide, ms.grid(slide, magnification=20, patch_size=16)))
    store.write(ms.patches(slide, ms.centroids(slide, magnifications=[20, 10], patch_size=32)))
    return store


@pytest.fixture
def copied(cohort: ms.PatchStore, tmp_path: Path) -> ms.PatchStore:
    """A copy of the cohort that a test may damage."""
    copy_store(cohort.path, tmp_path / "copied.zarr")
    return ms.PatchStore(tmp_path / "copied.zarr")


def read_csv(path: Path | str) -> pd.DataFrame:
    """As the original's scripts read."""
    return pd.read_csv(path, sep=",", header=None)


def read_png(path: str) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.mode == "RGB"
        return np.asarray(image)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def flip_a_byte(store: ms.PatchStore, set_name: str, slide_id: str) -> None:
    shard = next(p for p in Path(store.path, set_name, slide_id, "image", "c").rglob("*") if p.is_file())
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1  # not in the first patch, which is white and not exported
    shard.write_bytes(data)


# PNG patches and tables


@pytest.mark.parametrize("slide_id", SLIDES)
def test_labelled_grid_has_the_kept_patches_their_coordinates_and_labels(
    cohort: ms.PatchStore, tmp_path: Path, slide_id: str
) -> None:
    summary = export(cohort, tmp_path, name="grid-20x-32")
    assert summary.is_complete
    folder = tmp_path / "pixel_wise_single_magnifications" / "magnification_20x" / slide_id
    stored = cohort["grid-20x-32"].open(slide_id)
    kept = stored.isel(patch=np.flatnonzero(stored["keep"].values))
    assert 0 < kept.sizes["patch"] < stored.sizes["patch"]
    coords, labels = (
        read_csv(folder / f"{slide_id}_coords_densely.csv"),
        read_csv(folder / f"{slide_id}_labels_densely.csv"),
    )
    paths = [str(folder / f"{slide_id}_{n}.png") for n in range(kept.sizes["patch"])]
    assert coords[0].tolist() == labels[0].tolist() == paths
    assert (coords[1] == 0).all()
    np.testing.assert_array_equal(coords[[2, 3]], np.stack([kept["x0"][:, 0], kept["y0"][:, 0]], axis=1))
    assert coords[4].tolist() == [20.0] * len(paths)
    np.testing.assert_array_equal(labels[1], kept["label"][:, 0])
    assert set(labels[1]) == {0, 1}
    images = kept["image"].values
    for path, expected in zip(paths, images, strict=True):
        np.testing.assert_array_equal(read_png(path), expected[0])
    tables = {f"{slide_id}_{kind}_densely.csv" for kind in ("coords", "labels")}
    assert {p.name for p in folder.iterdir()} == {Path(p).name for p in paths} | tables


def test_labelled_tuples_have_a_folder_and_tables_for_each_magnification(cohort: ms.PatchStore, tmp_path: Path) -> None:
    slide_id, name = SLIDES[0], "centroids-20x-10x-2.5x-32"
    export(cohort, tmp_path, name=name)
    kept = cohort[name].open(slide_id, keep=True)
    images, count = kept["image"].values, kept.sizes["patch"]
    root = tmp_path / "pixel_wise_multi_magnifications_centers" / "MAGNIFICATIONS_20_10_2.5" / slide_id
    for column, text in enumerate(["20", "10", "2.5"]):
        folder = root / f"magnification_{text}x"
        coords = read_csv(folder / f"{slide_id}_coords_densely.csv")
        labels = read_csv(folder / f"{slide_id}_labels_densely.csv")
        assert labels[0].tolist() == [str(folder / f"{slide_id}_{n}.png") for n in range(count)]
        np.testing.assert_array_equal(coords[2], kept["x0"][:, column])
        np.testing.assert_array_equal(coords[3], kept["y0"][:, column])
        np.testing.assert_array_equal(labels[1], kept["label"][:, 0])
        np.testing.assert_array_equal(labels[2], kept["label"][:, column])
        for n in range(count):
            np.testing.assert_array_equal(read_png(labels[0][n]), images[n, column])
    assert (labels[2] == -1).any()  # a context without a majority is no class


def test_unlabelled_grid_of_several_shards_has_paths_instead_of_labels(plain: ms.PatchStore, tmp_path: Path) -> None:
    patch_set = plain["grid-20x-16"]
    assert patch_set.arrays("plain.tif").blocks > 1
    summary = export(plain, tmp_path, name="grid-20x-16")
    folder = tmp_path / "single_magnifications" / "magnification_20x" / "plain.tif"
    kept = patch_set.open("plain.tif", keep=True)
    paths = read_csv(folder / "plain.tif_paths_densely.csv")[0].tolist()
    assert read_csv(folder / "plain.tif_coords_densely.csv")[0].tolist() == paths
    assert len(paths) == kept.sizes["patch"] == summary.patches
    np.testing.assert_array_equal(np.stack([read_png(p) for p in paths]), kept["image"].values[:, 0])
    assert not list(folder.glob("*labels*"))


def test_unlabelled_tuples_go_where_the_original_puts_them(plain: ms.PatchStore, tmp_path: Path) -> None:
    export(plain, tmp_path, name="centroids-20x-10x-32")
    root = tmp_path / "multi_magnifications_centers" / "MAGNIFICATIONS__20_10_" / "plain.tif"
    assert sorted(p.name for p in root.iterdir()) == ["magnification_10x", "magnification_20x"]
    for folder in root.iterdir():
        paths = read_csv(folder / "plain.tif_paths_densely.csv")[0].tolist()
        assert len(paths) == plain["centroids-20x-10x-32"].open("plain.tif", keep=True).sizes["patch"]
        assert all(Path(p).is_file() for p in paths)


def test_csv_bytes_are_those_of_the_original(plain: ms.PatchStore, tmp_path: Path) -> None:
    export(plain, tmp_path, name="grid-20x-16")
    folder = tmp_path / "single_magnifications" / "magnification_20x" / "plain.tif"
    first = plain["grid-20x-16"].open("plain.tif", keep=True).isel(patch=0)
    path = folder / "plain.tif_0.png"
    expected = f"{path},0,{int(first['x0'][0])},{int(first['y0'][0])},20.0\n"
    assert (folder / "plain.tif_coords_densely.csv").read_text().startswith(expected)
    assert (folder / "plain.tif_paths_densely.csv").read_text().startswith(f"{path}\n")


def test_keep_false_exports_what_the_verdict_refused_too(plain: ms.PatchStore, tmp_path: Path) -> None:
    summary = export(plain, tmp_path, name="grid-20x-16", keep=False)
    stored = plain["grid-20x-16"].open("plain.tif")
    assert summary.patches == stored.sizes["patch"] > int(stored["keep"].sum())
    folder = tmp_path / "single_magnifications" / "magnification_20x" / "plain.tif"
    refused = int(np.flatnonzero(~stored["keep"].values)[0])
    assert (read_png(str(folder / f"plain.tif_{refused}.png")) == 255).all()


def test_all_sets_are_exported_by_default(cohort: ms.PatchStore, tmp_path: Path) -> None:
    summary = export(cohort.path, tmp_path)
    assert {(o.set_name, o.slide_id) for o in summary.outcomes} == {(s, i) for s in cohort for i in SLIDES}
    assert summary.patches == sum(int(p.table()["keep"].sum()) for p in cohort.values())
    assert "9 exported" in summary.summary()


def test_only_the_slides_that_were_named(cohort: ms.PatchStore, tmp_path: Path) -> None:
    summary = export(cohort, tmp_path, name="grid-10x-32", slides=[SLIDES[2]])
    assert [o.slide_id for o in summary.outcomes] == [SLIDES[2]]
    assert [p.name for p in (tmp_path / "pixel_wise_single_magnifications/magnification_10x").iterdir()] == [SLIDES[2]]


def test_bytes_do_not_depend_on_threads_or_on_an_earlier_run(cohort: ms.PatchStore, tmp_path: Path) -> None:
    output = tmp_path / "out"
    grids = ["grid-20x-32", "grid-10x-32"]
    export(cohort, output, name=grids, lists=True, threads=1)
    first = snapshot(output)
    export(cohort, output, name=grids, keep=False, lists=True, threads=3)
    assert len(snapshot(output)) > len(first)
    export(cohort, output, name=grids, lists=True, threads=3)
    assert snapshot(output) == first


def test_leftovers_of_a_killed_run_vanish(cohort: ms.PatchStore, tmp_path: Path) -> None:
    root = tmp_path / "pixel_wise_single_magnifications" / "magnification_10x"
    for ending in ("part", "old"):
        leftover = root / f".{SLIDES[0]}.{ending}"
        leftover.mkdir(parents=True)
        (leftover / "half.png").write_bytes(b"half")
    export(cohort, tmp_path, name="grid-10x-32")
    assert sorted(p.name for p in root.iterdir()) == sorted(SLIDES)
    assert not list(root.rglob("half.png"))


def test_a_folder_with_foreign_files_is_not_replaced(cohort: ms.PatchStore, tmp_path: Path) -> None:
    folder = tmp_path / "pixel_wise_single_magnifications" / "magnification_10x" / SLIDES[0]
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    summary = export(cohort, tmp_path, name="grid-10x-32")
    assert list(summary.failures) == [f"grid-10x-32/{SLIDES[0]}"]
    assert "notes.txt" in summary.failures[f"grid-10x-32/{SLIDES[0]}"]
    assert [p.name for p in folder.iterdir()] == ["notes.txt"]
    assert [o.state for o in summary.outcomes].count("exported") == 2


def test_a_slide_without_patches_is_empty_and_has_no_folder(tmp_path: Path) -> None:
    make_slide(tmp_path / "bare.tif", seed=1)
    slide = ms.open_slide(tmp_path / "bare.tif", mpp=0.5)
    store = ms.PatchStore(tmp_path / "s.zarr")
    store.write(ms.patches(slide, ms.grid(slide, np.zeros((20, 22), bool), magnification=20, patch_size=32)))
    summary = export(store, tmp_path / "out")
    assert [o.state for o in summary.outcomes] == ["empty"]
    assert summary.is_complete
    assert not list((tmp_path / "out").rglob("bare.tif*"))


# faults


def test_a_corrupt_slide_is_reported_and_the_others_go_on(copied: ms.PatchStore, tmp_path: Path) -> None:
    flip_a_byte(copied, "grid-10x-32", SLIDES[1])
    summary = export(copied, tmp_path / "out", lists=True)
    assert list(summary.failures) == [f"grid-10x-32/{SLIDES[1]}"]
    assert "checksum" in summary.failures[f"grid-10x-32/{SLIDES[1]}"]
    assert not summary.is_complete
    root = tmp_path / "out" / "pixel_wise_single_magnifications" / "magnification_10x"
    assert sorted(p.name for p in root.iterdir()) == sorted({*SLIDES} - {SLIDES[1]})
    rows = {Path(t.path).relative_to(summary.output).as_posix(): t for t in summary.lists}
    base = "csv_folder/classification"
    assert rows[f"{base}/single_scales_partitions/magnification_10x/valid.csv"].rows == 0
    assert rows[f"{base}/single_scales_partitions/magnification_20x/valid.csv"].rows > 0
    upper = rows[f"{base}/upper_region_partitions/20_10/valid.csv"]
    assert upper.rows == 0
    assert upper.dropped == rows[f"{base}/single_scales_partitions/magnification_20x/valid.csv"].rows


def test_a_slide_that_is_not_complete_is_reported(copied: ms.PatchStore, tmp_path: Path) -> None:
    path = Path(copied.path, "grid-10x-32", SLIDES[0])
    documents.write_sealed(path, documents.read_attrs(path) | {"state": "writing"})
    summary = export(copied, tmp_path / "out", name="grid-10x-32")
    assert [o.state for o in summary.outcomes] == ["failed", "exported", "exported"]
    assert "not complete" in next(iter(summary.failures.values()))


def test_unknown_sets_and_slides_are_errors_before_any_work(cohort: ms.PatchStore, tmp_path: Path) -> None:
    with pytest.raises(ms.StoreError, match="no patch set 'grid-40x-32'"):
        export(cohort, tmp_path / "out", name="grid-40x-32")
    with pytest.raises(ms.StoreError, match=r"no slides \['other.tif'\]"):
        export(cohort, tmp_path / "out", slides=["other.tif", SLIDES[0]])
    with pytest.raises(ms.StoreError, match="no patch set to export"):
        export(tmp_path / "nothing.zarr", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_sets_for_one_folder_are_refused(plain: ms.PatchStore, tmp_path: Path) -> None:
    copy_store(plain.path, tmp_path / "two.zarr")
    store = ms.PatchStore(tmp_path / "two.zarr")
    shutil.copytree(tmp_path / "two.zarr" / "grid-20x-16", tmp_path / "two.zarr" / "again")
    with pytest.raises(ms.StoreError, match=r"'again' and 'grid-20x-16'.*one at a time"):
        export(store, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_output_that_cannot_be_written_is_one_clear_error(cohort: ms.PatchStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ms.StoreError, match=r"cannot export to .*file.*writable"):
        export(cohort, tmp_path / "file" / "out")


# training lists


def write_partitions(folder: Path, **names: Sequence[str]) -> Path:
    """Lists as the original's: one slide name a line."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, slides in names.items():
        file = "external_dataset_source.csv" if split == "external" else f"list_{split}.csv"
        (folder / file).write_text("".join(f'"{s}"\n' if "," in s else f"{s}\n" for s in slides), encoding="utf-8")
    return folder


def tables(output: Path, kind: str, folder: str, slides: Sequence[str]) -> list[list[object]]:
    frames = [read_csv(output / folder.format(s) / f"{s}_{kind}_densely.csv") for s in slides]
    return [row for frame in frames for row in frame.to_numpy().tolist()]


GRID = "pixel_wise_single_magnifications/magnification_{}x"
TRAIN = (SLIDES[2], SLIDES[0])


@pytest.fixture(scope="module")
def listed(cohort: ms.PatchStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export with lists: two slides to train, in an order of their own, one to test, none to validate."""
    folder = tmp_path_factory.mktemp("listed")
    partitions = write_partitions(folder / "partitions", train=TRAIN, valid=[], test=[SLIDES[1]])
    summary = export(cohort, folder, lists=partitions)
    assert summary.is_complete
    assert len(summary.lists) == 3 * 5
    for entry in summary.lists:
        assert Path(entry.path).read_text(encoding="utf-8").count("\n") == entry.rows
    return folder


def test_detector_list_has_path_and_magnification_slide_by_slide(listed: Path) -> None:
    expected = [
        [row[0], magnification]
        for slide in TRAIN
        for magnification in (20.0, 10.0)
        for row in tables(listed, "coords", GRID.format(int(magnification)) + "/{}", [slide])
    ]
    path = listed / "csv_folder" / "scale_regression" / "train.csv"
    assert read_csv(path).to_numpy().tolist() == expected
    assert path.read_text().splitlines()[0].endswith(".png,20.0")


@pytest.mark.parametrize("magnification", [20, 10])
def test_single_scale_list_has_path_and_label(listed: Path, magnification: int) -> None:
    folder = listed / "csv_folder/classification/single_scales_partitions" / f"magnification_{magnification}x"
    for split, slides in {"train": TRAIN, "test": SLIDES[1:2]}.items():
        expected = tables(listed, "labels", GRID.format(magnification) + "/{}", slides)
        assert read_csv(folder / f"{split}.csv").to_numpy().tolist() == expected
    assert (folder / "valid.csv").read_text() == ""


def test_multicenter_list_has_a_path_for_each_magnification_and_the_centroids_label(listed: Path) -> None:
    root = "pixel_wise_multi_magnifications_centers/MAGNIFICATIONS_20_10_2.5/{}/magnification_"
    columns = [tables(listed, "labels", root + f"{text}x", TRAIN) for text in ("20", "10", "2.5")]
    expected = [[a[0], b[0], c[0], a[1]] for a, b, c in zip(*columns, strict=True)]
    path = listed / "csv_folder/classification/multicenter_partitions/20_10_2.5/train.csv"
    assert read_csv(path).to_numpy().tolist() == expected


def test_upper_region_list_has_the_parents_that_a_search_through_the_tables_finds(listed: Path) -> None:
    for split, slides in {"train": TRAIN, "test": SLIDES[1:2]}.items():
        expected, dropped = [], 0
        for slide in slides:
            fine, coarse = (
                list(
                    zip(
                        *(tables(listed, k, GRID.format(m) + "/{}", [slide]) for k in ("coords", "labels")), strict=True
                    )
                )
                for m in (20, 10)
            )
            for (path, _, x, y, own), (_, label) in fine:
                side, room = 32 * own / 20, 32 * own / 10
                inside = [
                    (above[1][0], above[1][1])
                    for above in coarse
                    if above[0][2] <= x and above[0][3] <= y
                    if x + side <= above[0][2] + room and y + side <= above[0][3] + room
                ]
                if inside:
                    expected.append([path, inside[0][0], label, inside[0][1]])
                else:
                    dropped += 1
        assert expected
        assert dropped
        path = listed / "csv_folder/classification/upper_region_partitions/20_10" / f"{split}.csv"
        assert read_csv(path).to_numpy().tolist() == expected


def test_upper_region_list_counts_what_it_drops(cohort: ms.PatchStore, tmp_path: Path) -> None:
    summary = export(cohort, tmp_path, name=["grid-20x-32", "grid-10x-32"], lists={"train": SLIDES})
    (upper,) = (t for t in summary.lists if "upper_region_partitions" in t.path)
    assert upper.dropped > 0
    assert upper.rows + upper.dropped == int(cohort["grid-20x-32"].table()["keep"].sum())


def test_upper_region_needs_both_sets(cohort: ms.PatchStore, tmp_path: Path) -> None:
    summary = export(cohort, tmp_path, name="grid-20x-32", lists=True)
    assert not [t for t in summary.lists if "upper_region_partitions" in t.path]


def test_splits_that_came_with_the_slides(cohort: ms.PatchStore, tmp_path: Path) -> None:
    summary = export(cohort, tmp_path, name="grid-10x-32", lists=True)
    folder = tmp_path / "csv_folder/classification/single_scales_partitions/magnification_10x"
    assert sorted(p.name for p in folder.iterdir()) == ["test.csv", "train.csv", "valid.csv"]
    for slide, split in zip(SLIDES, ("train", "valid", "test"), strict=True):
        expected = tables(tmp_path, "labels", GRID.format(10) + "/{}", [slide])
        assert read_csv(folder / f"{split}.csv").to_numpy().tolist() == expected
    assert summary.missing == ()


def test_repeats_have_a_folder_each(cohort: ms.PatchStore, tmp_path: Path) -> None:
    for repeat, order in enumerate([SLIDES, SLIDES[::-1]]):
        write_partitions(tmp_path / "partitions" / str(repeat), train=order[:1], valid=order[1:2], test=order[2:])
    export(cohort, tmp_path / "out", name="grid-10x-32", lists=tmp_path)
    base = tmp_path / "out" / "csv_folder" / "classification"
    for repeat, slide in enumerate([SLIDES[0], SLIDES[2]]):
        lists = base / str(repeat) / "single_scales_partitions" / "magnification_10x"
        expected = tables(tmp_path / "out", "labels", GRID.format(10) + "/{}", [slide])
        assert read_csv(lists / "train.csv").to_numpy().tolist() == expected


def test_partitions_may_lie_in_a_folder_of_that_name(cohort: ms.PatchStore, tmp_path: Path) -> None:
    write_partitions(tmp_path / "partitions", test=SLIDES[:1])
    summary = export(cohort, tmp_path / "out", name="grid-10x-32", lists=tmp_path)
    assert [Path(t.path).relative_to(tmp_path / "out" / "csv_folder").as_posix() for t in summary.lists] == [
        "scale_regression/test.csv",
        "classification/single_scales_partitions/magnification_10x/test.csv",
    ]


def test_external_slides_are_listed_for_the_detector_only(plain: ms.PatchStore, tmp_path: Path) -> None:
    partitions = write_partitions(tmp_path / "partitions", external=["plain.tif"])
    summary = export(plain, tmp_path / "out", lists=partitions)
    assert [Path(t.path).relative_to(tmp_path / "out").as_posix() for t in summary.lists] == [
        "csv_folder/scale_regression/external_data.csv"
    ]
    assert read_csv(summary.lists[0].path)[1].unique().tolist() == [20.0]


def test_names_without_their_ending_match_and_unknown_ones_are_told(cohort: ms.PatchStore, tmp_path: Path) -> None:
    names = {"train": ["a b.c", "gone.tif"], "test": ["né, odd.tif.svs"]}
    summary = export(cohort, tmp_path, name="grid-10x-32", lists=names)
    assert summary.missing == ("gone.tif",)
    assert not summary.is_complete
    assert all(t.rows > 0 for t in summary.lists)


def test_patches_without_a_label_are_in_tables_but_in_no_list(tmp_path: Path) -> None:
    make_slide(tmp_path / "s.tif", seed=3)
    slide = ms.open_slide(tmp_path / "s.tif", mpp=0.5)
    labels = np.zeros((20, 22), np.uint8)
    labels[:, :10] = 1
    store = ms.PatchStore(tmp_path / "s.zarr")
    everywhere = np.ones_like(labels)
    grid = ms.grid(slide, everywhere, magnification=20, patch_size=32, labels=labels, unlabeled="keep")
    tuples = ms.centroids(slide, everywhere, magnifications=[20, 10], patch_size=32, labels=labels, unlabeled="keep")
    for selection in (grid, tuples):
        store.write(ms.patches(slide, selection))
    summary = export(store, tmp_path / "out", lists={"train": ["s.tif"]})
    written = [row[1] for row in tables(tmp_path / "out", "labels", GRID.format(20) + "/{}", ["s.tif"])]
    assert set(written) == {-1, 0}
    classification = [t for t in summary.lists if "classification" in t.path]
    assert len(classification) == 2
    for entry in classification:
        assert entry.rows == written.count(0)
        assert entry.dropped == written.count(-1)


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"train": SLIDES[:2], "test": SLIDES[1:]}, "'né, odd.tif' is in 'train' and in 'test'"),
        ({"train": ["x.svs"]}, r"none of the names .*x.svs"),
        ({"../train": SLIDES}, "cannot name a file"),
    ],
)
def test_partitions_that_do_not_fit_are_errors_before_any_work(
    cohort: ms.PatchStore, tmp_path: Path, lists: dict[str, Sequence[str]], message: str
) -> None:
    with pytest.raises(ms.StoreError, match=message):
        export(cohort, tmp_path / "out", lists=lists)
    assert not (tmp_path / "out").exists()


def test_a_folder_without_partitions_and_slides_without_splits_are_errors(
    cohort: ms.PatchStore, plain: ms.PatchStore, tmp_path: Path
) -> None:
    with pytest.raises(ms.StoreError, match=r"none of list_train.csv"):
        export(cohort, tmp_path / "out", lists=tmp_path)
    with pytest.raises(ms.StoreError, match="no slide has a split"):
        export(plain, tmp_path / "out", lists=True)
    write_partitions(tmp_path / "p", train=SLIDES)
    (tmp_path / "p" / "list_train.csv").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ms.StoreError, match=r"list_train.csv' cannot be read"):
        export(cohort, tmp_path / "out", lists=tmp_path / "p")


def test_links_into_a_slide_that_has_changed_are_told_and_dropped(copied: ms.PatchStore, tmp_path: Path) -> None:
    moved = copied["grid-10x-32"].columns(SLIDES[0], ["x0"])[0] + np.int32(7)
    forge(Path(copied.path), "grid-10x-32", SLIDES[0], {"x0": moved})
    summary = export(copied, tmp_path / "out", lists={"train": SLIDES[:2]})
    assert len(summary.problems) == 1
    assert SLIDES[0] in summary.problems[0]
    (upper,) = (t for t in summary.lists if "upper_region_partitions" in t.path)
    assert set(read_csv(upper.path)[0].map(lambda p: Path(p).parent.name)) == {SLIDES[1]}


def test_links_into_a_set_of_another_spec_are_refused(copied: ms.PatchStore, tmp_path: Path) -> None:
    for slide_id in SLIDES:
        forge(
            Path(copied.path), "grid-20x-32", slide_id, change=lambda a: a["links"]["parent_10x"].update(spec_hash="x")
        )
    with pytest.raises(ms.StoreError, match="extract both again in one run"):
        export(copied, tmp_path / "out", lists=True)


# tables


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
@pytest.mark.parametrize("keep", [False, True])
def test_table_comes_back_from_its_file(cohort: ms.PatchStore, tmp_path: Path, ending: str, keep: bool) -> None:
    patch_set = cohort["centroids-20x-10x-2.5x-32"]
    path = export_table(patch_set, tmp_path / "new folder" / f"table{ending}", keep=keep)
    found = pd.read_csv(path) if ending == ".csv" else pd.read_parquet(path)
    pd.testing.assert_frame_equal(found, patch_set.table(keep=keep), check_dtype=ending == ".parquet")
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("name", ["table.xlsx", "table", "table.csv.gz"])
def test_table_with_another_ending_is_refused(cohort: ms.PatchStore, tmp_path: Path, name: str) -> None:
    with pytest.raises(ms.SpecError, match=r"expected .csv or .parquet"):
        export_table(cohort["grid-10x-32"], tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_table_that_cannot_be_written_is_a_clear_error(cohort: ms.PatchStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ms.StoreError, match="cannot write"):
        export_table(cohort["grid-10x-32"], tmp_path / "file" / "table.csv")


def test_export_is_public() -> None:
    assert ms.export is export


# JPEG, and one folder


@pytest.fixture(scope="module")
def jpegs(plain: ms.PatchStore, tmp_path_factory: pytest.TempPathFactory) -> ms.PatchStore:
    """The tuples of the slide of `plain`, stored as JPEG."""
    slide = ms.open_slide(Path(plain.path).parent / "plain.tif", mpp=0.5)
    store = ms.PatchStore(tmp_path_factory.mktemp("jpegs") / "j.zarr", codec="jpeg")
    store.write(ms.patches(slide, ms.centroids(slide, magnifications=[20, 10], patch_size=32)))
    return store


@pytest.mark.parametrize("quality", [None, 40])
def test_jpegs_are_of_the_quality_that_is_asked_for(plain: ms.PatchStore, tmp_path: Path, quality: int | None) -> None:
    name = "grid-20x-16"
    assert export(plain, tmp_path, name=name, form="jpeg", quality=quality, threads=2).is_complete
    files = sorted(tmp_path.rglob("*.jpg"), key=lambda p: int(p.stem.rsplit("_", 1)[1]))
    pixels = plain[name].open("plain.tif", keep=True)["image"].values[:, 0]
    assert [p.read_bytes() for p in files] == [encode_jpeg(image, quality or 90) for image in pixels]
    listed = read_csv(files[0].parent / "plain.tif_paths_densely.csv")[0]
    assert listed.tolist() == [str(p) for p in files]


def test_stored_jpegs_are_written_as_they_are(jpegs: ms.PatchStore, tmp_path: Path) -> None:
    name = "centroids-20x-10x-32"
    rows = np.flatnonzero(jpegs[name].kept("plain.tif", keep=True))
    files = sorted(Path(jpegs.path, name, "plain.tif", "image", "c").rglob("*"))
    shards = b"".join(p.read_bytes() for p in files if p.is_file())
    again = {}
    for quality in (None, 95, 90):
        export(jpegs, tmp_path / str(quality), form="jpeg", quality=quality)
        again[quality] = sorted((tmp_path / str(quality)).rglob("*.jpg"))
        assert len(again[quality]) == 2 * len(rows)
    for path in again[None]:
        number, column = int(path.stem.rsplit("_", 1)[1]), int("10x" in path.parent.name)
        data = path.read_bytes()
        assert data in shards
        np.testing.assert_array_equal(
            np.asarray(Image.open(path)), jpegs[name].read("plain.tif", [rows[number]])[0, column], strict=True
        )
    assert [p.read_bytes() for p in again[95]] == [p.read_bytes() for p in again[None]]
    assert all(a.read_bytes() != b.read_bytes() for a, b in zip(again[90], again[None], strict=True))


def test_a_damaged_jpeg_is_not_written(jpegs: ms.PatchStore, tmp_path: Path) -> None:
    copy_store(jpegs.path, tmp_path / "copied.zarr")
    store = ms.PatchStore(tmp_path / "copied.zarr")
    flip_a_byte(store, "centroids-20x-10x-32", "plain.tif")
    summary = export(store, tmp_path / "out", form="jpeg", keep=False)
    assert "checksum" in summary.failures["centroids-20x-10x-32/plain.tif"]
    assert not list((tmp_path / "out").rglob("*.jpg"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "gif"}, r"form='gif': expected one of \['png', 'jpeg'\]"),
        ({"quality": 90}, r"quality=90: is of form='jpeg'"),
        ({"form": "jpeg", "quality": 101}, r"quality=101: expected a whole number from 1 to 100"),
        ({"layout": "deep"}, r"layout='deep': expected one of \['folders', 'flat'\]"),
        ({"layout": "flat", "lists": True}, r"training lists are of layout='folders'"),
    ],
)
def test_forms_that_there_are_not_are_refused(
    cohort: ms.PatchStore, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ms.SpecError, match=message):
        export(cohort, tmp_path / "out", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["grid-20x-32", "centroids-20x-10x-2.5x-32"])
def test_flat_folder_has_every_image_under_a_name_of_its_own_and_one_table(
    cohort: ms.PatchStore, tmp_path: Path, name: str
) -> None:
    assert export(cohort, tmp_path, name=name, layout="flat").is_complete
    table = pd.read_csv(tmp_path / name / "images.csv", keep_default_na=False)
    named = set()
    for slide_id in sorted(SLIDES):
        stored, rows = cohort[name].open(slide_id, keep=True), table[table["slide_id"] == slide_id]
        assert rows["row"].tolist() == np.flatnonzero(cohort[name].kept(slide_id, keep=True)).tolist()
        assert set(rows["split"]) == {SPLITS[SLIDES.index(slide_id)]}
        places = stored["x0"].values[:, 0].tolist(), stored["y0"].values[:, 0].tolist()
        for m, magnification in enumerate(cohort[name].spec.magnifications):
            text = f"{magnification:g}x"
            end = "" if stored.sizes["magnification"] == 1 else f"_{text}"
            assert rows[f"file_{text}"].tolist() == [
                f"{slide_id}_x{x}_y{y}{end}.png" for x, y in zip(*places, strict=True)
            ]
            for column in ("x0", "y0", "label"):
                np.testing.assert_array_equal(rows[f"{column}_{text}"], stored[column].values[:, m])
            for file, expected in zip(rows[f"file_{text}"], stored["image"].values[:, m], strict=True):
                np.testing.assert_array_equal(read_png(str(tmp_path / name / file)), expected)
            named |= set(rows[f"file_{text}"])
    assert len(named) == len(table) * len(cohort[name].spec.magnifications)
    assert {p.name for p in (tmp_path / name).iterdir()} == named | {"images.csv"}


def test_flat_folder_is_filled_slide_by_slide_and_replaced_slide_by_slide(
    cohort: ms.PatchStore, tmp_path: Path
) -> None:
    name = "grid-10x-32"
    export(cohort, tmp_path / "at once", name=name, layout="flat")
    for slides in (SLIDES[:1], SLIDES[1:], SLIDES[1:2]):
        export(cohort, tmp_path / "out", name=name, layout="flat", slides=slides, form="jpeg", keep=False)
    export(cohort, tmp_path / "out", name=name, layout="flat", slides=SLIDES[:1])
    export(cohort, tmp_path / "out", name=name, layout="flat", slides=SLIDES[1:])
    at_once, filled = snapshot(tmp_path / "at once"), snapshot(tmp_path / "out")
    tables = [sorted(found.pop(f"{name}/images.csv").splitlines()) for found in (at_once, filled)]
    assert tables[0] == tables[1]
    assert at_once == filled


def test_flat_table_lists_whole_slides_only_when_a_run_is_killed(
    cohort: ms.PatchStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "grid-10x-32"
    table = tmp_path / "out" / name / "images.csv"
    export(cohort, tmp_path / "out", name=name, layout="flat")
    whole = snapshot(tmp_path / "out")

    def killed(*_: object) -> bytes:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ImageForm, "encode", killed)
        with pytest.raises(KeyboardInterrupt):
            export(cohort, tmp_path / "out", name=name, layout="flat", slides=SLIDES[1:])
    assert set(pd.read_csv(table)["slide_id"]) == {SLIDES[0]}
    export(cohort, tmp_path / "out", name=name, layout="flat")
    assert snapshot(tmp_path / "out") == whole


def test_a_table_of_somebody_else_is_not_replaced(cohort: ms.PatchStore, tmp_path: Path) -> None:
    table = tmp_path / "grid-10x-32" / "images.csv"
    table.parent.mkdir()
    table.write_text("mine,too\n")
    with pytest.raises(ms.StoreError, match=r"images.csv' has the columns \['mine', 'too'\].*move it away"):
        export(cohort, tmp_path, layout="flat")
    assert snapshot(tmp_path) == {"grid-10x-32/images.csv": b"mine,too\n"}


def test_a_set_does_not_replace_the_images_of_another(plain: ms.PatchStore, tmp_path: Path) -> None:
    store = ms.PatchStore(tmp_path / "two.zarr")
    slide = ms.open_slide(Path(plain.path).parent / "plain.tif", mpp=0.5)
    for size in (64, 48):
        store.write(ms.patches(slide, ms.grid(slide, magnification=20, patch_size=size)))
    export(store, tmp_path / "out", name="grid-20x-64")
    before = snapshot(tmp_path / "out")
    with pytest.raises(ms.StoreError, match=r"holds patch set 'grid-20x-64': 'grid-20x-48' would.*layout='flat'"):
        export(store, tmp_path / "out", name="grid-20x-48")
    with pytest.raises(ms.StoreError, match=r"an earlier 'grid-20x-16', of another spec.*remove that folder first"):
        _claimed(tmp_path / "same", store, plain)
    assert snapshot(tmp_path / "out") == before
    assert export(store, tmp_path / "out", name="grid-20x-64").is_complete
    assert export(store, tmp_path / "out", layout="flat").is_complete
    sizes = {read_png(str(p)).shape[0] for p in (tmp_path / "out").glob("grid-*/*.png")}
    assert sizes == {64, 48, 40}
    shutil.rmtree(tmp_path / "out" / "single_magnifications")
    assert export(store, tmp_path / "out", name="grid-20x-48").is_complete


def _claimed(output: Path, store: ms.PatchStore, plain: ms.PatchStore) -> None:
    """Export a set, then one of another store that has its name and another spec."""
    slide = ms.open_slide(Path(plain.path).parent / "plain.tif", mpp=0.5)
    store.write(ms.patches(slide, ms.grid(slide, magnification=20, patch_size=40)), name="grid-20x-16")
    export(store, output, name="grid-20x-16")
    export(plain, output, name="grid-20x-16")
