"""`repair`: what is broken is read again and only that, and what cannot be put right is left as it is."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from distributed import Client

from msdask.cli.app import main
from msdask.cutting.lazy_patches import patches
from msdask.extraction import mending
from msdask.extraction import repair as repairing
from msdask.extraction.cohort import extract
from msdask.extraction.repair import RepairReport, repair
from msdask.sample.slides import SampleSlide, make_slide, write_labels, write_masks
from msdask.selection.select import grid
from msdask.slides.slide import open_slide
from msdask.spec import Codec, ExtractionSpec
from msdask.store import shards
from msdask.store.patch_store import PatchStore
from msdask.store.slide_arrays import SlideArrays
from tests.tools.cluster_tools import faulty_cluster
from tests.tools.store_tools import copy_store, grid_specs, noted_source, tree, use_small_blocks

GRID = ExtractionSpec(mode="grid", magnifications=(20,), patch_size=64, min_tissue=0.3)
NAME = GRID.name
Damage = Callable[[Path], object]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_blocks(monkeypatch)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[SampleSlide]:
    folder = tmp_path_factory.mktemp("repair")
    (folder / "slides").mkdir()
    made = [make_slide(folder / "slides" / name, size=(1280, 1536), seed=20) for name in ("a.svs", "b.svs")]
    for sample in made:
        write_masks(sample, folder / "masks")
        write_labels(sample, folder / "labels")
    return made


@pytest.fixture(scope="module")
def whole(samples: list[SampleSlide], tmp_path_factory: pytest.TempPathFactory) -> dict[Codec, Path]:
    """Codec -> a sound store of both slides, each of several shards; copy it before damaging it."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        use_small_blocks(patch)
        codecs: tuple[Codec, ...] = ("raw", "lossless", "jpeg")
        for codec in codecs:
            spec = ExtractionSpec(**{**GRID.to_dict(), "codec": codec})
            assert extract(samples[0].path.parent, folder / codec, spec, progress=False).is_complete
    return {codec: folder / codec for codec in codecs}


@pytest.fixture
def store(whole: dict[Codec, Path], tmp_path: Path) -> Path:
    return copy_store(whole["raw"], tmp_path / "s.zarr")


def shard(store: Path, block: int, slide: str = "a.svs") -> Path:
    return store / NAME / slide / "image" / "c" / str(block) / "0" / "0" / "0" / "0"


def flip(path: Path, offset: int = 1000) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def times(store: Path) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in store.rglob("*") if p.is_file()}


def mended(store: Path, **options: object) -> RepairReport:
    return repair(store, progress=False, **options)  # type: ignore[arg-type]


# --- shards -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["raw", "lossless", "jpeg"])
@pytest.mark.parametrize(
    "damage", [Path.unlink, lambda p: os.truncate(p, 0), lambda p: os.truncate(p, 5000), flip, lambda p: flip(p, -8)],
    ids=["deleted", "emptied", "cut", "flipped", "index flipped"],
)  # fmt: skip
def test_broken_shards_are_read_again_and_nothing_else(
    codec: Codec, damage: Damage, whole: dict[Codec, Path], tmp_path: Path
) -> None:
    store = copy_store(whole[codec], tmp_path / "s.zarr")
    broken = [shard(store, 1), shard(store, 2)]
    before = times(store)
    for path in broken:
        damage(path)
    report = mended(store)
    assert [(r.slide_id, r.action, r.blocks) for r in report.repairs] == [("a.svs", "blocks", (1, 2))]
    assert report.repairs[0].patches == 30
    assert report.is_complete
    assert tree(store) == tree(whole[codec])
    after = times(store)
    assert {p for p in after if after[p] != before[p]} == set(broken)


def test_a_sound_store_is_left_alone(store: Path) -> None:
    before = times(store)
    report = mended(store)
    assert (report.slides, report.repairs) == (2, ())
    assert times(store) == before
    assert "2 slides checked, 0 broken" in report.summary()


