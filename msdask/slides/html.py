"""What a notebook shows of an object: a title, one small table, and a picture where it is cheap."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["facts_html"]

_PICTURE_SIZE = 320


def facts_html(title: str, facts: Sequence[tuple[str, str]], picture: NDArray[np.uint8] | None = None) -> str:
    """HTML of an object: its title, its facts as a table, its picture; all text is escaped.

    Parameters
    ----------
    facts : (name, value), in the order shown
    picture : (y, x, 3) uint8; made small
    """
    title = escape(title)
    cells = "".join(
        f"<tr><th style='text-align:left'>{escape(key)}</th><td style='text-align:left'>{escape(value)}</td></tr>"
        for key, value in facts
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
