"""Streaming from object storage: against a real S3 protocol server on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from msdask.data import PatchDataset, loader
from msdask.errors import CorruptChunkError
from msdask.spec import Codec
from msdask.storage import places
from msdask.storage.buckets import Bucket
from tests.tools.s3_server import get, keys, place_of, put, s3_server
from tests.tools.stream_tools import GRID, TUPLES, write_cohort


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    with s3_server() as client:
        yield client


@pytest.mark.parametrize("codec", ["raw", "lossless"])
def test_batches_from_a_bucket_are_those_of_a_folder(
    codec: Codec, server: Any, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    here = write_cohort(tmp_path / "here", codec=codec)
    there = write_cohort(tmp_path / "there", codec=codec, path=f"{place_of(request)}/cohort.zarr")
    requests: list[int] = []
    original = Bucket.read_range

    def counting(self: Bucket, path: str, offset: int, size: int) -> bytes:
        requests.append(size)
        return original(self, path, offset, size)

    monkeypatch.setattr(Bucket, "read_range", counting)
    for name, has_maps in ((GRID, False), (TUPLES, True)):
        requests.clear()
        loaders = [
            loader(PatchDataset(cohort[name], keep=False, label_maps=has_maps), batch_size=16, seed=3)
            for cohort in (here, there)
        ]
        count = 0
        for ours, theirs in zip(*loaders, strict=True):
            assert ours.keys() == theirs.keys()
            for key, value in ours.items():
                np.testing.assert_array_equal(np.asarray(value), np.asarray(theirs[key]), err_msg=key)
            count += len(ours["image"])
        # chunks that lie one behind the other come in one request, and nothing comes twice
        assert 0 < len(requests) <= count * (4 if has_maps else 1)


def test_a_damaged_object_is_named(server: Any, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    cohort = write_cohort(tmp_path, path=f"{place_of(request)}/cohort.zarr", names=(GRID,), slides=("a.svs",))
    arrays = cohort[GRID].arrays("a.svs")
    path = arrays.shard_path("image", 0)
    whole = get(server, path)
    put(server, path, whole[:9] + bytes([whole[9] ^ 1]) + whole[10:])
    dataset = PatchDataset(cohort[GRID], keep=False)
    with pytest.raises(CorruptChunkError, match=r"image' chunk \(0, 0\): the checksum"):
        dataset.__getitems__([0, 1])
    put(server, path, whole[:-1])
    with pytest.raises(CorruptChunkError, match=f"shard '{path}' has {len(whole) - 1} bytes"):
        PatchDataset(cohort[GRID], keep=False)
    places.at(path).remove(path)
    assert not any(key.endswith("image/c/0/0/0/0/0") for key in keys(server, arrays.path))
    with pytest.raises(CorruptChunkError, match="is missing"):
        PatchDataset(cohort[GRID], keep=False)
