"""Kills, bit rot, full disks, second writers: nothing unfinished looks complete, and a rerun gives equal bytes."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from msdask.errors import CorruptChunkError, StoreError, TileError
from msdask.sample.slides import SampleSlide
from msdask.spec import Codec
from msdask.storage.locks import slide_lock
from msdask.store import shards, writing
from msdask.store.codecs import encode_predicted
from msdask.store.patch_store import PatchStore
from msdask.store.reading import ShardArray
from tests.tools.store_tools import copy_store, lazy_grid, lazy_tuples, tree, use_small_blocks

REPOSITORY = Path(__file__).resolve().parents[2]
NAME = "grid-10x-64"
SLIDE = "small.svs"
Damage = Callable[[Path], object]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_blocks(monkeypatch)


@pytest.fixture(scope="module")
def undisturbed(small_slide: SampleSlide, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Codec -> a store that was written in one go; copy it before damaging it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    codecs: tuple[Codec, ...] = ("raw", "lossless", "jpeg")
    with pytest.MonkeyPatch.context() as patch:
        use_small_blocks(patch)
        for codec in codecs:
            PatchStore(folder / codec, codec=codec).write(lazy_grid(small_slide.path))
    return {codec: folder / codec for codec in codecs}


@pytest.fixture(params=["raw", "lossless", "jpeg"])
def store(request: pytest.FixtureRequest, undisturbed: dict[str, Path], tmp_path: Path) -> PatchStore:
    """A store of its own to damage: 7 shards of at most 16 patches."""
    copy_store(undisturbed[request.param], tmp_path / "s.zarr")
    return PatchStore(tmp_path / "s.zarr")


def shard(store: PatchStore, block: int) -> Path:
    return Path(store.path, NAME, SLIDE, "image", "c", str(block), "0", "0", "0", "0")


# --- interrupted writes -----------------------------------------------------------------------------------------------


def interrupt(
    lazy: xr.Dataset, path: Path, codec: Codec, at_block: int, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Write until one step of block `at_block` fails."""
    original = getattr(shards, where)

    def failing(arrays: object, *args: object) -> object:
        if next(a for a in args if isinstance(a, int)) == at_block:
            raise RuntimeError("power cut")
        return original(arrays, *args)

    with monkeypatch.context() as patch:
        patch.setattr(shards, where, failing)
        with pytest.raises(RuntimeError, match="power cut"):
            PatchStore(path, codec=codec).write(lazy)


def assert_unfinished(path: Path, name: str = NAME) -> None:
    patch_set = PatchStore(path)[name]
    assert patch_set.slides == []
    with pytest.raises(StoreError, match="is writing, not complete: run the same extraction again"):
        patch_set.open(SLIDE)
    assert len(patch_set.table()) == 0
    assert patch_set.index().sizes["patch"] == 0
    assert any("is writing" in problem for problem in patch_set.verify())
    shutil.rmtree(path / "_index")


@pytest.mark.parametrize("codec", ["raw", "lossless"])
@pytest.mark.parametrize("where", ["shard_writer", "write_measured"])
def test_a_failed_write_is_finished_by_a_rerun_with_equal_bytes(
    codec: Codec,
    where: str,
    small_slide: SampleSlide,
    undisturbed: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lazy = lazy_grid(small_slide.path)
    interrupt(lazy, tmp_path / "s.zarr", codec, 3, monkeypatch, where)
    assert_unfinished(tmp_path / "s.zarr")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "s.zarr").rglob("image/c/*/0/0/0/0")}
    missing = shard(PatchStore(tmp_path / "s.zarr"), 3)
    PatchStore(tmp_path / "s.zarr").write(lazy)
    assert tree(tmp_path / "s.zarr") == tree(undisturbed[codec])
    untouched = {p: t for p, t in before.items() if p != missing}
    assert {p: p.stat().st_mtime_ns for p in untouched} == untouched


