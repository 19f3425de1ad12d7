"""PatchStore: what is written comes back, in the layout of schema 1, with the same bytes whoever writes it."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pandas as pd
import pytest
import tensorstore
import xarray as xr
import zarr
from dask.delayed import Delayed
from zarr.registry import get_codec_class, register_codec

from msdask.cutting.lazy_patches import patches
from msdask.cutting.measures import MEASURES, keep, measure
from msdask.errors import StoreError
from msdask.sample.slides import SampleSlide
from msdask.selection.select import grid
from msdask.slides.slide import open_slide
from msdask.spec import Codec, ExtractionSpec
from msdask.store.codecs import Jpeg, PredictedZstd
from msdask.store.patch_store import PatchStore
from tests.tools.store_tools import BLOCK, lazy_grid, lazy_tuples, tree, use_small_blocks

COLUMNS = ("x0", "y0", "tissue", "label", "label_fraction")


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_blocks(monkeypatch)


@pytest.fixture(scope="module")
def tuples_store(small_slide: SampleSlide, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw store with one slide's tuples, in blocks of 16 // 3 = 5."""
    path = tmp_path_factory.mktemp("tuples") / "cohort.zarr"
    with pytest.MonkeyPatch.context() as patch:
        use_small_blocks(patch)
        PatchStore(path).write(lazy_tuples(small_slide.path), attrs={"cohort": {"split": "train", "patient": "P-1"}})
    return path


NAME = "centroids-10x-5x-2.5x-64"


# --- round trip -------------------------------------------------------------------------------------------------------


def test_what_is_written_comes_back(tuples_store: Path, small_slide: SampleSlide) -> None:
    lazy = lazy_tuples(small_slide.path)
    patch_set = PatchStore(tuples_store)[NAME]
    assert patch_set.slides == ["small.svs"]
    read = patch_set.open("small.svs")
    assert read["image"].dims == ("patch", "magnification", "y", "x", "channel")
    assert read["image"].dtype == np.uint8
    np.testing.assert_array_equal(read["image"].to_numpy(), lazy["image"].to_numpy())
    for name in COLUMNS:
        np.testing.assert_array_equal(read[name].to_numpy(), lazy[name].to_numpy())
        assert read[name].dtype == lazy[name].dtype
        assert read[name].dims == lazy[name].dims
    np.testing.assert_array_equal(read["magnification"], [10, 5, 2.5])
    assert "magnification" in read.coords


@pytest.mark.parametrize("codec", ["raw", "lossless", "jpeg"])
def test_every_codec_gives_its_pixels_back(codec: Codec, small_slide: SampleSlide, tmp_path: Path) -> None:
    lazy = lazy_grid(small_slide.path)
    patch_set = PatchStore(tmp_path / "s.zarr", codec=codec).write(lazy)
    assert patch_set.spec.codec == codec
    read, written = patch_set.open("small.svs")["image"].to_numpy(), lazy["image"].to_numpy()
    if codec == "jpeg":
        assert 10 * np.log10(255**2 / ((read.astype(float) - written) ** 2).mean()) >= 38
    else:
        np.testing.assert_array_equal(read, written)
    assert patch_set.verify() == []
    assert PatchStore(tmp_path / "s.zarr").codec == codec


def test_rows_are_read_in_any_order_and_twice(tuples_store: Path) -> None:
    patch_set = PatchStore(tuples_store)[NAME]
    image = patch_set.open("small.svs")["image"].to_numpy()
    rows = [17, 3, 3, len(image) - 1, 0]
    np.testing.assert_array_equal(patch_set.read("small.svs", rows), image[rows])
    assert patch_set.read("small.svs", []).shape == (0, 3, 64, 64, 3)
    with pytest.raises(StoreError, match=f"rows 0..{len(image)} asked for, it has 0..{len(image) - 1}"):
        patch_set.read("small.svs", [0, len(image)])


