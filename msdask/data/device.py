"""The changes of `Augment` made to whole batches by PyTorch, on any device; what is drawn is drawn before.

Every change rounds where OpenCV rounds: of one change a px differs from the CPU's by 1 of 255 at most, geometry and
label maps not at all. There are no matrix products and no convolutions here: their precision is a setting of the user.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from msdask.data.draws import as_draws, blur_kernel, noise_table
from msdask.data.scales import Batch
from msdask.data.stain import LOG, stain_matrix, tone_matrix

__all__ = ["finish"]

_FIXED = 1024
"""OpenCV's matrices of 8-bit colours are whole numbers of this."""


def finish(batch: Batch, draws: Tensor) -> Batch:
    """What `Augment.begin` has left to do: the batch with new ``image`` and ``label_map``.

    Parameters
    ----------
    batch : on any device; left alone
    draws : its column ``draw``, on the CPU
    """
    drawn = as_draws(draws)
    images = batch["image"].movedim(-3, -1).clone(memory_format=torch.contiguous_format)
    _colours(images, drawn)
    _sharpness(images, drawn)
    changed = [images]
    if "label_map" in batch:
        changed.append(batch["label_map"].clone())
    for tensor in changed:
        _turn(tensor, drawn)
    return batch | dict(zip(("image", "label_map"), [images.movedim(-1, -3), *changed[1:]], strict=False))


def _colours(images: Tensor, draws: NDArray[np.void]) -> None:
    """What changes px by px, of (n, M, S, S, 3) in place."""
    if (places := np.flatnonzero(draws["stains"])).size:
        scale, shift = np.moveaxis(draws["stain"][places], 1, 0)
        _put(images, places, _affine_of_logs(_take(images, places), stain_matrix(scale, shift)))
    if (places := np.flatnonzero(draws["tones"])).size:
        _put(images, places, _affine(_take(images, places), tone_matrix(draws["tone"][places])))
    if (places := np.flatnonzero(draws["shifts"])).size:
        _put(images, places, _shift_hsv(_take(images, places), draws["hsv"][places]))
    if (places := np.flatnonzero(draws["noise"] > 0)).size:
        part = _take(images, places)
        table = _noise_on(images.device, part[0].numel())
        fields = [table[place : place + part[0].numel()] for place in draws["noise_place"][places].tolist()]
        field = torch.stack(fields).view_as(part)
        _put(images, places, part + _scalars(draws["noise"][places], images) * field)


def _sharpness(images: Tensor, draws: NDArray[np.void]) -> None:
    """What changes px by their neighbours, of (n, M, S, S, 3) in place."""
    if (places := np.flatnonzero(draws["blur"] > 0)).size:
        _put(images, places, _blur(_take(images, places), draws["blur"][places]))
    if (places := np.flatnonzero(draws["sharpen"][:, 0] > 0)).size:
        sigma, gain = draws["sharpen"][places].T
        part = _take(images, places)
        soft = _blur(part, sigma).mul_(_scalars(-gain, images))
        _put(images, places, soft.addcmul_(part.float(), _scalars(1 + gain, images)))


