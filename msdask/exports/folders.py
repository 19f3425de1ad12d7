"""Folders, file names and tables of Multi_Scale_Tools' patches: where an export puts what its scripts look for.

Below the output folder:

- grids: ``single_magnifications/magnification_10x/<slide>/<slide>_0.png``
- tuples: ``multi_magnifications_centers/MAGNIFICATIONS__20_10_/<slide>/magnification_20x/<slide>_0.png``
- labelled: ``pixel_wise_single_magnifications``, ``pixel_wise_multi_magnifications_centers/MAGNIFICATIONS_20_10``
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdask.spec import format_magnification
from msdask.store.keep_rule import Keep
from msdask.store.patch_set import PatchSet

__all__ = ["PatchFolders", "StoredRows", "magnification_text"]


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
class PatchFolders:
    """Where one patch set is exported to.

    Attributes
    ----------
    patch_set : what is exported
    root : absolute path of the folder that holds a folder for every slide
    is_labelled : whether a slide of the set has labels; decides folders and tables
    keep : whether patches whose verdict `keep` is False are left out
    """

    patch_set: PatchSet
    root: str
    is_labelled: bool
    keep: Keep

    @classmethod
    def below(cls, output: str | os.PathLike[str], patch_set: PatchSet, *, keep: Keep) -> PatchFolders:
        """The folders of `patch_set` below `output`."""
        counts = [patch_set.attrs(slide_id)["counts"] for slide_id in patch_set.slides]
        is_labelled = any(c["labeled"] > 0 for c in counts)
        texts = [magnification_text(m) for m in patch_set.spec.magnifications]
        if patch_set.spec.mode == "grid":
            kind, folder = "single_magnifications", f"magnification_{texts[0]}x"
        else:
            joined = "_".join(texts)
            # Its two scripts differ: only the one without labels puts an underscore around the numbers.
            kind, folder = "multi_magnifications_centers", f"MAGNIFICATIONS_{joined if is_labelled else f'_{joined}_'}"
        prefix = "pixel_wise_" if is_labelled else ""
        return cls(patch_set, os.path.join(os.path.abspath(output), prefix + kind, folder), is_labelled, keep)

    @property
    def magnifications(self) -> tuple[float, ...]:
        """Of the set, highest first."""
        return self.patch_set.spec.magnifications

    @property
    def is_grid(self) -> bool:
        """Whether patches lie in the slide's folder itself, not in one folder a magnification."""
        return self.patch_set.spec.mode == "grid"

    def slide_folder(self, slide_id: str) -> str:
        """Folder of a slide."""
        return os.path.join(self.root, slide_id)

    def subfolder(self, column: int) -> str:
        """Where, inside a slide's folder, the patches of one magnification lie; "" for the folder itself."""
        return "" if self.is_grid else f"magnification_{magnification_text(self.magnifications[column])}x"

    def paths(self, slide_id: str, column: int, numbers: Iterable[int]) -> list[str]:
        """Absolute paths of patches of a slide at the magnification at `column`."""
        folder = os.path.join(self.slide_folder(slide_id), self.subfolder(column))
        prefix = os.path.join(folder, slide_id)
        return [f"{prefix}_{number}.png" for number in numbers]

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

    def tables(self, slide_id: str, stored: StoredRows, column: int) -> dict[str, list[Sequence[Any]]]:
        """The slide's tables at one magnification: file name -> rows.

        Coordinates are (path, level 0, x, y, the slide's own magnification). Labels of a grid are (path, class), of
        tuples (path, class of the centroid, class at this magnification). Without labels there is a table of paths.
        """
        paths = self.paths(slide_id, column, range(len(stored.rows)))
        own = 10.0 / float(self.patch_set.attrs(slide_id)["mpp_used"])
        origins = zip(paths, stored.x0[:, column].tolist(), stored.y0[:, column].tolist(), strict=True)
        tables: dict[str, list[Sequence[Any]]] = {"coords": [(path, 0, x, y, own) for path, x, y in origins]}
        if self.is_labelled:
            labels = [stored.label[:, 0].tolist()] + ([] if self.is_grid else [stored.label[:, column].tolist()])
            tables["labels"] = list(zip(paths, *labels, strict=True))
        else:
            tables["paths"] = [(path,) for path in paths]
        return {f"{slide_id}_{kind}_densely.csv": rows for kind, rows in tables.items()}
