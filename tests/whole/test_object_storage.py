"""Stores in object storage, and slides read from servers: against a real S3 protocol server on loopback."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import msdask as ms
from msdask.errors import CorruptChunkError, SlideError, StoreError, UnreachableError
from msdask.readers import Place, open_reader
from msdask.sample.slides import SampleSlide
from msdask.spec import Codec, ExtractionSpec
from msdask.storage import places
from msdask.storage.locks import slide_lock
from msdask.storage.ranges import READ_AHEAD, coalesce
from msdask.store import documents, shards, writing
from msdask.store.patch_store import PatchStore
from msdask.store.reading import ShardArray
from tests.tools.s3_server import BUCKET, SECRET, get, keys, objects, place_of, put, s3_server
from tests.tools.store_tools import lazy_grid, tree, use_small_blocks

NAME = "grid-10x-64"
SLIDE = "small.svs"
GRID = ExtractionSpec("grid", (10.0,), 64, min_tissue=0.0)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_blocks(monkeypatch)


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    with s3_server() as client:
        yield client


@pytest.fixture
def s3(server: Any, request: pytest.FixtureRequest) -> str:
    """URL of a place of its own for each test."""
    return place_of(request)


@pytest.fixture(scope="module")
def local(small_slide: SampleSlide, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Codec -> the same slide in a folder."""
    folder = tmp_path_factory.mktemp("local")
    codecs: tuple[Codec, ...] = ("raw", "lossless", "jpeg")
    with pytest.MonkeyPatch.context() as patch:
        use_small_blocks(patch)
        for codec in codecs:
            PatchStore(folder / codec, codec=codec).write(lazy_grid(small_slide.path)).index()
    return {codec: folder / codec for codec in codecs}


# --- stores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["raw", "lossless", "jpeg"])
def test_a_store_in_a_bucket_has_the_bytes_of_one_in_a_folder(
    codec: Codec, s3: str, server: Any, small_slide: SampleSlide, local: dict[str, Path]
) -> None:
    store = PatchStore(f"{s3}/s.zarr", codec=codec)
    patch_set = store.write(lazy_grid(small_slide.path))
    patch_set.index()
    assert objects(server, f"{s3}/s.zarr") == tree(local[codec])
    assert keys(server, f"{s3}/s.zarr.locks") == []
    assert store.verify() == {NAME: []}


@pytest.mark.parametrize("codec", ["raw", "lossless"])
def test_what_is_read_from_a_bucket_equals_what_is_read_from_a_folder(
    codec: Codec, s3: str, small_slide: SampleSlide, local: dict[str, Path]
) -> None:
    PatchStore(f"{s3}/s.zarr", codec=codec).write(lazy_grid(small_slide.path))
    remote, folder = PatchStore(f"{s3}/s.zarr")[NAME], PatchStore(local[codec])[NAME]
    assert list(PatchStore(f"{s3}/s.zarr")) == [NAME]
    assert remote.slides == [SLIDE]
    xr.testing.assert_identical(remote.open(SLIDE).compute(), folder.open(SLIDE).compute())
    rows = np.random.default_rng(0).integers(0, 108, 40)
    np.testing.assert_array_equal(remote.read(SLIDE, rows), folder.read(SLIDE, rows))
    assert remote.table().equals(folder.table())
    xr.testing.assert_identical(remote.index(), folder.index())
    xr.testing.assert_identical(remote.index(), folder.index())  # the one that is stored by now


def test_plain_zarr_and_xarray_read_a_bucket(s3: str, small_slide: SampleSlide, local: dict[str, Path]) -> None:
    from msdask.storage import zarr_store

    PatchStore(f"{s3}/s.zarr").write(lazy_grid(small_slide.path))
    with xr.open_zarr(zarr_store(f"{s3}/s.zarr/{NAME}/{SLIDE}"), zarr_format=3) as found:
        expected = PatchStore(local["raw"])[NAME].open(SLIDE)
        np.testing.assert_array_equal(found["image"].to_numpy(), expected["image"].to_numpy())
        np.testing.assert_array_equal(found["x0"].to_numpy(), expected["x0"].to_numpy())
        assert found.attrs["state"] == "complete"


