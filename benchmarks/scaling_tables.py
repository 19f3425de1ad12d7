"""The seed's Tables 1 and 2 as Markdown and CSV, and the drawing of speed-up and efficiency."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Timing", "draw", "markdown_counts", "markdown_times", "write_csv"]

Counts = Mapping[str, Mapping[str, int]]
"""Row -> kind of mask -> patches."""


@dataclass(frozen=True)
class Timing:
    """One cell of Table 2.

    Attributes
    ----------
    row : "grid 20x", ...
    kind : of mask
    way : "threads", "workers" or "floor", then ", one slide" or ", cohort"
    n : threads or workers
    seconds : of each round
    load : of the machine before them: processes that wanted to run
    """

    row: str
    kind: str
    way: str
    n: int
    seconds: tuple[float, ...]
    load: float

    @property
    def median(self) -> float:
        """Of the rounds, s."""
        return statistics.median(self.seconds)


def _speed_ups(timings: Sequence[Timing]) -> dict[Timing, float]:
    """Against 1 of the same row, mask and way: medians of each round's own ratio, so that a slow round cancels."""
    ones = {(t.row, t.kind, t.way): t for t in timings if t.n == 1}
    found = {}
    for t in timings:
        one = ones.get((t.row, t.kind, t.way))
        if one is not None:
            found[t] = statistics.median(a / b for a, b in zip(one.seconds, t.seconds, strict=True))
    return found


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def markdown_counts(counts: Counts, cohort: str) -> str:
    """Table 1: rows = method and magnification(s), columns = cohort and kind of mask."""
    kinds = list(dict.fromkeys(kind for row in counts.values() for kind in row))
    header = ["", *(f"{cohort}: {kind}" for kind in kinds)]
    return _table(
        header, [[row, *(f"{cells[k]:,}" if k in cells else "" for k in kinds)] for row, cells in counts.items()]
    )


def _columns(timings: Sequence[Timing]) -> list[tuple[str, int]]:
    order = (
        "threads, one slide",
        "workers, one slide",
        "floor, one slide",
        "threads, cohort",
        "workers, cohort",
        "floor, cohort",
    )
    return sorted({(t.way, t.n) for t in timings}, key=lambda c: (order.index(c[0]), c[1]))


def markdown_times(timings: Sequence[Timing]) -> str:
    """Table 2: the same rows, columns = threads and workers, cells = seconds (speed-up); and the load before."""
    speed_ups = _speed_ups(timings)
    columns = _columns(timings)
    lines = []
    for row, kind in dict.fromkeys((t.row, t.kind) for t in timings):
        own = {(t.way, t.n): t for t in timings if (t.row, t.kind) == (row, kind)}
        cells = []
        for column in columns:
            t = own.get(column)
            gain = f" ({speed_ups[t]:.2f})" if t is not None and t.n > 1 and t in speed_ups else ""
            cells.append("" if t is None else f"{t.median:.2f}{gain}")
        lines.append([f"{row}, {kind}", *cells, f"{next(iter(own.values())).load:.1f}"])
    return _table(["", *(f"{way}: {n}" for way, n in columns), "load"], lines)


def write_csv(folder: Path, counts: Counts, timings: Sequence[Timing], cohort: str) -> None:
    """Both tables, one cell a line: scaling-counts.csv and scaling-times.csv."""
    with (folder / "scaling-counts.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("row", "cohort", "masks", "patches"))
        writer.writerows((row, cohort, kind, n) for row, cells in counts.items() for kind, n in cells.items())
    speed_ups = _speed_ups(timings)
    with (folder / "scaling-times.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("row", "masks", "way", "n", "seconds", "speed_up", "load", "rounds"))
        for t in timings:
            gain = f"{speed_ups[t]:.3f}" if t in speed_ups else ""
            rounds = " ".join(f"{s:.3f}" for s in t.seconds)
            writer.writerow((t.row, t.kind, t.way, t.n, f"{t.median:.3f}", gain, f"{t.load:.1f}", rounds))


def draw(timings: Sequence[Timing], path: Path) -> None:
    """Speed-up (top) and efficiency (bottom) against ideal, the floor's as a grey dashed line, a panel each way."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    speed_ups = _speed_ups(timings)
    shown = ("threads, one slide", "workers, one slide", "threads, cohort", "workers, cohort")
    ways = [w for w in shown if any(t.way == w for t in timings)]
    figure, axes = plt.subplots(2, len(ways), figsize=(4.2 * len(ways), 6.4), squeeze=False, sharex="col")
    colors = plt.get_cmap("viridis")
    rows = list(dict.fromkeys((t.row, t.kind) for t in timings))
    for column, way in enumerate(ways):
        most = max(t.n for t in timings if t.way == way)
        above, below = axes[:, column]
        above.plot([1, most], [1, most], color="black", lw=0.8, label=None if column else "ideal")
        below.axhline(1, color="black", lw=0.8)
        floor = f"floor, {way.split(', ')[1]}"
        for index, (row, kind) in enumerate(rows):
            color = colors(index / max(1, len(rows) - 0.5))
            for name, style in ((way, {"marker": "o"}), (floor, {"ls": "--", "lw": 0.8, "alpha": 0.7})):
                own = sorted((t for t in speed_ups if (t.row, t.kind, t.way) == (row, kind, name)), key=lambda t: t.n)
                label = row if name == way else f"floor of {row}"
                x = [t.n for t in own]
                above.plot(x, [speed_ups[t] for t in own], color=color, label=label if column == 0 else None, **style)
                below.plot(x, [speed_ups[t] / t.n for t in own], color=color, **style)
        above.set_title(way)
        below.set_xlabel(way.split(",")[0])
        below.set_ylim(0, 1.3)
        below.set_xticks(sorted({t.n for t in timings if t.way == way}))
    axes[0, 0].set_ylabel("speed-up")
    axes[1, 0].set_ylabel("efficiency")
    figure.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7, frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)
