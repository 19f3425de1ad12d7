"""PatchSet: all patches of one selection over a cohort, read back as xarray, tables or rows."""

from __future__ import annotations

import os
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import xarray as xr
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph
from numpy.typing import NDArray

from msdask.errors import CorruptChunkError, StoreError
from msdask.spec import Codec, ExtractionSpec
from msdask.storage import places
from msdask.store import index, layout, shards, writing
from msdask.store.layout import SlideTarget

__all__ = ["PatchSet"]


class PatchSet:
    """One patch set of a store; get it as ``store[name]``.

    Only slides whose state is complete are shown: an absent shard reads as zeros in every Zarr library, so an
    unfinished slide must not be read.
    """

    def __init__(self, path: str, codec: Codec) -> None:
        self.path = path
        self.codec: Codec = codec
        self._attrs = layout.read_attrs(path)

    @property
    def name(self) -> str:
        """Name of the set inside its store."""
        return os.path.basename(self.path)

    @property
    def spec(self) -> ExtractionSpec:
        """What the set was made with."""
        return ExtractionSpec.from_dict(self._attrs["spec"])

    @property
    def spec_hash(self) -> str:
        """Hash of the spec."""
        return str(self._attrs["spec_hash"])

    def states(self) -> dict[str, str]:
        """State of every slide that was begun: "complete", "writing", or "broken" without a readable document."""
        names = places.at(self.path).folders(self.path)
        return dict(zip(names, places.gather(self.path, self._state, names), strict=True))

    def _state(self, slide_id: str) -> str:
        try:
            return str(layout.read_attrs(places.join(self.path, slide_id)).get("state", "broken"))
        except StoreError:  # one damaged slide must not hide the others
            return "broken"

    @property
    def slides(self) -> list[str]:
        """Ids of the complete slides, sorted."""
        return [slide_id for slide_id, state in self.states().items() if state == "complete"]

    def attrs(self, slide_id: str) -> dict[str, Any]:
        """Attributes of a complete slide: source, scale, counts, checksum, its cohort's row."""
        found = layout.read_attrs(places.join(self.path, slide_id))
        if found.get("state") != "complete":
            state = found.get("state", "absent")
            raise StoreError(
                f"slide '{slide_id}' of '{self.path}' is {state}, not complete: run the same extraction again "
                "to finish it"
            )
        return found

    def target(self, slide_id: str) -> SlideTarget:
        """Place and shape of a complete slide's arrays, whose documents are those that were committed."""
        target = writing.open_target(places.join(self.path, slide_id), self.codec, attrs=self.attrs(slide_id))
        for name in writing.sharded_arrays(target):
            layout.check_document(target.path, name)
        return target

    def open(self, slide_id: str, *, keep: bool = False) -> xr.Dataset:
        """A slide's patches, lazily: `image` is chunked by shards, each read by TensorStore with its checksums checked.

        Parameters
        ----------
        slide_id : one of `slides`
        keep : only patches whose verdict `keep` is True

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
        target = self.target(slide_id)
        sharded = writing.sharded_arrays(target)
        columns = [name for name in layout.array_names(target.path) if name not in sharded]
        tables = places.gather(self.path, lambda name: layout.read_variable(target.path, name), columns)
        data = xr.Dataset(dict(zip(columns, tables, strict=True)), attrs=self.attrs(slide_id))
        for name in sharded:
            dims = ("patch", "magnification", "y", "x", "channel")[: len(target.chunk_shape(name))]
            data[name] = (dims, _lazy_shards(target, name))
        return data.isel(patch=np.flatnonzero(data["keep"].values)) if keep else data

    def read(self, slide_id: str, rows: NDArray[np.integer[Any]] | list[int]) -> NDArray[np.uint8]:
        """Any patches of a slide, in the order given: (row, magnification, y, x, channel) uint8."""
        return shards.read_rows(self.target(slide_id), "image", rows)

    def table(self, *, keep: bool = False) -> pd.DataFrame:
        """All patches of all complete slides as a table, without pixels.

        Parameters
        ----------
        keep : only patches whose verdict `keep` is True

        Returns
        -------
        table : one row a patch: slide_id, row (of the slide's arrays), split, label, tissue, keep, brightness,
            contrast, and x0, y0 (level-0 px) and label for each magnification as "x0_10x" ...
        """
        frames = places.gather(self.path, self._slide_table, self.slides)
        table = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame({"slide_id": []})
        return table[table["keep"]].reset_index(drop=True) if keep and len(table) else table

    def _slide_table(self, slide_id: str) -> pd.DataFrame:
        path = places.join(self.path, slide_id)
        attrs = self.attrs(slide_id)
        columns = {
            n: layout.read_column(path, n)
            for n in ("x0", "y0", "tissue", "label", "label_fraction", "keep", "measured")
        }
        table: dict[str, Any] = {
            "slide_id": slide_id,
            "row": np.arange(len(columns["tissue"]), dtype=np.int32),
            "split": attrs.get("cohort", {}).get("split", ""),
            "label": columns["label"][:, 0],
            "tissue": columns["tissue"],
            "keep": columns["keep"],
            "brightness": columns["measured"][:, 0, 0],
            "contrast": columns["measured"][:, 0, 1],
        }
        for m, magnification in enumerate(self.spec.magnifications):
            for name in ("x0", "y0", "label", "label_fraction"):
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
        names = self.slides
        attrs = places.gather(self.path, self.attrs, names)
        return index.open_index(self.path, dict(zip(names, attrs, strict=True)))

    def verify(self) -> list[str]:
        """Check every slide of the set, every byte of it.

        Returns
        -------
        problems : sentences naming slide, array and chunk; empty if all is well
        """
        problems: list[str] = []
        for slide_id, state in self.states().items():
            if state == "complete":
                problems += self._verify_slide(slide_id)
            else:
                problems.append(f"slide '{slide_id}' is {state}: run the same extraction again to finish it")
        return problems

    def _verify_slide(self, slide_id: str) -> list[str]:
        try:
            target = self.target(slide_id)
            problems = [
                line
                for name in writing.sharded_arrays(target)
                for block in range(target.blocks)
                for line in shards.check_shard(target, name, block)
            ]
            if not problems and writing.slide_checksum(target) != self.attrs(slide_id)["checksum"]:
                problems = ["its tables or shard indexes do not match the checksum taken when it was completed"]
        except (StoreError, CorruptChunkError, KeyError) as error:
            problems = [str(error)]
        return [f"slide '{slide_id}': {line}" for line in problems]

    def __repr__(self) -> str:
        return f"<PatchSet '{self.name}': {len(self.slides)} slides, {self.codec}>"


def _lazy_shards(target: SlideTarget, array: str) -> da.Array:
    shape = (*target.shape, *target.chunk_shape(array)[2:])
    lengths = tuple(target.block(i).stop - target.block(i).start for i in range(target.blocks)) or (0,)
    name = f"stored-{array}-{tokenize(target, array, layout.read_attrs(target.path).get('checksum'))}"
    rest = (0,) * (len(shape) - 1)
    graph: dict[Any, Any] = {(name, i, *rest): (shards.read_block, target, array, i) for i in range(target.blocks)}
    if not graph:
        graph = {(name, 0, *rest): (np.empty, shape, np.uint8)}
    layer = HighLevelGraph.from_collections(name, graph)
    return da.Array(layer, name, (lengths, *((n,) for n in shape[1:])), dtype=np.uint8)
