"""What is put in order in a store by hand: sets and slides removed, renamed, and taken over from other stores.

Who changes a set holds its lock, and who changes a slide the slide's: a running extraction is never disturbed, it is
said who writes. What a kill leaves is finished by the same call again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

from msdask.errors import SpecError, StoreError
from msdask.spec import Codec, ExtractionSpec
from msdask.storage import places
from msdask.storage.locks import slide_lock
from msdask.storage.set_locks import set_lock
from msdask.store import documents, layout, manifest
from msdask.store.frozen import Frozen
from msdask.store.integrity import committed_documents, slide_checksum
from msdask.store.patch_set import PatchSet
from msdask.store.replacing import clear_work, finish_replacement
from msdask.store.slide_place import WORK_GROUP, SlidePlace
from msdask.store.sources import mask_of, note_source, source_of

__all__ = ["StoreEdits", "check_set_name"]


def check_set_name(name: str) -> None:
    """Refuse what cannot name a patch set."""
    if not name or name.startswith(("_", ".")) or "/" in name or "\\" in name:
        raise StoreError(
            f"name={name!r}: expected the name of a patch set, without separators, '_' or '.' at its start"
        )


class StoreEdits(Mapping[str, PatchSet]):
    """The part of a `PatchStore` that puts it in order."""

    path: str
    codec: Codec
    frozen: Frozen | None

    def open_set(self, spec: ExtractionSpec, *, name: str | None = None, overwrite: bool = False) -> str:
        """See `PatchStore.open_set`."""
        raise NotImplementedError

    def remove(self, name: str, *, slides: Iterable[str] | None = None) -> None:
        """Remove a patch set and its index, or slides of it.

        Parameters
        ----------
        name : of the patch set
        slides : ids, complete or not; None means the whole set

        Raises
        ------
        StoreError
            There is no such set or slide, or somebody is writing it. Nothing is removed then.
        """
        self._check_writable(name)
        if slides is None:
            with set_lock(self.path, name, alone=True):
                manifest.forget_set(self.path, name)
                for group in ((name,), (layout.INDEX_GROUP, name), (WORK_GROUP, name)):
                    _remove_tree(places.join(self.path, *group))
            return
        chosen = list(dict.fromkeys(slides))
        self._check_slides(name, chosen)
        with ExitStack() as locks:
            for slide_id in sorted(chosen):  # all at once: a slide that is being written leaves the others as they are
                locks.enter_context(slide_lock(self.path, name, slide_id))
            for slide_id in chosen:
                place = SlidePlace(self.path, name, slide_id)
                manifest.forget_slide(place)
                _remove_tree(place.path)
                clear_work(place)

    def rename(self, name: str, to: str) -> None:
        """Give a patch set another name; sets that are linked to it follow.

        Raises
        ------
        StoreError
            There is no such set, the new name is taken or none, or somebody is writing one of them.
        """
        check_set_name(to)
        if name == to:
            raise StoreError(f"patch set {name!r} of '{self.path}' has that name already")
        self._check_writable(name)
        with ExitStack() as locks:
            for one in sorted((name, to)):
                locks.enter_context(set_lock(self.path, one, alone=True))
            source, target = (places.join(self.path, one) for one in (name, to))
            if not self._is_moved(name, to):
                known = self[name].states().keys()
                if documents.has_document(target) or manifest.slide_entries(self.path, to).keys() - known:
                    raise StoreError(
                        f"'{self.path}' has a patch set {to!r} already: remove it first, or take another name"
                    )
                manifest.enter_set(self.path, to, self[name].spec)
                for slide_id in manifest.slide_entries(self.path, name):
                    entry = manifest.slide_entry(SlidePlace(self.path, name, slide_id))
                    manifest.enter_slide(SlidePlace(self.path, to, slide_id), entry)
                places.at(source).replace_tree(source, target)
            manifest.forget_set(self.path, name)
            for group in (layout.INDEX_GROUP, WORK_GROUP):
                _remove_tree(places.join(self.path, group, name))
        for other in self:
            for slide_id, attrs in self[other].complete().items():
                links = attrs.get("links", {})
                if any(link["set"] == name for link in links.values()):
                    moved = {
                        c: {**link, "set": to if link["set"] == name else link["set"]} for c, link in links.items()
                    }
                    _write_again(SlidePlace(self.path, other, slide_id), {"links": moved})

    def rename_slide(self, slide_id: str, to: str, *, names: Collection[str] | None = None) -> None:
        """Give a slide another id, in all sets that have it or in some.

        Parameters
        ----------
        slide_id, to : its id, and the new one
        names : of the patch sets; sets that are linked to each other should go together. None means all

        Raises
        ------
        StoreError
            No set has such a slide, a set has one of the new id, the slide is not complete, or somebody is writing it.
        """
        layout.check_slide_id(to)
        sets = [name for name in (self if names is None else names) if slide_id in self._checked(name).states()]
        if not sets or slide_id == to:
            raise StoreError(f"'{self.path}' has no slide {slide_id!r} that can be called {to!r}")
        if taken := [
            name for name in sets if to in self[name].states() and documents.has_document(self._path(name, to))
        ]:
            raise StoreError(f"'{self.path}' has a slide {to!r} already, in {taken}: take another id")
        with ExitStack() as locks:
            for name in sets:
                for one in sorted((slide_id, to)):
                    locks.enter_context(slide_lock(self.path, name, one))
                finish_replacement(SlidePlace(self.path, name, slide_id))
            for name in sets:
                place, new = SlidePlace(self.path, name, slide_id), SlidePlace(self.path, name, to)
                attrs = documents.read_attrs(place.path)
                if attrs.get("slide_id", slide_id) != to:  # else a kill came between
                    attrs = _write_again(place, {"slide_id": to}, as_slide=new)
                note_source(self.path, attrs, source_of(self.path, {**attrs, "slide_id": slide_id}) or attrs["source"])
                places.at(place.path).replace_tree(place.path, new.path)
                manifest.forget_slide(place)

    def merge(
        self,
        other: StoreEdits,
        *,
        names: Collection[str] | None = None,
        slides: Collection[str] | None = None,
        to: str | None = None,
    ) -> dict[str, str]:
        """Take over the complete slides of another store: their bytes are copied as they are, through this machine.

        Parameters
        ----------
        other : store of the same codec, in a folder or in object storage; it stays as it is
        names : of its patch sets; None means all. A set of this store that has the name must have the same spec
        slides : ids; None means all
        to : name that the set gets here, where there is one

        Returns
        -------
        done : "set/slide" -> "copied", or "present" for one that is here with the same contents

        Raises
        ------
        StoreError
            Before anything is copied: codecs or specs differ, a slide is not there, or is here with other contents.
        """
        chosen = list(other if names is None else names)
        if to is not None and len(chosen) != 1:
            raise SpecError(f"to={to!r} is the name of one set, and there are {chosen}: say which one with names=")
        found = {name: other._checked(name).complete() for name in chosen}
        known = {slide_id for complete in found.values() for slide_id in complete}
        if unknown := [slide_id for slide_id in slides or () if slide_id not in known]:
            raise StoreError(
                f"'{other.path}' has no complete slides {unknown[:5]} in {chosen}; it has {sorted(known)[:5]}"
            )
        todo: list[tuple[SlidePlace, SlidePlace]] = []
        done: dict[str, str] = {}
        for name, complete in found.items():
            target = to or name
            here = self[target].complete() if target in self else {}
            for slide_id, attrs in complete.items():
                if slides is not None and slide_id not in slides:
                    continue
                if slide_id in here and here[slide_id]["checksum"] != attrs["checksum"]:
                    raise StoreError(
                        f"slide '{slide_id}' of '{target}' is in '{self.path}' with other contents than in "
                        f"'{other.path}': remove it, or rename one of them"
                    )
                done[f"{target}/{slide_id}"] = "present" if slide_id in here else "copied"
                if slide_id not in here:
                    todo.append((SlidePlace(other.path, name, slide_id), SlidePlace(self.path, target, slide_id)))
        for name in (name for name, complete in found.items() if complete):
            self.open_set(other[name].spec, name=to or name)
        for source, place in todo:
            _copy_slide(source, place)
        return done

    def _is_moved(self, name: str, to: str) -> bool:
        """Whether a kill came when a set had been moved to its new name, and its old one was not forgotten yet."""
        if documents.has_document(places.join(self.path, name)) or not documents.has_document(
            places.join(self.path, to)
        ):
            return False
        before, now = (manifest.set_entry(self.path, one) for one in (name, to))
        slides = [manifest.slide_entries(self.path, one).items() for one in (name, to)]
        return before == now and slides[0] <= slides[1]

    def _path(self, name: str, slide_id: str) -> str:
        return places.join(self.path, name, slide_id)

    def _checked(self, name: str) -> PatchSet:
        self._check_writable(name)
        return self[name]

    def _check_writable(self, name: str) -> None:
        if self.frozen is not None:
            raise StoreError(f"'{self.path}' was opened at a frozen state, which stays as it is: open it as it is now")
        if name not in self:
            raise StoreError(f"'{self.path}' has no patch set {name!r}; it has {list(self)}")

    def _check_slides(self, name: str, slides: Collection[str]) -> None:
        known = self[name].states()
        if unknown := [slide_id for slide_id in slides if slide_id not in known]:
            raise StoreError(f"'{self.path}' has no slides {unknown[:5]} in '{name}'; it has {list(known)[:5]}")


def _remove_tree(path: str) -> None:
    if documents.exists(path):
        documents.remove_tree(path)


def _write_again(
    place: SlidePlace, changed: Mapping[str, Any], *, as_slide: SlidePlace | None = None
) -> dict[str, Any]:
    """Write a complete slide's document with other facts, and its checksum and its entry with them. Hold its lock."""
    attrs = documents.read_slide(place.path)
    if attrs.get("state") != "complete" or attrs.get("schema", 1) == 1:
        raise StoreError(
            f"{place} is {attrs.get('state', 'absent')}, of schema {attrs.get('schema', 1)}: expected a complete slide "
            "of schema 2; extract it again"
        )
    inside = committed_documents(documents.read_document(place.path))
    attrs = {name: value for name, value in {**attrs, **changed}.items() if name != "seal"}
    attrs["checksum"] = slide_checksum(attrs, inside)
    manifest.enter_slide(as_slide or place, attrs)
    documents.write_sealed(place.path, attrs, inside)
    return attrs


