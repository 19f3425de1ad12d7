"""Images of known scale for the tests of models and training: bands of random width that shrink with the scale."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray


def textured_image(seed: int, size: int = 400) -> NDArray[np.uint8]:
    """Blobs about 8 px wide on a pale ground, as nuclei are at 40x."""
    rng = np.random.default_rng(seed)
    noise = cv2.GaussianBlur(rng.normal(size=(size, size)).astype(np.float32), (0, 0), 3.0)
    blobs = noise > 0.6 * noise.std()
    image = np.full((size, size, 3), (235, 215, 230), np.uint8)
    image[blobs] = (110, 70, 150)
    return image


class ListLoader:
    """Batches from a list, in an order of its own each epoch; resumable, counts what it gave."""

    def __init__(self, images: torch.Tensor, magnification: torch.Tensor, *, batch_size: int = 8) -> None:
        self.images = images
        self.magnification = magnification
        self.batch_size = batch_size
        self.epoch = 0
        self.next = 0
        self.given: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return len(self.images) // self.batch_size

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch, self.next = epoch, 0

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "next": self.next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.next = state["epoch"], state["next"]

    def __iter__(self):
        epoch = self.epoch
        order = torch.randperm(len(self.images), generator=torch.Generator().manual_seed(epoch))
        for number in range(self.next, len(self)):
            rows = order[number * self.batch_size : (number + 1) * self.batch_size]
            self.epoch, self.next = (epoch, number + 1) if number + 1 < len(self) else (epoch + 1, 0)
            self.given.append((epoch, number))
            yield {
                "image": self.images[rows].unsqueeze(1),
                "magnification": self.magnification[rows].unsqueeze(1),
            }


def random_patches(count: int, size: int = 32, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(count, 3, size, size) uint8 of noise and magnifications that have nothing to do with it."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    classes = torch.tensor([5.0, 8.0, 10.0, 15.0, 20.0, 30.0, 40.0])
    return images, classes[torch.randint(0, 7, (count,), generator=generator)]
