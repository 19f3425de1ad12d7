"""A slide's classes as outlines: each patch draws those that touch it, at its own scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from msdask.errors import MaskError
from msdask.masks.box_index import BoxIndex
from msdask.masks.label_plane import MAX_LABEL
from msdask.masks.outline_drawing import Canvases, draw_outlines
from msdask.masks.outlines import Outlines

__all__ = ["OutlinePlane"]


@dataclass(frozen=True, eq=False, slots=True)
class OutlinePlane:
    """Classes as polygons (see `msdask.masks.label_plane.LabelPlane`); a mask of the whole slide is never made.

    Attributes
    ----------
    outlines : polygons in level-0 px, turned as `Outlines.oriented` gives them
    values : (p,) uint8, what each polygon is drawn as: k + 1 = class k, 0 = unlabeled, wiping out what is under it
    shape : (height, width) of the slide's level 0, px
    classes : names of the classes
    index : of the polygons' boxes
    """

    outlines: Outlines
    values: NDArray[np.uint8]
    shape: tuple[int, int]
    classes: tuple[str, ...]
    index: BoxIndex

    @classmethod
    def of(
        cls,
        outlines: Outlines,
        shape: tuple[int, int],
        *,
        labels: Sequence[int] | None = None,
        classes: Sequence[str] | None = None,
        what: str = "label mask",
    ) -> OutlinePlane:
        """The plane of polygons.

        Parameters
        ----------
        outlines : polygons in level-0 px; of several at one place the last one counts
        shape : (height, width) of the slide's level 0, px
        labels : for each class of the outlines its label: k + 1 = class k, 0 = unlabeled; None: in their order
        classes : names of the classes that the labels mean; None: those of the outlines
        what : names the mask in messages: "label mask 'a.geojson'"

        Raises
        ------
        MaskError
            More classes than a label map can hold.
        """
        table = np.asarray(range(1, len(outlines.classes) + 1) if labels is None else labels, np.int64)
        if table.size and int(table.max()) > MAX_LABEL:
            raise MaskError(
                f"{what}: {int(table.max())} classes; label maps hold {MAX_LABEL} at most: put classes together, or "
                "leave some out with class -1, by values={name: class, ...}"
            )
        turned = outlines.oriented()
        values = table.astype(np.uint8)[turned.class_of]
        names = tuple(outlines.classes if classes is None else classes)
        return cls(turned, values, (int(shape[0]), int(shape[1])), names, BoxIndex.of(turned.boxes))

    def cut(
        self, x0: NDArray[np.int32], y0: NDArray[np.int32], footprints: Sequence[float], patch_size: int
    ) -> NDArray[np.uint8]:
        """The label map under each patch; see `LabelPlane.cut`."""
        sides = np.broadcast_to(np.asarray(footprints, np.float64), x0.shape).reshape(-1)
        corners = np.stack([x0.reshape(-1), y0.reshape(-1)], axis=1).astype(np.float64)
        square, polygon = self.index.touching(np.concatenate([corners, corners + sides[:, None]], axis=1))
        steps = np.repeat(sides[:, None] / patch_size, 2, axis=1)
        canvases = Canvases(corners, steps, (patch_size, patch_size))
        maps = np.asarray(
            draw_outlines(self.outlines, self.values, canvases, polygon=polygon, canvas=square), dtype=np.uint8
        )
        height, width = self.shape
        beyond = (corners < 0).any(axis=1) | (corners + sides[:, None] > (width, height)).any(axis=1)
        if beyond.any():
            edge = np.flatnonzero(beyond)
            centers = (np.arange(patch_size) + 0.5) * steps[edge, :1]
            x, y = corners[edge, :1] + centers, corners[edge, 1:] + centers
            maps[edge] *= ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None, :]
        return maps.reshape(*x0.shape, patch_size, patch_size)
