"""What each pixel of a stained slide shows, judged against the slide's own glass: stain, ink or darkness, or nothing.

Everything is measured in optical density (OD) relative to the glass, where a stain keeps its direction whatever its
thickness: OD = log10(glass / pixel), per channel. Pure: arrays in, arrays out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from msdask.computing import side_by_side
from msdask.masks.planes import extremes, largest_channel, looked_up

__all__ = ["Glass", "PixelClasses", "classify_pixels", "estimate_glass"]

_WORK_MPP: Final = 8.0
"""Glass is looked for at this scale (um/px) or a coarser one: there glass is smooth and tissue is not."""
_WORK_SIDE: Final = 512
_FIT_PIXELS: Final = 1 << 15
"""About as many pixels as the light is fitted to."""
_STRIP_PIXELS: Final = 2**17
"""px classified at once, in whole rows, so that the OD planes stay in the processor's cache; more where the rows are so
few that those beside them, which are looked at twice, would be as many."""

_ASSUMED_GLASS: Final = (240.0, 240.0, 240.0)
_MIN_GLASS: Final = 150
_MAX_TINT: Final = 0.02
"""Glass inside a canvas may be yellowish or gray; what is pink is pale tissue, and its canvas is the glass."""
_MIN_GLASS_SHARE: Final = 0.02
"""Of a scanned area that is said to have glass."""
_MAX_RANGE: Final = 8
"""Largest difference inside a 3 x 3 window of glass, gray values."""
_COLOR_WINDOW_UM: Final = 56.0
"""How far around a gray pixel color is looked for: brown and blue beside each other blur to gray, pale stroma is gray
between nuclei."""
_MIN_MEAN: Final = 0.02
"""Mean OD from which a pixel's surroundings count for it; below, glass beside tissue would."""
_MAX_BRIGHTER: Final = 12
"""How much brighter than glass the brightest hundredth of an image may be, gray values."""
_MIN_THRESHOLD: Final = 0.035
_PALE_THRESHOLD: Final = 0.03
_MAX_THRESHOLD: Final = 0.06
"""Bounds on Otsu's threshold. Otsu always splits in two, so on a slide of glass or of tissue alone it means nothing."""
_RIM: Final = 0.25
"""A pixel whose score is below this share of the largest around it is blurred over from there."""
_RIM_UM: Final = 16.0
"""How far strong stain reaches out as pale."""
_DARK: Final = 45
"""No stain at low magnification is this dark in all channels; scanner borders and black ink are."""


@dataclass(frozen=True, slots=True)
class Glass:
    """The empty slide under the light.

    Attributes
    ----------
    rgb : gray values of the bare glass
    seen : whether there is glass in the image; if not, `rgb` is an assumed white
    illumination : coefficients of 1, u, v, u^2, uv, v^2 (u, v in -1..1 along x and y) of the OD that uneven light
        adds, or None where the light is even
    is_gray : the image has no color at all, so that color decides nothing
    threshold : OD score from which a pixel counts as stained
    pale_threshold : OD score from which it may be pale tissue; nearly all glass stays below
    """

    rgb: tuple[float, float, float]
    seen: bool
    illumination: tuple[float, ...] | None
    is_gray: bool
    threshold: float
    pale_threshold: float


@dataclass(frozen=True, slots=True)
class PixelClasses:
    """Boolean (y, x) arrays of what the pixels show.

    Attributes
    ----------
    stained : absorbs light, with a color; ink does too
    pale : the same, weakly, and not as the rim of something strongly stained
    faint_ink : has the color of a pen, or is black or gray and dark; a few px of dense tissue do too
    ink : the same, and strongly so; a subset of `faint_ink`
    """

    stained: NDArray[np.bool_]
    pale: NDArray[np.bool_]
    faint_ink: NDArray[np.bool_]
    ink: NDArray[np.bool_]


def estimate_glass(image: NDArray[np.uint8], *, mpp: float, canvas: NDArray[np.bool_] | None = None) -> Glass:
    """Find the level of the bare glass, and from what OD on a pixel is stained.

    Glass is what is bright, smooth and nearly neutral; a yellowish tint is allowed, a pink or blue one is a stain. Of
    several such levels the brightest common one is taken. What was not scanned does not count, unless nothing else
    could be glass.

    Parameters
    ----------
    image : (y, x, 3) uint8, RGB
    mpp : um/px of `image`
    canvas : (y, x) bool, what was not scanned, or None
    """
    small, small_mpp = _reduce(image, mpp)
    scanned = _scanned(canvas, small.shape[:2])
    level, glass_like = _glass_level(small, scanned)
    if canvas is not None and (level is None or _tint(level) > _MAX_TINT or not _is_in_most(glass_like, scanned)):
        scanned[:] = True
        level, glass_like = _glass_level(small, scanned)
    seen = level is not None
    rgb = level if level is not None else _ASSUMED_GLASS
    darkest, largest = extremes(small)
    is_gray = bool((largest - darkest <= 2).all())
    illumination = _fit_illumination(small, glass_like, rgb) if seen else None
    glass = Glass(rgb, seen, illumination, is_gray, _MIN_THRESHOLD, _MIN_THRESHOLD)
    if not seen:
        return glass
    threshold, pale = _thresholds(small, glass, scanned, glass_like, small_mpp)
    return replace(glass, threshold=threshold, pale_threshold=pale)


