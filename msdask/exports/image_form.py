"""The form that patches are exported in: PNG, or JPEG of a quality."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from msdask.errors import SpecError
from msdask.spec import Codec
from msdask.store.codecs import JPEG_QUALITY, encode_jpeg

__all__ = ["ENDINGS", "EXPORT_QUALITY", "Form", "ImageForm"]

Form = Literal["png", "jpeg"]
ENDINGS: dict[str, str] = {"png": ".png", "jpeg": ".jpg"}
EXPORT_QUALITY = 90
"""Of JPEGs, where none is asked for."""


@dataclass(frozen=True)
class ImageForm:
    """How a patch becomes a file.

    Attributes
    ----------
    form : "png", which keeps every px as it is; or "jpeg" (4:4:4), which changes them
    quality : of JPEG, 1 to 100; None means the bytes of a store that holds JPEGs as they are, and else 90
    """

    form: Form = "png"
    quality: int | None = None

    def __post_init__(self) -> None:
        if self.form not in ENDINGS:
            raise SpecError(f"form={self.form!r}: expected one of {list(ENDINGS)}")
        if self.quality is not None and self.form != "jpeg":
            raise SpecError(f"quality={self.quality}: is of form='jpeg', and form={self.form!r} was asked for")
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise SpecError(f"quality={self.quality}: expected a whole number from 1 to 100")

    @property
    def ending(self) -> str:
        """Of file names."""
        return ENDINGS[self.form]

    def is_stored(self, codec: Codec) -> bool:
        """Whether patches of a store of this codec are in this form already, so that their bytes are taken."""
        return self.form == "jpeg" and codec == "jpeg" and self.quality in (None, JPEG_QUALITY)

    def encode(self, image: NDArray[np.uint8]) -> bytes:
        """(y, x, 3) uint8 RGB -> the bytes of a file."""
        if self.form == "jpeg":
            return encode_jpeg(image, EXPORT_QUALITY if self.quality is None else self.quality)
        done, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        if not done:
            raise OSError(f"an image of shape {image.shape} cannot be encoded as PNG")
        return data.tobytes()