@pytest.mark.parametrize("codec", ["lossless", "jpeg"])
def test_encoded_rows_are_those_of_the_block(codec: Codec, small_slide: SampleSlide, tmp_path: Path) -> None:
    patch_set = PatchStore(tmp_path / "s.zarr", codec=codec).write(lazy_grid(small_slide.path))
    image = patch_set.open("small.svs")["image"].to_numpy()
    np.testing.assert_array_equal(patch_set.read("small.svs", [40, 1, 107]), image[[40, 1, 107]])


def test_measures_and_verdict_belong_to_their_patch(tuples_store: Path) -> None:
    data = PatchStore(tuples_store)[NAME].open("small.svs")
    expected = measure(data["image"].to_numpy())
    np.testing.assert_array_equal(data["measured"].to_numpy(), expected)
    t = PatchStore(tuples_store)[NAME].attrs("small.svs")["tissue_mean"]
    np.testing.assert_array_equal(data["keep"].to_numpy(), keep(expected, t))
    assert 0 < data["keep"].sum() < data.sizes["patch"]


def test_only_kept_patches_on_request(tuples_store: Path) -> None:
    patch_set = PatchStore(tuples_store)[NAME]
    every, kept = patch_set.open("small.svs"), patch_set.open("small.svs", keep=True)
    assert bool(kept["keep"].all())
    np.testing.assert_array_equal(kept["image"].to_numpy(), every["image"].to_numpy()[every["keep"].to_numpy()])


def test_a_step_between_reading_and_writing_is_written(small_slide: SampleSlide, tmp_path: Path) -> None:
    lazy = lazy_grid(small_slide.path)
    inverted = lazy.assign(image=lazy["image"].copy(data=lazy["image"].data.map_blocks(lambda block: 255 - block)))
    patch_set = PatchStore(tmp_path / "s.zarr").write(inverted)
    np.testing.assert_array_equal(patch_set.open("small.svs")["image"].to_numpy(), 255 - lazy["image"].to_numpy())


def test_label_maps_are_written_beside_the_pixels(small_slide: SampleSlide, tmp_path: Path) -> None:
    slide = open_slide(small_slide.path)
    labels = xr.DataArray(small_slide.labels // 50, dims=("y", "x"))
    lazy = patches(slide, grid(slide, labels=labels, magnification=10, patch_size=64), labels=labels)
    patch_set = PatchStore(tmp_path / "s.zarr", codec="jpeg").write(lazy)
    read = patch_set.open("small.svs")
    assert read["label_map"].dims == ("patch", "magnification", "y", "x")
    np.testing.assert_array_equal(read["label_map"].to_numpy(), lazy["label_map"].to_numpy())
    shares = np.stack([(read["label_map"] == k + 1).mean(("y", "x")).to_numpy() for k in range(3)])
    np.testing.assert_allclose(shares.max(0), read["label_fraction"].to_numpy(), atol=0.02)
    assert patch_set.verify() == []


def test_a_slide_without_patches_is_complete_and_readable(small_slide: SampleSlide, tmp_path: Path) -> None:
    store = PatchStore(tmp_path / "s.zarr")
    slide = open_slide(small_slide.path)
    nothing = xr.DataArray(np.zeros((72, 96), bool), dims=("y", "x"))
    patch_set = store.write(patches(slide, grid(slide, nothing, magnification=10, patch_size=64)))
    assert patch_set.slides == ["small.svs"]
    read = patch_set.open("small.svs")
    assert read["image"].to_numpy().shape == (0, 1, 64, 64, 3)
    assert patch_set.attrs("small.svs")["counts"]["selected"] == 0
    assert len(patch_set.table()) == 0
    assert patch_set.index().sizes["patch"] == 0
    assert patch_set.verify() == []
    assert xr.open_zarr(Path(patch_set.path, "small.svs"))["image"].shape == (0, 1, 64, 64, 3)


# --- other readers ----------------------------------------------------------------------------------------------------


def test_plain_xarray_reads_a_raw_set(tuples_store: Path) -> None:
    ours = PatchStore(tuples_store)[NAME].open("small.svs")
    plain = xr.open_zarr(tuples_store / NAME / "small.svs", chunks=None)
    assert plain["image"].dtype == np.uint8
    assert plain["keep"].dtype == bool
    for name in ours:
        np.testing.assert_array_equal(plain[name].to_numpy(), ours[name].to_numpy())
    tree_ = xr.open_datatree(tuples_store, engine="zarr", chunks={}, consolidated=False)
    np.testing.assert_array_equal(tree_[f"{NAME}/small.svs/x0"].to_numpy(), ours["x0"].to_numpy())


def test_the_call_of_plain_xarray_that_is_documented_makes_one_task_a_shard(tuples_store: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "store.md").read_text(encoding="utf-8")
    (call,) = (block for block in text.split("```python\n") if "rows_per_shard" in block)
    named = "cohort.zarr/centroids-20x-10x-5x-224/slide.svs"
    assert named in call
    found: dict[str, Any] = {"xr": xr}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exec(call.partition("```")[0].replace(named, str(tuples_store / NAME / "small.svs")), found)
    image, ours = found["plain"]["image"], PatchStore(tuples_store)[NAME].open("small.svs")["image"]
    arrays = PatchStore(tuples_store)[NAME].arrays("small.svs")
    assert image.data.npartitions == arrays.blocks > 1
    assert image.chunks == ours.chunks
    assert all(n == size for n, size in zip(image.data.chunksize, image.encoding["shards"], strict=True))
    np.testing.assert_array_equal(image.to_numpy(), ours.to_numpy())


def test_zarr_python_and_tensorstore_read_a_raw_set(tuples_store: Path) -> None:
    image = PatchStore(tuples_store)[NAME].open("small.svs")["image"].to_numpy()
    path = tuples_store / NAME / "small.svs" / "image"
    np.testing.assert_array_equal(np.asarray(zarr.open_array(store=path, mode="r")[...]), image)
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}
    np.testing.assert_array_equal(tensorstore.open(spec, open=True).result().read().result(), image)


