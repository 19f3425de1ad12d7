"""Peak memory of an extraction against the formula of docs/reading.md, for several threads and two sizes of slide.

    python benchmarks/memory.py
    python benchmarks/memory.py --sides 4096 8192 --threads 1 2

    threads x (patches in hand + edge tiles) + mask + tables + 64 MiB of shared tiles

Each extraction runs in a fresh process; what it grew by is its peak minus what the interpreter had after importing
everything. The edge tiles are counted from the selection: the most decoded tiles that a block holds at once, each from
its first patch to its last. The exit code is 1 where the peak is above the formula by more than a quarter and 32 MiB.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import xarray as xr

sys.path.insert(0, str(Path(__file__).parents[1]))

from fresh import _child, peak_mib
from verdict import machine

import msdask as ms
from msdask.cutting.lazy_patches import block_rows, read_plans
from msdask.cutting.tile_cache import PROCESS_BUDGET
from msdask.selection.select import select
from msdask.spec import ExtractionSpec
from msdask.store.blocks import IN_HAND_BYTES

LARGE = (20.0, 10.0, 5.0, 2.5)
CASES = {
    "40x": ExtractionSpec("grid", (40.0,)),
    "20x": ExtractionSpec("grid", (20.0,)),
    "tuples": ExtractionSpec("centroids", (20.0, 10.0, 5.0)),
    # The large ones: a tuple of four images has 12 MiB of pixels, and a block five of them.
    "large": ExtractionSpec("centroids", LARGE, patch_size=1024, min_tissue=0.3),
    "large-jpeg": ExtractionSpec("centroids", LARGE, patch_size=1024, min_tissue=0.3, codec="jpeg"),
    "large-lossless": ExtractionSpec("centroids", LARGE, patch_size=1024, min_tissue=0.3, codec="lossless"),
}
SLACK, SLACK_MIB = 1.25, 32.0
MIB = 2**20


@dataclass(frozen=True)
class Line:
    """One extraction; MiB. `before` is the interpreter, `grew` what it grew by."""

    case: str
    side: int
    patches: int
    threads: int
    before: float
    grew: float
    in_hand: float
    tiles: float
    mask: float
    tables: float

    @property
    def formula(self) -> float:
        """What the docs say that it grows by at most."""
        return self.threads * (self.in_hand + self.tiles) + self.mask + self.tables + PROCESS_BUDGET / MIB

    @property
    def is_fine(self) -> bool:
        """Whether the peak is below the formula, or a little above."""
        return self.grew <= SLACK * self.formula + SLACK_MIB


def edge_tiles(slide: ms.Slide, selection: xr.Dataset, rows: int) -> float:
    """The most bytes of decoded tiles that one block holds at once."""
    spec = ExtractionSpec.from_dict(selection.attrs["spec"])
    x0, y0 = selection["x0"].values, selection["y0"].values
    most = 0
    for start in range(0, len(x0), rows):
        first: dict[tuple[int, ...], int] = {}
        last: dict[tuple[int, ...], int] = {}
        sizes: dict[tuple[int, ...], int] = {}
        for m, plan in enumerate(read_plans(slide, spec)):
            info = slide.level_infos[plan.level]
            height, width = (side // plan.dct_scale for side in info.tile)
            extent = int(np.ceil(spec.patch_size * plan.ratio)) + (plan.ratio != 1)
            for i in range(start, min(start + rows, len(x0))):
                top, left = (round(float(origin[i, m]) / plan.step) for origin in (y0, x0))
                for row in range(max(0, top // height), min(info.grid[0], -(-(top + extent) // height))):
                    for column in range(max(0, left // width), min(info.grid[1], -(-(left + extent) // width))):
                        key = (plan.level, plan.dct_scale, row, column)
                        first[key], last[key] = min(first.get(key, i), i), max(last.get(key, i), i)
                        sizes[key] = height * width * 3
        change = np.zeros(rows + 1, np.int64)
        for key, size in sizes.items():
            change[first[key] - start] += size
            change[last[key] - start + 1] -= size
        most = max(most, int(np.cumsum(change).max()))
    return most


def measure(path: Path, case: str, side: int, threads: int, folder: Path) -> Line:
    """One extraction in a fresh process, and the terms of the formula for it."""
    spec = CASES[case]
    slide = ms.open_slide(path)
    mask = ms.tissue_mask(slide)
    selection = select(slide, spec, mask=mask)
    count = selection.sizes["patch"]
    rows = block_rows(count, len(spec.magnifications), spec.patch_size)
    patch_bytes = len(spec.magnifications) * spec.patch_size**2 * 3
    store = folder / "memory.zarr"
    found = _child(__file__, "--child", str(path), case, str(threads), str(store))
    shutil.rmtree(store)
    shutil.rmtree(store.with_name(f"{store.name}.locks"), ignore_errors=True)
    # a thumbnail of the mask's size and the float planes that it is found with, then the table and its floats
    mask_bytes = mask.size * (1 + 3 + 3 * 4)
    table_bytes = sum(v.nbytes for v in selection.data_vars.values()) * 4
    return Line(
        case,
        side,
        count,
        threads,
        found["before"],
        found["peak"] - found["before"],
        min(rows * patch_bytes, max(IN_HAND_BYTES, patch_bytes)) / MIB,
        edge_tiles(slide, selection, rows) / MIB,
        mask_bytes / MIB,
        table_bytes / MIB,
    )


def _forget_peak() -> float:
    """Memory now, MiB; from now on the peak is what comes after (Linux: elsewhere it is the peak so far)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak_mib()


