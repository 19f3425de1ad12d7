"""What a notebook shows of an object: a title, one small table, and a picture where it is cheap."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["facts_html"]

_PICTURE_SIZE = 320


def facts_html(
    title: str,
    facts: Sequence[tuple[str, str]],
    picture: NDArray[np.uint8] | None = None,
    *,
    is_drawing: bool = False,
) -> str:
    """HTML of an object: its title, its facts as a table, its picture; all text is escaped.

    Parameters
    ----------
    facts : (name, value), in the order shown
    picture : (y, x, 3) uint8; made small
    is_drawing : the picture has few colours, which stay as they are, and a border, since it may end in white
    """
    title = escape(title)
    cells = "".join(
        f"<tr><th style='text-align:left'>{escape(key)}</th><td style='text-align:left'>{escape(value)}</td></tr>"
        for key, value in facts
    )
    image = ""
    if picture is not None:
        border = ";border:1px solid #888" if is_drawing else ""
        address = _png(picture) if is_drawing else _jpeg(picture)
        image = f"<img alt='{title}' src='{address}' style='max-height:{_PICTURE_SIZE}px{border}'>"
    return (
        f"<div "
        f"style='display:flex;gap:1em;align-items:flex-start'>{image}<div><strong>{title}</strong><table>{cells}</table></div></div>"
    )


def _jpeg(picture: NDArray[np.uint8]) -> str:
    scale = min(1.0, _PICTURE_SIZE / max(picture.shape[:2]))
    small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else picture
    return _address(small, "jpeg", [cv2.IMWRITE_JPEG_QUALITY, 85])


def _png(picture: NDArray[np.uint8]) -> str:
    step = max(1.0, max(picture.shape[:2]) / _PICTURE_SIZE)
    rows, columns = (
        np.minimum((np.arange(max(1, int(n / step))) + 0.5) * step, n - 1).astype(int) for n in picture.shape[:2]
    )
    return _address(picture[np.ix_(rows, columns)], "png", [])


def _address(picture: NDArray[Any], kind: str, options: Sequence[int]) -> str:
    _, encoded = cv2.imencode(f".{kind}", np.ascontiguousarray(picture[:, :, ::-1]), options)
    return f"data:image/{kind};base64," + base64.b64encode(encoded.tobytes()).decode()
