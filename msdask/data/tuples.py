"""TupleDataset: tuples of which a model sees some magnifications, while the label of the whole stays the tuple's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from msdask.data.areas import AreaSet
from msdask.data.dataset import Batch, PatchDataset, Reading
from msdask.data.linked import LinkedSet
from msdask.store.patch_set import PatchSet

__all__ = ["TupleDataset"]


class TupleDataset(PatchDataset):
    """Labeled tuples for one of several models that are compared on the same ones.

    Whatever magnifications a model sees, it gets the same tuples in the same order, and the same label of the whole in
    ``whole`` int64 (B,): that of the centroid, or of the patch of the finest grid. With an `AreaSet`, batches have
    ``area`` float32 (B, M, K), the share of each context that each image covers.

    Parameters
    ----------
    tuples : set of centroids, linked grids, one grid, or the areas of some of these
    slides : ids
    magnifications : that are seen; None means all
    labels_of_each : give the labels at these magnifications as ``label`` (B, M), for n + 1 losses; with an `AreaSet`
        those of the coarse patches that its areas stand for
    """

    _per_patch = (*PatchDataset._per_patch, "_whole", "_share")

    def __init__(
        self,
        tuples: PatchSet | LinkedSet | AreaSet,
        *,
        slides: Sequence[str],
        magnifications: Sequence[float] | None = None,
        labels_of_each: bool = False,
    ) -> None:
        self._areas = areas = tuples if isinstance(tuples, AreaSet) else None
        super().__init__(
            [cast(Any, tuples)],
            magnifications=magnifications,
            slides=slides,
            labels="labeled",
            target="labels" if labels_of_each else "label",
        )
        whole = np.empty(len(self), np.int64)
        share: NDArray[np.float32] | None = None
        for g, group in enumerate(self._groups):
            mine = self._group == g
            rows = self._row[mine]
            whole[mine] = self._sets[0].labels(group.slide_id)[rows, 0]
            if areas is not None:
                of_slide = areas.shares(group.slide_id)[rows]
                share = np.empty((len(self), *of_slide.shape[1:]), np.float32) if share is None else share
                share[mine] = of_slide
        self._whole, self._share = whole, share

    def _label_column(
        self, s: int, slide_id: str, row: NDArray[np.integer[Any]], first: NDArray[np.int16]
    ) -> NDArray[np.int16]:
        if self._areas is not None and self.target == "labels":
            return self._areas.labels_of_areas(slide_id)[row]
        return super()._label_column(s, slide_id, row, first)

    @property
    def class_of(self) -> NDArray[np.float64]:
        """Class of each tuple as a whole: (tuples,) float64."""
        return self._whole.astype(np.float64)

    def by_slide(self) -> list[tuple[str, NDArray[np.int64]]]:
        """Each slide with the rows of its tuples in the finest set, in the order of the dataset."""
        counts = np.bincount(self._group, minlength=len(self._groups))
        parts = np.split(self._row.astype(np.int64), np.cumsum(counts)[:-1]) if len(self) else []
        return [(group.slide_id, rows) for group, rows in zip(self._groups, parts, strict=True)]

    def columns(self, index: NDArray[np.int64]) -> Batch:
        """The columns of a batch of tuples, without images and areas."""
        group = self._group[index]
        return {
            "label": torch.from_numpy(self._label[index].astype(np.int64)),
            "whole": torch.from_numpy(self._whole[index]),
            "index": torch.from_numpy(index),
            "slide": torch.from_numpy(self._group_slide[group]),
            "row": torch.from_numpy(self._row[index].astype(np.int64)),
            "x0": torch.from_numpy(self._x0[index].astype(np.int64)),
            "y0": torch.from_numpy(self._y0[index].astype(np.int64)),
        }

    def begin(
        self, indices: Sequence[int] | NDArray[np.integer[Any]], *, seeds: NDArray[np.int64] | None = None
    ) -> Reading:
        """See `PatchDataset.begin`."""
        index = np.asarray(indices, np.int64).reshape(-1)
        more = {"whole": torch.from_numpy(self._whole[index])}
        if self._share is not None:
            more["area"] = torch.from_numpy(self._share[index])
        reading = super().begin(index, seeds=seeds)
        reading.batch.update(more)
        return reading
