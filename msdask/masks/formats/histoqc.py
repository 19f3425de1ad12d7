"""HistoQC's tissue masks: `<name>/<name>_mask_use.png` in its output folder, 255 = tissue."""

from __future__ import annotations

from typing import Final

from msdask.masks.formats.base import Canvas, MaskContent
from msdask.masks.formats.raster import read_raster
from msdask.storage.source import ByteSource

__all__ = ["HISTOQC_SUFFIX", "HistoQC", "HistoQCFolder"]

HISTOQC_SUFFIX: Final = "_mask_use.png"


class HistoQC:
    """A mask in HistoQC's output folder, which has a folder a slide."""

    name = "HistoQC"
    priority = 10
    reason = "its masks are PNG files too, but their name says that they show tissue"
    places: tuple[str, ...] = (f"{{name}}/{{name}}{HISTOQC_SUFFIX}",)
    is_drawn = False

    def recognizes(self, path: str, head: bytes) -> bool:
        """By the name that HistoQC gives."""
        return path.endswith(HISTOQC_SUFFIX)

    def read(self, source: ByteSource, canvas: Canvas | None) -> MaskContent:
        """Pixels as stored, which show tissue."""
        return MaskContent(read_raster(source), kind="tissue")


class HistoQCFolder(HistoQC):
    """The same mask, looked for in HistoQC's folder of one slide."""

    priority = 90
    reason = "a folder of masks is seldom HistoQC's folder of one slide"
    places: tuple[str, ...] = (f"{{name}}{HISTOQC_SUFFIX}",)
