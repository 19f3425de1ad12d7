"""Which wheel serves which decoder: a tile of real tissue through every library that is installed.

    python benchmarks/decoders.py                      # some minutes
    python benchmarks/decoders.py --quick --sizes 256

For each format and library: processor time a tile (the least of the rounds, in turns), the share of it that the
interpreter's lock is held (a second thread wakes up and looks whether it has to wait for it), what two decoding threads
do in the time of one, and whether the JPEG decoder gets slower when libjpeg-turbo is told to use no SIMD
(JSIMD_FORCENONE, in a process of its own; a build may have no ear for it). Decoders that must be exact are compared
with what went in, others with the first one's pixels. Real tissue: CMU-1-Small-Region and crops of MoNuSeg, where
MSDASK_DATA_DIR or ../shared/data has them; else a generated slide.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))

from decoding_ways import Way, decoders, encoders, versions
from one_core import lock_share
from verdict import machine

import msdask as ms

DATA = Path(os.environ.get("MSDASK_DATA_DIR", Path(__file__).parents[2] / "shared" / "data"))
SIZES = (240, 256, 512)
PATCH = 224
TILES = 4
LEAST_WIN = 1.05
SIMD_SIZE = 256


@dataclass(frozen=True)
class Line:
    """One library with one format and size.

    Attributes
    ----------
    kind, name, is_ours : see `Way`
    size : px of a side
    seconds : processor time of one tile, of all threads
    lock : share of the decoding thread's time with the interpreter's lock held
    two : tiles that two threads make in the time in which one makes one
    difference : the most that a value differs from what it should be; -1: not compared
    simd : time without SIMD / time with it; 0: not asked
    """

    kind: str
    name: str
    is_ours: bool
    size: int
    seconds: float
    lock: float
    two: float
    difference: int
    simd: float = 0.0


def tissue(size: int) -> list[NDArray[np.uint8]]:
    """Some tiles of real tissue, as far as it is there."""
    pictures = []
    if (path := DATA / "CMU-1-Small-Region.svs").is_file():
        pictures.append(np.asarray(tifffile.imread(path, key=0))[600:1600, 600:1600])
    pictures += [tifffile.imread(p)[..., :3] for p in sorted((DATA / "monuseg" / "images").glob("*.tif"))[:3]]
    if not pictures:
        print(f"no real slides in {DATA}: a generated one", file=sys.stderr)
        with tempfile.TemporaryDirectory() as folder:
            sample = ms.sample.make_slide(Path(folder, "s.svs"), size=(1536, 1536), tissue_fraction=0.9)
            pictures = [ms.open_slide(sample.path).levels[0].compute()[256:1280, 256:1280]]
    return [np.ascontiguousarray(pictures[i % len(pictures)][200 : 200 + size, 200 : 200 + size]) for i in range(TILES)]


def repeated(works: Sequence[Callable[[], Any]], seconds: float) -> tuple[int, float]:
    """(tiles, seconds of processor time): the works in turn, for so long."""
    ends, count, started = time.perf_counter() + seconds, 0, time.process_time()
    while not count or time.perf_counter() < ends:
        for work in works:
            work()
        count += len(works)
    return count, time.process_time() - started


def in_threads(works: Sequence[Callable[[], Any]], threads: int, seconds: float) -> float:
    """Tiles a second of wall time."""
    counts = [0] * threads
    start = threading.Barrier(threads)

    def decode(i: int) -> None:
        start.wait()
        ends = time.perf_counter() + seconds
        while not counts[i] or time.perf_counter() < ends:
            for work in works:
                work()
            counts[i] += len(works)

    running = [threading.Thread(target=decode, args=(i,)) for i in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return sum(counts) / seconds


def difference(way: Way, found: Any, expected: NDArray[np.uint8]) -> int:
    """The most that a value differs; -1 where nothing can be compared."""
    pixels = np.asarray(found)
    if pixels.dtype != np.uint8 or pixels.shape != expected.shape:
        return -1
    return int(np.abs(pixels.astype(np.int16) - expected).max())


def measure(ways: Sequence[Way], size: int, given: argparse.Namespace) -> list[Line]:
    """Everyone with tiles of one size, in turns."""
    tiles = tissue(size)
    works = {way: [way.make(tile) for tile in tiles] for way in ways}
    times: dict[Way, list[float]] = defaultdict(list)
    twos: dict[Way, list[float]] = defaultdict(list)
    locks: dict[Way, float] = {}
    for turn in range(given.rounds):
        for way in list(works) if turn % 2 == 0 else list(works)[::-1]:
            count, used = repeated(works[way], given.seconds)
            times[way].append(used / count)
            if not turn:  # it needs no rounds: other programs do not matter
                cycle = max(times[way][0], 2e-4)
                looks = int(min(400, max(20, given.seconds * 5 / cycle)))
                locks[way] = lock_share(lambda way=way: repeated(works[way], 0.01), cycle=cycle, looks=looks)
            one, two = (in_threads(works[way], n, given.seconds) for n in (1, 2))
            twos[way].append(two / one)
    first = {way.kind: works[way][0]() for way in reversed(ways)}
    lines = []
    for way in ways:
        expected = tiles[0] if way.is_exact else np.asarray(first[way.kind])
        differs = difference(way, works[way][0](), expected)
        shown = (min(times[way]), locks[way], float(np.median(twos[way])), differs)
        lines.append(Line(way.kind, way.name, way.is_ours, size, *shown))
    return lines


def without_simd(ways: Sequence[Way], rounds: int) -> dict[str, float]:
    """Time of the JPEG decoders without SIMD / with it, each in processes of its own, in turns."""
    asked: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    for _ in range(rounds):
        for forced in (False, True):
            environment = {k: v for k, v in os.environ.items() if k != "JSIMD_FORCENONE"}
            paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
            environment |= {"JSIMD_FORCENONE": "1"} if forced else {}
            command = [sys.executable, __file__, "--child"]
            reply = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
            asked[forced].append(json.loads(reply.splitlines()[-1]))
    names = [f"{way.kind}, {way.name}" for way in ways if way.kind.startswith("JPEG 4")]
    return {name: min(r[name] for r in asked[True]) / min(r[name] for r in asked[False]) for name in names}


def child() -> None:
    """Processor time of each JPEG decoder in this process."""
    found = {}
    for way in decoders():
        if way.kind.startswith("JPEG 4"):
            works = [way.make(tile) for tile in tissue(SIMD_SIZE)]
            repeated(works, 0.05)
            rates = [repeated(works, 0.1) for _ in range(3)]
            found[f"{way.kind}, {way.name}"] = min(used / count for count, used in rates)
    print(json.dumps(found))


def table(lines: Sequence[Line]) -> str:
    """Markdown: a line a library and format, with its times at every size."""
    sizes = sorted({line.size for line in lines})
    header = ["format", "library", *(f"{size} px, ms" for size in sizes)]
    header += ["Mpx/s", "lock held", "two threads", "no SIMD / SIMD", "differs by at most", ""]
    rows = []
    for kind, name in dict.fromkeys((line.kind, line.name) for line in lines):
        own = {line.size: line for line in lines if (line.kind, line.name) == (kind, name)}
        last = own[max(own)]
        best = min(line.seconds for line in lines if (line.kind, line.size) == (kind, last.size))
        cells = [f"{1e3 * own[size].seconds:.2f}" if size in own else "" for size in sizes]
        simd = f"{last.simd:.2f}" if last.simd else ""
        differs = "" if last.difference < 0 else "equal" if last.difference == 0 else str(last.difference)
        used = "**used**" if last.is_ours else ""
        used += f" {last.seconds / best:.2f} of the fastest's time" if last.is_ours and last.seconds > best else ""
        lock = f"{np.median([line.lock for line in own.values()]):.2f}"
        two = f"{np.median([line.two for line in own.values()]):.2f}"
        speed = f"{last.size**2 / last.seconds / 1e6:,.0f}"
        rows.append([kind, name, *cells, speed, lock, two, simd, differs, used.strip()])
    body = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return "| " + " | ".join(header) + " |\n" + "| --- " * len(header) + "|\n" + body


def faster(lines: Sequence[Line]) -> list[str]:
    """Where another library is clearly faster than what is used, at every size."""
    found = []
    for kind in dict.fromkeys(line.kind for line in lines):
        own = {line.size: line.seconds for line in lines if line.kind == kind and line.is_ours}
        for name in dict.fromkeys(line.name for line in lines if line.kind == kind and not line.is_ours):
            others = {line.size: line for line in lines if (line.kind, line.name) == (kind, name)}
            ratios = [own[size] / others[size].seconds for size in own if size in others]
            if ratios and min(ratios) > LEAST_WIN:
                differs = max(line.difference for line in others.values())
                same = "with equal pixels" if differs == 0 else f"differing by up to {differs}" if differs > 0 else ""
                found.append(f"{kind}: {name} is {min(ratios):.2f} to {max(ratios):.2f} times as fast as ours, {same}")
    return found


def report(facts: dict[str, Any], lines: Sequence[Line], patches: Sequence[Line]) -> str:
    """The Markdown that is printed and kept."""
    about = "; ".join(f"{name} {value}" for name, value in facts.items() if name != "versions")
    packages = "; ".join(f"{name} {version}" for name, version in versions().items())
    wins = [f"- {win}" for win in (*faster(lines), *faster(patches))]
    return "\n\n".join(
        [
            "# Which wheel serves which decoder",
            f"{about}\n{packages}",
            "Processor time of one tile of real tissue, the least of the rounds in turns. Lock held: how often a "
            "second thread that wakes up has to wait for the interpreter's lock. "
            "Two threads: what they decode in the time in which one decodes one (wall time: on a busy machine it says "
            f"little). No SIMD / SIMD: libjpeg-turbo with JSIMD_FORCENONE, at {SIMD_SIZE} px; OpenCV's build has no "
            "ear for it.",
            "## Tiles",
            table(lines),
            f"## Patches of the store, {PATCH} px",
            table(patches),
            f"## Where another is clearly faster ({LEAST_WIN - 1:.0%} and more at every size)",
            "\n".join(wins) or "Nowhere.",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    given_all = list(sys.argv[1:] if arguments is None else arguments)
    cv2.setNumThreads(0)
    # A bare JPEG 2000 stream says nothing of its colours, and OpenCV would warn each time.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
    if given_all == ["--child"]:
        child()
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="px of a tile's sides")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.1, help="of each measurement")
    parser.add_argument("--only", nargs="*", default=None, help="formats, such as JPEG; JPEG has all of its own")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--quick", action="store_true", help="one short round")
    given = parser.parse_args(given_all)
    if given.quick:
        given.rounds, given.seconds = 1, 0.003
    facts = machine()
    ways = [way for way in decoders() if given.only is None or way.kind.startswith(tuple(given.only))]
    lines = [line for size in given.sizes for line in measure(ways, size, given)]
    patches = measure(list(encoders()), PATCH, given)
    if any(way.kind.startswith("JPEG 4") for way in ways):
        simd = without_simd(ways, 1 if given.quick else 3)
        lines = [Line(**{**asdict(x), "simd": simd.get(f"{x.kind}, {x.name}", 0.0)}) for x in lines]
    facts["load after"] = os.getloadavg()[0]
    text = report(facts, lines, patches)
    print(text)
    given.output.mkdir(parents=True, exist_ok=True)
    (given.output / "decoders.md").write_text(text + "\n", encoding="utf-8")
    record = {"facts": facts, "versions": versions(), "tiles": [asdict(x) for x in lines]}
    record["patches"] = [asdict(x) for x in patches]
    (given.output / "decoders.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
