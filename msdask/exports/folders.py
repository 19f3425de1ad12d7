"""Folders, file names and tables of Multi_Scale_Tools' patches: where an export puts what its scripts look for.

Below the output folder:

- grids: ``single_magnifications/magnification_10x/<slide>/<slide>_0.png``
- tuples: ``multi_magnifications_centers/MAGNIFICATIONS__20_10_/<slide>/magnification_20x/<slide>_0.png``
- labelled: ``pixel_wise_single_magnifications``, ``pixel_wise_multi_magnifications_centers/MAGNIFICATIONS_20_10``
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msdask.errors import StoreError
from msdask.exports.exported_set import ExportedSet, StoredRows, magnification_text
from msdask.exports.image_form import ENDINGS, ImageForm
from msdask.storage.files import replacing_folder
from msdask.store.keep_rule import Keep
from msdask.store.patch_set import PatchSet

__all__ = ["PatchFolders"]


@dataclass(frozen=True)
class PatchFolders(ExportedSet):
    """Where one patch set is exported to, in Multi_Scale_Tools' layout.

    Attributes
    ----------
    is_labelled : whether a slide of the set has labels; decides folders and tables
    """

    is_labelled: bool

    @classmethod
    def below(cls, output: str | os.PathLike[str], patch_set: PatchSet, *, keep: Keep, form: ImageForm) -> PatchFolders:
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
        return cls(patch_set, os.path.join(os.path.abspath(output), prefix + kind, folder), keep, form, is_labelled)

    @property
    def is_grid(self) -> bool:
        """Whether patches lie in the slide's folder itself, not in one folder a magnification."""
        return self.patch_set.spec.mode == "grid"

    def slide_folder(self, slide_id: str) -> str:
        """See `ExportedSet`."""
        return os.path.join(self.root, slide_id)

    def subfolder(self, column: int) -> str:
        """Where, inside a slide's folder, the patches of one magnification lie; "" for the folder itself."""
        return "" if self.is_grid else f"magnification_{magnification_text(self.magnifications[column])}x"

    def paths(self, slide_id: str, column: int, numbers: Iterable[int]) -> list[str]:
        """Absolute paths of patches of a slide at the magnification at `column`."""
        folder = os.path.join(self.slide_folder(slide_id), self.subfolder(column))
        prefix = os.path.join(folder, slide_id)
        return [f"{prefix}_{number}{self.form.ending}" for number in numbers]

    def files(self, slide_id: str, stored: StoredRows, column: int) -> list[str]:
        """See `ExportedSet`."""
        names = (f"{slide_id}_{number}{self.form.ending}" for number in range(len(stored.rows)))
        return [os.path.join(self.subfolder(column), name) for name in names]

    @contextmanager
    def placing(self, slide_id: str) -> Iterator[Path]:
        """See `ExportedSet`; a slide's folder is replaced as a whole."""
        folder = Path(self.slide_folder(slide_id))
        with replacing_folder(folder) as part:
            _check_foreign(folder, slide_id)
            yield part

    def tables(self, slide_id: str, stored: StoredRows, column: int) -> dict[str, list[Sequence[Any]]]:
        """The slide's tables at one magnification: path below its folder -> rows.

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
        return {os.path.join(self.subfolder(column), f"{slide_id}_{kind}_densely.csv"): r for kind, r in tables.items()}


def _check_foreign(folder: Path, slide_id: str) -> None:
    """Refuse to replace a folder with files that no export has written."""
    endings = "|".join(re.escape(ending) for ending in ENDINGS.values())
    ours = re.compile(rf"{re.escape(slide_id)}_(\d+({endings})|(coords|labels|paths)_densely\.csv)")
    for place, _, files in os.walk(folder):
        foreign = [file for file in sorted(files) if not ours.fullmatch(file)]
        if foreign:
            raise StoreError(
                f"'{place}' holds '{foreign[0]}', which is no exported file: move it away, or export to another folder"
            )