def _copy_slide(source: SlidePlace, place: SlidePlace) -> None:
    """Copy a complete slide beside its place, then put it there. Nobody replaces it meanwhile."""
    with (
        slide_lock(source.store, source.set_name, source.slide_id),
        slide_lock(place.store, place.set_name, place.slide_id),
    ):
        clear_work(place)
        try:
            _copy_tree(source.path, place.work_path)
        except OSError as error:
            raise StoreError(
                f"cannot copy {source} to '{place.store}': {error}; check that there is room, then merge again"
            ) from error
        places.at(place.work_path).sync(place.work_path)
        attrs = documents.read_slide(place.work_path)
        known = source_of(source.store, attrs)
        if known is not None:
            note_source(place.store, attrs, known, mask_of(source.store, attrs))
        manifest.enter_slide(place, attrs)
        places.at(place.path).replace_tree(place.work_path, place.path)


def _copy_tree(source: str, target: str) -> None:
    """Copy a slide's group; its document comes last, so that what a kill leaves is not taken for a slide."""
    files = [name for name in _files_below(source) if name != (documents.DOCUMENT,)]

    def copy(name: tuple[str, ...]) -> None:
        data = places.at(source).read(places.join(source, *name))
        places.at(target).write(places.join(target, *name), [data])

    places.gather(target if places.is_remote(target) else source, copy, files)
    copy((documents.DOCUMENT,))


def _files_below(path: str) -> Iterator[tuple[str, ...]]:
    """Names, from `path` on, of all files or objects below it."""
    folders = set(places.at(path).folders(path))
    for name in places.at(path).names(path):
        if name in folders:
            yield from ((name, *below) for below in _files_below(places.join(path, name)))
        else:
            yield (name,)