@pytest.mark.parametrize("codec", ["lossless", "jpeg"])
def test_zarr_python_reads_encoded_sets_with_msdask_codecs(
    codec: Codec, small_slide: SampleSlide, tmp_path: Path
) -> None:
    for name, class_ in (("msdask.predicted_zstd", PredictedZstd), ("msdask.jpeg", Jpeg)):
        try:
            get_codec_class(name)
        except KeyError:
            register_codec(name, class_)
    patch_set = PatchStore(tmp_path / "s.zarr", codec=codec).write(lazy_grid(small_slide.path))
    plain = np.asarray(zarr.open_array(store=Path(patch_set.path, "small.svs", "image"), mode="r")[...])
    np.testing.assert_array_equal(plain, patch_set.open("small.svs")["image"].to_numpy())


# --- layout -----------------------------------------------------------------------------------------------------------


def document(*parts: str | Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(*parts, "zarr.json").read_text(encoding="utf-8"))
    return found


def test_the_root_and_the_set_say_what_they_are(tuples_store: Path) -> None:
    assert document(tuples_store)["attributes"] == {"msdask_schema": 2, "codec": "raw"}
    attrs = document(tuples_store, NAME)["attributes"]
    spec = ExtractionSpec(mode="centroids", magnifications=(10, 5, 2.5), patch_size=64)
    assert attrs == {"spec": spec.to_dict(), "spec_hash": spec.hash}
    assert "consolidated_metadata" not in document(tuples_store)
    assert "consolidated_metadata" not in document(tuples_store, NAME)


def test_the_slide_is_consolidated_and_complete(tuples_store: Path, small_slide: SampleSlide) -> None:
    found = document(tuples_store, NAME, "small.svs")
    arrays = found["consolidated_metadata"]["metadata"]
    assert set(arrays) >= {"image", "measured", "magnification", "keep", *COLUMNS}
    for name, inside in arrays.items():
        assert inside == document(tuples_store, NAME, "small.svs", name)
    attrs = found["attributes"]
    assert attrs["state"] == "complete"
    assert attrs["source"] == small_slide.path.name
    assert PatchStore(tuples_store)[NAME].attrs("small.svs")["source"] == str(small_slide.path)
    assert (attrs["shape"], attrs["mpp"], attrs["mpp_used"], attrs["mpp_quality"]) == (
        [2304, 3072],
        0.25,
        0.25,
        "stated",
    )
    assert attrs["fingerprint"] == open_slide(small_slide.path).fingerprint()
    assert attrs["cohort"] == {"split": "train", "patient": "P-1"}
    assert attrs["counts"]["selected"] == attrs["counts"]["candidates"] == 108
    assert [r["level"] for r in attrs["reads"]] == [1, 1, 2] or attrs["reads"][0]["level"] == 1
    assert len(attrs["checksum"]) == 64


