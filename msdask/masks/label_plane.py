"""A slide's classes at any scale: the label map under each patch, cut from a mask or drawn from outlines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from msdask.errors import MaskError

__all__ = ["MAX_LABEL", "ArrayPlane", "LabelPlane"]

MAX_LABEL: Final = 255
"""Label maps are uint8: 0 = unlabeled, and 255 classes at most."""


class LabelPlane(Protocol):
    """The classes of a slide as a plane that patches are cut from, whatever they are stored as.

    A plane travels to worker processes: it can be pickled.
    """

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the slide's level 0, px."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in order; empty where nobody named them."""
        ...

    def cut(
        self, x0: NDArray[np.int32], y0: NDArray[np.int32], footprints: Sequence[float], patch_size: int
    ) -> NDArray[np.uint8]:
        """The label map under each patch: the class at the center of each patch px, never interpolated.

        Parameters
        ----------
        x0, y0 : (n, m) int32, level-0 px of each patch's corner, for m magnifications
        footprints : (m,) level-0 px of a patch's side, for each magnification
        patch_size : px of a patch's side

        Returns
        -------
        maps : (n, m, y, x) uint8; 0 = unlabeled or outside the slide, k + 1 = class k
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class ArrayPlane:
    """Classes as a label mask of any resolution that covers the whole slide; cut by nearest neighbour.

    Attributes
    ----------
    labels : (mask height, mask width) uint8, 0 = unlabeled, k + 1 = class k
    shape : (height, width) of the slide's level 0, px
    classes : names of the classes
    """

    labels: NDArray[np.uint8]
    shape: tuple[int, int]
    classes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, labels: NDArray[np.integer[Any]], shape: tuple[int, int], classes: Sequence[str] = (), *, what: str
    ) -> ArrayPlane:
        """The plane of a label mask of any integer type.

        Parameters
        ----------
        labels, shape, classes : as for the attributes
        what : names the mask in messages: "label mask 'a.png'"

        Raises
        ------
        MaskError
            The mask is no table of numbers, or has more classes than a label map can hold.
        """
        if labels.ndim != 2 or not labels.size or labels.dtype.kind not in "bui":
            raise MaskError(
                f"{what}: shape {labels.shape} of {labels.dtype}; expected (height, width) whole numbers, 0 = "
                "unlabeled, k + 1 = class k"
            )
        lowest, highest = int(labels.min()), int(labels.max())
        if lowest < 0 or highest > MAX_LABEL:
            wrong = f"label {lowest}" if lowest < 0 else f"class {highest - 1} (label {highest})"
            raise MaskError(
                f"{what}: {wrong}; label maps hold labels from 0 to {MAX_LABEL}, {MAX_LABEL} classes at most: put "
                "classes together, or leave some out with class -1, by values={value: class, ...}"
            )
        return cls(np.ascontiguousarray(labels, np.uint8), (int(shape[0]), int(shape[1])), tuple(map(str, classes)))

    def cut(
        self, x0: NDArray[np.int32], y0: NDArray[np.int32], footprints: Sequence[float], patch_size: int
    ) -> NDArray[np.uint8]:
        """The label map under each patch; see `LabelPlane.cut`."""
        # Coordinates stay separable: (patch, magnification, px) along each axis, combined by one look-up.
        centers = (np.arange(patch_size) + 0.5) * (np.asarray(footprints, np.float64) / patch_size)[:, None]
        height, width = self.labels.shape
        y, y_outside = _places(y0[:, :, None] + centers, self.shape[0], height)
        x, x_outside = _places(x0[:, :, None] + centers, self.shape[1], width)
        maps: NDArray[np.uint8] = self.labels[y[..., :, None], x[..., None, :]]
        if y_outside.any() or x_outside.any():
            maps[y_outside[..., :, None] | x_outside[..., None, :]] = 0
        return maps


def _places(position: NDArray[np.float64], slide: int, mask: int) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Row or column of the mask under each level-0 px, and whether that lies outside the slide."""
    index = np.floor(position * (mask / slide)).astype(np.intp)
    return np.clip(index, 0, mask - 1), (position < 0) | (position >= slide)
