"""What puts a store in order: sets and slides removed, renamed, merged; everything is sound after it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import msdask as ms
from msdask.cli.app import main
from msdask.errors import LockedError, StoreError
from msdask.sample.slides import make_slide
from msdask.storage.local import LocalFolders
from msdask.storage.locks import slide_lock
from msdask.store import documents, edits, manifest
from msdask.store.replacing import finish_replacement
from tests.tools.store_tools import tree

SPECS = [ms.ExtractionSpec("grid", (m,), patch_size=64, min_tissue=0.2) for m in (10, 5)]
FINE, COARSE = "grid-10x-64", "grid-5x-64"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two linked grids over a.svs and b.svs."""
    folder = tmp_path_factory.mktemp("edits")
    for seed, name in enumerate("ab"):
        make_slide(folder / f"{name}.svs", size=(320, 400), seed=seed, levels=(1,), mpp=0.5, associated=False)
    ms.extract(folder, folder / "s.zarr", SPECS, threads=0, progress=False)
    return folder / "s.zarr"


@pytest.fixture
def store(made: Path, tmp_path: Path) -> ms.PatchStore:
    """A copy of it."""
    shutil.copytree(made, tmp_path / "s.zarr")
    shutil.copytree(made.parent / ".msdask-sources", tmp_path / ".msdask-sources")
    return ms.PatchStore(tmp_path / "s.zarr")


def _is_sound(store: ms.PatchStore) -> bool:
    return not any(ms.PatchStore(store.path).verify().values())


def test_slides_are_removed_and_can_be_made_again(store, made):
    before = tree(made)
    store.remove(FINE, slides=["a.svs"])
    assert (store[FINE].slides, store[COARSE].slides) == (["b.svs"], ["a.svs", "b.svs"])
    assert _is_sound(store)
    assert set(store[FINE].table()["slide_id"]) <= {"b.svs"}
    report = ms.extract(made.parent, store, SPECS, threads=0, progress=False)
    assert [o.state for o in report.outcomes] == ["present", "complete", "present", "present"]
    store[FINE].index(), ms.PatchStore(made)[FINE].index()
    assert {k: v for k, v in tree(Path(store.path)).items() if "_index" not in k} == {
        k: v for k, v in before.items() if "_index" not in k
    }


def test_what_is_written_is_not_removed(store):
    before = tree(Path(store.path))
    with slide_lock(store.path, FINE, "b.svs"):
        with pytest.raises(LockedError, match=r"b.svs"):
            store.remove(FINE, slides=["a.svs", "b.svs"])
        with pytest.raises(LockedError, match=r"b.svs"):
            store.rename(FINE, "fine")
        with pytest.raises(LockedError, match=r"b.svs"):
            store.rename_slide("b.svs", "c.svs")
    with pytest.raises(StoreError, match=r"has no slides \['x'\] in 'grid-10x-64'"):
        store.remove(FINE, slides=["a.svs", "x"])
    assert tree(Path(store.path)) == before


def test_a_set_is_renamed_with_the_links_to_it(store):
    pixels = store[COARSE].read("a.svs", [0])
    store.rename(COARSE, "coarse")
    assert list(store) == ["coarse", FINE]
    assert _is_sound(store)
    np.testing.assert_array_equal(store["coarse"].read("a.svs", [0]), pixels)
    assert {link["set"] for link in store[FINE].attrs("a.svs")["links"].values()} == {"coarse"}
    for taken, message in ((FINE, "already"), ("_x", "expected the name"), ("coarse", "that name already")):
        with pytest.raises(StoreError, match=message):
            store.rename("coarse", taken)


@pytest.mark.parametrize("step", ["replace_tree", "forget_set"])
def test_a_rename_that_was_killed_is_finished_by_the_same_call(store, step, monkeypatch):
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        where = edits.manifest if step == "forget_set" else type(edits.places.at(store.path))
        patched.setattr(where, step, killed)
        with pytest.raises(KeyboardInterrupt):
            store.rename(COARSE, "coarse")
    store.rename(COARSE, "coarse")
    assert list(store) == ["coarse", FINE]
    assert _is_sound(store)


def test_a_slide_is_renamed_in_all_sets(store):
    store.rename_slide("a.svs", "A-1")
    assert store[FINE].slides == store[COARSE].slides == ["A-1", "b.svs"]
    assert _is_sound(store)
    assert store[FINE].attrs("A-1")["source"].endswith("/a.svs")
    assert "a.svs" not in manifest.slide_entries(store.path, FINE)
    with pytest.raises(StoreError, match=r"has a slide 'b.svs' already"):
        store.rename_slide("A-1", "b.svs")
    with pytest.raises(StoreError, match="has no slide 'x' that can be called 'y'"):
        store.rename_slide("x", "y")