def test_image_has_one_patch_a_chunk_one_block_a_shard_and_checksums_inside_and_out(tuples_store: Path) -> None:
    found = document(tuples_store, NAME, "small.svs", "image")
    rows = document(tuples_store, NAME, "small.svs")["attributes"]["rows_per_shard"]
    assert rows * 3 <= BLOCK
    assert found["shape"] == [108, 3, 64, 64, 3]
    assert found["chunk_grid"]["configuration"]["chunk_shape"] == [rows, 3, 64, 64, 3]
    assert found["fill_value"] == 0
    assert "_FillValue" not in found.get("attributes", {})
    (sharding,) = found["codecs"]
    assert sharding["name"] == "sharding_indexed"
    assert sharding["configuration"]["chunk_shape"] == [1, 1, 64, 64, 3]
    assert [c["name"] for c in sharding["configuration"]["codecs"]] == ["bytes", "crc32c"]
    assert [c["name"] for c in sharding["configuration"]["index_codecs"]] == ["bytes", "crc32c"]
    assert found["dimension_names"] == ["patch", "magnification", "y", "x", "channel"]
    shards = list((tuples_store / NAME / "small.svs" / "image" / "c").glob("*/0/0/0/0"))
    assert len(shards) == -(-108 // rows)


def test_every_column_ends_in_a_checksum_and_measured_is_nan_until_written(tuples_store: Path) -> None:
    group = tuples_store / NAME / "small.svs"
    for name in (*COLUMNS, "keep", "measured", "magnification"):
        assert document(group, name)["codecs"][-1]["name"] == "crc32c"
    assert document(group, "measured")["fill_value"] == "NaN"
    assert document(group, "measured")["attributes"]["measures"] == list(MEASURES)


def test_nothing_in_the_store_tells_where_or_when_it_was_made(tuples_store: Path) -> None:
    documents = [p.read_text(encoding="utf-8") for p in tuples_store.rglob("zarr.json")]
    assert documents
    for word in ("seconds", "hostname", "created", "mtime", "pid"):
        assert not any(f'"{word}"' in text for text in documents)
    assert not list(tuples_store.rglob("*.lock"))
    assert not list(tuples_store.rglob("*.part"))


# --- the same bytes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_bytes_do_not_depend_on_threads(
    threads: int, tuples_store: Path, small_slide: SampleSlide, tmp_path: Path
) -> None:
    with dask.config.set(num_workers=threads):
        PatchStore(tmp_path / "s.zarr").write(
            lazy_tuples(small_slide.path), attrs={"cohort": {"split": "train", "patient": "P-1"}}
        )
    assert tree(tmp_path / "s.zarr") == tree(tuples_store)


@pytest.mark.parametrize("codec", ["lossless", "jpeg"])
def test_encoded_bytes_are_those_of_another_run(codec: Codec, small_slide: SampleSlide, tmp_path: Path) -> None:
    for run, threads in (("a", 1), ("b", 4)):
        with dask.config.set(num_workers=threads):
            PatchStore(tmp_path / run, codec=codec).write(lazy_grid(small_slide.path))
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_writing_again_changes_nothing(tuples_store: Path, small_slide: SampleSlide) -> None:
    before = {p: p.stat().st_mtime_ns for p in tuples_store.rglob("*") if p.is_file()}
    PatchStore(tuples_store).write(lazy_tuples(small_slide.path))
    assert {p: p.stat().st_mtime_ns for p in tuples_store.rglob("*") if p.is_file()} == before


