"""Codecs: lossless is exact, JPEG is close, both are deterministic and work as Zarr codecs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from skimage.data import immunohistochemistry
from zarr.codecs import Crc32cCodec
from zarr.registry import get_codec_class, register_codec

from msdask.spec import Codec
from msdask.store.codecs import Jpeg, PredictedZstd, decode_predicted, decoder, encode_predicted, encoder, inner_codec

CODECS: tuple[Codec, ...] = ("raw", "lossless", "jpeg")


@pytest.fixture(scope="module", autouse=True)
def _registered_codecs() -> None:
    """Zarr finds the codecs through entry points where msdask is installed; a bare checkout registers them here."""
    for name, codec in (("msdask.predicted_zstd", PredictedZstd), ("msdask.jpeg", Jpeg)):
        try:
            get_codec_class(name)
        except KeyError:
            register_codec(name, codec)


@pytest.fixture(scope="module")
def tissue() -> NDArray[np.uint8]:
    """(4, 224, 224, 3): real histology."""
    image = immunohistochemistry()[:448, :448]
    return np.ascontiguousarray(image.reshape(2, 224, 2, 224, 3).swapaxes(1, 2).reshape(4, 224, 224, 3))


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    return float(10 * np.log10(255**2 / ((a.astype(float) - b) ** 2).mean()))


@settings(max_examples=100, deadline=None)
@given(arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))), st.integers(0, 2))
def test_lossless_is_an_exact_inverse(patch: NDArray[np.uint8], leading: int) -> None:
    patch = patch.reshape((1,) * leading + patch.shape)
    np.testing.assert_array_equal(decode_predicted(encode_predicted(patch), patch.shape), patch)


def test_lossless_is_smaller_than_raw_on_tissue(tissue: NDArray[np.uint8]) -> None:
    assert len(encode_predicted(tissue[0])) < 0.75 * tissue[0].nbytes


def test_jpeg_is_close_on_tissue(tissue: NDArray[np.uint8]) -> None:
    encode, decode = encoder("jpeg"), decoder("jpeg")
    for patch in tissue:
        data = encode(patch)
        assert psnr(decode(data, patch.shape), patch) >= 38
        assert len(data) < patch.nbytes / 3


@pytest.mark.parametrize("codec", CODECS)
def test_encoding_is_deterministic_and_leaves_its_input_alone(codec: Codec, tissue: NDArray[np.uint8]) -> None:
    before = tissue[0].copy()
    assert encoder(codec)(tissue[0]) == encoder(codec)(tissue[0].copy())
    np.testing.assert_array_equal(tissue[0], before)


@pytest.mark.parametrize("codec", CODECS)
def test_a_chunk_of_the_array_decodes_as_the_patch_alone(codec: Codec, tissue: NDArray[np.uint8]) -> None:
    chunk = tissue[None, :1]
    alone = decoder(codec)(encoder(codec)(tissue[0]), tissue[0].shape)
    np.testing.assert_array_equal(decoder(codec)(encoder(codec)(chunk), chunk.shape)[0, 0], alone)


@pytest.mark.parametrize("codec", ["lossless", "jpeg"])
def test_zarr_python_writes_and_reads_with_the_registered_codec(
    codec: Codec, tissue: NDArray[np.uint8], tmp_path: Path
) -> None:
    data = tissue[:, None]
    array = zarr.create_array(
        store=tmp_path / "a.zarr",
        shape=data.shape,
        chunks=(1, 1, 224, 224, 3),
        shards=(2, 1, 224, 224, 3),
        dtype="uint8",
        serializer=cast(Any, inner_codec(codec)),
        compressors=[Crc32cCodec()],
    )
    array[...] = data
    read = np.asarray(zarr.open_array(store=tmp_path / "a.zarr", mode="r")[...])
    expected = np.stack([decoder(codec)(encoder(codec)(p), p.shape) for p in tissue])[:, None]
    np.testing.assert_array_equal(read, expected)


@pytest.mark.parametrize(
    ("codec", "configuration"), [(PredictedZstd(level=3), {"level": 3}), (Jpeg(quality=90), {"quality": 90})]
)
def test_the_metadata_document_brings_the_codec_back(
    codec: PredictedZstd | Jpeg, configuration: dict[str, int]
) -> None:
    document = codec.to_dict()
    assert document["configuration"] == configuration
    assert str(document["name"]).startswith("msdask.")
    assert type(codec).from_dict(document) == codec