def classify_pixels(image: NDArray[np.uint8], glass: Glass, *, mpp: float) -> PixelClasses:
    """Tell stain and ink from glass, pixel by pixel.

    Parameters
    ----------
    image : (y, x, 3) uint8, RGB, lightly smoothed
    glass : the glass of this image
    mpp : um/px of `image`
    """
    height, width = image.shape[:2]
    classes = PixelClasses(*(np.zeros((height, width), np.bool_) for _ in range(4)))
    window = _color_window(mpp)
    rim = 2 * round(_RIM_UM / mpp) + 1
    # Rims are judged by scores, and scores by the color around them.
    margin = window // 2 + max(rim, 3) // 2
    rows = max(_STRIP_PIXELS // max(1, width), min(12 * margin, 256), 2 * margin)

    def classify(start: int) -> None:
        stop = min(start + rows, height)
        wide = slice(max(start - margin, 0), min(stop + margin, height))
        own = slice(start - wide.start, stop - wide.start)
        od, brightest = _optical_density(image, glass, wide)
        mean, chroma = _mean_and_chroma(od)
        classes.ink[start:stop], classes.faint_ink[start:stop] = _ink(
            [plane[own] for plane in od], mean[own], chroma[own], brightest[own], glass
        )
        score = _score(mean, chroma, glass, window)
        classes.stained[start:stop] = ((score >= glass.threshold) & ~_is_rim(score, 3))[own]
        classes.pale[start:stop] = ((score >= glass.pale_threshold) & ~_is_rim(score, rim))[own]

    side_by_side(classify, range(0, height, rows))
    return classes


def _is_rim(score: NDArray[np.float32], window: int) -> NDArray[np.bool_]:
    """Whether a pixel is mostly glass, at the edge of something much darker."""
    return np.asarray(score < _RIM * cv2.dilate(score, np.ones((window, window), np.uint8)))


def _color_window(mpp: float) -> int:
    """Side of the window in which color is looked for, px, odd."""
    return 2 * round(_COLOR_WINDOW_UM / mpp / 2) + 1


def _reduce(image: NDArray[np.uint8], mpp: float) -> tuple[NDArray[np.uint8], float]:
    """The image at the working scale, area-averaged, at most `_WORK_SIDE` px a side, and its um/px."""
    height, width = image.shape[:2]
    factor = max(_WORK_MPP / mpp, max(height, width) / _WORK_SIDE)
    if factor <= 1:
        return image, mpp
    size = max(1, round(width / factor)), max(1, round(height / factor))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8), mpp * factor


