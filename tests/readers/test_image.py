"""Plain images as slides of one level."""

from __future__ import annotations

import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from msdask.errors import SlideError, SpecError, TileError
from msdask.readers import open_reader
from tests.tools.reader_files import smooth_image


def read(path: Path) -> NDArray[np.uint8]:
    reader = open_reader(path)
    rows, columns = reader.levels[0].grid
    return np.vstack([np.hstack([reader.read_tile(0, y, x) for x in range(columns)]) for y in range(rows)])


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "JPEG"])
def test_tiles_put_together_are_the_image(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "an image"  # no ending: the content decides
    image = smooth_image(700, 1100)
    Image.fromarray(image).save(path, kind, **({"lossless": True} if kind == "WEBP" else {}))
    reader = open_reader(path)
    assert (reader.format, reader.levels[0].shape, reader.levels[0].dct_scales) == ("image", (700, 1100), (1,))
    assert reader.metadata.mpp is None
    np.testing.assert_array_equal(read(path), np.asarray(Image.open(path)))


def test_kinds_of_pixels(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    rgba = np.random.default_rng(0).integers(0, 256, (30, 40, 4), np.uint8)
    alpha = rgba[:, :, 3:] / 255
    over_white = rgba[:, :, :3] * alpha + 255 * (1 - alpha)
    Image.fromarray(rgba).save(path)
    assert np.abs(read(path) - over_white).max() <= 0.51
    gray = rgba[:, :, 0]
    Image.fromarray(gray).save(path)
    np.testing.assert_array_equal(read(path), np.dstack([gray] * 3))
    Image.fromarray(rgba[:, :, :2].copy(), "LA").save(path)
    assert np.abs(read(path)[:, :, 0] - (gray * (rgba[:, :, 1] / 255) + 255 - rgba[:, :, 1])).max() <= 0.51
    Image.fromarray(gray > 99).save(path)
    np.testing.assert_array_equal(read(path)[:, :, 1], (gray > 99) * np.uint8(255))
    palette = Image.fromarray(gray, "P")
    palette.putpalette(rgba[:, :, :3].reshape(-1)[:768].tolist())
    palette.save(path)
    np.testing.assert_array_equal(read(path), rgba[:, :, :3].reshape(-1, 3)[:256][gray])


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_become_value_over_257(tmp_path: Path, channels: int) -> None:
    path = tmp_path / "a.png"
    image = np.random.default_rng(0).integers(0, 65536, (30, 40, channels), np.uint16)
    path.write_bytes(imagecodecs.png_encode(image.squeeze()))
    expected = np.rint(image / 257).astype(np.uint8)
    np.testing.assert_array_equal(read(path), np.broadcast_to(expected, (30, 40, 3)))


def test_density_is_no_scale_and_orientation_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees when shown
    image = smooth_image(64, 96)
    Image.fromarray(image).save(path, dpi=(101600, 101600), exif=exif)
    reader = open_reader(path)
    assert reader.metadata.mpp is None
    assert reader.levels[0].shape == (64, 96)


def test_cmyk_and_float_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(smooth_image(32, 32)).convert("CMYK").save(path)
    with pytest.raises(SlideError, match="mode CMYK"):
        open_reader(path)


def _png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    bomb = zlib.compress(b"\0" * 100_000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", bomb) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(14_000, 14_000), (100_000, 100_000), (2**31 - 1, 1)])
def test_bombs_are_refused_before_decoding(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(_png(*size))
    with pytest.raises(SlideError, match="limit is 512 MiB"):
        open_reader(path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_damaged_pixels_name_level_and_tile(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.img"
    Image.fromarray(smooth_image(600, 600)).save(path, kind)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    reader = open_reader(path)
    for _ in range(2):
        with pytest.raises(TileError, match=r"a\.img.*level 0, tile \(row 1, column 0\)"):
            reader.read_tile(0, 1, 0)


def test_requests_that_make_no_sense(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(smooth_image(64, 64)).save(path)
    reader = open_reader(path)
    requests: list[tuple[Any, ...]] = [(1, 0, 0), (0, 1, 0), (0, 0, 0, 2), (0, -1, 0)]
    for request in requests:
        with pytest.raises(SpecError, match="one level of 1 x 1 tiles"):
            reader.read_tile(*request)
    with pytest.raises(SpecError, match="none"):
        reader.read_associated("label")


def test_many_threads_decode_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    image = smooth_image(1100, 1100)
    Image.fromarray(image).save(path)
    reader = open_reader(path)
    calls = []
    decode = type(reader)._decode  # type: ignore[attr-defined]
    monkeypatch.setattr(type(reader), "_decode", lambda self: calls.append(1) or decode(self))
    with ThreadPoolExecutor(8) as pool:
        tiles = list(pool.map(lambda index: reader.read_tile(0, index // 3, index % 3), range(9)))
    assert calls == [1]
    for index, tile in enumerate(tiles):
        y, x = index // 3 * 512, index % 3 * 512
        np.testing.assert_array_equal(tile, image[y : y + 512, x : x + 512])
