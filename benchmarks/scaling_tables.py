"""The original's Tables 1 and 2 as Markdown and CSV, what decides, and the drawing of speed-up and efficiency."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scaling_ways import FLOOR, ONE, OURS, WAYS

__all__ = ["Timing", "draw", "markdown_counts", "markdown_ratios", "markdown_times", "write_csv"]

Counts = Mapping[str, Mapping[str, int]]
"""Row -> "cohort, kind of masks" -> patches."""


@dataclass(frozen=True)
class Timing:
    """One cell of Table 2.

    Attributes
    ----------
    cohort : name
    row : "grid 20x", ...
    way : one of `WAYS`
    n : cores
    patches : of the whole job
    rates : patches (tuples) per second of each round
    seconds : that each round took; a reader reads a part of the patches only
    load : of the machine before them: processes that wanted to run
    engine : on what it ran, as the run's report says
    """

    cohort: str
    row: str
    way: str
    n: int
    patches: int
    rates: tuple[float, ...]
    seconds: tuple[float, ...]
    load: float
    engine: str = ""

    @property
    def rate(self) -> float:
        """Median of the rounds."""
        return statistics.median(self.rates)


def speed_ups(timings: Sequence[Timing]) -> dict[Timing, float]:
    """Against one core: medians of each round's own ratio, so that a slow round cancels.

    Our ways are compared with one thread of ours, the floor and the readers with their own.
    """
    ones = {(t.cohort, t.row, t.way): t for t in timings if t.n == 1}
    found = {}
    for t in timings:
        one = ones.get((t.cohort, t.row, ONE if t.way in OURS else t.way))
        if one is not None:
            found[t] = statistics.median(a / b for a, b in zip(t.rates, one.rates, strict=True))
    return found


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def markdown_counts(counts: Counts) -> str:
    """Table 1: rows = method and magnification(s), columns = cohort and kind of mask, cells = patches or tuples."""
    kinds = list(dict.fromkeys(kind for row in counts.values() for kind in row))
    lines = [[row, *(f"{cells[k]:,}" if k in cells else "" for k in kinds)] for row, cells in counts.items()]
    return _table(["", *kinds], lines)


def markdown_times(timings: Sequence[Timing]) -> str:
    """Table 2, one a cohort: the same rows, columns = ways and cores, cells = seconds of the job (speed-up)."""
    gains = speed_ups(timings)
    parts = []
    for cohort in dict.fromkeys(t.cohort for t in timings):
        own = [t for t in timings if t.cohort == cohort]
        columns = sorted({(t.way, t.n) for t in own}, key=lambda c: (WAYS.index(c[0]), c[1]))
        lines = []
        for row in dict.fromkeys(t.row for t in own):
            cells = {(t.way, t.n): t for t in own if t.row == row}
            texts = []
            for column in columns:
                t = cells.get(column)
                gain = f" ({gains[t]:.2f})" if t is not None and t.n > 1 and t in gains else ""
                texts.append("" if t is None or not t.rate else f"{t.patches / t.rate:.2f}{gain}")
            first = next(iter(cells.values()))
            lines.append([row, f"{first.patches:,}", *texts, f"{first.load:.1f}"])
        header = ["", "patches", *(f"{way}, {n}" for way, n in columns), "load"]
        parts += [f"**{cohort}**", _table(header, lines)]
    return "\n\n".join(parts)


def markdown_ratios(timings: Sequence[Timing]) -> str:
    """What decides, with the most cores that were measured: the default against so many times one thread and others."""
    gains = speed_ups(timings)
    cells = {(t.cohort, t.row, t.way, t.n): t for t in timings}
    lines = []
    for cohort, row in dict.fromkeys((t.cohort, t.row) for t in timings):
        most = max(t.n for t in timings if (t.cohort, t.row) == (cohort, row))
        default = cells.get((cohort, row, "default", most))
        if most == 1 or default is None or default not in gains:
            continue

        def against(way: str, default: Timing = default) -> str:
            other = cells.get((default.cohort, default.row, way, default.n))
            if other is None or not other.rate:
                return ""
            return f"{statistics.median(a / b for a, b in zip(default.rates, other.rates, strict=True)):.2f}"

        floor = cells.get((cohort, row, FLOOR, most))
        efficiency = f"{gains[floor] / most:.2f}" if floor in gains else ""
        shown = (f"{gains[default] / most:.2f}", efficiency, against(FLOOR), against("fastslide reading"))
        lines.append([cohort, row, str(most), f"{default.rate:,.0f}", *shown, default.engine])
    header = ["cohort", "row", "cores", "default, patches/s", "default / (cores x one thread)"]
    header += ["the floor's own", "default / floor", "default / fastslide reading", "the default was"]
    return _table(header, lines)


def write_csv(folder: Path, counts: Counts, timings: Sequence[Timing]) -> None:
    """Both tables, one cell a line: scaling-counts.csv and scaling-times.csv."""
    with (folder / "scaling-counts.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("row", "cohort and masks", "patches"))
        writer.writerows((row, kind, n) for row, cells in counts.items() for kind, n in cells.items())
    gains = speed_ups(timings)
    with (folder / "scaling-times.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("cohort", "row", "way", "cores", "patches", "patches_s", "speed_up", "load", "rounds"))
        for t in timings:
            gain = f"{gains[t]:.3f}" if t in gains else ""
            rounds = " ".join(f"{s:.3f}" for s in t.seconds)
            writer.writerow((t.cohort, t.row, t.way, t.n, t.patches, f"{t.rate:.1f}", gain, f"{t.load:.1f}", rounds))


_STYLES = {
    "threads": {"color": "tab:blue", "marker": "s"},
    "processes": {"color": "tab:green", "marker": "^"},
    "default": {"color": "tab:red", "marker": "o", "lw": 2},
    "cluster": {"color": "tab:purple", "marker": "v"},
    FLOOR: {"color": "black", "ls": "--", "marker": "."},
    "fastslide reading": {"color": "tab:orange", "ls": ":", "marker": "x"},
    "OpenSlide reading": {"color": "tab:brown", "ls": ":", "marker": "+"},
}


def draw(timings: Sequence[Timing], path: Path, *, most_columns: int = 6) -> None:
    """Speed-up (top) and efficiency (bottom) over cores, a column for each cohort and row, the floor dashed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    gains = speed_ups(timings)
    shown = [key for key in dict.fromkeys((t.cohort, t.row) for t in gains) if _is_scaled(gains, key)][:most_columns]
    if not shown:
        return
    figure, axes = plt.subplots(2, len(shown), figsize=(3.0 * len(shown) + 0.8, 6), squeeze=False, sharex="col")
    used: dict[str, object] = {}
    for (cohort, row), (above, below) in zip(shown, axes.T, strict=True):
        counts = sorted({t.n for t in gains if (t.cohort, t.row) == (cohort, row)})
        (used["ideal"],) = above.plot([1, counts[-1]], [1, counts[-1]], color="0.6", lw=0.8)
        below.axhline(1, color="0.6", lw=0.8)
        for way in WAYS:
            own = sorted((t for t in gains if (t.cohort, t.row, t.way) == (cohort, row, way)), key=lambda t: t.n)
            points = [(1, 1.0)] if own and own[0].n > 1 and way in OURS else []
            points += [(t.n, gains[t]) for t in own]
            if points:
                x, y = zip(*points, strict=True)
                (used[way],) = above.plot(x, y, **_STYLES[way])
                below.plot(x, [gain / n for n, gain in points], **_STYLES[way])
        above.set_title(f"{cohort}\n{row}", fontsize=9)
        for axis in (above, below):
            axis.set_xscale("log", base=2)
            axis.set_xticks(counts, [str(n) for n in counts])
            axis.set_ylim(0, None)
        below.set_ylim(0, max(1.3, below.get_ylim()[1]))
        below.set_xlabel("cores")
    axes[0, 0].set_ylabel("speed-up against one")
    axes[1, 0].set_ylabel("efficiency")
    figure.legend(used.values(), used.keys(), loc="lower center", ncol=len(used), fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _is_scaled(gains: Mapping[Timing, float], key: tuple[str, str]) -> bool:
    return len({t.n for t in gains if (t.cohort, t.row) == key}) > 1