def _scanned(canvas: NDArray[np.bool_] | None, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """What was scanned, at the working scale; the canvas takes its blurred border with it."""
    if canvas is None:
        return np.ones(shape, np.bool_)
    share = cv2.resize(canvas.view(np.uint8) * np.uint8(255), shape[::-1], interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.dilate(share, np.ones((5, 5), np.uint8)) == 0)


def _tint(level: tuple[float, float, float]) -> float:
    """How much a glass lacks green, as stained tissue does, OD."""
    red, green, blue = (float(np.log10(value + 1)) for value in level)
    return red + blue - 2 * green


def _is_in_most(glass_like: NDArray[np.bool_], scanned: NDArray[np.bool_]) -> bool:
    """Whether most of the scanned areas have glass in them: pale tissue in one of several is none."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(scanned.view(np.uint8), connectivity=4, ltype=cv2.CV_32S)
    area = stats[1:, cv2.CC_STAT_AREA]
    glass = np.bincount(labels[glass_like], minlength=len(stats))[1:]
    return bool(area[glass >= _MIN_GLASS_SHARE * area].sum() >= 0.7 * area.sum())


def _glass_level(
    small: NDArray[np.uint8], scanned: NDArray[np.bool_]
) -> tuple[tuple[float, float, float] | None, NDArray[np.bool_]]:
    """Gray values of the glass (None where there is none), and the pixels that look like glass."""
    kernel = np.ones((3, 3), np.uint8)
    local_range = largest_channel(cv2.subtract(cv2.dilate(small, kernel), cv2.erode(small, kernel)))
    darkest, largest = extremes(small)
    light = np.log10(np.arange(256, dtype=np.float32) + 1)
    most = looked_up(largest, light)
    red, green, blue = (most - looked_up(np.asarray(plane, np.uint8), light) for plane in cv2.split(small))
    # Warm glass lacks blue. Eosin takes green out of the light, haematoxylin red: such a tint is pale, smooth tissue.
    unstained = (most - looked_up(darkest, light) <= 0.06) & (2 * green - red - blue <= 0.04) & (red - blue <= 0.025)
    glass_like = scanned & (local_range <= _MAX_RANGE) & (darkest >= _MIN_GLASS) & unstained
    size = int(scanned.sum())
    if size == 0 or glass_like.sum() < max(min(16, 0.5 * size), 0.005 * size):
        return None, glass_like
    brightness = _brightness(small)
    counts = np.bincount(np.rint(brightness[glass_like]).astype(np.intp), minlength=256)
    smooth = np.convolve(counts, np.ones(5), mode="same")
    peak = int(np.flatnonzero(smooth >= 0.25 * smooth.max())[-1])
    while peak > 0 and smooth[peak - 1] >= smooth[peak]:
        peak -= 1
    # Nothing on a slide is brighter than its glass: if much is, this is pale tissue.
    if np.percentile(brightness[scanned], 99) > peak + _MAX_BRIGHTER:
        return None, glass_like
    chosen = glass_like & (np.abs(brightness - peak) <= 3)
    level = [np.median(plane[chosen]) for plane in cv2.split(small)]
    return (float(level[0]), float(level[1]), float(level[2])), glass_like


def _brightness(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Mean of the channels of each pixel."""
    red, green, blue = (plane.astype(np.float32) for plane in cv2.split(image))
    return (red + green + blue) / np.float32(3)


def _basis(height: int, width: int, *, rows: slice, columns: slice = slice(None)) -> NDArray[np.float32]:
    """1, u, v, u^2, uv, v^2 over some rows and columns of an image: (rows, columns, 6) float32."""
    v = ((np.arange(height, dtype=np.float32) + 0.5) / height * 2 - 1)[rows, None]
    u = ((np.arange(width, dtype=np.float32) + 0.5) / width * 2 - 1)[None, columns]
    one = np.ones((v.shape[0], u.shape[1]), np.float32)
    return np.stack([one, u * one, v * one, u * u * one, u * v, v * v * one], axis=-1)


def _fit_illumination(
    small: NDArray[np.uint8], glass_like: NDArray[np.bool_], rgb: tuple[float, float, float]
) -> tuple[float, ...] | None:
    """Fit how the light varies over the glass; None where it is even, or where glass is too rare to tell."""
    step = max(1, round((glass_like.size / _FIT_PIXELS) ** 0.5))
    every = slice(None, None, step)
    basis, few = _basis(*glass_like.shape, rows=every, columns=every), glass_like[every, every]
    od = np.log10(np.float32(np.mean(rgb)) + 1) - np.log10(_brightness(small[every, every]) + 1)
    used = few & (np.abs(od) <= 0.06)
    spread = [np.ptp(axis) if axis.size else 0 for axis in np.nonzero(used)]
    if used.sum() < max(64, 0.1 * used.size) or any(s < side / 2 for s, side in zip(spread, used.shape, strict=True)):
        return None
    for _ in range(3):
        chosen = basis[used].astype(np.float64)  # six columns of size 1: the normal equations are well conditioned
        coefficients = np.linalg.lstsq(chosen.T @ chosen, chosen.T @ od[used], rcond=None)[0].astype(np.float32)
        residual = np.abs(od - basis @ coefficients)
        used = few & (residual <= max(0.004, 2.5 * float(np.median(residual[used]))))
    surface = basis @ coefficients
    if np.median(residual[used]) > 0.004 or np.ptp(surface) < 0.006 or np.abs(surface).max() > 0.08:
        return None
    return tuple(float(c) for c in coefficients)


def _optical_density(
    image: NDArray[np.uint8], glass: Glass, rows: slice
) -> tuple[list[NDArray[np.float32]], NDArray[np.uint8]]:
    """Of some rows of an image: the OD of red, green and blue, and the largest gray value of each pixel."""
    height, width = image.shape[:2]
    gray = np.arange(256, dtype=np.float32) + 1
    strip = image[rows]
    od = [
        looked_up(np.asarray(plane, np.uint8), (np.log10(level + 1) - np.log10(gray)).astype(np.float32))
        for plane, level in zip(cv2.split(strip), glass.rgb, strict=True)
    ]
    if glass.illumination is not None:
        surface = _basis(height, width, rows=rows) @ np.asarray(glass.illumination, np.float32)
        for plane in od:
            plane -= surface
    for plane in od:
        np.maximum(plane, 0, out=plane)
    return od, largest_channel(strip)


def _mean_and_chroma(od: list[NDArray[np.float32]]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean OD, and the difference between the most and the least absorbed channel."""
    red, green, blue = od
    chroma = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    return (red + green + blue) * np.float32(1 / 3), chroma


def _score(mean: NDArray[np.float32], chroma: NDArray[np.float32], glass: Glass, window: int) -> NDArray[np.float32]:
    """How stained a pixel is: mean OD + chroma, its own or its surroundings'; 0 for what is merely gray (shadows,
    dust, edges). It writes over `chroma`.
    """
    if glass.is_gray:
        return 2 * mean
    around = cv2.blur(chroma, (window, window), borderType=cv2.BORDER_REPLICATE)
    np.maximum(chroma, around, out=chroma, where=mean >= _MIN_MEAN)
    return np.where(chroma >= np.maximum(np.float32(0.012), 0.15 * mean), mean + chroma, np.float32(0))


def _ink(
    od: list[NDArray[np.float32]],
    mean: NDArray[np.float32],
    chroma: NDArray[np.float32],
    brightest: NDArray[np.uint8],
    glass: Glass,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Pens and black, strong and faint.

    The bounds lie between pens and the stains' OD directions (red, green, blue): haematoxylin 0.65, 0.70, 0.29; eosin
    0.07, 0.99, 0.11; DAB 0.27, 0.57, 0.78 (Ruifrok and Johnston, 2001). Blood under eosin is the nearest to a pen; a
    red pen is darker.
    """
    red, green, blue = od
    green_pen = green < 0.8 * np.minimum(red, blue)
    cyan_pen = red > 1.4 * green
    blue_pen = (red > 1.04 * green) & (blue < 0.32 * red)
    red_pen = (red < 0.2 * green) & (blue > 0.6 * green)
    yellow_pen = green < 0.25 * blue
    strong = brightest <= _DARK
    faint = strong.copy()
    for pen, plane, bound in (
        (green_pen, np.minimum(red, blue), 0.12),
        (cyan_pen, red, 0.15),
        (blue_pen, red, 0.35),
        (red_pen, green, 0.6),
        (yellow_pen, blue, 0.25),
    ):
        strong |= pen & (plane >= bound)
        faint |= pen & (plane >= 0.5 * bound)
    if not glass.is_gray:
        neutral = chroma < 0.15 * mean
        strong |= neutral & (mean >= 0.3)
        faint |= neutral & (mean >= 0.15)
    return strong, faint


def _thresholds(
    small: NDArray[np.uint8], glass: Glass, scanned: NDArray[np.bool_], glass_like: NDArray[np.bool_], mpp: float
) -> tuple[float, float]:
    """From what score on a pixel is stained, and from what on it may be pale tissue.

    The first is Otsu's threshold of the logarithm of the score, kept within the bounds that any slide obeys. It lies
    between glass and the tissue that there is most of; the second lies above nearly all pixels of the glass itself.
    """
    od, brightest = _optical_density(small, glass, slice(0, small.shape[0]))
    mean, chroma = _mean_and_chroma(od)
    _, faint = _ink(od, mean, chroma, brightest, glass)
    score = _score(mean, chroma, glass, _color_window(mpp))
    scores = score[scanned & ~faint]
    if scores.size == 0:
        return _MIN_THRESHOLD, _MIN_THRESHOLD
    # The logarithm puts the threshold between pale tissue and glass, not between pale and dark tissue.
    low, high = np.log10(0.01), np.log10(1.01)
    codes = np.clip((np.log10(scores + 0.01) - low) / (high - low) * 255, 0, 255).astype(np.uint8)
    code, _ = cv2.threshold(codes.reshape(-1, 1), 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    otsu = 10 ** (low + (code + 0.5) / 255 * (high - low)) - 0.01
    threshold = float(np.clip(otsu, _MIN_THRESHOLD, _MAX_THRESHOLD))
    bare = glass_like & (np.abs(od[0] + od[1] + od[2]) <= 3 * 0.01)
    noise = float(np.percentile(score[bare], 99)) if bare.any() else threshold
    return threshold, min(max(_PALE_THRESHOLD, 1.5 * noise), threshold)
