"""The main job, measured: slide to patch store, against a naive reference, the seed's way, its peers and the floor.

    python benchmarks/extract.py                 # a slide of 32,914 x 32,914 px
    python benchmarks/extract.py --quick         # 16,384 x 16,384 px, few repeats

It makes its own slide (40x, levels 1, 4 and 16, JPEG 4:2:0 tiles of 256 px, half tissue). Contestants take turns
within a round, and every ratio is a median over rounds, because machines are noisy.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import xarray as xr
import zarr

sys.path.insert(0, str(Path(__file__).parents[1]))

import fresh
import naive
import peers
from hs2p_peer import hs2p_writes
from verdict import TUPLES, Check, Rates, checks_of_rates, machine, report

import msdask as ms
from msdask.cutting.lazy_patches import read_plans
from msdask.engines.engine import JobTrace
from msdask.engines.threads import ThreadEngine
from msdask.extraction.slide_job import Target, begin_set, commit_slide, run_block
from msdask.slides.overview import Overview
from msdask.slides.slide import Slide
from msdask.spec import ExtractionSpec
from msdask.store.slide_place import SlidePlace

MAGNIFICATIONS = (40.0, 20.0, 15.0, 10.0, 5.0)
TUPLE = (20.0, 10.0, 5.0)
PATCH_SIZE = 224
MIN_TISSUE = 0.7
SIDE, QUICK_SIDE = 32_914, 16_384
LEAST_PSNR = 40.0
Measure = Callable[[], dict[str, float]]
"""Runs once; gives patches (or tuples) per second by name."""


@dataclass(frozen=True)
class Settings:
    """What the command line decides; `scratch` is a folder of the benchmark's own."""

    scratch: Path
    repeats: int
    threads: int
    seed_seconds: float
    hs2p_python: str | None

    @property
    def thread_counts(self) -> tuple[int, ...]:
        """Numbers of threads to measure with."""
        return (1, self.threads) if self.threads > 1 else (1,)


@dataclass(frozen=True)
class Case:
    """One extraction: a selection on the slide, and what the contestants need to know of it."""

    name: str
    slide: Slide
    overview: Overview
    selection: xr.Dataset
    cut: peers.Cut

    @classmethod
    def of(cls, name: str, slide: Slide, overview: Overview, selection: xr.Dataset) -> Case:
        """The case of a selection on its slide."""
        spec = ExtractionSpec.from_dict(selection.attrs["spec"])
        cut = peers.Cut(
            selection["x0"].values.astype(np.int64),
            selection["y0"].values.astype(np.int64),
            tuple(float(side) for side in selection.attrs["footprint"]),
            read_plans(slide, spec),
            spec.patch_size,
        )
        return cls(name, slide, overview, selection, cut)

    @property
    def count(self) -> int:
        """Patches, or tuples."""
        return len(self.cut.x0)

    def magnification(self, index: int) -> Case:
        """One magnification of a tuple, as a set of its own at the same places."""
        selection = self.selection.isel(magnification=[index])
        scale = float(selection["magnification"].values[0])
        spec = {**self.selection.attrs["spec"], "magnifications": [scale]}
        selection = selection.assign_attrs(spec=spec, footprint=[self.cut.footprints[index]])
        return Case.of(f"{self.name} {scale:g}x", self.slide, self.overview, selection)


def benchmark_slide(folder: Path, side: int) -> str:
    """Path of the slide of this size, made if it is not there."""
    path = folder / f"slide-{side}.svs"
    if not path.exists():
        from msdask.sample.slides import make_slide

        print(f"making a slide of {side:,} x {side:,} px", file=sys.stderr)
        part = path.with_name(f"part-{path.name}")
        make_slide(part, size=(side, side), mpp=0.25, levels=(1, 4, 16), tile=256)
        part.rename(path)
    return str(path)


@lru_cache
def warm_engine(threads: int) -> ThreadEngine:
    """The pool that a cohort runs on: made once, used for slide after slide."""
    return ThreadEngine(threads)