def test_a_slide_s_rename_that_was_killed_is_finished(store, monkeypatch):
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(type(edits.places.at(store.path)), "replace_tree", killed)
        with pytest.raises(KeyboardInterrupt):
            store.rename_slide("a.svs", "A-1")
    store.rename_slide("a.svs", "A-1")
    assert store[FINE].slides == ["A-1", "b.svs"]
    assert _is_sound(store)


def test_stores_are_merged(store, made, tmp_path):
    store.remove(FINE, slides=["a.svs"])
    part = ms.PatchStore(tmp_path / "part.zarr")
    assert part.merge(ms.PatchStore(made), names=[FINE], slides=["a.svs"]) == {f"{FINE}/a.svs": "copied"}
    assert store.merge(part) == {f"{FINE}/a.svs": "copied"}
    assert store.merge(part) == {f"{FINE}/a.svs": "present"}
    assert _is_sound(store)
    assert _is_sound(part)
    assert tree(Path(store.path, FINE)) == tree(made / FINE)
    assert part.merge(store, names=[COARSE], to="c") == {"c/a.svs": "copied", "c/b.svs": "copied"}


def test_what_does_not_fit_is_not_merged(store, made, tmp_path):
    other = ms.PatchStore(tmp_path / "o.zarr")
    ms.extract(made.parent / "a.svs", other, SPECS[0], name="mine", threads=0, progress=False)
    with pytest.raises(StoreError, match=r"min_tissue=0.2, not min_tissue=0.3"):
        ms.extract(made.parent, other, ms.ExtractionSpec("grid", (10,), patch_size=64, min_tissue=0.3), name="mine")
    empty = ms.PatchStore(tmp_path / "empty.zarr")
    empty.open_set(SPECS[0], name="nothing")
    assert store.merge(empty) == {}
    assert "nothing" not in store
    assert store.merge(other, to="mine") == {"mine/a.svs": "copied"}
    other.rename_slide("a.svs", "b.svs")  # same id, other contents
    before = tree(Path(store.path))
    with pytest.raises(StoreError, match=r"has no complete slides \['x'\] in \['mine'\]; it has \['b.svs'\]"):
        store.merge(other, slides=["b.svs", "x"])
    with pytest.raises(StoreError, match=r"'b.svs' of 'grid-10x-64' is in .* with other contents"):
        store.merge(other, to=FINE)
    assert tree(Path(store.path)) == before


def test_half_a_copy_is_never_taken_for_a_slide(store, made, tmp_path, monkeypatch):
    part = ms.PatchStore(tmp_path / "part.zarr")
    written, left = [], 3

    def write(self, path, parts, *, sync=False):
        if f"/{edits.WORK_GROUP}/" in path:
            written.append(path)
            if len(written) > left:
                raise KeyboardInterrupt
        return was(self, path, parts, sync=sync)

    was = LocalFolders.write
    with monkeypatch.context() as patch:
        patch.setattr(LocalFolders, "write", write)
        with pytest.raises(KeyboardInterrupt):
            part.merge(ms.PatchStore(made), names=[FINE], slides=["a.svs"])
    assert len(written) == left + 1
    assert ms.PatchStore(part.path)[FINE].slides == []
    assert not finish_replacement(ms.PatchStore(part.path)[FINE].place("a.svs"))
    assert ms.PatchStore(part.path).merge(ms.PatchStore(made)).keys() >= {f"{FINE}/a.svs"}
    assert tree(Path(part.path, FINE)) == tree(made / FINE)
    assert _is_sound(part)


def test_the_shell_lists_and_tidies(store, tmp_path, capsys):
    def run(*typed: object) -> str:
        with pytest.raises(SystemExit) as left:
            main([str(word) for word in typed])
        printed, said = capsys.readouterr()
        assert not left.value.code, said
        return printed

    path = Path(store.path)
    (document := path / FINE / "a.svs" / documents.DOCUMENT).unlink()
    assert not document.exists()
    printed = run("info", path)
    count = len(store[COARSE])
    assert f"patches   {count}, " in printed
    assert "missing   a.svs (" in printed
    lines = run("ls", path).splitlines()
    assert lines[0].split() == ["set", "slides", "unfinished", "patches", "kept", "bytes"]
    assert [line.split()[:3] for line in lines[1:]] == [[FINE, "1", "1"], [COARSE, "2", "0"]]
    assert [line.split()[0] for line in run("ls", path, "--set", COARSE).splitlines()[1:]] == ["a.svs", "b.svs"]
    assert run("remove", path, "--set", FINE, "--slides", "a.svs") == f"removed: {FINE}, 1 slide\n"
    assert run("rename", path, "--set", FINE, "--to", "fine") == f"{FINE} is fine now\n"
    assert run("rename", path, "--slide", "b.svs", "--to", "B") == "b.svs is B now\n"
    assert run("merge", tmp_path / "new.zarr", path) == f"{path}: 3 copied, 0 present\n"
    assert json.loads((tmp_path / "new.zarr" / documents.DOCUMENT).read_text())["attributes"]["codec"] == "raw"
    assert run("verify", tmp_path / "new.zarr").count(" 0 problems") == 2
