"""A million outlines as GeoJSON: seconds and memory to write them, to read them, and to draw patches from them.

    python benchmarks/geojson.py                  # a minute; geojson.md and geojson.json in benchmarks/results
    python benchmarks/geojson.py --polygons 20000 # seconds: that it runs, no more

Each step is a process of its own. Outlines are of twelve corners, with 1/1000 px, in three classes, on a slide of
100,000 px; they are made part by part while they are written, which is not counted. Exit code 1 if writing and reading
take more than 20 s together, or a step more than 1 GB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from fresh import peak_mib
from verdict import Check, machine, markdown_checks

from msdask.exports.geojson import write_geojson
from msdask.masks.formats.geojson import GeoJson
from msdask.masks.outline_plane import OutlinePlane
from msdask.masks.outlines import Outlines
from msdask.storage.source import open_source

SIDE = 100_000
CORNERS = 12
CLASSES = ("tumor", "stroma", "immune")
PART = 20_000
MOST_SECONDS, MOST_MB = 20.0, 1000.0
STEPS = ("write", "read", "draw")


def outlines(first: int, count: int) -> Outlines:
    """Outlines of about the size of a nucleus at 40x; the same for the same numbers."""
    rng = np.random.default_rng(first)
    angles = np.arange(CORNERS) * (2 * np.pi / CORNERS)
    radius = rng.uniform(12, 20, (count, 1)) * rng.uniform(0.85, 1.15, (count, CORNERS))
    center = rng.uniform(50, SIDE - 50, (count, 1, 2))
    xy = center + radius[:, :, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    numbers = np.arange(count + 1)
    class_of = rng.integers(0, len(CLASSES), count).astype(np.int32)
    return Outlines(xy.reshape(-1, 2).round(3), numbers * CORNERS, numbers, class_of, CLASSES)


class Parts:
    """All outlines, made part by part, with the seconds that this took: (wall, processor)."""

    def __init__(self, count: int) -> None:
        self.count, self.wall, self.cpu = count, 0.0, 0.0

    def __iter__(self) -> Iterator[Outlines]:
        for first in range(0, self.count, PART):
            wall, cpu = time.perf_counter(), time.process_time()
            part = outlines(first, min(PART, self.count - first))
            self.wall += time.perf_counter() - wall
            self.cpu += time.process_time() - cpu
            yield part


def step(name: str, path: Path, count: int) -> dict[str, float]:
    """One step, in this process: wall and processor seconds, and the process's peak memory."""
    parts = Parts(count if name == "write" else 0)
    found: Outlines | None = None
    plane: OutlinePlane | None = None
    if name == "draw":
        found = GeoJson().read_outlines(open_source(path), (SIDE, SIDE))
        plane = OutlinePlane.of(found, (SIDE, SIDE))
    wall, cpu = time.perf_counter(), time.process_time()
    if name == "write":
        write_geojson(path, parts)
    elif name == "read":
        found = GeoJson().read_outlines(open_source(path), (SIDE, SIDE))
    elif plane is not None:
        at = np.random.default_rng(0).integers(0, SIDE - 2048, (2, 64, 2)).astype(np.int32)
        plane.cut(at[0], at[1], [512.0, 2048.0], 512)
    wall, cpu = time.perf_counter() - wall - parts.wall, time.process_time() - cpu - parts.cpu
    peak = peak_mib() * 2**20 / 1e6
    if found is not None and name == "read":
        check(found, count)
    return {"wall": wall, "cpu": cpu, "peak_mb": peak}


def check(found: Outlines, count: int) -> None:
    """What was read must be what was written."""
    if len(found) != count:
        raise SystemExit(f"{len(found)} outlines read, {count} written")
    for first in range(0, count, PART):
        expected = outlines(first, min(PART, count - first))
        part = found.take(slice(first, first + PART))
        names = np.array(part.classes)[part.class_of]
        if not (np.array_equal(part.xy, expected.xy) and np.array_equal(names, np.array(CLASSES)[expected.class_of])):
            raise SystemExit(f"outlines {first} to {first + PART} are not those that were written")


def measured(name: str, path: Path, count: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--step", name, "--path", str(path), "--polygons", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr}")
    return dict(json.loads(done.stdout))


def report(facts: dict[str, object], rows: list[dict[str, object]], checks: list[Check], count: int) -> str:
    """The Markdown that is printed and kept."""
    lines = ["| file | MB | step | s | processor s | peak MB |", "| --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        lines.append("| {file} | {mb:.0f} | {step} | {wall:.1f} | {cpu:.1f} | {peak_mb:.0f} |".format(**row))
    about = "; ".join(f"{name} {value}" for name, value in facts.items() if name != "versions")
    steps = (
        "Write: `write_geojson`, outlines made as they are written (that is not counted). Read: parsed, checked "
        "(closed, three corners, not crossing itself, inside the slide). Draw: 64 patches of 512 px at "
        "40x and 64 at 10x, from outlines that are read."
    )
    title = f"# {count:,} outlines as GeoJSON"
    return "\n\n".join([title, about, steps, "\n".join(lines), markdown_checks(checks)])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--polygons", type=int, default=1_000_000)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--step", choices=STEPS, help="one step, in this process")
    parser.add_argument("--path", type=Path, help="of the step's file")
    given = parser.parse_args(arguments)
    if given.step:
        print(json.dumps(step(given.step, given.path, given.polygons)))
        return 0
    facts = machine()
    rows: list[dict[str, object]] = []
    checks: list[Check] = []
    with tempfile.TemporaryDirectory() as folder:
        for ending in (".geojson", ".geojson.gz"):
            path = Path(folder) / f"nuclei{ending}"
            own = {name: measured(name, path, given.polygons) for name in STEPS}
            size = path.stat().st_size / 1e6
            rows += [{"file": ending, "mb": size, "step": name, **values} for name, values in own.items()]
            seconds = own["write"]["wall"] + own["read"]["wall"]
            peak = max(values["peak_mb"] for values in own.values())
            checks.append(Check(f"{ending}: write and read", seconds, MOST_SECONDS, at_most=True, unit="s"))
            checks.append(Check(f"{ending}: peak memory", peak, MOST_MB, at_most=True, unit="MB"))
    text = report(facts, rows, checks, given.polygons)
    print(text)
    given.output.mkdir(parents=True, exist_ok=True)
    (given.output / "geojson.md").write_text(text + "\n", encoding="utf-8")
    document = {"machine": facts, "polygons": given.polygons, "rows": rows, "checks": [c.as_dict() for c in checks]}
    (given.output / "geojson.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0 if all(c.passes for c in checks) else 1


if __name__ == "__main__":
    raise SystemExit(main())