@pytest.mark.parametrize("where", ["shard_writer", "write_measured"])
def test_an_interrupted_write_is_finished_by_a_rerun_with_the_bytes_of_a_folder(
    where: str, s3: str, server: Any, small_slide: SampleSlide, local: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    original, written = getattr(shards, where), []

    def failing(arrays: object, *args: object) -> object:
        block = next(a for a in args if isinstance(a, int))
        written.append(block)
        if block == 3:
            raise RuntimeError("no network")
        return original(arrays, *args)

    store = PatchStore(f"{s3}/s.zarr")
    with monkeypatch.context() as patch:
        patch.setattr(shards, where, failing)
        with pytest.raises(RuntimeError, match="no network"):
            store.write(lazy_grid(small_slide.path))
    assert store[NAME].slides == []
    assert any("is writing" in problem for problem in store.verify()[NAME])
    with monkeypatch.context() as patch:
        again: list[int] = []
        patch.setattr(shards, "shard_writer", _recording(again, shards.shard_writer))
        store.write(lazy_grid(small_slide.path)).index()
    done = set(written) - {3} if where == "write_measured" else set()
    assert not done & set(again)
    assert 3 in again
    assert objects(server, f"{s3}/s.zarr") == tree(local["raw"])


def _recording(blocks: list[int], original: Any) -> Any:
    def shard_writer(arrays: object, name: str, block: int) -> Any:
        blocks.append(block)
        return original(arrays, name, block)

    return shard_writer


def test_a_shard_that_was_lost_before_the_commit_is_written_again(
    s3: str, server: Any, small_slide: SampleSlide, local: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = PatchStore(f"{s3}/s.zarr")

    def failing(path: str) -> None:
        raise OSError("no power")

    with monkeypatch.context() as patch:
        patch.setattr(writing, "_sync", failing)
        with pytest.raises(OSError, match="no power"):
            store.write(lazy_grid(small_slide.path))
    image = f"{s3}/s.zarr/{NAME}/{SLIDE}/image/c"
    places.at(image).remove(f"{image}/1/0/0/0/0")
    put(server, f"{image}/4/0/0/0/0", b"")
    put(server, f"{image}/5/0/0/0/0", get(server, f"{image}/5/0/0/0/0")[:-1])
    store.write(lazy_grid(small_slide.path)).index()
    assert objects(server, f"{s3}/s.zarr") == tree(local["raw"])


KILLED = """
import os, signal, sys
import msdask.cutting.lazy_patches
from msdask.store import shards
from msdask.slides.slide import open_slide
from msdask.selection.select import grid
from msdask.store.patch_store import PatchStore

msdask.cutting.lazy_patches.MAX_PATCHES_PER_BLOCK = 16
original = shards.shard_writer

def shard_writer(arrays, name, block):
    if block == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(arrays, name, block)

shards.shard_writer = shard_writer
slide = open_slide(sys.argv[1])
PatchStore(sys.argv[2]).write(msdask.cutting.lazy_patches.patches(slide, grid(slide, magnification=10, patch_size=64)))
"""


def test_a_killed_writer_leaves_a_lock_that_is_recovered_and_a_slide_that_is_finished(
    s3: str, server: Any, small_slide: SampleSlide, local: dict[str, Path]
) -> None:
    arguments = [sys.executable, "-c", KILLED, str(small_slide.path), f"{s3}/s.zarr"]
    assert subprocess.run(arguments, timeout=120, check=False).returncode == -9
    assert keys(server, f"{s3}/s.zarr.locks") == [f"{NAME}/{SLIDE}.lock"]
    store = PatchStore(f"{s3}/s.zarr")
    assert store[NAME].slides == []
    store.write(lazy_grid(small_slide.path)).index()
    assert objects(server, f"{s3}/s.zarr") == tree(local["raw"])
    assert keys(server, f"{s3}/s.zarr.locks") == []


def test_damage_is_named_when_read_and_by_verify(s3: str, server: Any, small_slide: SampleSlide) -> None:
    store = PatchStore(f"{s3}/s.zarr")
    patch_set = store.write(lazy_grid(small_slide.path))
    shard = f"{s3}/s.zarr/{NAME}/{SLIDE}/image/c/2/0/0/0/0"
    good = get(server, shard)
    _, table = ShardArray(patch_set.arrays(SLIDE), "image").index(2)
    flipped = bytearray(good)
    flipped[int(table[5, 0, 0]) + 10] ^= 1
    put(server, shard, bytes(flipped))
    for read in (lambda: patch_set.open(SLIDE)["image"].compute(), lambda: patch_set.read(SLIDE, [37])):
        with pytest.raises(CorruptChunkError, match=r"s3://.*image' chunk \(37, 0\): the checksum of its bytes"):
            read()
    assert patch_set.read(SLIDE, [36, 38]).shape == (2, 1, 64, 64, 3)
    assert any("chunk (37, 0)" in problem for problem in store.verify()[NAME])
    for damaged in (None, b"", good[:100], good[:-1]):
        places.at(shard).remove(shard) if damaged is None else put(server, shard, damaged)
        with pytest.raises(CorruptChunkError, match="image/c/2/0/0/0/0"):
            patch_set.open(SLIDE)["image"].compute()
        with pytest.raises(CorruptChunkError, match="image/c/2/0/0/0/0"):
            patch_set.read(SLIDE, [33])
        problems = store.verify()[NAME]
        assert len(problems) == 1
        assert "image/c/2/0/0/0/0" in problems[0]
    put(server, shard, good)
    column = f"{s3}/s.zarr/{NAME}/{SLIDE}/x0/c/0/0"
    good = get(server, column)
    for damaged in (None, b"", good[:-1] + bytes([good[-1] ^ 1])):
        places.at(column).remove(column) if damaged is None else put(server, column, damaged)
        with pytest.raises(CorruptChunkError, match=f"{SLIDE}/x0"):
            patch_set.open(SLIDE)
        assert any(f"{SLIDE}/x0" in problem for problem in store.verify()[NAME])


def test_a_bucket_is_overwritten_and_emptied(
    s3: str, server: Any, small_slide: SampleSlide, odd_slide: SampleSlide, tmp_path: Path
) -> None:
    store = PatchStore(f"{s3}/s.zarr")
    store.write(lazy_grid(small_slide.path)).index()
    other = lazy_grid(odd_slide.path)
    other.attrs["slide_id"] = SLIDE
    with pytest.raises(StoreError, match=r"another file.*overwrite=True"):
        store.write(other)
    store.write(other, overwrite=True).index()
    PatchStore(tmp_path / "s.zarr").write(other).index()
    assert objects(server, f"{s3}/s.zarr") == tree(tmp_path / "s.zarr")
    store.remove(NAME)
    assert list(store) == []
    assert [key for key in keys(server, f"{s3}/s.zarr") if NAME in key] == []


def test_stores_are_merged_into_a_bucket_within_it_and_out_of_it(
    s3: str, server: Any, local: dict[str, Path], tmp_path: Path
) -> None:
    places_of = [local["jpeg"], f"{s3}/a.zarr", f"{s3}/b.zarr", tmp_path / "c.zarr"]
    for source, target in pairwise(places_of):
        store = PatchStore(target, codec="jpeg")
        assert store.merge(PatchStore(source)) == {f"{NAME}/{SLIDE}": "copied"}
        assert store.merge(PatchStore(source)) == {f"{NAME}/{SLIDE}": "present"}
    expected = tree(local["jpeg"] / NAME)
    assert objects(server, f"{s3}/a.zarr/{NAME}") == objects(server, f"{s3}/b.zarr/{NAME}") == expected
    assert tree(tmp_path / "c.zarr" / NAME) == expected
    assert {key.split("/")[0] for key in keys(server, f"{s3}/a.zarr")} == {p.split("/")[0] for p in tree(places_of[3])}


@pytest.mark.parametrize("with_cluster", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_cohort_is_extracted_from_one_bucket_into_another_place(
    with_cluster: bool, s3: str, server: Any, small_slide: SampleSlide, tmp_path: Path
) -> None:
    put(server, f"{s3}/slides/a.svs", small_slide.path.read_bytes())
    rows = [{"path": f"{s3}/slides/a.svs", "split": "train"}, {"path": f"{s3}/slides/absent.svs"}]
    if with_cluster:
        from distributed import Client, LocalCluster

        with (
            LocalCluster(
                n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
            ) as cluster,
            Client(cluster) as client,
        ):
            report = ms.extract(rows, f"{s3}/s.zarr", GRID, client=client, progress=False)
    else:
        report = ms.extract(rows, f"{s3}/s.zarr", GRID, threads=2, progress=False)
    assert [o.state for o in report.outcomes] == ["complete", "failed"]
    assert "absent.svs" in report.failures["absent.svs"]
    assert PatchStore(f"{s3}/s.zarr").verify() == {NAME: []}
    again = ms.extract(rows[:1], f"{s3}/s.zarr", GRID, threads=2, progress=False)
    assert [o.state for o in again.outcomes] == ["present"]
    ms.extract([small_slide.path], tmp_path / "s.zarr", GRID, threads=1, progress=False)
    image = PatchStore(tmp_path / "s.zarr")[NAME].open(SLIDE)["image"].to_numpy()
    np.testing.assert_array_equal(PatchStore(f"{s3}/s.zarr")[NAME].open("a.svs")["image"].to_numpy(), image)
    fingerprints = [
        PatchStore(f"{s3}/s.zarr")[NAME].attrs("a.svs")["fingerprint"],
        PatchStore(tmp_path / "s.zarr")[NAME].attrs(SLIDE)["fingerprint"],
    ]
    assert fingerprints[0] == fingerprints[1]


def test_caches_see_that_an_equal_document_was_written_anew(s3: str, small_slide: SampleSlide) -> None:
    store = PatchStore(f"{s3}/s.zarr")
    arrays = store.write(lazy_grid(small_slide.path)).arrays(SLIDE)
    before = documents.document_state(arrays.array_path("x0"))
    assert documents.document_state(arrays.array_path("x0")) == before
    document = places.at(arrays.path).state(f"{arrays.array_path('x0')}/zarr.json")
    slide = ms.open_slide(small_slide.path)
    table = ms.grid(slide, magnification=10, patch_size=64)
    store.write(ms.patches(slide, table.assign(x0=table["x0"] - 16)), overwrite=True)
    assert places.at(arrays.path).state(f"{arrays.array_path('x0')}/zarr.json")[0] == document[0]
    assert documents.document_state(arrays.array_path("x0")) != before


# --- what is said, kept and sent --------------------------------------------------------------------------------------


def test_no_credential_is_stored_or_sent(
    s3: str, server: Any, small_slide: SampleSlide, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "_options", {})  # they stay for the process's life
    options = {"endpoint": os.environ["AWS_ENDPOINT_URL"], "region": "us-east-1"}
    store = PatchStore(f"{s3}/s.zarr", storage_options=options)
    arrays = store.write(lazy_grid(small_slide.path)).arrays(SLIDE)
    for sent in (store, arrays):
        assert SECRET.encode() not in pickle.dumps(sent)
        assert options["endpoint"].encode() not in pickle.dumps(sent)
    for key in keys(server, f"{s3}/s.zarr"):
        if key.endswith(".json"):
            assert SECRET.encode() not in get(server, f"{s3}/s.zarr/{key}")


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        (f"s3://{BUCKET}/a.zarr", {"secret_access_key": "x"}, "Credentials are read from the environment"),
        ("local.zarr", {"region": "x"}, "local path"),
        (f"s3://{BUCKET}", None, "whole bucket"),
        ("s3://ab/a.zarr", None, "3 letters"),
        ("s3://absent-bucket/a.zarr", None, "no bucket 'absent-bucket'"),
    ],
)
def test_what_makes_no_sense_is_a_clear_error(
    path: str, options: dict[str, str] | None, message: str, server: Any
) -> None:
    with pytest.raises(StoreError, match=message):
        PatchStore(path, storage_options=options)


def test_a_bucket_with_something_else_at_the_place_is_refused(s3: str, server: Any) -> None:
    put(server, f"{s3}/s.zarr/notes.txt", b"x")
    with pytest.raises(StoreError, match="no msdask patch store"):
        PatchStore(f"{s3}/s.zarr")


def test_a_folder_in_a_bucket_is_a_place_with_names(s3: str, server: Any) -> None:
    for name in ("0/0.0", ".zattrs"):
        put(server, f"{s3}/slide.zarr/{name}", b"x")
    place = Place(f"{s3}/slide.zarr")
    assert (place.head, place.is_folder, place.names) == (b"", True, (".zattrs", "0"))
    with pytest.raises(SlideError, match=r"directory with 1 folder \('0'\) and 1 file \('\.zattrs'\)"):
        open_reader(f"{s3}/slide.zarr")
    with pytest.raises(SlideError, match="no such file"):
        open_reader(f"{s3}/absent.svs")


def test_a_url_that_went_through_pathlib_is_put_right() -> None:
    assert places.location(Path("s3://bucket/a b/s.zarr")) == "s3://bucket/a b/s.zarr"
    assert places.location("gs://bucket/s.zarr/") == "gs://bucket/s.zarr"
    assert places.location("/data/s3:/s.zarr") == "/data/s3:/s.zarr"


def test_without_obstore_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    monkeypatch.delitem(sys.modules, "msdask.storage.buckets", raising=False)
    monkeypatch.delattr("msdask.storage.buckets", raising=False)
    with pytest.raises(StoreError, match=r"pip install .*\[cloud\]"):
        PatchStore("s3://bucket/s.zarr")
    with pytest.raises(SlideError, match=r"a\.svs'.*pip install .*\[cloud\]"):
        open_reader("s3://bucket/a.svs")


def test_local_stores_do_not_import_obstore(small_slide: SampleSlide, tmp_path: Path) -> None:
    code = (
        "import sys, msdask as ms; "
        "ms.extract([sys.argv[1]], sys.argv[2], ms.ExtractionSpec('grid', (10.0,), 64), threads=1, progress=False); "
        "sys.exit('obstore' in sys.modules)"
    )
    arguments = [sys.executable, "-c", code, str(small_slide.path), str(tmp_path / "s.zarr")]
    assert subprocess.run(arguments, timeout=120, check=False).returncode == 0


@pytest.mark.parametrize("slide_id", ["a b#%20é[~]?*.svs", "x" * 200])
def test_any_slide_id_is_one_key(slide_id: str, s3: str, server: Any, small_slide: SampleSlide) -> None:
    lazy = lazy_grid(small_slide.path)
    lazy.attrs["slide_id"] = slide_id
    patch_set = PatchStore(f"{s3}/s.zarr").write(lazy)
    assert patch_set.slides == [slide_id]
    assert patch_set.read(slide_id, [5, 3]).shape == (2, 1, 64, 64, 3)
    assert f"{NAME}/{slide_id}/zarr.json" in keys(server, f"{s3}/s.zarr")


# --- locks ------------------------------------------------------------------------------------------------------------


def test_a_second_writer_in_a_bucket_is_refused_and_told_who(s3: str, small_slide: SampleSlide) -> None:
    store = PatchStore(f"{s3}/s.zarr")
    with slide_lock(store.path, NAME, SLIDE):
        with pytest.raises(StoreError, match=rf"'{SLIDE}' of '{NAME}'.*being written by .*\"pid\": {os.getpid()}"):
            store.write(lazy_grid(small_slide.path))
        other = lazy_grid(small_slide.path)
        other.attrs["slide_id"] = "other"
        store.write(other)
    assert store.write(lazy_grid(small_slide.path)).slides == ["other", SLIDE]


# --- slides -----------------------------------------------------------------------------------------------------------


class Ranges(BaseHTTPRequestHandler):
    """Serves the server's `data` by ranges, and keeps what was asked for."""

    server: Any

    def do_HEAD(self) -> None:
        self._send(200, b"", len(self.server.data))

    def do_GET(self) -> None:
        first, last = self.headers["Range"].removeprefix("bytes=").split("-")
        part = self.server.data[int(first) : int(last) + 1]
        self.server.requests.append((int(first), len(part)))
        self._send(206, part, len(part), f"bytes {first}-{last}/{len(self.server.data)}")

    def _send(self, status: int, body: bytes, length: int, content_range: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(length))
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def web(small_slide: SampleSlide) -> Iterator[Any]:
    """A web server of the small slide; `.url`, and `.requests` (offset, size) so far."""
    pytest.importorskip("aiohttp", reason="fsspec needs aiohttp for http")
    running: Any = ThreadingHTTPServer(("127.0.0.1", 0), Ranges)
    running.data, running.requests = small_slide.path.read_bytes(), []
    running.url = f"http://127.0.0.1:{running.server_port}/small.svs"
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


def needed(reader: Any, level: int, tiles: set[tuple[int, int]]) -> int:
    return sum(size for tile in tiles for _, size in reader._images[level].byte_ranges(*tile))


def test_a_block_of_a_remote_slide_is_read_in_few_requests_of_what_it_needs(web: Any, small_slide: SampleSlide) -> None:
    from msdask.cutting.lazy_patches import planned
    from msdask.selection.select import grid

    slide, local_slide = ms.open_slide(web.url), ms.open_slide(small_slide.path)
    table = grid(slide, magnification=40, patch_size=256)
    cutter, _ = planned(slide, table)
    rows = slice(8, 24)
    x0, y0 = table["x0"].values[rows], table["y0"].values[rows]
    reader: Any = slide.reader
    asked = _ReadTiles(reader)
    web.requests.clear()
    image, _ = cutter.cut(asked, x0, y0)
    np.testing.assert_array_equal(image, cutter.cut(local_slide.reader, x0, y0)[0])
    took = sum(size for _, size in web.requests)
    assert len(asked.tiles) >= 16
    assert len(web.requests) <= len(asked.tiles) // 4
    assert took <= 1.3 * needed(reader, 0, asked.tiles)
    assert took < len(web.data) / 2


class _ReadTiles:
    """A reader that remembers the tiles that were read."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader
        self.tiles: set[tuple[int, int]] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)

    def prefetch(self, level: int, tiles: Any) -> int:
        return int(self._reader.prefetch(level, tiles))

    def forget(self, level: int, tile: tuple[int, int]) -> None:
        self._reader.forget(level, tile)

    @property
    def reads_ahead(self) -> bool:
        return bool(self._reader.reads_ahead)

    def read_tile(self, level: int, row: int, column: int, scale: int = 1, *, out: Any = None) -> Any:
        self.tiles.add((row, column))
        return self._reader.read_tile(level, row, column, scale, out=out)


def test_opening_and_looking_at_a_remote_slide_reads_little_of_it(web: Any) -> None:
    slide = ms.open_slide(web.url)
    assert sum(size for _, size in web.requests) < 0.8 * len(web.data)
    web.requests.clear()
    slide.at(magnification=2.5).compute(scheduler="synchronous")
    smallest = slide.reader
    assert len(web.requests) < smallest.levels[2].grid[0] * smallest.levels[2].grid[1] + 4
    assert sum(size for _, size in web.requests) < len(web.data) / 4


def test_a_remote_slide_that_is_cut_short_says_what_came(web: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSDASK_PATIENCE", "0.2")
    slide = ms.open_slide(web.url)
    web.data = web.data[: len(web.data) // 3]
    with pytest.raises(UnreachableError, match=r"small\.svs.*the server sent \d+ of \d+ bytes"):
        ms.patches(slide, ms.grid(slide, magnification=40, patch_size=256))["image"].compute(scheduler="synchronous")


ranges = st.lists(st.tuples(st.integers(0, 10_000), st.integers(1, 500)), max_size=40)


@given(ranges=ranges, gap=st.integers(1, 1000), most=st.integers(1, 4000))
def test_coalesced_ranges_hold_all_in_bounded_requests(ranges: list[tuple[int, int]], gap: int, most: int) -> None:
    requests = coalesce(ranges, gap=gap, most=most)
    inside = [part for _, _, parts in requests for part in parts]
    assert sorted(inside) == sorted(set(ranges))
    for start, size, parts in requests:
        assert start == parts[0][0]
        assert start + size == max(offset + length for offset, length in parts)
        assert size <= max(most, max(length for _, length in parts))
        ends = np.maximum.accumulate([offset + length for offset, length in parts])
        assert all(following[0] - end < gap for end, (_, following) in zip(ends, pairwise(parts), strict=False))


def test_a_window_of_reading_ahead_is_bounded(small_slide: SampleSlide, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    with fsspec.open("memory://ahead/small.svs", "wb") as file:
        file.write(small_slide.path.read_bytes())
    monkeypatch.setattr("msdask.readers.tiff.READ_AHEAD", 200_000)
    reader: Any = open_reader("memory://ahead/small.svs")
    tiles = [(row, column) for row in range(9) for column in range(12)]
    count = reader.prefetch(0, tiles)
    assert 0 < count < len(tiles)
    assert needed(reader, 0, set(tiles[:count])) <= 200_000 < READ_AHEAD
    assert reader.prefetch(0, tiles[:1]) == 1
    slide = ms.open_slide("memory://ahead/small.svs")
    table = ms.grid(slide, magnification=40, patch_size=256)
    image = ms.patches(slide, table)["image"].isel(patch=slice(0, 32)).compute()
    local = ms.open_slide(small_slide.path)
    np.testing.assert_array_equal(image, ms.patches(local, table)["image"].isel(patch=slice(0, 32)).compute())
