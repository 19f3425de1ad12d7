"""The specs of a run: several grids are cut in one go, the coarsest first, with one mask."""

from __future__ import annotations

from collections.abc import Sequence

from msdask.errors import SpecError
from msdask.spec import ExtractionSpec

__all__ = ["in_order"]


def in_order(spec: ExtractionSpec | Sequence[ExtractionSpec], name: str | None) -> tuple[ExtractionSpec, ...]:
    """The specs of a run, coarsest first."""
    specs = (spec,) if isinstance(spec, ExtractionSpec) else tuple(sorted(spec, key=lambda s: s.magnifications[0]))
    if not specs:
        raise SpecError("extract: no spec given")
    if len(specs) > 1 and (name is not None or any(s.mode != "grid" for s in specs)):
        raise SpecError(
            "extract: several specs must all be of mode 'grid', and get their names from their magnifications"
        )
    if len({(s.mask_mpp, s.min_area_um2, s.max_hole_um2) for s in specs}) > 1:
        raise SpecError(
            "extract: the specs differ in mask_mpp, min_area_um2 or max_hole_um2, but a slide has one mask: make them "
            "the same, or extract one after the other"
        )
    return specs
