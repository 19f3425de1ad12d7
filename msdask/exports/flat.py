"""All images of a patch set in one folder: names that say slide, place and magnification, and one table of them.

Below the output folder, of a set of tuples:

- ``centroids-20x-10x-224/a.svs_x1024_y-64_20x.png``, ``.../a.svs_x1024_y-64_10x.png``: the place is the tuple's
- ``centroids-20x-10x-224/images.csv``

The table is rewritten without a run's slides before the first of them is touched, and with them after the last: it
lists whole slides only, also when a run is killed.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msdask.errors import StoreError
from msdask.exports.exported_set import ExportedSet, StoredRows
from msdask.exports.image_form import ENDINGS, ImageForm
from msdask.spec import format_magnification
from msdask.storage.tables import write_table
from msdask.store.keep_rule import Keep
from msdask.store.patch_set import PatchSet

__all__ = ["FlatFolder"]

TABLE = "images.csv"
# What comes before the last place is the slide, whatever it is called: two slides never have one name.
_NAME = re.compile(rf"(.+)_x-?\d+_y-?\d+(_[\d.]+x)?({'|'.join(map(re.escape, ENDINGS.values()))})", re.DOTALL)


@dataclass(frozen=True)
class FlatFolder(ExportedSet):
    """Where one patch set is exported to, all images in one folder."""

    _before: dict[str, list[str]] = field(default_factory=dict)
    """Slide of the run -> names of its images from earlier exports."""

    @classmethod
    def below(cls, output: str | os.PathLike[str], patch_set: PatchSet, *, keep: Keep, form: ImageForm) -> FlatFolder:
        """The folder of `patch_set` below `output`."""
        return cls(patch_set, os.path.join(os.path.abspath(output), patch_set.name), keep, form)

    @property
    def table(self) -> Path:
        """Path of the table."""
        return Path(self.root, TABLE)

    @property
    def header(self) -> list[str]:
        """Names of the table's columns."""
        texts = [format_magnification(m) for m in self.magnifications]
        return [
            *("slide_id", "row", "split"),
            *(f"{name}_{text}" for text in texts for name in ("file", "x0", "y0", "label")),
        ]

    def slide_folder(self, slide_id: str) -> str:
        """See `ExportedSet`."""
        return self.root

    def files(self, slide_id: str, stored: StoredRows, column: int) -> list[str]:
        """See `ExportedSet`."""
        scale = f"_{format_magnification(self.magnifications[column])}" if len(self.magnifications) > 1 else ""
        places = zip(stored.x0[:, 0].tolist(), stored.y0[:, 0].tolist(), strict=True)
        names = [f"{slide_id}_x{x}_y{y}{scale}{self.form.ending}" for x, y in places]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise StoreError(
                f"two patches of slide '{slide_id}' would both be '{twice}': their places differ by less than a px of "
                "level 0; export them with layout='folders', which numbers them"
            )
        return names

    def tables(self, slide_id: str, stored: StoredRows, column: int) -> dict[str, list[Sequence[Any]]]:
        """None of a slide alone."""
        return {}

    def check(self) -> None:
        """See `ExportedSet`."""
        if not self.table.exists():
            return
        try:
            with self.table.open(newline="", encoding="utf-8") as stream:
                found = next(csv.reader(stream), [])
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise StoreError(f"'{self.table}' cannot be read: {error}; move it away, then export again") from error
        if found != self.header:
            raise StoreError(
                f"'{self.table}' has the columns {found[:4]} ..., and no export of '{self.patch_set.name}' wrote it: "
                "move it away, or export to another folder"
            )

    def begin(self, slide_ids: Collection[str]) -> None:
        """See `ExportedSet`."""
        if not os.path.isdir(self.root):
            return
        self._before.update({slide_id: [] for slide_id in slide_ids})
        for name in os.listdir(self.root):
            found = _NAME.fullmatch(name)
            if found is not None and found[1] in self._before:
                self._before[found[1]].append(name)
        if self.table.exists():
            self._write(slide_ids, ())

    @contextmanager
    def placing(self, slide_id: str) -> Iterator[Path]:
        """See `ExportedSet`."""
        root = Path(self.root)
        part = root / f".{slide_id}.part"
        shutil.rmtree(part, ignore_errors=True)
        try:
            yield part
            for name in self._before.get(slide_id, ()):
                (root / name).unlink(missing_ok=True)
            if part.exists():
                for name in os.listdir(part):
                    os.replace(part / name, root / name)
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def finish(self, slide_ids: Collection[str]) -> None:
        """See `ExportedSet`."""
        self._write(slide_ids, sorted(slide_ids))

    def _write(self, without: Collection[str], slide_ids: Sequence[str]) -> None:
        """Write the table anew: its rows of slides that are not in `without`, then those of `slide_ids`."""
        old = self._rows_of_others(without) if self.table.exists() else iter(())
        new = (row for slide_id in slide_ids for row in self._rows(slide_id))
        write_table(self.table, (row for rows in (old, new) for row in rows), header=self.header)

    def _rows_of_others(self, without: Collection[str]) -> Iterator[Sequence[Any]]:
        with self.table.open(newline="", encoding="utf-8") as stream:
            rows = csv.reader(stream)
            next(rows, None)
            yield from (row for row in rows if row and row[0] not in without)

    def _rows(self, slide_id: str) -> Iterator[Sequence[Any]]:
        stored = self.stored_rows(slide_id)
        split = str(self.patch_set.attrs(slide_id).get("cohort", {}).get("split", ""))
        columns: list[Sequence[Any]] = []
        for m in range(len(self.magnifications)):
            values = (array[:, m].tolist() for array in (stored.x0, stored.y0, stored.label))
            columns += [self.files(slide_id, stored, m), *values]
        for row, *cells in zip(stored.rows.tolist(), *columns, strict=True):
            yield (slide_id, row, split, *cells)
