"""Label masks: pixel-wise annotated images, read with an explicit table from mask values to classes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from msdask.errors import MaskError, SpecError
from msdask.masks.files import SlideShape, distinct_values, format_values, mask_attrs, mask_file, open_mask
from msdask.masks.formats import MaskContent
from msdask.masks.label_plane import MAX_LABEL
from msdask.masks.outline_plane import OutlinePlane
from msdask.masks.shown import Mask

__all__ = ["Values", "as_labels", "as_plane", "read_label_mask"]

Values: TypeAlias = Mapping[int, int] | Mapping[str, int] | Sequence[int | str]
"""Mask value, or name of a class in the file -> 0-based class; or such values in the order of the classes."""
_Table: TypeAlias = dict[int | str, int]

_MAX_CLASSES: Final = 32_767
"""Tables hold classes as int16."""


def read_label_mask(
    path: str | os.PathLike[str],
    *,
    values: Values | None = None,
    classes: Sequence[str] | None = None,
    slide: SlideShape | None = None,
    shape: tuple[int, int] | None = None,
) -> xr.DataArray:
    """Read an annotated mask as labels: 0 = unlabeled, k + 1 = class k (spec section 5).

    What is labeled counts as tissue where a slide has a label mask and no tissue mask.

    Parameters
    ----------
    path : PNG or TIFF; palette and 16-bit images are read as stored; or, with `slide` given, annotations of ASAP,
        ImageScope or QuPath, which are drawn, or a folder of masks (see `find_mask`)
    values : which mask value means which 0-based class: {50: 0, 100: 1}, or [50, 100] for the same; class -1 means
        unlabeled, as does the value 0 unless the table has it. For a file that names its classes, their names stand
        for the values: {"tumor": 0, "stroma": 1}. None: the mask holds 0 = unlabeled, 1 = class 0, 2 = class 1, ...
        already; without `classes` it must hold all of them, since 0, 50, 100 would be another coding; or it names its
        classes, which are taken in the order of `classes`, or else of the file
    classes : names of the classes, in order
    slide : the slide that the mask belongs to; the mask's aspect ratio is checked against it
    shape : (height, width) px at which formats of outlines are drawn; None means 1/32 of the slide

    Returns
    -------
    labels : (y, x) uint8, uint16 for more than 254 classes
        attrs: "classes" (tuple of names, "0", "1", ... if not given), "source" (the file), and with `slide`
        "slide_shape", its (height, width) at level 0.

    Raises
    ------
    SpecError
        The table makes no sense: a class below -1, one value twice, fewer names than classes; names for a file that has
        values, or values for one that has names.
    MaskError
        No such file; values that the table does not have; a tissue mask without a table; or sides in another proportion
        than the slide's (by more than 1 %).

    Examples
    --------
    >>> import msdask as ms
    >>> labels = ms.read_label_mask("colon.png", values=[50, 100, 150, 200, 250])  # doctest: +SKIP
    """
    table = None if values is None else _class_table(values)
    names = _class_names(table, classes)
    file = mask_file(path, slide)
    return _as_labels(open_mask(file, slide, shape), file, slide, table, names)


def as_labels(content: MaskContent, file: str, slide: SlideShape | None, values: Values | None) -> xr.DataArray:
    """What a file holds, as labels; see `read_label_mask`."""
    table = None if values is None else _class_table(values)
    return _as_labels(content, file, slide, table, _class_names(table, None))


def as_plane(content: MaskContent, file: str, slide: SlideShape, values: Values | None) -> OutlinePlane | None:
    """What a file of outlines holds, as a plane that label maps are drawn from at any scale.

    None where the file holds px, or more classes than a label map can hold: what `as_labels` gives is all there is.
    """
    if content.outlines is None:
        return None
    table = None if values is None else _class_table(values)
    by_value, names = _by_value(content.classes, file, table, _class_names(table, None))
    if len(names) > MAX_LABEL:
        return None
    labels = [by_value[value] + 1 for value in range(1, len(content.classes) + 1)]
    what = f"label mask '{file}'"
    return OutlinePlane.of(content.outlines, slide.shape, labels=labels, classes=names, what=what)


def _as_labels(
    content: MaskContent, file: str, slide: SlideShape | None, table: _Table | None, names: tuple[str, ...]
) -> xr.DataArray:
    if content.kind == "tissue" and table is None:
        raise MaskError(
            f"label mask '{file}': it shows tissue, not classes; say what its values mean: values={{255: 0}}, or read "
            "it as a tissue mask: read_tissue_mask(path), or masks=... of extract"
        )
    # What is too small to be seen where outlines are drawn is in their file all the same.
    is_drawn = content.outlines is not None
    found = np.arange(len(content.classes) + 1) if is_drawn else distinct_values(content.values)
    if content.classes:
        by_value, names = _by_value(content.classes, file, table, names)
    elif table is None:
        n_classes = _check_ready_labels(file, found, names)
        names = names or tuple(str(k) for k in range(n_classes))
        by_value = {value: value - 1 for value in range(1, n_classes + 1)}
    else:
        by_value = {_whole(value, k): k for value, k in table.items()}
    _check_known(file, found, by_value, content.classes)
    labels = _remap(content.values, found, {0: -1} | by_value, dtype=np.uint8 if len(names) <= 254 else np.uint16)
    return Mask(labels, dims=("y", "x"), name="labels", attrs={"classes": names} | mask_attrs(file, slide))


def _by_value(
    own: tuple[str, ...], file: str, table: _Table | None, names: tuple[str, ...]
) -> tuple[dict[int, int], tuple[str, ...]]:
    """(value -> class, names of the classes) of a file that names its classes: the value k + 1 is `own[k]`."""
    if table is None:
        names = names or own
        table = {name: k for k, name in enumerate(names)}
    if numbers := [value for value in table if not isinstance(value, str)]:
        raise SpecError(
            f"label mask '{file}': values={{{numbers[0]}: ...}}, but the file names its classes {list(own)}; give "
            "these names: values={name: class, ...}"
        )
    return {k + 1: table[name] for k, name in enumerate(own) if name in table}, names


def _class_table(values: Values) -> _Table:
    """Mask value, or name of a class in the file -> class, checked."""
    if isinstance(values, str):
        raise SpecError(f"values={values!r}: expected a table or a list, such as {{50: 0}} or ['normal', 'cancer']")
    pairs: list[tuple[Any, Any]] = (
        list(values.items()) if isinstance(values, Mapping) else [(value, k) for k, value in enumerate(values)]
    )
    table: _Table = {}
    for value, k in pairs:
        if not isinstance(value, str):
            value = _whole(value, k)
        if not _is_integer(k) or not -1 <= k < _MAX_CLASSES:
            raise _no_class(value, k)
        if value in table:
            raise SpecError(f"values={values!r}: {value!r} appears twice; expected each mask value once")
        table[value] = int(k)
    if not any(k >= 0 for k in table.values()):
        raise SpecError(f"values={values!r}: no class; expected at least one, such as {{50: 0}}")
    return table


def _whole(value: Any, k: Any) -> int:
    if not _is_integer(value):
        raise _no_class(value, k)
    return int(value)


def _no_class(value: Any, k: Any) -> SpecError:
    return SpecError(
        f"values: {value!r} -> {k!r}; expected a whole mask value and a class from 0 (or -1 for unlabeled), such as "
        "{50: 0}; names of classes are for files that have them"
    )


def _is_integer(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _class_names(table: _Table | None, classes: Sequence[str] | None) -> tuple[str, ...]:
    """Names of the classes; empty where neither names nor a table say how many there are."""
    n_classes = 0 if table is None else max(table.values()) + 1
    if classes is None:
        named = {k: value for value, k in reversed((table or {}).items()) if isinstance(value, str)}
        return tuple(str(named.get(k, k)) for k in range(n_classes))
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


def _check_known(file: str, found: NDArray[np.int64], table: dict[int, int], own: tuple[str, ...]) -> None:
    """Refuse values, or classes, that the table does not have; 0 needs no entry."""
    unknown = found[(found != 0) & ~np.isin(found, list(table))]
    if unknown.size and own:
        raise MaskError(
            f"label mask '{file}': unknown classes {[own[value - 1] for value in unknown.tolist()]} (it has "
            f"{list(own)}); add them to classes=[...] or values={{name: class, ...}}, with class -1 for what is to be "
            "unlabeled"
        )
    if unknown.size:
        expected = format_values(np.array(sorted({0, *table}), np.int64), limit=20)
        raise MaskError(
            f"label mask '{file}': unknown values {format_values(unknown)} (found {format_values(found)}; expected "
            f"{expected}); add them to values=..., or, in Python, give {{value: class, ...}} with class -1 for what is "
            "unlabeled"
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