def write_store(case: Case, folder: Path, threads: int, *, keep: bool = False) -> dict[str, float]:
    """Seconds that msdask needs for "all", from planning to the commit, and for its "blocks": read, measure, write.

    As in a run, the picture that the mask was found in is at hand.
    """
    shutil.rmtree(folder, ignore_errors=True)
    started = time.perf_counter()
    store = ms.PatchStore(folder)
    name = store.open_set(ExtractionSpec.from_dict(case.selection.attrs["spec"]))
    place = SlidePlace(str(folder), name, case.slide.name)
    job = begin_set(case.slide, case.selection, Target(place, place.path), overview=case.overview)
    engine = warm_engine(threads)
    begun = time.perf_counter()
    engine.run(case.name, JobTrace(), run_block, job, job.todo, lambda block, count: None)
    blocks = time.perf_counter() - begun
    commit_slide(job)
    seconds = time.perf_counter() - started
    if not keep:
        shutil.rmtree(folder)
    return {"all": seconds, "blocks": blocks}


def whole_run(case: Case, folder: Path, threads: int) -> float:
    """Seconds of the whole run from the file on: opening, mask and selection, and all that `write_store` does."""
    shutil.rmtree(folder, ignore_errors=True)
    spec = ExtractionSpec.from_dict(case.selection.attrs["spec"])
    started = time.perf_counter()
    ms.extract([case.slide.path], folder, spec, threads=threads, progress=False)
    seconds = time.perf_counter() - started
    shutil.rmtree(folder)
    return seconds


def stored_images(folder: Path) -> zarr.Array[Any]:
    """The one image array of a store."""
    (path,) = folder.glob("*/*/image/zarr.json")
    return zarr.open_array(path.parent, mode="r")


def count_checks(case: Case, mask: xr.DataArray) -> Check:
    """Whether a grid holds the same patches as the naive loops."""
    expected = naive.selected_origins(
        mask.values,
        case.slide.shape,
        mpp_used=case.slide.mpp_used,
        magnification=float(case.selection["magnification"].values[0]),
        patch_size=PATCH_SIZE,
        min_tissue=MIN_TISSUE,
    )
    found = set(zip(case.cut.x0[:, 0].tolist(), case.cut.y0[:, 0].tolist(), strict=True))
    wrong = len(expected ^ found)
    remark = f"{len(found):,} patches, naive {len(expected):,}"
    return Check(
        f"{case.name}: patches that differ from the naive selection", wrong, 0, at_most=True, unit="", remark=remark
    )


def pixel_checks(case: Case, images: zarr.Array[Any], samples: int) -> list[Check]:
    """Least PSNR of some stored patches against the exact area mean of the level that was read."""
    checks = []
    rows = np.sort(np.random.default_rng(0).choice(case.count, min(samples, case.count), replace=False))
    for m, plan in enumerate(case.cut.plans):
        level = naive.LevelPixels(case.slide.path, plan.level)
        values = []
        for row in rows.tolist():
            x0, y0 = int(case.cut.x0[row, m]), int(case.cut.y0[row, m])
            reference = naive.area_mean(
                level, x0, y0, step=plan.step, dct_scale=plan.dct_scale, ratio=plan.ratio, patch_size=PATCH_SIZE
            )
            if reference is not None:
                values.append(naive.psnr(np.asarray(images[row, m], np.uint8), reference))
        level.close()
        if not values:  # of a small slide: every context leaves it
            continue
        scale = case.selection["magnification"].values[m]
        is_copy = plan.ratio == 1.0 and plan.dct_scale == 1
        remark = f"{len(values)} patches; level {plan.level}, DCT 1/{plan.dct_scale}, ratio {plan.ratio:.4g}"
        target = float("inf") if is_copy else LEAST_PSNR
        label = f"{case.name} at {scale:g}x" if case.name == TUPLES else case.name
        checks.append(
            Check(f"{label}: least PSNR against the exact mean", min(values), target, unit="dB", remark=remark)
        )
    return checks


