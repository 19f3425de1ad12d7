"""PatchStore: a sharded Zarr v3 store of patch sets; see design section 6 for the schema."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import xarray as xr
from dask.base import compute
from dask.delayed import Delayed
from dask.utils import format_bytes

from msdask.errors import StoreError
from msdask.spec import Codec, ExtractionSpec
from msdask.storage import places
from msdask.storage.locks import slide_lock
from msdask.store import layout, writing
from msdask.store.blocks import lazy_blocks, rows_per_block
from msdask.store.integrity import check_same_file
from msdask.store.patch_set import PatchSet
from msdask.store.slide_arrays import SlideArrays

__all__ = ["PatchStore"]


class PatchStore(Mapping[str, PatchSet]):
    """Patch sets of a cohort in one Zarr store; a mapping from a set's name to the set.

    Parameters
    ----------
    path : directory, or a URL in object storage such as "s3://bucket/cohort.zarr"; made at the first write if it does
        not exist
    codec : "raw" (readable by every Zarr v3 reader), "lossless" or "jpeg"; one a store. None means what the store
        has, or "raw" for a new one
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
        attrs = layout.read_attrs(self.path)
        if "msdask_schema" in attrs:
            self._check(attrs, codec)
        elif places.at(self.path).is_taken(self.path):
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
            begun = self.begin(set_name, patches, overwrite=overwrite, attrs=attrs)
            if begun is not None:
                arrays, tasks = begun
                compute(*tasks)
                lock.check()
                writing.commit(arrays)
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
                    f"patch set '{name}' in '{self.path}' was made with another spec (differs in {changed}): give the "
                    "new set a name of its own, or pass overwrite=True to replace the whole set"
                )
            layout.remove_tree(path)
        layout.create_group(path, {"spec": spec.to_dict(), "spec_hash": spec.hash})
        return name

    def begin(
        self, name: str, patches: xr.Dataset, *, overwrite: bool = False, attrs: Mapping[str, Any] | None = None
    ) -> tuple[SlideArrays, list[Delayed]] | None:
        """Make the tables of lazy patches, or find those of an earlier run. Hold the slide's lock for it.

        Returns
        -------
        begun : where blocks are written, and one task for each that is left; None if the slide is complete
        """
        slide_id = str(patches.attrs["slide_id"])
        path = places.join(self.path, name, layout.check_slide_id(slide_id))
        if overwrite and layout.exists(path):
            layout.remove_tree(path)
        found = layout.read_attrs(path)
        if found.get("state") == "complete":
            facts = patches.attrs
            check_same_file(f"slide '{slide_id}' of '{name}'", found, facts["fingerprint"], facts["source"])
            if changed := writing.differences(found, patches):
                raise StoreError(
                    f"slide '{slide_id}' of '{name}' is complete, but was made with another {', '.join(changed)}: pass "
                    "overwrite=True to replace it, or write to a set with a name of its own"
                )
            return None
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

    def _repr_html_(self) -> str:
        from msdask.slides.html import facts_html

        sets = [
            (name, "; ".join(f"{what}: {text}" for what, text in patch_set.facts())) for name, patch_set in self.items()
        ]
        size = format_bytes(places.at(self.path).size_below(self.path))
        return facts_html(f"PatchStore {self.path}", [("on disk", f"{size}, {self.codec}"), *sets])