def fail_the_commit(lazy: xr.Dataset, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write all blocks, and fail before the slide is complete."""

    def failing(path: str) -> None:
        raise OSError("no power")

    with monkeypatch.context() as patch:
        patch.setattr(writing, "_sync", failing)
        with pytest.raises(OSError, match="no power"):
            PatchStore(path).write(lazy)


def test_a_failed_commit_is_made_good_by_a_rerun(
    small_slide: SampleSlide, undisturbed: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_the_commit(lazy_grid(small_slide.path), tmp_path / "s.zarr", monkeypatch)
    assert_unfinished(tmp_path / "s.zarr")
    PatchStore(tmp_path / "s.zarr").write(lazy_grid(small_slide.path))
    assert tree(tmp_path / "s.zarr") == tree(undisturbed["raw"])


@pytest.mark.parametrize("damage", ["delete", "empty", "truncate"])
def test_a_shard_that_was_lost_before_the_commit_is_written_again(
    damage: str, small_slide: SampleSlide, undisturbed: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # After a power cut the mark of a block may be on disk and its shard not: neither was synced.
    lazy = lazy_grid(small_slide.path)
    fail_the_commit(lazy, tmp_path / "s.zarr", monkeypatch)
    for block in (1, 6):
        lost = shard(PatchStore(tmp_path / "s.zarr"), block)
        if damage == "delete":
            lost.unlink()
        else:
            os.truncate(lost, 0 if damage == "empty" else lost.stat().st_size // 2)
    PatchStore(tmp_path / "s.zarr").write(lazy)
    assert tree(tmp_path / "s.zarr") == tree(undisturbed["raw"])


def test_leftovers_of_a_killed_writer_are_removed(
    small_slide: SampleSlide, undisturbed: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lazy = lazy_grid(small_slide.path)
    interrupt(lazy, tmp_path / "s.zarr", "raw", 3, monkeypatch, "shard_writer")
    group = tmp_path / "s.zarr" / NAME / SLIDE
    (group / "image/c/3/0/0/0").mkdir(parents=True, exist_ok=True)
    (group / "image/c/3/0/0/0/0.__lock").write_bytes(b"half")
    (group / "zarr.json.part").write_bytes(b"half")
    PatchStore(tmp_path / "s.zarr").write(lazy)
    assert tree(tmp_path / "s.zarr") == tree(undisturbed["raw"])


def test_an_unfinished_slide_whose_file_was_replaced_starts_afresh(
    small_slide: SampleSlide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / SLIDE
    shutil.copy(small_slide.path, path)
    interrupt(lazy_grid(path), tmp_path / "s.zarr", "raw", 3, monkeypatch, "shard_writer")
    path.write_bytes(path.read_bytes() + b"\0")
    PatchStore(tmp_path / "s.zarr").write(lazy_grid(path))
    PatchStore(tmp_path / "t.zarr").write(lazy_grid(path))
    assert tree(tmp_path / "s.zarr") == tree(tmp_path / "t.zarr")


KILLED = """
import os, signal, sys
from pathlib import Path
import msdask.cutting.lazy_patches, msdask.store.documents, msdask.store.layout, msdask.store.shards
from msdask.slides.slide import open_slide
from msdask.selection.select import grid
from msdask.store.patch_store import PatchStore

slide, store, codec, at = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
msdask.cutting.lazy_patches.MAX_PATCHES_PER_BLOCK = 16
steps = 0

def dying(function):
    def step(*args, **kwargs):
        global steps
        steps += 1
        if steps > at:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return step

for name in ("shard_writer", "write_checksums", "write_measured"):
    setattr(msdask.store.shards, name, dying(getattr(msdask.store.shards, name)))
for name in ("create_column", "create_shards", "create_measured"):
    setattr(msdask.store.layout, name, dying(getattr(msdask.store.layout, name)))
for name in ("write_document", "write_sealed", "remove_tree"):
    setattr(msdask.store.documents, name, dying(getattr(msdask.store.documents, name)))
opened = open_slide(slide)
lazy = msdask.cutting.lazy_patches.patches(opened, grid(opened, magnification=10, patch_size=64))
PatchStore(store, codec=codec).write(lazy, overwrite=len(sys.argv) > 5)
"""


def killed_write(slide: Path, store: Path, codec: str, at: int, *options: str) -> int:
    """Write in a process that kills itself before step `at` + 1; its exit code."""
    arguments = [sys.executable, "-c", KILLED, str(slide), str(store), codec, str(at), *options]
    return subprocess.run(arguments, cwd=REPOSITORY, timeout=120, check=False).returncode


@pytest.mark.parametrize(("codec", "at"), [("raw", 1), ("raw", 4), ("raw", 7), ("lossless", 17), ("raw", 34)])
def test_a_killed_process_leaves_what_a_rerun_finishes_with_equal_bytes(
    codec: Codec, at: int, small_slide: SampleSlide, undisturbed: dict[str, Path], tmp_path: Path
) -> None:
    assert killed_write(small_slide.path, tmp_path / "s.zarr", codec, at) == -signal.SIGKILL
    if (tmp_path / "s.zarr" / NAME / "zarr.json").exists():
        assert PatchStore(tmp_path / "s.zarr")[NAME].slides == []
    PatchStore(tmp_path / "s.zarr", codec=codec).write(lazy_grid(small_slide.path))
    assert tree(tmp_path / "s.zarr") == tree(undisturbed[codec])


@pytest.mark.slow
def test_a_process_killed_at_any_step_leaves_what_a_rerun_finishes(
    small_slide: SampleSlide, undisturbed: dict[str, Path], tmp_path: Path
) -> None:
    expected = tree(undisturbed["raw"])
    for at in range(80):
        path = tmp_path / f"{at}.zarr"
        code = killed_write(small_slide.path, path, "raw", at)
        if code == 0:
            assert at > 30
            return
        assert code == -signal.SIGKILL
        PatchStore(path).write(lazy_grid(small_slide.path))
        assert tree(path) == expected
    pytest.fail("the write has more than 80 steps")


@pytest.mark.slow
def test_a_process_killed_at_any_time_leaves_what_a_rerun_finishes(
    small_slide: SampleSlide, undisturbed: dict[str, Path], tmp_path: Path
) -> None:
    rng = np.random.default_rng(7)
    expected = tree(undisturbed["raw"])
    for run, delay in enumerate(rng.uniform(0.8, 2.5, 8)):
        path = tmp_path / f"{run}.zarr"
        arguments = [sys.executable, "-c", KILLED, str(small_slide.path), str(path), "raw", "1000"]
        process = subprocess.Popen(arguments, cwd=REPOSITORY)
        try:
            process.wait(delay)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        PatchStore(path).write(lazy_grid(small_slide.path))
        assert tree(path) == expected


@pytest.mark.parametrize("at", [1, 6, 20, 30])
def test_a_killed_overwrite_leaves_the_slide_that_was_there(
    at: int, small_slide: SampleSlide, undisturbed: dict[str, Path], tmp_path: Path
) -> None:
    copy_store(undisturbed["raw"], tmp_path / "s.zarr")
    assert killed_write(small_slide.path, tmp_path / "s.zarr", "raw", at, "overwrite") == -signal.SIGKILL
    assert PatchStore(tmp_path / "s.zarr")[NAME].slides == [SLIDE]
    assert PatchStore(tmp_path / "s.zarr").verify() == {NAME: []}
    PatchStore(tmp_path / "s.zarr").write(lazy_grid(small_slide.path))
    assert tree(tmp_path / "s.zarr") == tree(undisturbed["raw"])


def test_a_bad_tile_fails_the_write_and_can_be_filled(small_slide: SampleSlide, tmp_path: Path) -> None:
    import tifffile

    from msdask.cutting.lazy_patches import patches
    from msdask.selection.select import grid
    from msdask.slides.slide import open_slide

    path = tmp_path / SLIDE
    shutil.copy(small_slide.path, path)
    with tifffile.TiffFile(path) as tif:
        page = tif.series[0].levels[1].pages[0]
        offset, count = page.dataoffsets[4], page.databytecounts[4]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\x55" * count)
    slide = open_slide(path)
    table = grid(slide, magnification=10, patch_size=64)
    with pytest.raises(TileError, match=r"level 1.*row 1.*column 1"):
        PatchStore(tmp_path / "s.zarr").write(patches(slide, table))
    patch_set = PatchStore(tmp_path / "t.zarr").write(patches(slide, table, on_bad_tile="fill"))
    data = patch_set.open(SLIDE)
    filled = data["measured"][..., 2].to_numpy()[:, 0]
    bad = (data["x0"][:, 0] // 1024 == 1) & (data["y0"][:, 0] // 1024 == 1)
    np.testing.assert_array_equal(filled, bad.to_numpy().astype(np.float32))
    assert (data["image"].to_numpy()[bad] == 255).all()
    assert patch_set.attrs(SLIDE)["counts"]["filled"] == int(bad.sum()) > 0


# --- damage to what is stored -----------------------------------------------------------------------------------------


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, "missing"),
        (lambda p: os.truncate(p, 0), "empty|0 bytes"),
        (lambda p: os.truncate(p, 100), "100 bytes"),
        (lambda p: os.truncate(p, p.stat().st_size // 2), "checksum of its index|cut"),
        (lambda p: os.truncate(p, p.stat().st_size - 1), "checksum of its index|cut"),
        (lambda p: flip(p, -8), "checksum of its index"),
    ],
    ids=["deleted", "emptied", "cut to 100 bytes", "cut in half", "cut by a byte", "index flipped"],
)
def test_a_damaged_shard_raises_with_its_name_and_verify_lists_it(
    damage: Damage, message: str, store: PatchStore
) -> None:
    damage(shard(store, 2))
    patch_set = store[NAME]
    image = patch_set.open(SLIDE)["image"]
    with pytest.raises(CorruptChunkError, match=f"image/c/2/0/0/0/0'.*({message}).*overwrite"):
        image.compute()
    with pytest.raises(CorruptChunkError, match="image/c/2/0/0/0/0"):
        patch_set.read(SLIDE, [33])
    assert image[:32].compute().shape == (32, 1, 64, 64, 3)
    assert patch_set.read(SLIDE, [0, 31, 48]).shape == (3, 1, 64, 64, 3)
    problems = store.verify()[NAME]
    assert len(problems) == 1
    assert "image/c/2/0/0/0/0" in problems[0]
    assert f"slide '{SLIDE}'" in problems[0]


def test_a_flipped_byte_raises_with_array_and_chunk_and_verify_lists_it(store: PatchStore) -> None:
    arrays = store[NAME].arrays(SLIDE)
    _, table = ShardArray(arrays, "image").index(2)
    flip(shard(store, 2), int(table[5, 0, 0]) + 10)
    patch_set = store[NAME]
    for read in (lambda: patch_set.open(SLIDE)["image"].compute(), lambda: patch_set.read(SLIDE, [37])):
        with pytest.raises(
            CorruptChunkError, match=r"small\.svs/image' chunk \(37, 0\): the checksum of its bytes is wrong"
        ):
            read()
    assert patch_set.read(SLIDE, [36, 38]).shape == (2, 1, 64, 64, 3)
    assert store.verify()[NAME] == [
        f"slide '{SLIDE}': array '{arrays.array_path('image')}' chunk (37, 0): the checksum of its "
        "bytes is wrong, or is not the one of this place"
    ]


def test_a_flipped_byte_names_the_magnification(small_slide: SampleSlide, tmp_path: Path) -> None:
    patch_set = PatchStore(tmp_path / "s.zarr").write(lazy_tuples(small_slide.path))
    arrays = patch_set.arrays(SLIDE)
    _, table = ShardArray(arrays, "image").index(1)
    flip(Path(arrays.shard_path("image", 1)), int(table[2, 1, 0]) + 100)
    row = arrays.rows + 2
    with pytest.raises(CorruptChunkError, match=rf"chunk \({row}, 1\)"):
        patch_set.read(SLIDE, [row])


@pytest.mark.parametrize("codec", ["lossless", "jpeg"])  # the indexes of raw shards are all equal
def test_a_shard_of_another_block_in_its_place_is_found_by_verify(
    codec: Codec, undisturbed: dict[str, Path], tmp_path: Path
) -> None:
    copy_store(undisturbed[codec], tmp_path / "s.zarr")
    store = PatchStore(tmp_path / "s.zarr")
    shutil.copy(shard(store, 1), shard(store, 2))
    problems = store.verify()[NAME]
    assert all("is not the one of this place" in problem or "chunks that are not of" in problem for problem in problems)
    assert len(problems) == 16
    patches = store[NAME].open(SLIDE)["image"]
    patches[:16].to_numpy()
    with pytest.raises(CorruptChunkError, match="not the one of this place"):
        patches[32:48].to_numpy()


@pytest.mark.parametrize("column", ["x0", "keep", "measured", "label", "tissue", "magnification"])
@pytest.mark.parametrize(
    "damage", [Path.unlink, lambda p: os.truncate(p, 0), lambda p: flip(p, 3)], ids=["deleted", "emptied", "flipped"]
)
def test_a_damaged_table_is_never_read_as_zeros(
    column: str, damage: Damage, undisturbed: dict[str, Path], tmp_path: Path
) -> None:
    copy_store(undisturbed["raw"], tmp_path / "s.zarr")
    store = PatchStore(tmp_path / "s.zarr")
    chunk = next(p for p in Path(store.path, NAME, SLIDE, column, "c").rglob("*") if p.is_file())
    damage(chunk)
    with pytest.raises(CorruptChunkError, match=f"{SLIDE}/{column}"):
        store[NAME].open(SLIDE)
    if column != "magnification":
        with pytest.raises(CorruptChunkError, match=f"{SLIDE}/{column}"):
            store[NAME].table()
    problems = store.verify()[NAME]
    assert len(problems) == 1
    assert f"{SLIDE}/{column}" in problems[0]


def test_a_table_that_was_changed_soundly_is_found_by_its_checksum(
    undisturbed: dict[str, Path], tmp_path: Path
) -> None:
    import zarr

    copy_store(undisturbed["raw"], tmp_path / "s.zarr")
    array = zarr.open_array(store=tmp_path / "s.zarr" / NAME / SLIDE / "x0", mode="r+")
    array[0] = 7
    problems = PatchStore(tmp_path / "s.zarr").verify()[NAME]
    assert len(problems) == 1
    assert "its values are not those that were committed" in problems[0]
    with pytest.raises(CorruptChunkError, match="not those that were committed"):
        PatchStore(tmp_path / "s.zarr")[NAME].open(SLIDE)


@pytest.mark.parametrize("content", ["", "{", "[]", None])
def test_a_slide_with_a_broken_document_does_not_hide_the_others(
    content: str | None, small_slide: SampleSlide, undisturbed: dict[str, Path], tmp_path: Path
) -> None:
    copy_store(undisturbed["raw"], tmp_path / "s.zarr")
    store = PatchStore(tmp_path / "s.zarr")
    other = lazy_grid(small_slide.path)
    other.attrs["slide_id"] = "other"
    store.write(other)
    document = Path(store.path, NAME, SLIDE, "zarr.json")
    if content is None:
        document.unlink()
    else:
        document.write_text(content)
    patch_set = store[NAME]
    assert patch_set.slides == ["other"]
    assert set(patch_set.table()["slide_id"]) == {"other"}
    assert any(SLIDE in problem and "broken" in problem for problem in patch_set.verify())
    with pytest.raises(StoreError, match=SLIDE.replace(".", r"\.")):
        patch_set.open(SLIDE)
    store.write(lazy_grid(small_slide.path), overwrite=True)
    assert patch_set.slides == ["other", SLIDE]
    assert patch_set.verify() == []


def test_a_deleted_array_is_an_error(store: PatchStore) -> None:
    shutil.rmtree(Path(store.path, NAME, SLIDE, "image"))
    with pytest.raises(StoreError, match="image' is missing"):
        store[NAME].open(SLIDE)
    assert store.verify()[NAME]


def test_undamaged_stores_verify(store: PatchStore) -> None:
    assert store.verify() == {NAME: []}


# --- writers ----------------------------------------------------------------------------------------------------------


def test_a_second_writer_of_a_slide_is_refused_and_told_who(small_slide: SampleSlide, tmp_path: Path) -> None:
    store = PatchStore(tmp_path / "s.zarr")
    with slide_lock(store.path, NAME, SLIDE):
        with pytest.raises(StoreError, match=rf"'{SLIDE}' of '{NAME}'.*being written by .*\"pid\": {os.getpid()}"):
            store.write(lazy_grid(small_slide.path))
        other = lazy_grid(small_slide.path)
        other.attrs["slide_id"] = "other"
        store.write(other)
    assert store.write(lazy_grid(small_slide.path)).slides == ["other", SLIDE]


def test_the_lock_of_another_process_ends_with_it(small_slide: SampleSlide, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_hold_and_tell, args=(str(tmp_path / "s.zarr"), sender))
    process.start()
    assert receiver.poll(60)
    store = PatchStore(tmp_path / "s.zarr")
    with pytest.raises(StoreError, match=f'being written by .*"pid": {process.pid}'):
        store.write(lazy_grid(small_slide.path))
    process.kill()
    process.join()
    assert store.write(lazy_grid(small_slide.path)).slides == [SLIDE]


def _hold_and_tell(store: str, sender: multiprocessing.connection.Connection) -> None:
    with slide_lock(store, NAME, SLIDE):
        sender.send("held")
        signal.pause()


def test_a_lock_that_was_removed_while_waiting_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first writer removes its file between the second one's open and lock: a third one would hold it as well."""
    from msdask.storage import locks

    store = str(tmp_path / "s.zarr")
    file = tmp_path / "s.zarr.locks" / NAME / f"{SLIDE}.lock"
    flock, calls = locks.fcntl.flock, []

    def removed_first(handle: int, operation: int) -> None:
        if not calls:
            file.unlink()
        calls.append(handle)
        flock(handle, operation)

    monkeypatch.setattr(locks.fcntl, "flock", removed_first)
    with slide_lock(store, NAME, SLIDE):
        assert len(calls) == 2
        with pytest.raises(StoreError, match="being written"), slide_lock(store, NAME, SLIDE):
            pass


def test_locks_leave_nothing_behind(small_slide: SampleSlide, tmp_path: Path) -> None:
    PatchStore(tmp_path / "s.zarr").write(lazy_grid(small_slide.path))
    assert not [p for p in (tmp_path / "s.zarr.locks").rglob("*") if p.is_file()]


# --- outputs that cannot be written -----------------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["file/s.zarr", "file"])
def test_an_output_below_a_file_is_a_clear_error(output: str, small_slide: SampleSlide, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="file"):
        PatchStore(tmp_path / output).write(lazy_grid(small_slide.path))
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a place where nobody may write")
def test_an_output_that_may_not_be_written_is_a_clear_error(small_slide: SampleSlide) -> None:
    with pytest.raises(StoreError, match=r"cannot .*/proc/msdask"):
        PatchStore("/proc/msdask.zarr").write(lazy_grid(small_slide.path))


LIMITED = """
import resource, sys
import msdask.cutting.lazy_patches
from msdask.errors import StoreError
from msdask.slides.slide import open_slide
from msdask.selection.select import grid
from msdask.store.patch_store import PatchStore

msdask.cutting.lazy_patches.MAX_PATCHES_PER_BLOCK = 16
slide = open_slide(sys.argv[1])
lazy = msdask.cutting.lazy_patches.patches(slide, grid(slide, magnification=10, patch_size=64))
store = PatchStore(sys.argv[2], codec=sys.argv[3])
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    store.write(lazy)
except StoreError as error:
    print(error)
    sys.exit(3)
"""


@pytest.mark.parametrize("codec", ["raw", "lossless"])
def test_a_full_disk_is_a_clear_error_and_a_rerun_finishes(
    codec: Codec, small_slide: SampleSlide, undisturbed: dict[str, Path], tmp_path: Path
) -> None:
    # A limit on the size of files stands for the full disk: shards do not fit, documents and tables do.
    assert hasattr(resource, "RLIMIT_FSIZE")
    arguments = [sys.executable, "-c", LIMITED, str(small_slide.path), str(tmp_path / "s.zarr"), codec]
    result = subprocess.run(arguments, cwd=REPOSITORY, timeout=120, check=False, capture_output=True, text=True)
    assert result.returncode == 3, result.stderr
    assert "cannot write" in result.stdout
    assert "room" in result.stdout
    assert_unfinished(tmp_path / "s.zarr")
    PatchStore(tmp_path / "s.zarr").write(lazy_grid(small_slide.path))
    assert tree(tmp_path / "s.zarr") == tree(undisturbed[codec])


def test_lossless_chunks_are_what_the_codec_makes(undisturbed: dict[str, Path]) -> None:
    patch_set = PatchStore(undisturbed["lossless"])[NAME]
    arrays = patch_set.arrays(SLIDE)
    _, table = ShardArray(arrays, "image").index(0)
    offset, length = table[3, 0].tolist()
    stored = Path(arrays.shard_path("image", 0)).read_bytes()[offset : offset + length]
    assert stored[:-4] == encode_predicted(patch_set.read(SLIDE, [3])[0, 0])
