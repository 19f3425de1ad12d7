"""Fuzzing for as long as you like: new seeds until the time is over; prints every case that is not fine.

    python benchmarks/fuzz.py --seconds 600
    python benchmarks/fuzz.py --seconds 60 --only slide-ndpi.tiff --first 5000

The tests run a fixed few thousand of the same cases (tests/whole/test_fuzz.py). A case is a subject and a seed: put one
that finds a bug into `REGRESSIONS` there.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))
tests = ModuleType("tests")  # the folder, whatever else is installed under that name
tests.__path__ = [str(REPOSITORY / "tests")]
sys.modules["tests"] = tests

from tests.tools.fuzz_corpus import SUBJECTS, make_corpus  # noqa: E402
from tests.tools.fuzzing import Verdict, Watchdog  # noqa: E402


def cases(subjects: Sequence[str], first: int, seconds: float) -> Iterator[tuple[str, int]]:
    """Every subject with one seed after the other, until the time is over."""
    ends = time.monotonic() + seconds
    seed = first
    while True:
        for subject in subjects:
            if time.monotonic() > ends:
                return
            yield subject, seed
        seed += 1


def summary(verdicts: Sequence[Verdict]) -> str:
    """A Markdown table: one row a subject."""
    outcomes = ("read", "refused", "bug", "crash", "hang", "memory")
    lines = ["| subject | cases | " + " | ".join(outcomes) + " | slowest, s | largest, MiB |", "|---" * 10 + "|"]
    for subject in [*dict.fromkeys(v.subject for v in verdicts), "all"]:
        own = [v for v in verdicts if subject in (v.subject, "all")]
        counts = Counter(v.outcome for v in own)
        cells = " | ".join(f"{counts[o]:,}" for o in outcomes)
        slowest, largest = max(v.seconds for v in own), max(v.peak for v in own)
        lines.append(f"| {subject} | {len(own):,} | {cells} | {slowest:.1f} | {largest:.0f} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--first", type=int, default=1_000_000, help="first seed; the tests use those from 0")
    parser.add_argument("--only", nargs="*", default=list(SUBJECTS), help="subjects")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--output", type=Path, default=None, help="folder for fuzz.md and fuzz.json")
    given = parser.parse_args(arguments)
    started = time.monotonic()
    verdicts = []
    with tempfile.TemporaryDirectory() as folder:
        watchdog = Watchdog(make_corpus(Path(folder, "corpus")), Path(folder, "scratch"), workers=given.workers)
        for verdict in watchdog.judge(cases(given.only, given.first, given.seconds)):
            verdicts.append(verdict)
            if not verdict.is_fine:
                print(verdict, file=sys.stderr, flush=True)
        watchdog.close()
    table = summary(verdicts)
    print(f"{len(verdicts):,} cases in {time.monotonic() - started:.0f} s\n\n{table}")
    if given.output:
        given.output.mkdir(parents=True, exist_ok=True)
        (given.output / "fuzz.md").write_text(f"# Fuzzing, seeds from {given.first}\n\n{table}\n")
        failed = [{"subject": v.subject, "seed": v.seed, "outcome": v.outcome} for v in verdicts if not v.is_fine]
        (given.output / "fuzz.json").write_text(json.dumps({"cases": len(verdicts), "failed": failed}, indent=1) + "\n")
    return 1 if any(not v.is_fine for v in verdicts) else 0


if __name__ == "__main__":
    raise SystemExit(main())
