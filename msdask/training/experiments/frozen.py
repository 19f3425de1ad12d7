"""Features of a frozen backbone: every patch is encoded once, so that heads are trained on them in seconds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from msdask.data.dataset import as_images
from msdask.data.features import FeatureLoader
from msdask.data.linked import LinkedSet
from msdask.data.patches import StoredPatches
from msdask.data.tuples import TupleDataset
from msdask.errors import MsdaskError
from msdask.models.encoder import Encoder, encoder_of
from msdask.storage.files import replacing
from msdask.store.patch_set import PatchSet
from msdask.store.patch_store import PatchStore
from msdask.store.reading_threads import start
from msdask.training.experiments.config import ExperimentConfig
from msdask.training.experiments.data import ExperimentData, data_of
from msdask.training.experiments.rows import Row
from msdask.training.recipe import Recipe

__all__ = ["EncodeJob", "FrozenFeatures", "device_of", "encode"]

_BATCH = 64


@dataclass(frozen=True)
class EncodeJob:
    """The patches of one slide in one set at one magnification."""

    config: ExperimentConfig
    contents: str
    digest: str
    set_name: str
    column: int
    slide_id: str


class FrozenFeatures:
    """Features of all patches that an experiment uses, as arrays in its folder.

    ``features/<digest>/<set>-<column>/<slide>.npy`` holds the features (patches, F) float32 of all patches that a slide
    has in a set, at one of its magnifications. The digest is that of backbone, weights and data.

    Parameters
    ----------
    config, data : of the experiment
    digest : see `digest_of`
    """

    def __init__(self, config: ExperimentConfig, data: ExperimentData, digest: str) -> None:
        self.data, self.digest = data, digest
        self.folder = Path(config.output) / "features" / digest[:16]
        self._config = config

    @staticmethod
    def digest_of(data: ExperimentData, encoder: Encoder) -> str:
        """Of what the features follow from: the weights, and the contents of the sets."""
        return hashlib.sha256(f"{encoder.digest} {data.contents}".encode()).hexdigest()

    def jobs(self, rows: Iterable[Row]) -> list[EncodeJob]:
        """What is to be encoded and is not there yet."""
        wanted: dict[tuple[str, int], None] = {}
        for row in rows:
            if row.kind == "pooled":
                areas = self.data.areas(row)
                wanted[areas.fine.name, areas.fine_column] = None
            wanted |= {self._place(m): None for m in row.magnifications}
        jobs = [
            EncodeJob(self._config, self.data.contents, self.digest, name, column, slide_id)
            for name, column in wanted
            for slide_id in self.data.source.slides
        ]
        return [job for job in jobs if not self.file(job.set_name, job.column, job.slide_id).exists()]

    def file(self, set_name: str, column: int, slide_id: str) -> Path:
        """Where the features of a slide lie."""
        return self.folder / f"{set_name}-{column}" / f"{slide_id}.npy"

    def _set_at(self, magnification: float) -> tuple[PatchSet, int]:
        """Where a magnification's patches lie: a set, and which of its images."""
        patches = self.data.source.patches
        if isinstance(patches, LinkedSet):
            return patches.sets[patches.magnifications.index(magnification)], 0
        return patches, patches.spec.magnifications.index(magnification)

    def _place(self, magnification: float) -> tuple[str, int]:
        patch_set, column = self._set_at(magnification)
        return patch_set.name, column

    def rows_of(self, tuples: NDArray[np.int64], slide_id: str, magnification: float) -> NDArray[np.int64]:
        """Rows, in the set at a magnification, of tuples of a slide."""
        patches = self.data.source.patches
        if not isinstance(patches, LinkedSet):
            return tuples
        return patches.linked_rows(slide_id)[tuples, patches.magnifications.index(magnification)]

    def read(self, set_name: str, column: int, slide_id: str) -> NDArray[np.float32]:
        """Features (patches, F) of a slide."""
        path = self.file(set_name, column, slide_id)
        try:
            found: NDArray[np.float32] = np.load(path)
        except (OSError, ValueError, EOFError) as error:
            raise MsdaskError(
                f"features '{path}' cannot be read: {error}; remove the file and run the experiment again"
            ) from error
        return found

    def loader(self, dataset: TupleDataset, row: Row, **options: Any) -> FeatureLoader:
        """Batches of features for a row's model; options as for `FeatureLoader`."""
        if row.kind == "pooled":
            features = self._pooled(dataset, row)
            own = np.arange(len(dataset))
            return FeatureLoader(dataset, features, [own] * len(features), **options)
        arrays, places = [], []
        for m in row.magnifications:
            found, at, first = [], [], 0
            for slide_id, tuples in dataset.by_slide():
                found.append(self.read(*self._place(m), slide_id))
                at.append(first + self.rows_of(tuples, slide_id, m))
                first += len(found[-1])
            arrays.append(np.concatenate(found))
            places.append(np.concatenate(at))
        return FeatureLoader(dataset, arrays, places, **options)

    def _pooled(self, dataset: TupleDataset, row: Row) -> list[NDArray[np.float32]]:
        """Mean features over each context, of each tuple."""
        areas = self.data.areas(row)
        parts: list[list[NDArray[np.float32]]] = [[] for _ in row.magnifications]
        for slide_id, tuples in dataset.by_slide():
            own = self.read(*self._place(row.magnifications[0]), slide_id)
            fine = self.read(areas.fine.name, areas.fine_column, slide_id)
            mine = own[self.rows_of(tuples, slide_id, row.magnifications[0])]
            covering, shares = areas.covering(slide_id)[tuples], areas.shares(slide_id)[tuples]
            for m, part in enumerate(parts):
                total = shares[:, m, :1] * mine
                for k in range(covering.shape[1]):  # patches of one context: few, each for all tuples at once
                    share = shares[:, m, k + 1]
                    if share.any():
                        total += share[:, None] * fine[covering[:, k]]
                part.append(total / shares[:, m].sum(1, keepdims=True))
        return [np.concatenate(part) for part in parts]