def tasks_of(tasks: list[Delayed]) -> int:
    """How many tasks a scheduler gets, those that are data or other names included."""
    return len(dict(dask.optimize(*tasks)[0].__dask_graph__()))


def test_one_task_a_block(small_slide: SampleSlide, tmp_path: Path) -> None:
    store = PatchStore(tmp_path / "s.zarr")
    lazy = lazy_grid(small_slide.path)
    lazy["image"] = lazy["image"].copy(data=lazy["image"].data.map_blocks(lambda block: block))
    name = store.open_set(ExtractionSpec.from_dict(lazy.attrs["spec"]))
    begun = store.begin(name, lazy)
    assert begun is not None
    _, tasks = begun
    assert len(tasks) == -(-108 // BLOCK)
    assert tasks_of(tasks) <= len(tasks) + 2


def test_blocks_of_two_stores_are_different_tasks(small_slide: SampleSlide, tmp_path: Path) -> None:
    # On one cluster tasks of one name are one task: the second store would stay empty.
    keys = []
    for path in ("a.zarr", "b.zarr"):
        store = PatchStore(tmp_path / path)
        lazy = lazy_grid(small_slide.path)
        begun = store.begin(store.open_set(ExtractionSpec.from_dict(lazy.attrs["spec"])), lazy)
        assert begun is not None
        keys.append({task.key for task in begun[1]})
    assert not keys[0] & keys[1]


@pytest.mark.slow
def test_a_cluster_of_processes_writes_the_same_bytes(
    tuples_store: Path, small_slide: SampleSlide, tmp_path: Path
) -> None:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as cluster,
        Client(cluster),
    ):
        PatchStore(tmp_path / "s.zarr").write(
            lazy_tuples(small_slide.path), attrs={"cohort": {"split": "train", "patient": "P-1"}}
        )
    assert tree(tmp_path / "s.zarr") == tree(tuples_store)


# --- sets, tables, index ----------------------------------------------------------------------------------------------


@pytest.fixture
def two_slides(small_slide: SampleSlide, tmp_path: Path) -> PatchStore:
    """Two slides, train and test, in one set."""
    store = PatchStore(tmp_path / "two.zarr")
    for slide_id, split in (("a", "train"), ("b", "test")):
        lazy = lazy_grid(small_slide.path)
        lazy.attrs["slide_id"] = slide_id
        store.write(lazy, attrs={"cohort": {"split": split}})
    return store


def test_a_store_is_a_mapping_of_sets(two_slides: PatchStore) -> None:
    assert list(two_slides) == ["grid-10x-64"]
    assert "grid-10x-64" in two_slides
    assert len(two_slides) == 1
    assert two_slides["grid-10x-64"].slides == ["a", "b"]
    assert "2 slides" in repr(two_slides)
    with pytest.raises(StoreError, match=r"no patch set 'grid-5x'; it has \['grid-10x-64'\]"):
        two_slides["grid-5x"]
    with pytest.raises(StoreError, match=r"'c' .* is absent, not complete"):
        two_slides["grid-10x-64"].open("c")


def test_the_table_has_a_row_a_patch(two_slides: PatchStore) -> None:
    patch_set = two_slides["grid-10x-64"]
    table = patch_set.table()
    assert list(table["slide_id"].unique()) == ["a", "b"]
    assert len(table) == 216
    assert set(table["split"]) == {"train", "test"}
    data = patch_set.open("a")
    first = table[table["slide_id"] == "a"]
    np.testing.assert_array_equal(first["x0_10x"], data["x0"][:, 0])
    np.testing.assert_array_equal(first["brightness"], data["measured"][:, 0, 0])
    kept = patch_set.table(keep=True)
    pd.testing.assert_frame_equal(kept, table[table["keep"]].reset_index(drop=True))


