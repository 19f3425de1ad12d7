"""PatchDataset: patches of one or several sets as batches of tensors, read many at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from msdask.data.choice import Choice, columns_of
from msdask.data.contents import contents_hash
from msdask.data.linked import LinkedSet
from msdask.data.patches import Patches, StoredPatches
from msdask.data.samples import WholeBatch
from msdask.data.scales import AnyScale, ScaleAugment, ScaledCut, ScaleRange
from msdask.data.virtual import VirtualSet
from msdask.errors import SpecError
from msdask.store.keep_rule import Keep
from msdask.store.patch_set import PatchSet
from msdask.store.reading_threads import Begun, start

__all__ = ["Batch", "PatchDataset", "Reading", "Target", "as_images"]

Batch = dict[str, torch.Tensor]
Target = Literal["label", "labels", "magnification"]
Sets = PatchSet | VirtualSet | LinkedSet
Transform = Callable[[Batch], Batch]


def as_images(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """(..., y, x, channel) array -> (..., channel, y, x) tensor: a view, channels last in memory."""
    # A copy to channels-first costs a third of the time that reading takes, and convolutions like it this way.
    return torch.from_numpy(pixels).movedim(-1, -3)


class Reading:
    """A batch whose pixels are on their way."""

    def __init__(self, futures: list[Future[None]], batch: Batch) -> None:
        self._futures, self.batch = futures, batch

    def result(self) -> Batch:
        """The batch, once its last patch is there; raises what a read raised."""
        for future in self._futures:
            future.result()
        return self.batch

    def cancel(self) -> None:
        """Do not begin what is not begun."""
        for future in self._futures:
            future.cancel()


@dataclass(frozen=True, slots=True)
class _Group:
    """One slide in one set."""

    number: int
    slide_id: str
    slide: int
    columns: tuple[int, ...]


class PatchDataset(Dataset[Batch]):
    """Patches of one or several sets; indexed by patch, read by batch.

    A batch is a dict of tensors:

    - ``image`` uint8 (B, M, 3, S, S), a view that is channels-last in memory
    - ``label`` int64 (B,), or (B, M) with ``target="labels"``; -1 none
    - ``magnification`` float32 (B, M), the true one of each image
    - ``index`` int64 (B,), rows of this dataset; ``slide`` int64 (B,), positions in `slide_ids`
    - ``row``, ``x0``, ``y0`` int64 (B,), the row in its slide, and the level-0 px of its origin at the set's highest
      magnification
    - with linked sets, ``linked_row`` int64 (B, M), the row of each image in its own set
    - with `label_maps`, ``label_map`` uint8 (B, M, S, S), 0 = unlabeled

    PyTorch's own DataLoader and Subset take it as it is, and read whole batches at once.

    Parameters
    ----------
    sets : patch set, virtual set, linked set, or several of one patch size and number of magnifications (grids at 5x to
        40x, say)
    magnifications : which of the sets' magnifications; sets that have none of them are left out; None means all
    slides : ids; None means all
    splits : name or names of the splits that were stored with the slides; None means all
    labels : classes to take, or "labeled" for all patches that have one; None means all patches
    keep : only patches whose verdict `keep` is True, neither white nor of low contrast; or a rule on the columns of
        `PatchSet.table` (of sets that are not stored: of the index), such as "tissue > 0.9", or rows, see `Keep`
    target : what a class is, for balance: "label", the "labels" at every magnification (balanced by the first), or the
        nominal "magnification"
    label_maps : also read the label maps, for segmentation
    scale : draw other magnifications and read them from the slide at exactly that scale, see `ScaleAugment`,
        `MppRange` and `ScaleRange`; virtual sets only
    transform : from batch to batch, done where the batch is read

    Raises
    ------
    SpecError
        Sets that do not fit together, or unknown slides, splits or magnifications; says what there is.
    CorruptChunkError
        A shard is missing or not of its size.
    """

    _per_patch: ClassVar[tuple[str, ...]] = ("_group", "_row", "_label", "_x0", "_y0", "_linked", "block_of")
    """Attributes with a row a patch, or None."""

    def __init__(
        self,
        sets: Sets | Sequence[Sets],
        *,
        magnifications: Sequence[float] | None = None,
        slides: Sequence[str] | None = None,
        splits: str | Sequence[str] | None = None,
        labels: Sequence[int] | Literal["labeled"] | None = None,
        keep: Keep = True,
        target: Target = "label",
        label_maps: bool = False,
        scale: AnyScale | None = None,
        transform: Transform | None = None,
    ) -> None:
        if target not in ("label", "labels", "magnification"):
            raise SpecError(f"target={target!r}: expected 'label', 'labels' or 'magnification'")
        if isinstance(labels, str) and labels != "labeled":
            raise SpecError(f"labels={labels!r}: expected 'labeled', a list of classes, or None")
        given = [sets] if isinstance(sets, (PatchSet, VirtualSet, LinkedSet)) else list(sets)
        self._sets: list[Patches] = []
        self._columns: list[tuple[int, ...]] = []
        readable: list[Patches] = [StoredPatches(s) if isinstance(s, PatchSet) else s for s in given]
        for one in readable:
            own = one.magnifications
            columns = tuple(i for i, m in enumerate(own) if magnifications is None or m in magnifications)
            if columns:
                self._sets.append(one)
                self._columns.append(columns)
        self._check_sets(readable, magnifications)
        if scale is not None and not all(isinstance(s, VirtualSet) for s in given):
            raise SpecError(
                "scale=...: a stored patch has one scale; give virtual sets (msdask.data.VirtualSet.of(patch_set) "
                "reads a stored set's patches from their slides), or enlarge crops with Augment(scale=...)"
            )
        if isinstance(scale, ScaleRange) and len(self._columns[0]) > 1:
            raise SpecError("scale=ScaleRange(...): expected sets at one magnification, no tuples")
        self.target: Target = target
        self.patch_size = self._sets[0].patch_size
        self.scale, self.transform, self._label_maps = scale, transform, label_maps
        choice = Choice(slides, (splits,) if isinstance(splits, str) else splits, labels, keep)
        self._take(choice)
        if scale is not None and not isinstance(scale, ScaleAugment):
            for group, key in enumerate(self._groups):
                scale.check(key.slide_id, self._limits(group), self.patch_size)

    def _check_sets(self, given: Sequence[Patches], magnifications: Sequence[float] | None) -> None:
        known = sorted({m for s in given for m in s.magnifications}, reverse=True)
        if magnifications is not None and (unknown := [m for m in magnifications if m not in known]):
            raise SpecError(f"magnifications {unknown} are in none of the sets; they have {known}")
        if not self._sets:
            raise SpecError("no patch set given, or none of the magnifications asked for")
        if len({len(c) for c in self._columns}) > 1 or len({s.patch_size for s in self._sets}) > 1:
            shapes = {s.name: (len(c), s.patch_size) for s, c in zip(self._sets, self._columns, strict=True)}
            raise SpecError(
                f"sets of different (magnifications, patch size) cannot share a batch: {shapes}; make a dataset of each"
            )

    def _take(self, choice: Choice) -> None:
        """Columns of the chosen patches, and the slides that they are on, opened."""
        indexes = [one.index() for one in self._sets]
        self.slide_ids: list[str] = sorted({slide_id for index in indexes for slide_id in index.attrs["slides"]})
        self._check_names("slides", choice.slides, self.slide_ids)
        self._check_names("splits", choice.splits, sorted({s for index in indexes for s in index.attrs["splits"]}))
        number = {slide_id: i for i, slide_id in enumerate(self.slide_ids)}
        self._groups: list[_Group] = []
        parts: dict[str, list[NDArray[Any]]] = {
            name: [] for name in ("group", "row", "label", "x0", "y0", "block", "linked")
        }
        scales: list[list[float]] = []
        names, blocks = ("image", "label_map") if self._label_maps else ("image",), 0
        for s, (one, index) in enumerate(zip(self._sets, indexes, strict=True)):
            taken = np.flatnonzero(choice.mask(index, partial(columns_of, one, index)))
            slide = index["slide"].values[taken]
            for k in np.unique(slide).tolist():
                slide_id = index.attrs["slides"][k]
                mine = taken[slide == k]
                rows_of_block = one.open(slide_id, names)
                row = index["row"].values[mine]
                block = row // rows_of_block
                scales.append(self._true_magnifications(s, slide_id))
                parts["group"].append(np.full(len(mine), len(self._groups), np.int32))
                parts["block"].append((blocks + block).astype(np.int32))
                parts["row"].append(row)
                parts["x0"].append(index["x0"].values[mine])
                parts["y0"].append(index["y0"].values[mine])
                parts["label"].append(self._label_column(s, slide_id, row, index["label"].values[mine]))
                if isinstance(one, LinkedSet):
                    parts["linked"].append(one.linked_rows(slide_id)[row][:, list(self._columns[s])])
                self._groups.append(_Group(s, slide_id, number[slide_id], self._columns[s]))
                blocks += int(block.max()) + 1
        joined = {name: np.concatenate(some) if some else np.empty(0, np.int32) for name, some in parts.items()}
        self._group, self._row, self._label = joined["group"], joined["row"], joined["label"]
        self._x0, self._y0 = joined["x0"], joined["y0"]
        self._linked = joined["linked"] if len(joined["linked"]) == len(self._row) else None
        self.block_of: NDArray[np.int32] = joined["block"]
        self._magnification = np.asarray(scales, np.float32).reshape(len(self._groups), len(self._columns[0]))
        self._group_slide = np.asarray([group.slide for group in self._groups], np.int64)

    @staticmethod
    def _check_names(what: str, asked: Sequence[str] | None, known: Sequence[str]) -> None:
        if asked is not None and (unknown := [name for name in asked if name not in known]):
            raise SpecError(f"{what} {unknown} are in none of the sets; they have {list(known)[:20]}")

    def _true_magnifications(self, s: int, slide_id: str) -> list[float]:
        attrs = self._sets[s].attrs(slide_id)
        own = self._sets[s].magnifications
        return [own[c] * attrs["mpp_used"] / attrs["mpp"] for c in self._columns[s]]

    def _label_column(
        self, s: int, slide_id: str, row: NDArray[np.integer[Any]], first: NDArray[np.int16]
    ) -> NDArray[np.int16]:
        return self._sets[s].labels(slide_id)[row][:, list(self._columns[s])] if self.target == "labels" else first

    @property
    def magnifications(self) -> list[tuple[float, ...]]:
        """Nominal magnifications of each set's images, in the order of the sets."""
        return [
            tuple(one.magnifications[c] for c in columns)
            for one, columns in zip(self._sets, self._columns, strict=True)
        ]

    @property
    def class_of(self) -> NDArray[np.float64]:
        """Class of each patch, what `target` says: (patches,) float64; -1 none."""
        if self.target == "magnification":
            nominal = np.asarray([m[0] for m in self.magnifications])
            return nominal[[g.number for g in self._groups]][self._group] if len(self) else np.empty(0)
        label = self._label if self._label.ndim == 1 else self._label[:, 0]
        return label.astype(np.float64)

    def label_pixels(self) -> NDArray[np.uint32]:
        """Px of each label in the first label map of each patch: (patches, labels) uint32, 0 = unlabeled first."""
        counts = [self._sets[g.number].label_pixels(g.slide_id, g.columns[0]) for g in self._groups]
        out = np.zeros((len(self), max((part.shape[1] for part in counts), default=1)), np.uint32)
        edges = np.searchsorted(self._group, np.arange(len(counts) + 1))
        for part, mine in zip(counts, map(slice, edges[:-1], edges[1:]), strict=True):
            out[mine, : part.shape[1]] = part[self._row[mine]]
        return out

    @property
    def slide_of(self) -> NDArray[np.int64]:
        """Position in `slide_ids` of each patch: (patches,) int64."""
        return self._group_slide[self._group] if len(self) else np.empty(0, np.int64)

    @property
    def is_virtual(self) -> bool:
        """Whether pixels are read from slides, so that neighbours should be read together."""
        return any(isinstance(one, VirtualSet) for one in self._sets)

    def counts(self) -> dict[float, int]:
        """Patches of each class."""
        values, counts = np.unique(self.class_of, return_counts=True)
        return dict(zip(values.tolist(), counts.tolist(), strict=True))

    def __len__(self) -> int:
        return len(self._row)

    def begin(
        self, indices: Sequence[int] | NDArray[np.integer[Any]], *, seeds: NDArray[np.int64] | None = None
    ) -> Reading:
        """Begin to read a batch; its columns are there at once, its pixels when `Reading.result` returns.

        Parameters
        ----------
        indices : of this dataset's patches, in any order, with repeats
        seeds : (n,) int64, of what is random about each; put into the batch as ``seed``

        Returns
        -------
        reading : without `transform`
        """
        index = np.asarray(indices, np.int64).reshape(-1)
        if index.size and (index.min() < -len(self) or index.max() >= len(self)):
            raise IndexError(f"indices {index.min()}..{index.max()} asked for, the dataset has 0..{len(self) - 1}")
        index = np.where(index < 0, index + len(self), index)
        group, count, images = self._group[index], len(index), len(self._columns[0])
        magnification = self._magnification[group]
        out = np.empty((count, images, self.patch_size, self.patch_size, 3), np.uint8)
        maps = np.empty(out.shape[:-1], np.uint8) if self._label_maps else None
        begun: list[Begun] = []
        if self.scale is not None:
            cuts, magnification = self._begin_scaled(index, index if seeds is None else seeds, out)
            begun += cuts
        row, order = self._row[index].astype(np.int64), np.argsort(group, kind="stable")
        first = np.flatnonzero(np.diff(group[order], prepend=-1))
        for places in np.split(order, first[1:]) if count else ():
            key, rows = self._groups[group[places[0]]], row[places]
            one = self._sets[key.number]
            if self.scale is None:
                begun += one.begin(key.slide_id, "image", rows, out, places=places, columns=key.columns)
            if maps is not None:
                begun += one.begin(key.slide_id, "label_map", rows, maps, places=places, columns=key.columns)
        batch = {
            "image": as_images(out),
            "label": torch.from_numpy(self._label[index].astype(np.int64)),
            "magnification": torch.from_numpy(magnification),
            "index": torch.from_numpy(index),
            "slide": torch.from_numpy(self._group_slide[group]),
            "row": torch.from_numpy(row),
            "x0": torch.from_numpy(self._x0[index].astype(np.int64)),
            "y0": torch.from_numpy(self._y0[index].astype(np.int64)),
        }
        if self._linked is not None:
            batch["linked_row"] = torch.from_numpy(self._linked[index])
        if maps is not None:
            batch["label_map"] = torch.from_numpy(maps)
        if seeds is not None:
            batch["seed"] = torch.from_numpy(np.asarray(seeds, np.int64))
        return Reading(start(begun), batch)

    def _begin_scaled(
        self, index: NDArray[np.int64], seeds: NDArray[np.int64], out: NDArray[np.uint8]
    ) -> tuple[list[Future[None]], NDArray[np.float32]]:
        """Begin to cut images at magnifications that are drawn; gives these, (n, M)."""
        scale = cast("AnyScale", self.scale)
        drawn = np.empty(out.shape[:2], np.float32)
        cuts: dict[int, list[ScaledCut]] = {}
        for i, (k, seed) in enumerate(zip(index.tolist(), seeds.tolist(), strict=True)):
            g, row = int(self._group[k]), int(self._row[k])
            drawn[i] = scale.draw(self._magnification[g], seed, limits=self._limits(g))
            if not isinstance(scale, ScaleRange):
                for j, column in enumerate(self._groups[g].columns):
                    cuts.setdefault(g, []).append(ScaledCut(row, column, float(drawn[i, j]), None, out[i, j]))
                continue
            for piece in scale.pieces(self.patch_size, seed):
                view, m = out[i, 0, piece.rows, piece.columns], float(drawn[i, 0])
                taken = k if piece.other is None else self._other(g, piece.other, piece.anywhere, m)
                g2, row = int(self._group[taken]), int(self._row[taken])
                cut = ScaledCut(row, self._groups[g2].columns[0], m, piece.point, view)
                cuts.setdefault(g2, []).append(cut)
        begun: list[Future[None]] = []
        for g, of_group in cuts.items():
            key = self._groups[g]
            begun += cast(VirtualSet, self._sets[key.number]).begin_scaled(key.slide_id, of_group)
        return begun, drawn

    def _limits(self, group: int) -> tuple[float, float]:
        """The lowest magnification at which a patch fits into a slide, and the slide's own."""
        key = self._groups[group]
        return cast(VirtualSet, self._sets[key.number]).scale_limits(key.slide_id)

    def _other(self, group: int, share: float, anywhere: bool, magnification: float) -> int:
        """A patch of the same slide, or of any slide that half a patch at a magnification fits into."""
        if anywhere:
            found = int(share * len(self))
            if self._limits(int(self._group[found]))[0] <= 2 * magnification:
                return found
        first, last = np.searchsorted(self._group, [group, group + 1]).tolist()
        return int(first + share * (last - first))

    def take(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> PatchDataset:
        """A dataset of some of these patches, in the order in which they are here."""
        chosen = np.sort(np.arange(len(self))[np.asarray(indices, np.int64).reshape(-1)])
        taken = copy(self)
        for name in self._per_patch:
            values = getattr(self, name)
            setattr(taken, name, None if values is None else values[chosen])
        return taken

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """A whole batch at once: one read for each slide in it."""
        batch = self.begin(indices).result()
        return WholeBatch(batch if self.transform is None else self.transform(batch))

    def __getitem__(self, index: int) -> Batch:
        return {name: values[0] for name, values in self.__getitems__([index]).items()}

    @staticmethod
    def collate(batch: Any) -> Any:
        """The collation of PyTorch's DataLoader, said by name: what `__getitems__` gives is a batch already."""
        return batch

    @property
    def contents_hash(self) -> str:
        """Hash of the slides that are read; see `msdask.data.contents`."""
        return contents_hash(self._sets, [(g.number, g.slide_id) for g in self._groups])

    def __repr__(self) -> str:
        sets = ", ".join(one.name for one in self._sets)
        slides = len(set(self._group_slide.tolist()))
        return f"<PatchDataset of {sets}: {len(self)} patches on {slides} slides, target {self.target!r}>"
