"""PatchStore: a sharded Zarr v3 store of patch sets; see design section 6 for the schema."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pandas as pd
import xarray as xr
from dask.base import compute
from dask.delayed import Delayed
from dask.utils import format_bytes

from msdask.errors import CorruptChunkError, StoreError, UnreachableError
from msdask.spec import Codec, ExtractionSpec
from msdask.storage import places
from msdask.storage.locks import slide_lock
from msdask.storage.set_locks import set_lock, wait_for_set
from msdask.store import documents, layout, manifest, writing
from msdask.store.blocks import lazy_blocks, rows_per_block
from msdask.store.edits import StoreEdits, check_set_name
from msdask.store.frozen import FROZEN_GROUP, Frozen, contents_of, read_frozen, write_frozen
from msdask.store.integrity import check_same_file
from msdask.store.overview import set_row
from msdask.store.patch_set import PatchSet
from msdask.store.replacing import building_path, clear_work, finish_replacement
from msdask.store.slide_arrays import SCHEMA, SlideArrays
from msdask.store.slide_place import WORK_GROUP, SlidePlace
from msdask.store.sources import note_source
from msdask.store.spec_words import spec_differences

__all__ = ["PatchStore"]

_STORE = "_store"
"""Whose lock is held to make the store's own documents: sets are named otherwise."""


