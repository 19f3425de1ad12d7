"""Specs in words: in what two differ, and a name that tells one from the other."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from msdask.spec import ExtractionSpec

__all__ = ["spec_differences"]

_SHORT = {"min_tissue": "tissue", "min_label": "label", "patch_size": "px", "mask_mpp": "mask"}


def spec_differences(before: Mapping[str, Any], spec: ExtractionSpec, name: str) -> tuple[str, str]:
    """In what a stored spec and a new one differ, and a name for the new one's set.

    Parameters
    ----------
    before : the stored one, as `ExtractionSpec.to_dict` wrote it
    spec : the new one
    name : of the stored one's set

    Returns
    -------
    told : "min_tissue=0.7, not min_tissue=0.5; roi='whole', not roi='auto'"
    own_name : "grid-10x-224-tissue0.5-roiauto"
    """
    usual = {f.name: f.default for f in fields(spec) if f.default is not MISSING}
    now = spec.to_dict()
    # A field that is as it is by default may not be written.
    pairs = {k: (before.get(k, usual.get(k)), now.get(k, usual.get(k))) for k in sorted({**before, **now})}
    changed = {k: pair for k, pair in pairs.items() if pair[0] != pair[1]}
    told = "; ".join(f"{k}={was!r}, not {k}={new!r}" for k, (was, new) in changed.items())
    # With the shell's --threshold both are changed alike: once is enough in a name.
    shown = {k: new for k, (_, new) in changed.items() if k != "min_label" or "min_tissue" not in changed}
    parts = [_part(_SHORT.get(k, k.replace("_", "-")), new) for k, new in shown.items()]
    return told, "-".join((name, *parts))


def _part(name: str, value: Any) -> str:
    """Of a set's name, what a field says: "tissue0.5", "label-maps" or "no-label-maps"."""
    if isinstance(value, bool):
        return name if value else f"no-{name}"
    return f"{name}{_word(value)}"


def _word(value: Any) -> str:
    values = value if isinstance(value, (list, tuple)) else [value]
    text = "x".join(f"{v:g}" if isinstance(v, (int, float)) and not isinstance(v, bool) else str(v) for v in values)
    return re.sub(r"[^\w.-]", "", text)
