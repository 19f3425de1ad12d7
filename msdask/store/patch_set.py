"""PatchSet: all patches of one selection over a cohort, read back as xarray, tables or rows."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import xarray as xr
from dask.base import tokenize
from dask.utils import format_bytes
from numpy.typing import NDArray

from msdask.cutting.measures import column, measured_names
from msdask.errors import StoreError, UnreachableError
from msdask.progress.counting import word_for
from msdask.scale import footprint, magnification_to_mpp
from msdask.spec import Codec, ExtractionSpec
from msdask.storage import places
from msdask.store import documents, index, layout, manifest, sources
from msdask.store.damage import Damage, find_damage
from msdask.store.frozen import check_frozen
from msdask.store.keep_rule import Keep, kept
from msdask.store.patch import Patch
from msdask.store.reading import ShardArray
from msdask.store.slide_arrays import SlideArrays, checksums_of
from msdask.store.slide_place import SlidePlace

__all__ = ["PatchSet"]


class PatchSet:
    """One patch set of a store; get it as ``store[name]``.

    ``len(patch_set)`` is its number of patches, or of tuples where it has several magnifications; ``patch_set[i]`` is
    the i-th in the order of `index`. Only slides whose state is complete are shown: an absent shard reads as zeros in
    every Zarr library, so an unfinished slide must not be read.
    """

    def __init__(self, path: str, codec: Codec, frozen: Mapping[str, Mapping[str, str]] | None = None) -> None:
        self.path = path
        self.codec: Codec = codec
        self._frozen = frozen
        self._attrs = manifest.check_set(self._store, self.name, documents.read_attrs(path))

    @property
    def _store(self) -> str:
        return self.path[: -len(self.name) - 1]

    @property
    def name(self) -> str:
        """Name of the set inside its store."""
        return os.path.basename(self.path)

    @property
    def spec(self) -> ExtractionSpec:
        """What the set was made with."""
        return ExtractionSpec.from_dict(self._attrs["spec"])

    def place(self, slide_id: str) -> SlidePlace:
        """Where a slide of the set lies."""
        return SlidePlace(self._store, self.name, slide_id)

    @property
    def spec_hash(self) -> str:
        """Hash of the spec."""
        return str(self._attrs["spec_hash"])

    def states(self) -> dict[str, str]:
        """State of every slide that was begun, or that there should be.

        Returns
        -------
        states : id -> "complete", "begun", "writing", "broken" (without a sound document) or "missing" (the store's
            manifest knows it, and nothing is there)
        """
        lost = dict.fromkeys(manifest.slide_entries(self._store, self.name), "missing")
        begun = {slide_id: str(attrs.get("state", "broken")) for slide_id, attrs in self._begun().items()}
        return dict(sorted({**lost, **begun}.items()))

    def _begun(self) -> dict[str, dict[str, Any]]:
        """Attributes of every slide that was begun, sorted by id; {} without a sound document."""
        names = [name for name in places.at(self.path).folders(self.path) if name[0] not in "_."]
        return dict(zip(names, places.gather(self.path, self._sound_attrs, names), strict=True))

    def _sound_attrs(self, slide_id: str) -> dict[str, Any]:
        try:
            return documents.read_slide(places.join(self.path, slide_id), spec_hash=self.spec_hash)
        except UnreachableError:
            raise
        except StoreError:  # one damaged slide must not hide the others
            return {}

    def complete(self) -> dict[str, dict[str, Any]]:
        """Attributes of the complete slides, sorted by id; of a frozen set those that were frozen."""
        found = {slide_id: attrs for slide_id, attrs in self._begun().items() if attrs.get("state") == "complete"}
        return (
            found if self._frozen is None else {slide_id: self._complete_attrs(slide_id) for slide_id in self._frozen}
        )

    @property
    def slides(self) -> list[str]:
        """Ids of the complete slides, sorted."""
        return list(self.complete())

    def attrs(self, slide_id: str) -> dict[str, Any]:
        """Attributes of a complete slide: source, scale, counts, checksum, its cohort's row."""
        found = self._complete_attrs(slide_id)
        return {**found, "source": sources.source_of(self._store, found) or found["source"]}

    def _complete_attrs(self, slide_id: str) -> dict[str, Any]:
        place = self.place(slide_id)
        found = documents.read_slide(place.path, spec_hash=self.spec_hash)
        if self._frozen is not None:
            check_frozen(place, found, self._frozen)
        if found.get("state") != "complete":
            state = found.get("state", "absent")
            raise StoreError(
                f"slide '{slide_id}' of '{self.path}' is {state}, not complete: run the same extraction again "
                "to finish it"
            )
        return found

    def arrays(self, slide_id: str) -> SlideArrays:
        """Place and shape of a complete slide's arrays, whose documents are those that were committed."""
        arrays = layout.open_arrays(places.join(self.path, slide_id), self.codec, self._complete_attrs(slide_id))
        documents.check_documents(arrays.path, layout.sharded_names(arrays))
        return arrays

    def open(self, slide_id: str, *, keep: Keep = False) -> xr.Dataset:
        """A slide's patches, lazily: `image` is chunked by shards, each read at once, its checksums checked.

        Parameters
        ----------
        slide_id : one of `slides`
        keep : only patches whose verdict `keep` is True, or that a rule on the columns of `table` takes, see `Keep`

        Returns
        -------
        patches : Dataset (patch, magnification, y, x, channel) with the tables that were written

        Raises
        ------
        StoreError
            The slide is not complete.
        CorruptChunkError
            A table is missing or damaged; and while computing: a shard is; names array and chunk.
        """
        attrs = self.attrs(slide_id)
        arrays = layout.open_arrays(places.join(self.path, slide_id), self.codec, attrs)
        names = documents.check_documents(arrays.path, layout.sharded_names(arrays))
        columns = [name for name in names if name not in (*layout.SHARDED, *map(checksums_of, layout.SHARDED))]
        digests = attrs.get("digests", {})
        tables = places.gather(
            self.path, lambda name: layout.read_variable(arrays.path, name, digest=digests.get(name)), columns
        )
        data = xr.Dataset(dict(zip(columns, tables, strict=True)), attrs=attrs)
        for name in (name for name in names if name in layout.SHARDED):
            dims = ("patch", "magnification", "y", "x", "channel")[: len(arrays.chunk_shape(name))]
            data[name] = (dims, _lazy_shards(arrays, name, attrs["checksum"]))
        return data if keep is False else data.isel(patch=np.flatnonzero(self.kept(slide_id, keep)))

    def kept(self, slide_id: str, keep: Keep) -> NDArray[np.bool_]:
        """Which patches of a complete slide are taken: (patch,) bool."""
        return kept(keep, self._slide_table(slide_id))

    def columns(self, slide_id: str, names: Sequence[str]) -> list[NDArray[Any]]:
        """Columns of a complete slide's tables, as they were committed.

        Raises
        ------
        CorruptChunkError
            One is missing, damaged, or another than was committed; names it.
        """
        digests = self._complete_attrs(slide_id).get("digests")
        return layout.read_columns(places.join(self.path, slide_id), names, digests)

    def read(self, slide_id: str, rows: NDArray[np.integer[Any]] | list[int]) -> NDArray[np.uint8]:
        """Any patches of a slide, in the order given: (row, magnification, y, x, channel) uint8."""
        return ShardArray(self.arrays(slide_id), "image").read(rows)

    def table(self, *, keep: Keep = False) -> pd.DataFrame:
        """All patches of all complete slides as a table, without pixels.

        Parameters
        ----------
        keep : only patches whose verdict `keep` is True, or that a rule on these columns takes, see `Keep`

        Returns
        -------
        table : one row a patch: slide_id, row (of the slide's arrays), split, label, tissue, keep; what was measured on
            the patch of the highest magnification: brightness, contrast, filled, focus, blank, pen, dark
            (docs/quality.md; stores of earlier versions lack the last four); and x0, y0 (level-0 px) and label for
            each magnification as "x0_10x" ...; with label maps also outside, the share of a patch that is padding
        """
        frames = places.gather(self.path, self._slide_table, self.slides)
        table = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame({"slide_id": []})
        return table if keep is False or not len(table) else table[kept(keep, table)].reset_index(drop=True)

    def _slide_table(self, slide_id: str) -> pd.DataFrame:
        path = places.join(self.path, slide_id)
        attrs = self._complete_attrs(slide_id)
        names: tuple[str, ...] = ("x0", "y0", "tissue", "label", "label_fraction", "keep", "measured")
        names += ("outside",) if "outside" in attrs.get("arrays", ()) else ()
        columns = dict(zip(names, layout.read_columns(path, names, attrs.get("digests")), strict=True))
        table: dict[str, Any] = {
            "slide_id": slide_id,
            "row": np.arange(len(columns["tissue"]), dtype=np.int32),
            "split": attrs.get("cohort", {}).get("split", ""),
            "label": columns["label"][:, 0],
            "tissue": columns["tissue"],
            "keep": columns["keep"],
            **{name: column(columns["measured"], name)[:, 0] for name in measured_names(columns["measured"])},
        }
        for m, magnification in enumerate(self.spec.magnifications):
            for name in (name for name in ("x0", "y0", "label", "label_fraction", "outside") if name in columns):
                table[f"{name}_{magnification:g}x"] = columns[name][:, m]
        return pd.DataFrame(table)

    def index(self) -> xr.Dataset:
        """One columnar table of all complete slides for loaders: slide, row, x0, y0, label, tissue, keep, split.

        Read from the store's `_index`, which is made anew where slides have come, gone or changed since.

        Returns
        -------
        index : Dataset with dim "patch"; attrs "slides" (ids, indexed by `slide`) and "splits" (names, indexed by
            `split`, -1 none)
        """
        return index.open_index(self.path, self.complete())

    def __len__(self) -> int:
        return sum(int(attrs["counts"]["selected"]) for attrs in self.complete().values())

    def __getitem__(self, number: int) -> Patch:
        """The patch of a number in the order of `index`, negative ones from the end; reads the index and its pixels.

        Raises
        ------
        IndexError
            There is no such patch.
        """
        return self._patch(self.index(), operator.index(number))

    def __iter__(self) -> Iterator[Patch]:
        found = self.index()
        return (self._patch(found, i) for i in range(found.sizes["patch"]))

    def _patch(self, found: xr.Dataset, i: int) -> Patch:
        count = found.sizes["patch"]
        if not -count <= i < count:
            raise IndexError(f"patch {i} asked for, the set has {count}")
        facts = {str(name): values.values[i].item() for name, values in found.items()}
        slide_id, split = found.attrs["slides"][facts.pop("slide")], facts.pop("split")
        spec, mpp = self.spec, float(self._complete_attrs(slide_id)["mpp_used"])
        return Patch(
            footprint=footprint(
                spec.patch_size, target_mpp=magnification_to_mpp(spec.magnifications[0]), slide_mpp=mpp
            ),
            image=self.read(slide_id, [facts["row"]])[0],
            magnifications=spec.magnifications,
            slide_id=slide_id,
            split=found.attrs["splits"][split] if split >= 0 else "",
            **facts,
        )

    def verify(self) -> list[str]:
        """Check every slide of the set, every byte of it.

        Returns
        -------
        problems : sentences naming slide, array and chunk; empty if all is well
        """
        problems: list[str] = []
        expected = manifest.slide_entries(self._store, self.name)
        for slide_id, state in self.states().items():
            if state in ("begun", "writing", "missing"):
                problems.append(f"slide '{slide_id}' is {state}: run the same extraction again to finish it")
                continue
            try:
                damage = self.damage(slide_id, expected.get(slide_id))
            except UnreachableError as error:
                problems.append(f"slide '{slide_id}': {error}")
                continue
            if damage is not None:
                problems += [f"slide '{slide_id}': {line}" for line in damage.problems]
        return problems

    def damage(self, slide_id: str, expected: str | None = None) -> Damage | None:
        """What is broken in one slide; see `msdask.store.damage.find_damage`."""
        return find_damage(self.place(slide_id), self.codec, self.spec_hash, expected)

    def __repr__(self) -> str:
        return f"<PatchSet '{self.name}': {len(self.slides)} slides, {self.codec}>"

    def _repr_html_(self) -> str:
        from msdask.html import facts_html

        return facts_html(f"PatchSet {self.name}", self.facts())

    def to_frame(self) -> pd.DataFrame:
        """One row a slide, also for those that are not complete: slide_id, state, patches (or tuples), kept, labeled,
        bytes, split, mpp, source; documents are read, no pixels.
        """
        complete, rows = self.complete(), []
        for slide_id, state in self.states().items():
            row: dict[str, Any] = {"slide_id": slide_id, "state": state}
            if slide_id in complete:
                attrs = self.attrs(slide_id)
                count = attrs["counts"]
                row |= {"patches": count["selected"], "kept": count["kept"], "labeled": count["labeled"]}
                row |= {
                    "split": attrs.get("cohort", {}).get("split", ""),
                    "mpp": attrs["mpp"],
                    "source": attrs["source"],
                }
            path = self.place(slide_id).path
            rows.append({**row, "bytes": places.at(path).size_below(path)})
        names = ("slide_id", "state", "patches", "kept", "labeled", "bytes", "split", "mpp", "source")
        return pd.DataFrame(rows, columns=list(names))

    def facts(self) -> list[tuple[str, str]]:
        """What a notebook shows of the set, as (name, text): slides, patches, bytes, spec and scale; no pixels."""
        begun = self._begun()
        complete = [attrs for attrs in begun.values() if attrs.get("state") == "complete"]
        left = f", {len(begun) - len(complete)} not complete" if len(complete) < len(begun) else ""
        counts = [attrs["counts"] for attrs in complete]
        kept = sum(count["kept"] for count in counts)
        spec = self.spec
        scales = ", ".join(f"{m:g}x ({magnification_to_mpp(m):g} µm/px)" for m in spec.magnifications)
        shown = ("mode", "magnifications", "patch_size", "codec")
        rest = [
            f"{f.name} {getattr(spec, f.name)}"
            for f in fields(spec)
            if f.name not in shown and getattr(spec, f.name) != (f.default if f.name != "stride" else spec.patch_size)
        ]
        return [
            ("slides", f"{len(complete):,}{left}"),
            (
                word_for(len(spec.magnifications)),
                f"{sum(count['selected'] for count in counts):,}, {kept:,} of them to keep",
            ),
            ("on disk", f"{format_bytes(places.at(self.path).size_below(self.path))}, {self.codec}"),
            ("spec", ", ".join([spec.mode, f"{spec.patch_size} px", *rest])),
            ("scale", scales),
        ]


def _lazy_shards(arrays: SlideArrays, array: str, checksum: str) -> da.Array:
    """A sharded array, one chunk a shard; `checksum` is of the slide, so that one that was written anew is another."""
    lengths = tuple(arrays.block(i).stop - arrays.block(i).start for i in range(arrays.blocks)) or (0,)
    shape = (arrays.shape[1], *arrays.chunk_shape(array)[2:])
    return da.map_blocks(
        partial(_read_block, arrays, array),
        chunks=(lengths, *((n,) for n in shape)),
        dtype=np.uint8,
        meta=np.empty((0,) * (1 + len(shape)), np.uint8),
        name=f"stored-{array}-{tokenize(arrays, array, checksum)}",
    )


def _read_block(arrays: SlideArrays, array: str, block_id: tuple[int, ...]) -> NDArray[np.uint8]:
    return ShardArray(arrays, array).read_block(block_id[0])