def _turn(values: Tensor, draws: NDArray[np.void]) -> None:
    """Mirror and turn, of (n, M, S, S[, 3]) in place; places of one way together."""
    ways = draws["vertical"].astype(np.int64) + 2 * draws["horizontal"] + 4 * draws["quarters"].astype(np.int64)
    for way in np.unique(ways[ways > 0]).tolist():
        places = np.flatnonzero(ways == way)
        part = _take(values, places)
        mirrored = [dim for dim, flag in ((2, way & 1), (3, way & 2)) if flag]
        part = part.flip(mirrored) if mirrored else part
        values.index_copy_(0, _on(values.device, places), part.rot90(way // 4, (2, 3)))


def _affine_of_logs(part: Tensor, matrices: NDArray[np.float32]) -> Tensor:
    """Change the logarithm of colours: one matrix (3, 4) an image."""
    logs = _logs_on(part.device)[part.int()].unbind(-1)
    changed = [plane.exp_().mul_(255) for plane in _products(logs, matrices, part)]
    return torch.stack(changed, -1)


def _affine(part: Tensor, matrices: NDArray[np.float64]) -> Tensor:
    """Change colours: one matrix (3, 4) an image; OpenCV rounds those that mix channels, the others it takes as are."""
    scaled = _FIXED * matrices
    scaled[..., 3] += _FIXED / 2  # so that what is cut off is rounded
    mixes = (matrices[..., :3] * (1 - np.eye(3))).any(axis=(1, 2), keepdims=True)
    fixed = np.where(mixes, np.rint(scaled), scaled)
    planes = part.float().unbind(-1)
    return torch.stack([plane.div_(_FIXED).floor_() for plane in _products(planes, fixed, part)], -1)


def _products(planes: tuple[Tensor, ...], matrices: NDArray[Any], like: Tensor) -> list[Tensor]:
    """A matrix (3, 4) of each image times its colours, the last column added."""
    weight = _on(like.device, matrices.astype(np.float32))[..., None, None, None]
    found = []
    for row in range(3):
        total = planes[0] * weight[:, row, 0]
        for column in (1, 2):
            total.addcmul_(planes[column], weight[:, row, column])
        found.append(total.add_(weight[:, row, 3]))
    return found


def _shift_hsv(part: Tensor, shifts: NDArray[np.float64]) -> Tensor:
    """Move hue (of 180, round the circle), saturation and value, all whole numbers as OpenCV has them.

    A fraction of a shift is cut off with that of the result.
    """
    hue_shift, saturation_shift, value_shift = _on(part.device, np.floor(shifts.T).astype(np.float32))[
        ..., None, None, None
    ]
    red, green, blue = part.float().unbind(-1)
    value = torch.maximum(torch.maximum(red, green), blue)
    spread = value - torch.minimum(torch.minimum(red, green), blue)
    per_value, per_spread = _divisors_on(part.device)
    saturation = (spread * per_value[value.int()]).add_(2048).div_(4096).floor_()
    hue = torch.where(value == green, (blue - red).add_(2 * spread), (red - green).add_(4 * spread))
    hue = torch.where(value == red, green - blue, hue)
    hue = hue.mul_(per_spread[spread.int()]).add_(2048).div_(4096).floor_()
    hue = hue.add_(hue_shift).remainder_(180).div_(30)  # in sixths of the circle
    saturation = saturation.add_(saturation_shift).clamp_(0, 255).div_(255)
    value = value.add_(value_shift).clamp_(0, 255)
    full = value * saturation  # what the color farthest from the hue lacks of `value`
    shares = (
        (hue - 3).abs_().sub_(1),
        (hue - 2).abs_().neg_().add_(2),
        (hue - 4).abs_().neg_().add_(2),
    )
    return torch.stack([(value - full * (1 - share.clamp_(0, 1))).floor_() for share in shares], -1)


def _blur(part: Tensor, sigmas: NDArray[np.float64]) -> Tensor:
    """Gaussian blur with a sigma an image, mirrored at the borders: whole numbers as float32."""
    kernels = [blur_kernel(sigma) for sigma in sigmas.tolist()]
    radius = max(len(kernel) for kernel in kernels) // 2
    padded = np.stack([np.pad(kernel, radius - len(kernel) // 2) for kernel in kernels])
    weight = _on(part.device, padded.astype(np.float32))[..., None, None, None, None]
    size = part.shape[2]
    border = _on(part.device, np.pad(np.arange(size), radius, mode="reflect"))
    blurred = part.float()
    for dim in (3, 2):
        wide = blurred.index_select(dim, border)
        blurred = wide.narrow(dim, 0, size) * weight[:, 0]
        for tap in range(1, 2 * radius + 1):
            blurred.addcmul_(wide.narrow(dim, tap, size), weight[:, tap])
    return blurred.add_(2**15).div_(2**16).floor_()


def _take(values: Tensor, places: NDArray[np.intp]) -> Tensor:
    return values.index_select(0, _on(values.device, places))


def _put(images: Tensor, places: NDArray[np.intp], part: Tensor) -> None:
    """Round to whole numbers, the even one of two as near, and put them into their places."""
    images.index_copy_(0, _on(images.device, places), part.round_().clamp_(0, 255).to(torch.uint8))


def _scalars(values: NDArray[np.floating[Any]], like: Tensor) -> Tensor:
    """One number an image."""
    return _on(like.device, values.astype(np.float32))[:, None, None, None, None]


def _on(device: torch.device, values: NDArray[Any]) -> Tensor:
    """Numbers on a device, sent without waiting for it."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


@lru_cache(maxsize=8)
def _logs_on(device: torch.device) -> Tensor:
    return torch.from_numpy(LOG).to(device)


@lru_cache(maxsize=8)
def _divisors_on(device: torch.device) -> tuple[Tensor, Tensor]:
    """What a spread is multiplied by for its saturation, by value, and for its hue, by spread: in 4096ths."""
    numbers = np.arange(1, 256)
    tables = (np.rint(255 * 4096 / numbers), np.rint(180 * 4096 / (6 * numbers)))
    first, second = (np.concatenate([[0], table]).astype(np.float32) for table in tables)
    return torch.from_numpy(first).to(device), torch.from_numpy(second).to(device)


@lru_cache(maxsize=8)
def _noise_on(device: torch.device, count: int) -> Tensor:
    """The table of noise, with its beginning again behind its end."""
    table = noise_table()
    return torch.from_numpy(np.resize(table, len(table) + count)).to(device)