def contestants(case: Case, settings: Settings, file: peers.TileFile, shard: int) -> dict[int, list[Measure]]:
    """Who runs, for each number of threads."""
    folder, cut, path = settings.scratch, case.cut, case.slide.path
    keys = peers.needed_tiles(cut, file)
    inside = np.all((cut.x0 >= 0) & (cut.y0 >= 0), axis=1)

    def msdask(threads: int) -> dict[str, float]:
        seconds = write_store(case, folder / "store.zarr", threads)
        return {
            f"msdask {threads}": case.count / seconds["blocks"],
            f"msdask with commit {threads}": case.count / seconds["all"],
        }

    def whole(threads: int) -> dict[str, float]:
        return {f"msdask from the file {threads}": case.count / whole_run(case, folder / "whole.zarr", threads)}

    def floor(threads: int) -> dict[str, float]:
        decode = peers.floor_decode(file, keys, threads=threads)
        write = peers.floor_write(folder / "floor.zarr", cut, shard=shard, threads=threads)
        return {
            f"floor {threads}": case.count / (decode + write),
            f"floor decode {threads}": case.count / decode,
            f"floor write {threads}": case.count / write,
        }

    def fastslide(threads: int, order: Sequence[int]) -> dict[str, float]:
        return {f"fastslide {threads}": peers.fastslide_reads(path, cut, threads=threads, order=order)}

    def hs2p(threads: int, python: str) -> dict[str, float]:
        mpp = 10.0 / float(case.selection["magnification"].values[0])
        x0, y0 = cut.x0[:, 0], cut.y0[:, 0]
        rate = hs2p_writes(python, path, x0, y0, mpp=mpp, patch_size=PATCH_SIZE, workers=threads, folder=folder)
        return {f"hs2p {threads}": rate} if rate else {}

    def separate(threads: int) -> dict[str, float]:
        parts = [case.magnification(m) for m in range(len(cut.footprints))]
        seconds = sum(write_store(part, folder / "part.zarr", threads)["blocks"] for part in parts)
        return {f"separate {threads}": case.count / seconds}

    def seed() -> dict[str, float]:
        first = int(np.random.default_rng(0).integers(max(1, case.count - 400)))
        run = peers.seed_way(path, cut, folder / "png", first=first, most=400, budget_s=settings.seed_seconds)
        return {"seed 1": run}

    teams: dict[int, list[Measure]] = {}
    for threads in settings.thread_counts:
        team: list[Measure] = [partial(msdask, threads), partial(floor, threads), partial(whole, threads)]
        if case.name == TUPLES:
            team.append(partial(separate, threads))
        else:
            orders = {
                "row-major": cut.row_major()[inside[cut.row_major()]].tolist(),
                "Morton": np.flatnonzero(inside).tolist(),
            }
            speeds = {name: fastslide(threads, order)[f"fastslide {threads}"] for name, order in orders.items()}
            best = max(speeds, key=speeds.__getitem__)
            print(f"{case.name}: fastslide {threads} takes {best} order ({speeds})", file=sys.stderr)
            team.append(partial(fastslide, threads, orders[best]))
            if settings.hs2p_python:
                team.append(partial(hs2p, threads, settings.hs2p_python))
        teams[threads] = team
    teams[1].append(seed)
    return teams


