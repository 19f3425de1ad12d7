"""Label masks: pixel-wise annotated images, read with an explicit table from mask values to classes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from msdask.errors import MaskError, SpecError
from msdask.masks.files import SlideShape, distinct_values, format_values, mask_attrs, open_mask

__all__ = ["read_label_mask"]

_MAX_CLASSES: Final = 32_767
"""Tables hold classes as int16."""


def read_label_mask(
    path: str | os.PathLike[str],
    *,
    values: Mapping[int, int] | Sequence[int] | None,
    classes: Sequence[str] | None = None,
    slide: SlideShape | None = None,
) -> xr.DataArray:
    """Read an annotated mask as labels: 0 = unlabeled, k + 1 = class k (spec section 5).

    What is labeled counts as tissue where a slide has a label mask and no tissue mask.

    Parameters
    ----------
    path : PNG or TIFF; palette and 16-bit images are read as stored
    values : which mask value means which 0-based class: {50: 0, 100: 1}, or [50, 100] for the same; class -1 means
        unlabeled, as does the value 0 unless the table has it. None: the mask holds 0 = unlabeled, 1 = class 0, 2 =
        class 1, ... already; without `classes` it must hold all of them, since 0, 50, 100 would be another coding
    classes : names of the classes, in order
    slide : the slide that the mask belongs to; the mask's aspect ratio is checked against it

    Returns
    -------
    labels : (y, x) uint8, uint16 for more than 254 classes
        attrs: "classes" (tuple of names, "0", "1", ... if not given), "source" (the file), and with `slide`
        "slide_shape", its (height, width) at level 0.

    Raises
    ------
    SpecError
        The table makes no sense: a class below -1, one value twice, fewer names than classes.
    MaskError
        No such file; values that the table does not have; or sides in another proportion than the slide's (by more
        than 1 %).

    Examples
    --------
    >>> import msdask as ms
    >>> labels = ms.read_label_mask("colon.png", values=[50, 100, 150, 200, 250])  # doctest: +SKIP
    """
    file = os.fspath(path)
    table = None if values is None else _class_table(values)
    names = _class_names(table, classes)
    stored = open_mask(file, slide)
    found = distinct_values(stored)
    if table is None:
        n_classes = _check_ready_labels(file, found, names)
        names = names or tuple(str(k) for k in range(n_classes))
        table = {value: value - 1 for value in range(1, n_classes + 1)}
    _check_known(file, found, table)
    labels = _remap(stored, found, {0: -1} | table, dtype=np.uint8 if len(names) <= 254 else np.uint16)
    return xr.DataArray(labels, dims=("y", "x"), name="labels", attrs={"classes": names} | mask_attrs(file, slide))


def _class_table(values: Mapping[int, int] | Sequence[int]) -> dict[int, int]:
    """Mask value -> class, checked."""
    pairs = list(values.items()) if isinstance(values, Mapping) else [(value, k) for k, value in enumerate(values)]
    table: dict[int, int] = {}
    for value, k in pairs:
        if not _is_integer(value) or not _is_integer(k) or not -1 <= k < _MAX_CLASSES:
            raise SpecError(
                f"values={values!r}: {value!r} -> {k!r}; expected a whole mask value and a class from 0 (or -1 for "
                "unlabeled), such as {50: 0}"
            )
        if int(value) in table:
            raise SpecError(f"values={values!r}: {value!r} appears twice; expected each mask value once")
        table[int(value)] = int(k)
    if not any(k >= 0 for k in table.values()):
        raise SpecError(f"values={values!r}: no class; expected at least one, such as {{50: 0}}")
    return table


def _is_integer(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _class_names(table: dict[int, int] | None, classes: Sequence[str] | None) -> tuple[str, ...]:
    """Names of the classes; empty where neither names nor a table say how many there are."""
    n_classes = 0 if table is None else max(table.values()) + 1
    if classes is None:
        return tuple(str(k) for k in range(n_classes))
    if isinstance(classes, str):
        raise SpecError(f"classes={classes!r}: expected a list of names, such as ['normal', 'cancer']")
    names = tuple(str(name) for name in classes)
    if len(names) < max(n_classes, 1):
        raise SpecError(
            f"classes={list(names)!r}: {len(names)} names for {max(n_classes, 1)} classes; expected one for each"
        )
    if len(set(names)) < len(names):
        raise SpecError(f"classes={list(names)!r}: a name appears twice; expected each class once")
    return names


def _check_ready_labels(file: str, found: NDArray[np.int64], names: tuple[str, ...]) -> int:
    """Number of classes of a mask that is said to hold labels as they are; refuses one that does not."""
    largest = int(found[-1])
    if names:
        is_ready, expected = (
            found[0] >= 0 and largest <= len(names),
            f"0 to {len(names)} (0 = unlabeled, then the {len(names)} classes)",
        )
    else:
        positive = found[found != 0]
        is_ready = np.array_equal(positive, np.arange(1, positive.size + 1)) and positive.size <= _MAX_CLASSES
        expected = "0 = unlabeled, 1, 2, ... without a gap"
    if not is_ready:
        raise MaskError(
            f"label mask '{file}': values {format_values(found)}; expected {expected}; say what each value means: "
            "values={value: class, ...}"
            + ("" if names else ", or name all classes if some do not occur here: classes=[...]")
        )
    return len(names) or largest


def _check_known(file: str, found: NDArray[np.int64], table: dict[int, int]) -> None:
    """Refuse values that the table does not have; 0 needs no entry."""
    unknown = found[(found != 0) & ~np.isin(found, list(table))]
    if unknown.size:
        expected = format_values(np.array(sorted({0, *table}), np.int64), limit=20)
        raise MaskError(
            f"label mask '{file}': unknown values {format_values(unknown)} (found {format_values(found)}; expected "
            f"{expected}); add them to values={{value: class, ...}}, with class -1 for what is to be unlabeled"
        )


def _remap(
    stored: NDArray[np.integer] | NDArray[np.bool_],
    found: NDArray[np.int64],
    table: dict[int, int],
    *,
    dtype: type[np.unsignedinteger],
) -> NDArray[np.unsignedinteger]:
    """Each stored value replaced by its class + 1."""
    labels_of_found = np.array([table[value] + 1 for value in found.tolist()], dtype=dtype)
    if stored.dtype.kind in "bu" and stored.dtype.itemsize <= 2:
        lookup = np.zeros(1 << (8 * stored.dtype.itemsize), dtype)
        lookup[found] = labels_of_found
        return np.take(lookup, stored)
    return labels_of_found[np.searchsorted(found, stored)]
