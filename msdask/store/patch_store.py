"""PatchStore: a sharded Zarr v3 store of patch sets; see design section 6 for the schema."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, cast, get_args

import xarray as xr
from dask.threaded import get as threaded_get

from msdask.errors import StoreError
from msdask.spec import Codec, ExtractionSpec
from msdask.storage import places
from msdask.storage.locks import slide_lock
from msdask.store import layout, writing
from msdask.store.patch_set import PatchSet
from msdask.store.writing import SlideWrite

__all__ = ["PatchStore"]


class PatchStore(Mapping[str, PatchSet]):
    """Patch sets of a cohort in one Zarr store; a mapping from a set's name to the set.

    Parameters
    ----------
    path : directory, or a URL in object storage such as "s3://bucket/cohort.zarr"; made at the first write if it does
        not exist
    codec : "raw" (readable by every Zarr v3 reader), "lossless" or "jpeg"; one a store. None means what the store
        has, or
        "raw" for a new one
    storage_options : for object storage, settings of this process: "endpoint", "region", "anonymous"; otherwise, and
        on every worker, the environment's (AWS_ENDPOINT_URL, AWS_REGION). Credentials come from the environment alone

    Raises
    ------
    StoreError
        The directory is something else than a patch store, of a newer schema, or of another codec.

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
    ) -> None:
        self.path = places.location(path)
        if storage_options is not None:
            places.configure(self.path, storage_options)
        if places.is_remote(self.path) and self.path.count("/") < 3:
            raise StoreError(f"'{self.path}' is a whole bucket: give a place in it, such as '{self.path}/cohort.zarr'")
        attrs = layout.read_attrs(self.path)
        if "msdask_schema" in attrs:
            self._check(attrs, codec)
        elif _is_taken(self.path):
            raise StoreError(f"'{self.path}' exists and is no msdask patch store: give another path")
        self.codec: Codec = attrs.get("codec") or codec or "raw"
        if self.codec not in get_args(Codec):
            raise StoreError(f"'{self.path}': codec {self.codec!r}; expected one of {list(get_args(Codec))}")

    def _check(self, attrs: Mapping[str, Any], codec: Codec | None) -> None:
        if attrs["msdask_schema"] != layout.SCHEMA:
            raise StoreError(
                f"'{self.path}' has schema {attrs['msdask_schema']}, this msdask reads schema {layout.SCHEMA}: "
                "update msdask"
            )
        if codec is not None and attrs["codec"] != codec:
            raise StoreError(
                f"'{self.path}' stores patches as {attrs['codec']!r}, asked for {codec!r}: a store has one "
                "codec; give another path"
            )

    def __getitem__(self, name: str) -> PatchSet:
        if name not in list(self):
            raise StoreError(f"'{self.path}' has no patch set {name!r}; it has {list(self)}")
        return PatchSet(places.join(self.path, name), self.codec)

    def __contains__(self, name: object) -> bool:
        return name in list(self)

    def __iter__(self) -> Iterator[str]:
        names = [name for name in places.at(self.path).folders(self.path) if name != layout.INDEX_GROUP]
        attrs = places.gather(self.path, lambda name: layout.read_attrs(places.join(self.path, name)), names)
        yield from (name for name, found in zip(names, attrs, strict=True) if "spec_hash" in found)

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
        set_name = self.open_set(spec, name=name, overwrite=overwrite)
        slide_id = layout.check_slide_id(str(patches.attrs["slide_id"]))
        with slide_lock(self.path, set_name, slide_id) as lock:
            job = self.prepare(set_name, patches, overwrite=overwrite, attrs=attrs)
            if job is not None:
                _compute(job)
                lock.check()
                writing.commit(job.target)
        return self[set_name]

    def open_set(self, spec: ExtractionSpec, *, name: str | None = None, overwrite: bool = False) -> str:
        """Make the patch set of `spec`, or check that it is the one there; returns its name."""
        name = name or spec.name
        if name.startswith(("_", ".")) or "/" in name or "\\" in name:
            raise StoreError(f"patch set name {name!r}: no separators, and no '_' or '.' at its start")
        if spec.codec != self.codec:
            raise StoreError(
                f"'{self.path}' stores patches as {self.codec!r}, the spec asks for {spec.codec!r}: make both the same"
            )
        layout.create_group(self.path, {"msdask_schema": layout.SCHEMA, "codec": self.codec})
        path = places.join(self.path, name)
        found = layout.read_attrs(path)
        if found and found.get("spec_hash") != spec.hash:
            if not overwrite:
                changed = sorted(k for k, v in spec.to_dict().items() if found.get("spec", {}).get(k) != v)
                raise StoreError(
                    f"patch set '{name}' in '{self.path}' was made with another spec (differs in {changed}): "
                    "give the new set a "
                    "name of its own, or pass overwrite=True to replace the whole set"
                )
            layout.remove_tree(path)
        layout.create_group(path, {"spec": spec.to_dict(), "spec_hash": spec.hash})
        return name

    def prepare(
        self, name: str, patches: xr.Dataset, *, overwrite: bool = False, attrs: Mapping[str, Any] | None = None
    ) -> SlideWrite | None:
        """The slide's blocks that are left to write, as tasks; None if it is complete. Hold the slide's lock for it."""
        slide_id = str(patches.attrs["slide_id"])
        path = places.join(self.path, name, layout.check_slide_id(slide_id))
        if overwrite and layout.exists(path):
            layout.remove_tree(path)
        found = layout.read_attrs(path)
        if found.get("state") == "complete":
            changed = writing.differences(found, patches)
            if "fingerprint" in changed:
                raise StoreError(
                    f"slide '{slide_id}' of '{name}' was made from another file than "
                    f"'{patches.attrs['source']}' (their fingerprints "
                    "differ): pass overwrite=True to replace it, or give the slide another id"
                )
            if changed:
                raise StoreError(
                    f"slide '{slide_id}' of '{name}' is complete, but was made with another {', '.join(changed)}: pass "
                    "overwrite=True to replace it, or write to a set with a name of its own"
                )
            return None
        return writing.prepare(path, self.codec, patches, attrs or {})

    def remove(self, name: str) -> None:
        """Remove a patch set and its index."""
        patch_set = self[name]
        layout.remove_tree(patch_set.path)
        index = places.join(self.path, layout.INDEX_GROUP, name)
        if layout.exists(index):
            layout.remove_tree(index)

    def verify(self) -> dict[str, list[str]]:
        """Read every byte of every set again.

        Returns
        -------
        problems : set name -> sentences; empty lists where all is well
        """
        return {name: patch_set.verify() for name, patch_set in self.items()}

    def __repr__(self) -> str:
        sets = ", ".join(f"'{name}' ({len(self[name].slides)} slides)" for name in self) or "empty"
        return f"<PatchStore '{self.path}', {self.codec}: {sets}>"


def _is_taken(path: str) -> bool:
    """Whether something that is no patch store is at a path."""
    if places.is_remote(path):
        return layout.exists(path)
    return os.path.exists(path) and (not os.path.isdir(path) or bool(os.listdir(path)))


def _compute(job: SlideWrite) -> None:
    """Run a slide's blocks on the scheduler that dask is set to: threads unless a client or its settings say other."""
    if not job.keys:
        return
    import dask.base

    get = dask.base.get_scheduler() or threaded_get
    get(cast("dict[Any, Any]", job.graph), list(job.keys))
