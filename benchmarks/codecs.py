"""The three codecs on real tissue: size, fidelity, patches per second of one core.

    python benchmarks/codecs.py slide.svs        # any slide with a known scale; by default CMU-1-Small-Region.svs

Seconds are CPU time of this process, the least of a few rounds, so that other programs of the machine matter less.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import msdask as ms
from msdask.spec import Codec
from msdask.store.codecs import decoder, encoder

DATA = Path(os.environ.get("MSDASK_DATA_DIR", Path(__file__).parents[2] / "shared" / "data"))


def least_seconds(work: Callable[[], object], rounds: int) -> float:
    """CPU seconds of the quickest round."""
    seconds = []
    for _ in range(rounds):
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)
    return min(seconds)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", nargs="?", default=str(DATA / "CMU-1-Small-Region.svs"))
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args(arguments)
    slide = ms.open_slide(given.slide)
    selection = ms.grid(slide, ms.tissue_mask(slide), magnification=slide.magnification, patch_size=224)
    patches = ms.patches(slide, selection)["image"].values[:, 0]
    print(f"{len(patches)} patches of 224 px at {slide.magnification:g}x of {slide.name}\n")
    print("| codec | size | fidelity | encode / s | decode / s |")
    print("| --- | --- | --- | --- | --- |")
    for codec in get_args(Codec):
        encode, decode = encoder(codec), decoder(codec)
        encoded = [bytes(encode(p)) for p in patches]
        decoded = np.stack([decode(e, p.shape) for e, p in zip(encoded, patches, strict=True)])
        ratio = patches.nbytes / sum(map(len, encoded))
        error = float(np.mean((decoded.astype(float) - patches) ** 2))
        fidelity = "exact" if error == 0 else f"{10 * np.log10(255**2 / error):.1f} dB"
        into = least_seconds(lambda encode=encode: [bytes(encode(p)) for p in patches], given.rounds)
        out = least_seconds(
            lambda decode=decode, encoded=encoded: [decode(e, patches[0].shape).copy() for e in encoded], given.rounds
        )
        print(f"| `{codec}` | {ratio:.2f}x | {fidelity} | {len(patches) / into:,.0f} | {len(patches) / out:,.0f} |")


if __name__ == "__main__":
    main()