def test_the_index_holds_every_patch_and_is_stored(two_slides: PatchStore) -> None:
    patch_set = two_slides["grid-10x-64"]
    index, table = patch_set.index(), patch_set.table()
    assert index.attrs == {"slides": ["a", "b"], "splits": ["train", "test"]}
    np.testing.assert_array_equal(np.array(index.attrs["slides"])[index["slide"]], table["slide_id"])
    np.testing.assert_array_equal(np.array(index.attrs["splits"])[index["split"]], table["split"])
    for ours, theirs in (("row", "row"), ("x0", "x0_10x"), ("y0", "y0_10x"), ("label", "label"), ("keep", "keep")):
        np.testing.assert_array_equal(index[ours], table[theirs])
    assert Path(two_slides.path, "_index", "grid-10x-64", "zarr.json").exists()
    assert list(two_slides) == ["grid-10x-64"]


def test_the_index_follows_slides_that_come_and_change(two_slides: PatchStore, small_slide: SampleSlide) -> None:
    patch_set = two_slides["grid-10x-64"]
    patch_set.index()
    lazy = lazy_grid(small_slide.path)
    lazy.attrs["slide_id"] = "c"
    two_slides.write(lazy)
    assert patch_set.index().attrs["slides"] == ["a", "b", "c"]
    lazy.attrs["slide_id"] = "b"
    two_slides.write(lazy, overwrite=True, attrs={"cohort": {"split": "valid"}})
    assert patch_set.index().attrs["splits"] == ["train", "valid"]


@pytest.mark.parametrize("damage", ["flip", "delete", "document"])
def test_a_damaged_index_is_made_anew(damage: str, two_slides: PatchStore) -> None:
    patch_set = two_slides["grid-10x-64"]
    expected = patch_set.index()
    column = Path(two_slides.path, "_index", "grid-10x-64", "x0")
    chunk = column / "c" / "0"
    if damage == "flip":
        data = bytearray(chunk.read_bytes())
        data[5] ^= 1
        chunk.write_bytes(data)
    elif damage == "delete":
        chunk.unlink()
    else:
        (column.parent / "zarr.json").write_text("{")
    xr.testing.assert_identical(patch_set.index(), expected)


def test_a_removed_set_is_gone(two_slides: PatchStore) -> None:
    two_slides["grid-10x-64"].index()
    two_slides.remove("grid-10x-64")
    assert list(two_slides) == []
    assert not Path(two_slides.path, "_index", "grid-10x-64").exists()


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_another_spec_under_the_same_name_is_refused_by_what_differs(small_slide: SampleSlide, tmp_path: Path) -> None:
    store = PatchStore(tmp_path / "s.zarr")
    store.write(lazy_grid(small_slide.path), name="mine")
    before = tree(Path(store.path))
    with pytest.raises(
        StoreError, match=r"'mine'.*stride=64, not stride=128: .*name='mine-stride128', or pass overwrite=True"
    ):
        store.write(lazy_grid(small_slide.path, stride=128), name="mine")
    assert tree(Path(store.path)) == before
    assert store.write(lazy_grid(small_slide.path, stride=128), name="mine", overwrite=True).spec.stride == 128
    assert store["mine"].open("small.svs").sizes["patch"] == 30
    store.write(lazy_grid(small_slide.path), name="other")
    assert list(store) == ["mine", "other"]


def test_a_changed_slide_file_is_refused(small_slide: SampleSlide, tmp_path: Path) -> None:
    path = tmp_path / "a.svs"
    shutil.copy(small_slide.path, path)
    store = PatchStore(tmp_path / "s.zarr")
    store.write(lazy_grid(path))
    before = tree(Path(store.path))
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(StoreError, match=r"'a\.svs'.*another file.*fingerprints differ.*overwrite=True"):
        store.write(lazy_grid(path))
    assert tree(Path(store.path)) == before
    store.write(lazy_grid(path), overwrite=True)
    assert tree(Path(store.path)) != before


def test_another_mask_or_scale_under_a_complete_slide_is_refused(small_slide: SampleSlide, tmp_path: Path) -> None:
    store = PatchStore(tmp_path / "s.zarr")
    store.write(lazy_grid(small_slide.path))
    slide = open_slide(small_slide.path)
    mask = xr.DataArray(small_slide.mask, dims=("y", "x"))
    with pytest.raises(StoreError, match=r"'small\.svs'.*selection.*overwrite=True"):
        store.write(patches(slide, grid(slide, mask, magnification=10, patch_size=64)))
    coarse = open_slide(small_slide.path, mpp=0.5)
    with pytest.raises(StoreError, match=r"'small\.svs'.*mpp.*overwrite=True"):
        store.write(patches(coarse, grid(coarse, magnification=10, patch_size=64)))


