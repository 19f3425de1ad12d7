"""What a notebook shows of a slide: one small table, and a picture where it is cheap."""

from __future__ import annotations

import base64
from html import escape
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from msdask.slide import Slide

__all__ = ["slide_html"]

_PICTURE_SIZE = 320


def slide_html(slide: Slide, title: str, picture: NDArray[np.uint8] | None) -> str:
    """HTML of a slide: name, size, scale, levels, warnings, picture."""
    height, width = slide.shape
    rows = [("size", f"{width:,} x {height:,} px")]
    if slide.mpp is None:
        rows.append(("scale", escape(slide.scale.problem)))
    else:
        used = slide.mpp_used
        snapped = f", planned as {used:g}" if used != slide.mpp else ""
        rows.append(
            (
                "scale",
                f"{slide.mpp:g} um/px{snapped} ({10 / used:g}x; {escape(str(slide.mpp_source))}, {slide.quality})",
            )
        )
        rows.append(("extent", f"{width * used / 1000:.2f} x {height * used / 1000:.2f} mm"))
    if slide.objective_power:
        rows.append(("objective", f"{slide.objective_power:g}x"))
    levels = ", ".join(f"{i.shape[1]:,} x {i.shape[0]:,} (1/{i.downsample:g})" for i in slide.level_infos)
    rows.append(("levels", levels))
    rows.append(("format", escape(f"{slide.format}, {slide.vendor}")))
    if slide.associated:
        rows.append(("associated", escape(", ".join(slide.associated))))
    rows.extend(("warning", escape(w)) for w in slide.warnings)
    cells = "".join(
        f"<tr><th style='text-align:left'>{key}</th><td style='text-align:left'>{value}</td></tr>"
        for key, value in rows
    )
    image = (
        f"<img alt='{title}' src='{_data_url(picture)}' style='max-height:{_PICTURE_SIZE}px'>"
        if picture is not None
        else ""
    )
    return (
        f"<div "
        f"style='display:flex;gap:1em;align-items:flex-start'>{image}<div><strong>{title}</strong><table>{cells}</table></div></div>"
    )


def _data_url(picture: NDArray[np.uint8]) -> str:
    scale = min(1.0, _PICTURE_SIZE / max(picture.shape[:2]))
    small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else picture
    _, encoded = cv2.imencode(".jpg", np.ascontiguousarray(small[:, :, ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 85])
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()