class PatchStore(StoreEdits):
    """Patch sets of a cohort in one Zarr store; a mapping from a set's name to the set.

    Parameters
    ----------
    path : directory, or a URL in object storage such as "s3://bucket/cohort.zarr"; made at the first write if it does
        not exist
    codec : "raw" (readable by every Zarr v3 reader), "lossless" or "jpeg"; one a store. None means what the store
        has, or "raw" for a new one
    storage_options : for object storage, settings of this process: "endpoint", "region", "anonymous"; otherwise, and
        on every worker, the environment's (AWS_ENDPOINT_URL, AWS_REGION). Credentials come from the environment alone
    at : name of a frozen state (`freeze`): only its sets and slides are shown, and what is not as it was then is
        refused; nothing can be written

    Attributes
    ----------
    path : of the store, absolute
    codec : of its patches
    frozen : the state that it was opened at, or None

    Raises
    ------
    StoreError
        The directory is something else than a patch store, of a newer schema, or of another codec; or it has no
        frozen state of this name.

    Examples
    --------
    >>> store = PatchStore("cohort.zarr")  # doctest: +SKIP
    >>> store.write(ms.patches(slide, tuples))  # doctest: +SKIP
    >>> store["centroids-20x-10x-5x-224"].open("slide.svs")["image"]  # doctest: +SKIP
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        codec: Codec | None = None,
        storage_options: Mapping[str, Any] | None = None,
        at: str | None = None,
    ) -> None:
        self.path = places.location(path)
        if storage_options is not None:
            places.configure(self.path, storage_options)
        attrs = documents.read_attrs(self.path)
        if "msdask_schema" in attrs:
            self._check(attrs, codec)
            entry = manifest.store_entry(self.path)
            if entry and entry.get("codec") != attrs.get("codec"):
                raise CorruptChunkError(
                    f"'{self.path}' says that it stores patches as {attrs.get('codec')!r}, and was made as "
                    f"{entry.get('codec')!r}: run `msdask verify --repair`, which writes its document again"
                )
        elif manifest.store_entry(self.path):
            raise StoreError(
                f"'{self.path}' has lost its document: run `msdask verify --repair`, which writes it again"
            )
        elif places.at(self.path).is_taken(self.path):
            raise StoreError(f"'{self.path}' exists and is no msdask patch store: give another path")
        self.frozen = None if at is None else read_frozen(self.path, at)
        self.codec: Codec = attrs.get("codec") or codec or "raw"
        if self.codec not in get_args(Codec):
            raise StoreError(f"'{self.path}': codec {self.codec!r}; expected one of {list(get_args(Codec))}")

    def _check(self, attrs: Mapping[str, Any], codec: Codec | None) -> None:
        if attrs["msdask_schema"] not in (1, SCHEMA):
            raise StoreError(
                f"'{self.path}' has schema {attrs['msdask_schema']}, this msdask reads 1 and {SCHEMA}: update msdask"
            )
        if codec is not None and attrs["codec"] != codec:
            raise StoreError(
                f"'{self.path}' stores patches as {attrs['codec']!r}, asked for {codec!r}: a store has one "
                "codec; give another path"
            )

    def __getitem__(self, name: str) -> PatchSet:
        names = list(self)
        if name not in names:
            raise StoreError(f"'{self.path}' has no patch set {name!r}; it has {names}")
        return PatchSet(places.join(self.path, name), self.codec, self.frozen.sets[name] if self.frozen else None)

    def __contains__(self, name: object) -> bool:
        return name in list(self)

    def __iter__(self) -> Iterator[str]:
        if self.frozen is not None:
            yield from self.frozen.sets
            return
        names = [name for name in places.at(self.path).folders(self.path) if name[0] not in "_."]
        attrs = places.gather(self.path, lambda name: documents.read_attrs(places.join(self.path, name)), names)
        there = {name for name, found in zip(names, attrs, strict=True) if "spec_hash" in found}
        yield from sorted(there.union(manifest.set_names(self.path)))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def write(
        self,
        patches: xr.Dataset,
        *,
        name: str | None = None,
        overwrite: bool = False,
        attrs: Mapping[str, Any] | None = None,
    ) -> PatchSet:
        """Write the patches of one slide, or finish what an interrupted run began; computes on dask's scheduler.

        Parameters
        ----------
        patches : from `msdask.patches`; steps between (``patches.assign(image=patches.image.map_blocks(...))``) run in
            the same task as reading and writing
        name : of the patch set; by default made from the spec ("grid-10x-224")
        overwrite : replace the slide if it is there, and the set if it was made with another spec
        attrs : facts to keep with the slide (split, patient, label); JSON values

        Returns
        -------
        patch_set : the set that the slide is in now

        Raises
        ------
        StoreError
            The set has another spec, the slide has changed since, another process is writing it, the disk is full ...
        """
        # A selection knows nothing of stores: the codec is the store's.
        spec = replace(ExtractionSpec.from_dict(patches.attrs["spec"]), codec=self.codec)
        slide_id = layout.check_slide_id(str(patches.attrs["slide_id"]))
        set_name = self.open_set(spec, name=name, overwrite=overwrite)
        place = SlidePlace(self.path, set_name, slide_id)
        with slide_lock(self.path, set_name, place.slide_id) as lock:
            self.check_set(set_name, spec)
            begun = self.begin(set_name, patches, overwrite=overwrite, attrs=attrs)
            if begun is not None:
                arrays, tasks = begun
                compute(*tasks)
                lock.check()
                writing.commit(arrays, place)
                note_source(self.path, patches.attrs, str(patches.attrs["source"]))
        return self[set_name]

    def open_set(self, spec: ExtractionSpec, *, name: str | None = None, overwrite: bool = False) -> str:
        """Make the patch set of `spec`, or check that it is the one there; returns its name."""
        name = name or spec.name
        check_set_name(name)
        if spec.codec != self.codec:
            raise StoreError(
                f"'{self.path}' stores patches as {self.codec!r}, the spec asks for {spec.codec!r}: make both the same"
            )
        if self.frozen is not None:
            raise StoreError(
                f"'{self.path}' was opened at {self.frozen.name!r}, to be read: open it without `at` to write"
            )
        if self._is_made(name, spec):
            return name
        with set_lock(self.path, _STORE):
            self._make()
        is_another = self._is_another(name, spec, overwrite)
        with set_lock(self.path, name, alone=is_another):
            path = places.join(self.path, name)
            if self._is_another(name, spec, overwrite):
                manifest.forget_set(self.path, name)
                for tree in (path, places.join(self.path, WORK_GROUP, name)):
                    if documents.exists(tree):
                        documents.remove_tree(tree)
            if not self._is_made(name, spec):
                manifest.enter_set(self.path, name, spec)
                documents.write_document(path, {"spec": spec.to_dict(), "spec_hash": spec.hash})
        return name

    def _make(self) -> None:
        """Make the store's documents; one of schema 1 becomes one of schema 2, with a manifest of what it has."""
        found = documents.read_attrs(self.path)
        if found.get("codec", self.codec) != self.codec:
            raise StoreError(f"'{self.path}' stores patches as {found['codec']!r} by now, and not as {self.codec!r}")
        if found.get("msdask_schema") == 1:
            for name, patch_set in self.items():
                manifest.enter_set(self.path, name, patch_set.spec)
                for slide_id in patch_set.slides:
                    attrs = {**patch_set.attrs(slide_id), "spec_hash": patch_set.spec_hash}
                    manifest.enter_slide(patch_set.place(slide_id), attrs)
        if found.get("msdask_schema") != SCHEMA:
            documents.write_document(self.path, {"msdask_schema": SCHEMA, "codec": self.codec})
        manifest.enter_store(self.path, self.codec)

    def _is_made(self, name: str, spec: ExtractionSpec) -> bool:
        """Whether the set of this spec is there, with its documents."""
        entry = manifest.set_entry(self.path, name)
        found = documents.read_attrs(places.join(self.path, name))
        return entry.get("spec_hash") == spec.hash == found.get("spec_hash") and entry["spec"] == found.get("spec")

    def check_spec(self, name: str, spec: ExtractionSpec, *, overwrite: bool = False) -> None:
        """Make sure that `open_set` would take a spec; nothing is made.

        Raises
        ------
        StoreError
            A set of another spec has its name, and may not be replaced; or the name cannot be one.
        """
        check_set_name(name)
        self._is_another(name, spec, overwrite)

    def _is_another(self, name: str, spec: ExtractionSpec, overwrite: bool) -> bool:
        """Whether a set of another spec has this name, and may be replaced.

        Raises
        ------
        StoreError
            It may not be replaced.
        """
        documents_of = (manifest.set_entry(self.path, name), documents.read_attrs(places.join(self.path, name)))
        others = [found for found in documents_of if found and found.get("spec_hash") != spec.hash]
        if others and not documents_of[1] and not manifest.slide_entries(self.path, name):
            return True  # a kill came while it was made: nothing is in it
        if others and not overwrite:
            told, own_name = spec_differences(others[0].get("spec", {}), spec, name)
            raise StoreError(
                f"patch set '{name}' in '{self.path}' was made with {told}: give the new set a name of its own, "
                f"such as name='{own_name}', or pass overwrite=True to replace the whole set"
            )
        return bool(others)

    def check_set(self, name: str, spec: ExtractionSpec) -> None:
        """Make sure that a set is still of this spec, and that nobody is replacing it. Hold a slide's lock for it.

        Raises
        ------
        StoreError
            It was replaced or removed meanwhile, or is being so.
        """
        wait_for_set(self.path, name)
        if not self._is_made(name, spec):
            raise StoreError(
                f"patch set '{name}' in '{self.path}' was removed or replaced meanwhile by one of another spec: the "
                "slide is left to that; give this set a name of its own"
            )

    def begin(
        self, name: str, patches: xr.Dataset, *, overwrite: bool = False, attrs: Mapping[str, Any] | None = None
    ) -> tuple[SlideArrays, list[Delayed]] | None:
        """Make the tables of lazy patches, or find those of an earlier run. Hold the slide's lock for it.

        Returns
        -------
        begun : where blocks are written, and one task for each that is left; None if the slide is complete
        """
        place = SlidePlace(self.path, name, layout.check_slide_id(str(patches.attrs["slide_id"])))
        finish_replacement(place)
        found = {} if overwrite else documents.read_slide(place.path)
        if found.get("state") == "complete":
            self._check_complete(place, found, patches, attrs or {})
            clear_work(place)
            return None
        path = building_path(place, afresh=overwrite)
        arrays, written = writing.begin(
            path,
            self.codec,
            patches,
            rows=rows_per_block(path, patches),
            tissue_mean=lambda: float(patches["tissue_mean"].compute()),
            sharded=[name for name in layout.SHARDED if name in patches],
            attrs=attrs,
        )
        return arrays, lazy_blocks(arrays, patches, np.flatnonzero(~written).tolist())

    def _check_complete(
        self, place: SlidePlace, found: Mapping[str, Any], patches: xr.Dataset, attrs: Mapping[str, Any]
    ) -> None:
        """Make sure that a complete slide is that of these patches; facts of its cohort are brought up to date."""
        what = f"slide '{place.slide_id}' of '{place.set_name}'"
        check_same_file(what, found, patches.attrs["fingerprint"], patches.attrs["source"])
        changed = writing.differences(found, patches)
        changed += [key for key, value in attrs.items() if key != "cohort" and found.get(key) != value]
        if changed:
            raise StoreError(
                f"{what} is complete, but was made with another {', '.join(changed)}: pass overwrite=True to replace "
                "it, or write to a set with a name of its own"
            )
        if attrs.get("cohort", found.get("cohort")) != found.get("cohort"):
            writing.update_facts(place, attrs["cohort"])

    def freeze(self, name: str) -> Frozen:
        """Give the state of now a name: checksum and facts of every complete slide of every set, never changed again.

        ``PatchStore(path, at=name)`` opens it, and refuses what is not as it is now.

        Raises
        ------
        StoreError
            There is another state of this name.
        """
        sets = {
            set_name: {slide_id: contents_of(attrs) for slide_id, attrs in patch_set.complete().items()}
            for set_name, patch_set in self.items()
        }
        return write_frozen(self.path, name, sets)

    def frozen_states(self) -> list[str]:
        """Names of the states that were frozen."""
        folder = places.join(self.path, FROZEN_GROUP)
        return places.at(folder).folders(folder)

    def to_frame(self) -> pd.DataFrame:
        """One row a patch set: slides, those not complete, patches (or tuples), kept, bytes; no pixels are read."""
        return pd.DataFrame([set_row(patch_set) for patch_set in self.values()])

    def verify(self) -> dict[str, list[str]]:
        """Read every byte of every set again.

        Returns
        -------
        problems : set name -> sentences; empty lists where all is well
        """
        problems: dict[str, list[str]] = {}
        for name in self:
            try:
                problems[name] = self[name].verify()
            except UnreachableError:
                raise
            except StoreError as error:  # its document: the other sets may be sound
                problems[name] = [str(error)]
        return problems

    def __repr__(self) -> str:
        sets = ", ".join(f"'{name}' ({len(self[name].slides)} slides)" for name in self) or "empty"
        return f"<PatchStore '{self.path}', {self.codec}: {sets}>"

    def _repr_html_(self) -> str:
        from msdask.html import facts_html

        sets = [
            (name, "; ".join(f"{what}: {text}" for what, text in patch_set.facts())) for name, patch_set in self.items()
        ]
        size = format_bytes(places.at(self.path).size_below(self.path))
        return facts_html(f"PatchStore {self.path}", [("on disk", f"{size}, {self.codec}"), *sets])
