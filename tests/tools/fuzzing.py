"""Fuzzing: damaged copies of good files, judged in processes of their own, so that a crash or a hang is seen.

Run as a script it is such a process: cases come in as JSON lines, verdicts go out. A case is (subject, seed), and the
same case gives the same bytes anywhere.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

CPU_LIMIT = 5.0
"""Seconds of processor time that a case may take: what a hang burns, however busy the machine is."""
WALL_LIMIT = 60.0
"""Seconds that a case may take at all: what a deadlock takes."""
MEMORY_LIMIT = 1280
"""MiB that a case may add to its process: twice the largest picture that is decoded at once, and a quarter."""


@dataclass(frozen=True)
class Verdict:
    """What became of one damaged file.

    Attributes
    ----------
    outcome : "read", "refused" (by one of our errors), "bug" (another error, or a wrong result), "crash", "hang" or
        "memory"
    detail : the error's class, or what was wrong
    peak : MiB that the process grew by
    """

    subject: str
    seed: int
    outcome: str
    detail: str
    peak: float
    seconds: float

    @property
    def is_fine(self) -> bool:
        """Whether it was read or refused."""
        return self.outcome in ("read", "refused")

    def __str__(self) -> str:
        where = f"{self.subject} seed {self.seed}"
        return f"{where}: {self.outcome}: {self.detail} ({self.seconds:.1f} s, {self.peak:.0f} MiB)"


# --- the side that watches --------------------------------------------------------------------------------------------


class _Worker:
    """One process that judges, and the case that it is at."""

    def __init__(self, script: Path, corpus: Path, scratch: Path) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        paths = [str(Path(__file__).resolve().parents[2]), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        scratch.mkdir(parents=True, exist_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(corpus), str(scratch)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(scratch / "stderr").open("wb"),
            env=environment,
        )
        self.case: tuple[str, int] | None = None
        self.is_ready = False
        self.began = time.monotonic()
        self.cpu = 0.0

    def cpu_now(self) -> float:
        try:
            times = psutil.Process(self.process.pid).cpu_times()
        except psutil.NoSuchProcess:
            return self.cpu
        return float(times.user + times.system)

    def give(self, case: tuple[str, int]) -> None:
        assert self.process.stdin is not None
        self.case, self.began, self.cpu = case, time.monotonic(), self.cpu_now()
        self.process.stdin.write(f"{json.dumps(case)}\n".encode())
        self.process.stdin.flush()

    def hangs(self) -> str:
        """Why the case counts as hanging, or ""."""
        wall = time.monotonic() - self.began
        if self.case is None or wall < CPU_LIMIT:
            return ""
        if (used := self.cpu_now() - self.cpu) > CPU_LIMIT:
            return f"{used:.0f} s of processor time"
        return f"{wall:.0f} s" if wall > WALL_LIMIT else ""

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


class Watchdog:
    """Processes that judge cases, each replaced when it crashes, hangs or grows.

    Parameters
    ----------
    corpus : folder of good files, made by `fuzz_corpus.make_corpus`
    scratch : folder for the damaged ones
    workers : number of processes
    script : what they run
    """

    def __init__(self, corpus: Path, scratch: Path, *, workers: int = 2, script: Path = Path(__file__)) -> None:
        self._corpus, self._scratch, self._script = corpus, scratch, script
        self._made = 0
        self._workers = [self._start() for _ in range(workers)]

    def _start(self) -> _Worker:
        self._made += 1
        return _Worker(self._script, self._corpus, self._scratch / str(self._made))

    def judge(self, cases: Iterable[tuple[str, int]]) -> Iterator[Verdict]:
        """Verdicts in the order in which they come."""
        waiting = iter(cases)
        for worker in self._workers:
            if worker.is_ready:
                self._next(worker, waiting)
        idle = all(worker.is_ready and worker.case is None for worker in self._workers)
        while not idle:
            yield from self._wait(waiting)
            idle = all(worker.is_ready and worker.case is None for worker in self._workers)

    def _next(self, worker: _Worker, waiting: Iterator[tuple[str, int]]) -> None:
        worker.case = None
        case = next(waiting, None)
        if case is not None:
            worker.give(case)

    def _wait(self, waiting: Iterator[tuple[str, int]]) -> list[Verdict]:
        with selectors.DefaultSelector() as selector:
            for worker in self._workers:
                if worker.process.stdout is not None and (worker.case is not None or not worker.is_ready):
                    selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
            ready = [key.data for key, _ in selector.select(timeout=1.0)]
        verdicts = []
        for position, worker in enumerate(self._workers):
            verdict = None
            if worker in ready:
                verdict = self._read(worker)
            elif why := worker.hangs():
                verdict = self._verdict(worker, "hang", why)
            if verdict is not None:
                verdicts.append(verdict)
                if not verdict.is_fine and verdict.outcome != "bug":
                    worker.end()
                    self._workers[position] = self._start()
                    continue
            if worker.is_ready and (verdict is not None or worker.case is None):
                self._next(worker, waiting)
        return verdicts

    def _read(self, worker: _Worker) -> Verdict | None:
        assert worker.process.stdout is not None
        line = worker.process.stdout.readline()
        if not line:
            code = worker.process.wait()
            if not worker.is_ready:
                raise RuntimeError(f"a fuzzing process could not start (exit code {code})")
            return self._verdict(worker, "crash", f"exit code {code}")
        if not worker.is_ready:
            worker.is_ready = True
            return None
        reply = json.loads(line)
        if reply["peak"] > MEMORY_LIMIT:
            return self._verdict(worker, "memory", f"more than {MEMORY_LIMIT} MiB", reply["peak"])
        return self._verdict(worker, reply["outcome"], reply["detail"], reply["peak"])

    def _verdict(self, worker: _Worker, outcome: str, detail: str, peak: float = 0.0) -> Verdict:
        assert worker.case is not None
        return Verdict(*worker.case, outcome, detail, peak, time.monotonic() - worker.began)

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.end()


# --- the side that judges ---------------------------------------------------------------------------------------------


def _status_mib(field: str) -> float:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(field)), 0.0)


def _reset_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def judge_case(corpus: Path, scratch: Path, subject: str, seed: int, judges: dict[str, Callable[..., None]]) -> Any:
    """Damage one file, use it, and say how that went: {"outcome", "detail", "peak"}."""
    from msdask.errors import MsdaskError

    kind = subject.partition("-")[0]
    _reset_peak()
    before = _status_mib("VmRSS")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            judges[kind](corpus / subject, scratch, seed)
        outcome, detail = "read", ""
    except MsdaskError as error:
        outcome, detail = "refused", type(error).__name__
        if len(str(error)) < 20:
            outcome, detail = "bug", f"a message that says nothing: {error}"
    except Exception as error:
        import traceback

        outcome, detail = "bug", "".join(traceback.format_exception(error)[-6:])
    return {"outcome": outcome, "detail": detail, "peak": max(0.0, _status_mib("VmHWM") - before)}


def main(arguments: Sequence[str]) -> None:
    """Judge cases from standard input until it ends."""
    import logging

    corpus, scratch = Path(arguments[0]), Path(arguments[1])
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not look like a verdict
    logging.disable(logging.CRITICAL)
    sys.path.insert(0, str(Path(__file__).parent))
    from fuzz_judges import JUDGES

    print("ready", file=out, flush=True)
    for line in sys.stdin:
        subject, seed = json.loads(line)
        print(json.dumps(judge_case(corpus, scratch, subject, seed, JUDGES)), file=out, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