def device_of(recipe: Recipe) -> torch.device:
    """Where a recipe's training would run in this process."""
    is_gpu = recipe.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return torch.device("cuda" if is_gpu else "cpu")


def encode(job: EncodeJob) -> int:
    """Encode the patches of a slide and write their features; gives how many there are."""
    config = job.config
    encoder = encoder_of(config.backbone, config.weights, config.seed)
    data = data_of(config, job.contents)
    if FrozenFeatures.digest_of(data, encoder) != job.digest:
        raise MsdaskError(
            f"backbone {config.backbone!r}: weights {config.weights!r} are others here than where the experiment "
            "began: give a file that all processes see by the same path"
        )
    frozen = FrozenFeatures(config, data, job.digest)
    features = _encoded(encoder, PatchStore(config.store)[job.set_name], job)
    path = frozen.file(job.set_name, job.column, job.slide_id)
    with replacing(path, what="features") as part:
        np.save(part, features)
    return len(features)


@torch.inference_mode()
def _encoded(encoder: Encoder, patch_set: PatchSet, job: EncodeJob) -> NDArray[np.float32]:
    """Features (patches, F) of a slide; a batch is read while the one before is encoded."""
    device = device_of(job.config.recipe)
    encoder.to(device)
    stored = StoredPatches(patch_set)
    stored.open(job.slide_id, ["image"])
    count = len(patch_set.columns(job.slide_id, ["label"])[0])
    features = np.zeros((count, encoder.width), np.float32)
    ahead = None
    for first in [*range(0, count, _BATCH), count]:
        rows, following = np.arange(first, min(first + _BATCH, count)), None
        if len(rows):
            out = np.empty((len(rows), 1, stored.patch_size, stored.patch_size, 3), np.uint8)
            places = np.arange(len(rows))
            begun = start(stored.begin(job.slide_id, "image", rows, out, places=places, columns=(job.column,)))
            following = rows, out, begun
        if ahead is not None:
            taken, pixels, futures = ahead
            for future in futures:
                future.result()
            features[taken] = encoder(as_images(pixels)[:, 0].to(device)).cpu().numpy()
        ahead = following
    return features
