"""What a patch set that is exported as images has in any layout: which of its patches, in which form, and where to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdask.exports.image_form import ImageForm
from msdask.spec import format_magnification
from msdask.store.keep_rule import Keep
from msdask.store.patch_set import PatchSet

__all__ = ["ExportedSet", "StoredRows", "magnification_text"]


def magnification_text(magnification: float) -> str:
    """A magnification as folder names and lists show it: 20.0 -> "20", 1.25 -> "1.25"."""
    return format_magnification(magnification).removesuffix("x")


@dataclass(frozen=True)
class StoredRows:
    """A slide's exported patches, without pixels; patch `i` of the export is row `rows[i]` of the store.

    Attributes
    ----------
    rows : (n,) int64, rows of the slide's arrays
    x0, y0 : (n, m) int32, level-0 px
    label : (n, m) int16, 0-based class, -1 = none
    number : (stored,) int64, number of each stored patch in the export, -1 where it is left out
    """

    rows: NDArray[np.int64]
    x0: NDArray[np.int32]
    y0: NDArray[np.int32]
    label: NDArray[np.int16]
    number: NDArray[np.int64]


@dataclass(frozen=True)
class ExportedSet(ABC):
    """One patch set on its way to a folder of images.

    Attributes
    ----------
    patch_set : what is exported
    root : absolute path of the folder that holds all of it
    keep : which patches, see `msdask.store.keep_rule.Keep`
    form : of the images
    """

    patch_set: PatchSet
    root: str
    keep: Keep
    form: ImageForm

    @property
    def magnifications(self) -> tuple[float, ...]:
        """Of the set, highest first."""
        return self.patch_set.spec.magnifications

    def stored_rows(self, slide_id: str) -> StoredRows:
        """Coordinates and labels of the patches that are exported, in the order of the store.

        Raises
        ------
        StoreError
            The slide is not complete, or a table is damaged.
        """
        names = ("x0", "y0", "label")
        columns = dict(zip(names, self.patch_set.columns(slide_id, names), strict=True))
        taken = self.patch_set.kept(slide_id, self.keep)
        rows = np.flatnonzero(taken)
        number = np.where(taken, np.cumsum(taken) - 1, -1)
        return StoredRows(rows, columns["x0"][rows], columns["y0"][rows], columns["label"][rows], number)

    @abstractmethod
    def slide_folder(self, slide_id: str) -> str:
        """Absolute path of the folder with a slide's images."""

    @abstractmethod
    def files(self, slide_id: str, stored: StoredRows, column: int) -> list[str]:
        """Paths of a slide's images at one magnification below the folder that `placing` gives, one a row."""

    @abstractmethod
    def tables(self, slide_id: str, stored: StoredRows, column: int) -> dict[str, list[Sequence[Any]]]:
        """Tables of a slide at one magnification: path below the folder that `placing` gives -> rows."""

    @abstractmethod
    def placing(self, slide_id: str) -> AbstractContextManager[Path]:
        """Give a folder that is not there yet; what is made in it takes the place of the slide's images at the end.

        An error leaves what was there before.
        """

    def check(self) -> None:  # noqa: B027
        """Look at what is there already, before any set is begun; a StoreError where it cannot be replaced."""

    def begin(self, slide_ids: Collection[str]) -> None:  # noqa: B027
        """What comes before the first slide."""

    def finish(self, slide_ids: Collection[str]) -> None:  # noqa: B027
        """What comes after the last slide; `slide_ids` are those whose images are in place."""