def test_the_slide_stays_complete_while_its_shards_are_read_again(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard(store, 1).unlink()
    original, seen = mending.mend_block, []

    def looking(*args: object, **options: object) -> int:
        patch_set = PatchStore(store)[NAME]
        seen.append((patch_set.slides, patch_set.read("a.svs", [0]).shape))
        return original(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(repairing, "mend_block", looking)
    assert mended(store).is_complete
    assert seen == [(["a.svs", "b.svs"], (1, 1, 64, 64, 3))]


def test_a_repair_that_dies_is_gone_on_with(
    store: Path, whole: dict[Codec, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for block in (0, 1, 2):
        flip(shard(store, block))
    original = shards.shard_writer

    def dying(arrays: SlideArrays, name: str, block: int) -> Any:
        if block == 1:
            raise KeyboardInterrupt
        return original(arrays, name, block)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "shard_writer", dying)
        with pytest.raises(KeyboardInterrupt):
            mended(store, threads=1)
    report = mended(store)
    assert report.repairs[0].blocks in [(1,), (1, 2)]
    assert tree(store) == tree(whole["raw"])


def test_a_changed_slide_is_refused_and_what_is_stored_stays(
    samples: list[SampleSlide], store: Path, tmp_path: Path
) -> None:
    (tmp_path / "slides").mkdir()
    other = make_slide(tmp_path / "slides" / "a.svs", size=(1280, 1536), seed=99)
    shard(store, 1).unlink()
    flip(store / NAME / "b.svs" / "x0" / "c" / "0" / "0", 3)
    before = tree(store)
    shutil.copy(other.path, tmp_path / "slides" / "b.svs")
    report = mended(store, slides=tmp_path / "slides")
    assert [r.action for r in report.failed] == ["none", "none"]
    assert all("fingerprints differ" in r.reason for r in report.failed)
    assert tree(store) == before


def test_moved_slides_are_found_by_a_table(
    samples: list[SampleSlide], store: Path, whole: dict[Codec, Path], tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(samples[0].path.parent, moved)
    flip(shard(store, 1))
    noted = noted_source(store, NAME, "a.svs")
    assert json.loads(noted.read_text()) == {"slide": str(samples[0].path), "masks": {}}
    noted.write_text(json.dumps({"slide": "/nowhere/a.svs", "masks": {}}))
    assert "nowhere" in mended(store).failed[0].reason
    assert mended(store, slides=moved).is_complete
    assert shard(store, 1).read_bytes() == shard(whole["raw"], 1).read_bytes()


def test_patches_that_were_changed_on_their_way_are_not_replaced_by_others(
    samples: list[SampleSlide], tmp_path: Path
) -> None:
    slide = open_slide(samples[0].path)
    lazy = patches(slide, grid(slide, magnification=20, patch_size=64))
    lazy = lazy.assign(image=lazy["image"].copy(data=lazy["image"].data.map_blocks(np.invert, dtype=np.uint8)))
    store = tmp_path / "s.zarr"
    PatchStore(store).write(lazy)
    flip(shard(store, 1))
    before = tree(store)
    report = mended(store)
    assert "does not measure as what was stored" in report.failed[0].reason
    assert tree(store) == before


# --- tables and documents ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "where", ["x0/c/0/0", "keep/c/0", "measured/c/0/0/0", "image/zarr.json", "zarr.json", "mask/c/0/0"]
)
def test_a_slide_with_damaged_tables_is_extracted_afresh(where: str, store: Path, whole: dict[Codec, Path]) -> None:
    neighbour = times(store / NAME / "b.svs")
    (store / NAME / "a.svs" / where).write_bytes(b"\0")
    report = mended(store)
    assert [(r.slide_id, r.action) for r in report.repairs] == [("a.svs", "slide")]
    assert report.is_complete
    assert tree(store) == tree(whole["raw"])
    assert times(store / NAME / "b.svs") == neighbour


def test_a_table_that_was_changed_soundly_is_extracted_afresh(store: Path, whole: dict[Codec, Path]) -> None:
    array = zarr.open_array(store=store / NAME / "a.svs" / "x0", mode="r+")
    array[0] = 7
    assert [r.action for r in mended(store).repairs] == ["slide"]
    assert tree(store) == tree(whole["raw"])


def test_links_survive_a_fresh_extraction(samples: list[SampleSlide], tmp_path: Path) -> None:
    specs = grid_specs(GRID, [20, 10])
    store = tmp_path / "s.zarr"
    extract([samples[0].path], store, specs, progress=False)
    before = tree(store)
    flip(store / NAME / "a.svs" / "tissue" / "c" / "0", 3)
    report = mended(store)
    assert [(r.set_name, r.action, r.reason) for r in report.repairs] == [(NAME, "slide", "")]
    assert tree(store) == before


@pytest.mark.parametrize("kind", ["masks", "labels"])
def test_the_masks_are_those_that_were_used(kind: str, samples: list[SampleSlide], tmp_path: Path) -> None:
    folder = samples[0].path.parent.parent / kind
    values = samples[0].values if kind == "labels" else None
    store = tmp_path / "s.zarr"
    report = extract([samples[0].path], store, GRID, masks=folder, values=values, progress=False)
    assert report.is_complete, report.failures
    before = tree(store)
    flip(store / NAME / "a.svs" / "tissue" / "c" / "0", 3)
    if kind == "labels":
        assert "give its values" in mended(store).failed[0].reason
    assert [r.action for r in mended(store, values=values).repairs] == ["slide"]
    assert tree(store) == before


# --- unfinished slides, clusters, the command line --------------------------------------------------------------------


def test_an_unfinished_slide_is_finished(
    samples: list[SampleSlide], whole: dict[Codec, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = shards.shard_writer

    def failing(arrays: SlideArrays, name: str, block: int) -> Any:
        if block == 2:
            raise OSError("no room")
        return original(arrays, name, block)

    store = tmp_path / "s.zarr"
    with monkeypatch.context() as patch:
        patch.setattr(shards, "shard_writer", failing)
        assert not extract(samples[0].path.parent, store, GRID, progress=False).is_complete
    assert all(r.action == "blocks" for r in mended(store).repairs)
    shutil.rmtree(store / "_index", ignore_errors=True)
    assert tree(store / NAME) == tree(whole["raw"] / NAME)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with faulty_cluster(2) as found:
        yield found


@pytest.mark.slow
def test_a_cluster_repairs_to_the_same_bytes(store: Path, whole: dict[Codec, Path], client: Client) -> None:
    flip(shard(store, 0))
    flip(store / NAME / "b.svs" / "x0" / "c" / "0" / "0", 3)
    report = mended(store, client=client)
    assert [(r.slide_id, r.action) for r in report.repairs] == [("a.svs", "blocks"), ("b.svs", "slide")]
    assert tree(store) == tree(whole["raw"])


def test_the_command_line_repairs_and_says_what_it_did(
    store: Path, whole: dict[Codec, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    flip(shard(store, 1))
    with pytest.raises(SystemExit) as left:
        main(["verify", str(store)])
    assert left.value.code == 1
    with pytest.raises(SystemExit) as left:
        main(["verify", str(store), "--repair", "-q"])
    assert left.value.code == 0
    output = capsys.readouterr()
    assert f"{NAME}: slide 'a.svs': read 1 shards again (15 patches)" in output.out
    assert "checksum of its bytes is wrong" in output.err
    with pytest.raises(SystemExit) as left:
        main(["verify", str(store)])
    assert left.value.code == 0
    assert tree(store) == tree(whole["raw"])