def child(path: str, case: str, threads: int, store: str) -> None:
    """Extract, and print the peak; imports come first."""
    from msdask.extraction.cohort import extract
    from msdask.sample.slides import make_slide

    with tempfile.TemporaryDirectory() as folder:  # the first extraction imports and compiles
        small = make_slide(Path(folder, "small.svs"), size=(512, 512), threads=1).path
        extract([small], Path(folder, "s.zarr"), ExtractionSpec("grid", (10.0,), patch_size=32), progress=False)
    before = _forget_peak()
    report = extract([path], store, CASES[case], threads=threads, progress=False)
    assert report.is_complete, report.failures
    print(json.dumps({"before": before, "peak": peak_mib()}))


def markdown(lines: Sequence[Line], facts: dict[str, object]) -> str:
    """The table that is printed and kept."""
    header = "| | side | patches | threads | in hand | edge tiles | mask | tables | formula | measured | its share |"
    body = [
        f"| {x.case} | {x.side:,} | {x.patches:,} | {x.threads} | {x.in_hand:.0f} | {x.tiles:.0f} | {x.mask:.0f} | "
        f"{x.tables:.1f} | {x.formula:.0f} | {x.grew:.0f} | {x.grew / x.formula:.2f}"
        + ("" if x.is_fine else " **over**")
        + " |"
        for x in lines
    ]
    about = "; ".join(f"{k} {v}" for k, v in facts.items() if k != "versions")
    before = max((x.before for x in lines), default=0.0)
    return "\n\n".join(
        [
            "# Peak memory, MiB",
            about,
            "\n".join([header, "| --- " * 11 + "|", *body]),
            f"The interpreter with everything imported has {before:.0f} MiB more. Formula: threads x (in hand + edge "
            f"tiles) + mask + tables + {PROCESS_BUDGET // MIB}.\n",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    given_all = list(sys.argv[1:] if arguments is None else arguments)
    if given_all[:1] == ["--child"]:
        path, case, threads, store = given_all[1:]
        child(path, case, int(threads), store)
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    scratch = Path(tempfile.gettempdir()) / "msdask-benchmark-memory"
    parser.add_argument("--folder", type=Path, default=scratch, help="slides and scratch")
    parser.add_argument("--output", type=Path, default=None, help="where memory.md and memory.json go")
    parser.add_argument("--sides", type=int, nargs="+", default=[8192, 16_384])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    given = parser.parse_args(given_all)
    facts = machine()
    given.folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for side in given.sides:
        path = given.folder / f"slide-{side}.svs"
        if not path.exists():
            from msdask.sample.slides import make_slide

            part = path.with_name(f"part-{path.name}")
            make_slide(part, size=(side, side))
            part.rename(path)
        for case in given.cases:
            lines += [measure(path, case, side, threads, given.folder) for threads in given.threads]
    text = markdown(lines, facts)
    output = given.output or given.folder
    output.mkdir(parents=True, exist_ok=True)
    (output / "memory.md").write_text(text, encoding="utf-8")
    record = {"facts": facts, "lines": [asdict(x) | {"formula": x.formula} for x in lines]}
    (output / "memory.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(text)
    return 0 if all(x.is_fine for x in lines) else 1


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"a measurement failed: {error}") from error