@pytest.mark.parametrize(
    "slide_id",
    [
        "../a",
        "/etc/a",
        "a/b",
        "a\\b",
        "_a",
        ".a",
        "..",
        "",
        "x" * 201,
        "ß" * 101,
        "a\nb",
        "a\0b",
        "zarr.json",
        "bad\udcff",
    ],
)
def test_ids_that_could_leave_the_store_are_refused_with_the_way_out(
    slide_id: str, small_slide: SampleSlide, tmp_path: Path
) -> None:
    lazy = lazy_grid(small_slide.path)
    lazy.attrs["slide_id"] = slide_id
    with pytest.raises(StoreError, match=r"slide id .*column 'slide_id'"):
        PatchStore(tmp_path / "s.zarr").write(lazy)
    assert {p.name for p in tmp_path.iterdir()} <= {"s.zarr"}


@pytest.mark.parametrize("slide_id", ["x" * 200, "ein Schnitt – ß 切片.svs", "a b", "a..b", "-a", "con:1"])
def test_unusual_ids_work(slide_id: str, small_slide: SampleSlide, tmp_path: Path) -> None:
    lazy = lazy_grid(small_slide.path, magnification=5)
    lazy.attrs["slide_id"] = slide_id
    patch_set = PatchStore(tmp_path / "s.zarr").write(lazy)
    assert patch_set.slides == [slide_id]
    np.testing.assert_array_equal(patch_set.open(slide_id)["image"].to_numpy(), lazy["image"].to_numpy())
    assert patch_set.verify() == []


@pytest.mark.parametrize("name", ["_index", ".x", "a/b", "..", "a\\b"])
def test_set_names_that_could_leave_the_store_are_refused(name: str, small_slide: SampleSlide, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="expected the name of a patch set"):
        PatchStore(tmp_path / "s.zarr").write(lazy_grid(small_slide.path), name=name)


def test_a_store_has_one_codec(small_slide: SampleSlide, tmp_path: Path) -> None:
    PatchStore(tmp_path / "s.zarr", codec="jpeg").write(lazy_grid(small_slide.path, magnification=5))
    with pytest.raises(StoreError, match="stores patches as 'jpeg', asked for 'raw'"):
        PatchStore(tmp_path / "s.zarr", codec="raw")
    with pytest.raises(StoreError, match="codec 'gif'"):
        PatchStore(tmp_path / "t.zarr", codec="gif")  # type: ignore[arg-type]


def test_what_is_no_patch_store_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x").write_text("x")
    zarr.create_group(tmp_path / "other.zarr")
    for name in ("file", "folder", "other.zarr"):
        with pytest.raises(StoreError, match="is no msdask patch store"):
            PatchStore(tmp_path / name)
    (tmp_path / "empty").mkdir()
    assert list(PatchStore(tmp_path / "empty")) == []


def test_a_newer_schema_is_refused(tuples_store: Path, tmp_path: Path) -> None:
    path = tmp_path / "new.zarr"
    path.mkdir()
    newer = document(tuples_store) | {"attributes": {"msdask_schema": 3, "codec": "raw"}}
    (path / "zarr.json").write_text(json.dumps(newer))
    with pytest.raises(StoreError, match="schema 3, this msdask reads 1 and 2: update msdask"):
        PatchStore(path)


def test_computed_patches_are_refused(small_slide: SampleSlide, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="image is a ndarray, expected lazy patches"):
        PatchStore(tmp_path / "s.zarr").write(lazy_grid(small_slide.path).compute())


def test_chunks_that_are_no_blocks_are_refused(small_slide: SampleSlide, tmp_path: Path) -> None:
    lazy = lazy_grid(small_slide.path).chunk({"y": 32})
    with pytest.raises(StoreError, match="a chunk must be a whole block"):
        PatchStore(tmp_path / "s.zarr").write(lazy)