def settle(folder: Path, nbytes: int) -> None:
    """Let nobody pay for those before it: their bytes go to the disk, and there is memory at hand for `nbytes`.

    A virtual machine gives free memory back to its host: whoever writes first after a pause gets it page by page, which
    halves the speed. So as many bytes are written and removed before everyone's turn.
    """
    os.sync()
    file = folder / "memory"
    zeros = bytes(1 << 24)
    with open(file, "wb", buffering=0) as out:
        for _ in range(nbytes * 5 // 4 // len(zeros) + 4):
            out.write(zeros)
    file.unlink()


def race(case: Case, settings: Settings, file: peers.TileFile, shard: int) -> Rates:
    """Rates of every contestant, one a round; each round goes through them in turn, every second one backwards."""
    teams = contestants(case, settings, file, shard)
    rates: dict[str, list[float]] = defaultdict(list)
    for turn in range(settings.repeats):
        for team in teams.values():
            for measure in team if turn % 2 == 0 else reversed(team):
                settle(settings.scratch, case.count * len(case.cut.footprints) * PATCH_SIZE**2 * 3)
                for name, rate in measure().items():
                    rates[name].append(rate)
    return dict(sorted(rates.items(), key=lambda item: (item[0].split()[0] != "msdask", item[0])))


def fresh_checks(path: str, larger: str, settings: Settings) -> list[Check]:
    """Verdicts on imports, the first selection and memory, each in fresh processes."""
    seconds = [fresh.first_selection(p, settings.repeats) for p in (path, larger)]
    memory = [fresh.peak_memory(p, settings.scratch, threads=settings.threads) for p in (path, larger)]
    parts = ["open {open:.3f}, mask {mask:.3f}, select {select:.3f} s".format(**s) for s in seconds]
    imports = fresh.import_time(5)
    all_imports = f"{imports['main_job']:.2f} s with everything that the main job uses"
    growth = abs(memory[1]["peak"] / memory[0]["peak"] - 1)
    remark = "; ".join(f"{m['patches']:,} patches: peak {m['peak']:.0f} MiB ({m['before']:.0f} before)" for m in memory)
    return [
        Check("import msdask, without torch", imports["package"], 1.0, at_most=True, unit="s", remark=all_imports),
        Check("open, mask and select", seconds[0]["total"], 2.0, at_most=True, unit="s", remark=parts[0]),
        Check("the same, slide four times larger", seconds[1]["total"], 5.0, at_most=True, unit="s", remark=parts[1]),
        Check("peak memory, slide four times larger: change", growth, 0.2, at_most=True, unit="", remark=remark),
    ]


def arguments_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "msdask-benchmark", help="slides and scratch"
    )
    parser.add_argument(
        "--output", type=Path, default=None, help="where extract.json and extract.md go (default: the folder)"
    )
    parser.add_argument("--quick", action="store_true", help=f"a slide of {QUICK_SIDE:,} px and 3 repeats")
    parser.add_argument("--side", type=int, default=None, help=f"px of the slide's side (default {SIDE:,})")
    parser.add_argument("--repeats", type=int, default=None, help="rounds (default 5)")
    parser.add_argument("--threads", type=int, default=2, help="the larger number of threads, beside 1 (default 2)")
    parser.add_argument("--seed-seconds", type=float, default=None, help="of the seed's way in a round (default 8)")
    parser.add_argument("--hs2p-python", default=None, help="interpreter that has hs2p installed (see hs2p_peer.py)")
    parser.add_argument("--only", nargs="*", default=None, help="cases to run, such as 20x tuples")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    given = arguments_of(arguments)
    side = given.side or (QUICK_SIDE if given.quick else SIDE)
    settings = Settings(
        given.folder / "scratch",
        given.repeats or (3 if given.quick else 5),
        given.threads,
        given.seed_seconds or (3.0 if given.quick else 8.0),
        given.hs2p_python,
    )
    settings.scratch.mkdir(parents=True, exist_ok=True)
    cv2.setNumThreads(0)
    facts = machine()
    path = benchmark_slide(given.folder, side)
    slide = ms.open_slide(path)
    overview = Overview(slide)
    mask = ms.tissue_mask(overview)
    selections = {
        f"{m:g}x": ms.grid(slide, mask, magnification=m, patch_size=PATCH_SIZE, min_tissue=MIN_TISSUE)
        for m in MAGNIFICATIONS
    }
    selections[TUPLES] = ms.centroids(slide, mask, magnifications=TUPLE, patch_size=PATCH_SIZE, min_tissue=MIN_TISSUE)
    checks: list[Check] = []
    rates: dict[str, Rates] = {}
    counts: dict[str, int] = {}
    output = given.output or given.folder
    output.mkdir(parents=True, exist_ok=True)

    def save() -> None:
        text = report(facts, side, rates, counts, checks)
        (output / "extract.md").write_text(text + "\n")
        results = {"machine": facts, "side": side, "counts": counts, "rates": rates}
        results["checks"] = [check.as_dict() for check in checks]
        (output / "extract.json").write_text(json.dumps(results, indent=1) + "\n")

    file = peers.TileFile(path)
    for name, selection in selections.items():
        if given.only and name not in given.only:
            continue
        case = Case.of(name, slide, overview, selection)
        counts[name] = case.count
        kept = settings.scratch / "kept.zarr"
        write_store(case, kept, settings.threads, keep=True)  # also the warm-up
        images = stored_images(kept)
        if name != TUPLES:
            checks.append(count_checks(case, mask))
        checks += pixel_checks(case, images, 12)
        rates[name] = race(case, settings, file, (images.shards or images.chunks)[0])
        checks += checks_of_rates(name, rates[name], settings.threads)
        shutil.rmtree(kept)
        save()  # a run takes long: what is measured stays
    file.close()
    if not given.only:
        checks += fresh_checks(path, benchmark_slide(given.folder, 2 * side), settings)
    save()
    print((output / "extract.md").read_text())
    shutil.rmtree(settings.scratch)
    return 0 if all(check.passes for check in checks) else 1


if __name__ == "__main__":
    raise SystemExit(main())
