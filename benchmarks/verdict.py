"""What msdask has to reach, as data, and the tables that say whether it does."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["Check", "Rates", "checks_of_rates", "machine", "paired_ratio", "report"]

Rates = Mapping[str, Sequence[float]]
"""Patches (or tuples) per second of each contestant, one number a round; names are "msdask 1", "floor 2" ..."""

TUPLES = "tuples"
AGAINST_SEED = {"40x": 20.0, "20x": 15.0, "10x": 40.0, "5x": 50.0}
"""One thread against one."""
AGAINST_FASTSLIDE = {"40x": 1.0, "20x": 1.7, "10x": 1.0, "5x": 1.7}
AGAINST_HS2P = {"40x": 3.0, "20x": 6.0, "10x": 3.0, "5x": 6.0}
FLOOR_TIME = 1.05
WHOLE_TIME = {"40x": 1.10, "20x": 1.10, "10x": 1.3, "5x": 1.6, TUPLES: 1.15}
"""With tables, sync and commit."""
SCALING = 0.95
TUPLES_AGAINST_SEED = 60.0
TUPLES_AGAINST_READS = 0.8

PACKAGES = (
    "msdask", "numpy", "dask", "xarray", "zarr", "tensorstore", "simplejpeg", "opencv-python-headless", "tifffile",
    "openslide-python", "pillow", "fastslide",
)  # fmt: skip


@dataclass(frozen=True)
class Check:
    """One line of the verdict: what was measured, what it has to be, and whether it is."""

    what: str
    measured: float
    target: float
    at_most: bool = False
    unit: str = "x"
    remark: str = ""

    @property
    def passes(self) -> bool:
        """Whether the target is reached."""
        return self.measured <= self.target if self.at_most else self.measured >= self.target

    def as_dict(self) -> dict[str, object]:
        """JSON values."""
        return {**asdict(self), "passes": self.passes}


def paired_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median over the rounds of above / below: what slows a whole round down cancels."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def checks_of_rates(case: str, rates: Rates, threads: int) -> list[Check]:
    """Verdicts on one magnification ("20x") or on the tuples.

    Parameters
    ----------
    case : "40x", "20x", "15x", "10x", "5x" or "tuples"
    rates : of every contestant that took part
    threads : the larger number of threads that was measured
    """
    n = str(threads)
    checks = []

    def compare(other: str, targets: Mapping[str, float], used: str, remark: str = "") -> None:
        if case in targets and other in rates:
            ratio = paired_ratio(rates[f"msdask {used}"], rates[other])
            checks.append(
                Check(f"{case}: speed against {other.rsplit(' ', 1)[0]}", ratio, targets[case], remark=remark)
            )

    compare("seed 1", {**AGAINST_SEED}, "1", "one thread each")
    compare("seed 1", {TUPLES: TUPLES_AGAINST_SEED}, n, f"{n} threads against its one")
    compare(f"fastslide {n}", AGAINST_FASTSLIDE, n, f"{n} threads, fastslide only reads")
    compare(f"hs2p {n}", AGAINST_HS2P, n, f"{n} workers")
    compare(f"separate {n}", {TUPLES: TUPLES_AGAINST_READS}, n, "its three magnifications as three sets")
    if case not in (*AGAINST_SEED, TUPLES):
        return checks  # 15x has no target: its rates are in the table
    time_over_floor = paired_ratio(rates[f"floor {n}"], rates[f"msdask {n}"])
    whole = paired_ratio(rates[f"floor {n}"], rates[f"msdask with commit {n}"])
    run = paired_ratio(rates[f"floor {n}"], rates[f"msdask from the file {n}"])
    remark = f"{n} threads; {run:.2f} with opening, mask and selection, too, none of which the floor does"
    checks.append(
        Check(
            f"{case}: time over the floor's", time_over_floor, FLOOR_TIME, at_most=True, remark=f"{n} threads; blocks"
        )
    )
    what = f"{case}: time over the floor's, with tables, sync and commit"
    checks.append(Check(what, whole, WHOLE_TIME[case], at_most=True, remark=remark))
    if threads > 1:
        ours, floors = (paired_ratio(rates[f"{name} {n}"], rates[f"{name} 1"]) for name in ("msdask", "floor"))
        remark = f"1 to {n} threads: {ours:.2f}x, floor {floors:.2f}x"
        checks.append(Check(f"{case}: thread scaling against the floor's", ours / floors, SCALING, remark=remark))
    return checks


def _number(value: float) -> str:
    if value == float("inf"):
        return "equal"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def markdown_rates(cases: Mapping[str, Rates], counts: Mapping[str, int]) -> str:
    """Table of median rates per second, one row a case, one column a contestant and thread count."""
    names = list(dict.fromkeys(name for rates in cases.values() for name in rates))
    lines = ["| | patches | " + " | ".join(names) + " |", "| --- | --- |" + " --- |" * len(names)]
    for case, rates in cases.items():
        cells = [_number(statistics.median(rates[name])) if name in rates else "" for name in names]
        lines.append(f"| {case} | {counts[case]:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def markdown_checks(checks: Sequence[Check]) -> str:
    """Table of verdicts."""
    lines = ["| what | measured | target | | |", "| --- | --- | --- | --- | --- |"]
    for check in checks:
        sign = "<=" if check.at_most else ">="
        verdict = "pass" if check.passes else "**FAIL**"
        unit = "" if check.measured == float("inf") else f" {check.unit}".rstrip()
        target = f"{sign} {_number(check.target)} {check.unit}"
        cells = (check.what, _number(check.measured) + unit, target, verdict, check.remark)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def machine() -> dict[str, object]:
    """Where and with what this ran."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "load before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "versions": versions,
    }


def report(
    facts: Mapping[str, object],
    side: int,
    cases: Mapping[str, Rates],
    counts: Mapping[str, int],
    checks: Sequence[Check],
) -> str:
    """The Markdown that is printed and kept."""
    versions = facts["versions"]
    about = "; ".join(f"{name} {value}" for name, value in facts.items() if name != "versions")
    packages = ", ".join(f"{name} {value}" for name, value in versions.items()) if isinstance(versions, dict) else ""
    failed = sum(not check.passes for check in checks)
    return "\n\n".join(
        [
            f"# Extraction, {side:,} x {side:,} px",
            f"{about}\n{packages}",
            "Patches (tuples) per second, median; the number behind a name is its threads:",
            markdown_rates(cases, counts),
            f"{len(checks) - failed} of {len(checks)} targets reached:",
            markdown_checks(checks),
        ]
    )
