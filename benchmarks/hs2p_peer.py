"""hs2p, the fastest peer that writes, in an interpreter of its own: its opencv-python displaces the headless one.

    python -m venv hs2p-venv && hs2p-venv/bin/pip install "hs2p[openslide,turbojpeg]"
    python benchmarks/extract.py --hs2p-python hs2p-venv/bin/python

As a script it writes the given patches to a tar of JPEG files with hs2p's own functions and prints how long that took.
It is given our coordinates, so that both cut the same patches. Several workers are several processes, each with a part
of them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["hs2p_writes"]


def hs2p_writes(
    python: str,
    path: str,
    x0: NDArray[np.int64],
    y0: NDArray[np.int64],
    *,
    mpp: float,
    patch_size: int,
    workers: int,
    folder: Path,
) -> float:
    """Patches per second that `workers` hs2p processes write; 0 where hs2p fails (the reason goes to stderr)."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        children = []
        for worker, part in enumerate(np.array_split(np.lexsort((y0, x0)), workers)):
            table = Path(scratch) / f"{worker}.npz"
            np.savez(table, x=x0[part], y=y0[part])
            command = [python, __file__, path, str(table), str(mpp), str(patch_size), str(Path(scratch) / str(worker))]
            children.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        for child in children:
            if child.stdout is None or child.stdout.readline().strip() != "ready":
                for other in children:
                    other.kill()
                    other.communicate()
                return 0.0
        replies = []
        for child in children:
            if child.stdin is not None:
                child.stdin.write("go\n")
                child.stdin.flush()
        for child in children:
            replies.append(json.loads(child.communicate()[0]))
    seconds = max(reply["end"] for reply in replies) - min(reply["start"] for reply in replies)
    print(f"hs2p, {workers} workers, JPEG by {replies[0]['jpeg']}", file=sys.stderr)
    return sum(reply["patches"] for reply in replies) / seconds


def _jpeg_backend() -> str:
    """hs2p's fast JPEG encoder where libturbojpeg is on the machine, else its default."""
    try:
        import turbojpeg

        turbojpeg.TurboJPEG()
    except (ImportError, RuntimeError):
        return "pil"
    return "turbojpeg"


def _write(path: str, table: str, mpp: float, patch_size: int, output: str) -> None:
    import hs2p
    from hs2p.api import extract_tiles_to_tar

    tiling = hs2p.TilingConfig(
        requested_spacing_um=mpp,
        requested_tile_size_px=patch_size,
        tolerance=0.05,
        overlap=0.0,
        backend="openslide",
    )
    slide = hs2p.SlideSpec(sample_id="slide", image_path=Path(path))
    result = hs2p.tile_slide(slide, tiling=tiling, segmentation=hs2p.SegmentationConfig(method="hsv", downsample=64))
    with np.load(table) as columns:
        x, y = columns["x"], columns["y"]
    tiles = replace(
        result.tiles,
        x=x,
        y=y,
        tissue_fractions=np.ones(len(x), np.float32),
        tile_index=np.arange(len(x), dtype=np.int32),
    )
    jpeg = _jpeg_backend()
    print("ready", flush=True)
    sys.stdin.readline()
    start = time.time()
    extract_tiles_to_tar(replace(result, tiles=tiles), Path(output), jpeg_backend=jpeg)
    print(json.dumps({"patches": len(x), "jpeg": jpeg, "start": start, "end": time.time()}))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, kind in (("path", str), ("table", str), ("mpp", float), ("patch_size", int), ("output", str)):
        parser.add_argument(name, type=kind)
    given = parser.parse_args(arguments)
    _write(given.path, given.table, given.mpp, given.patch_size, given.output)


if __name__ == "__main__":
    main()
