"""What is measured in a fresh interpreter: the time to import, the time to a first selection, and peak memory.

As a script it does one of these and prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

__all__ = ["first_selection", "import_time", "peak_memory", "peak_mib"]

_IMPORT = """
import json, sys, time
started = time.perf_counter()
import msdask
package = time.perf_counter() - started
msdask.open_slide, msdask.tissue_mask, msdask.grid, msdask.patches, msdask.PatchStore
main_job = time.perf_counter() - started
assert "torch" not in sys.modules, "importing msdask's main job imports torch"
print(json.dumps({"package": package, "main_job": main_job}))
"""


def _child(*arguments: str) -> dict[str, float]:
    """Run a fresh interpreter that finds this checkout's msdask, and read its last line."""
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, *arguments]
    reply = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment).stdout
    return json.loads(reply.splitlines()[-1])


def import_time(repeats: int) -> dict[str, float]:
    """Seconds that `import msdask` takes ("package"), and with all that the main job uses ("main_job"); medians.

    Fails if either imports torch.
    """
    replies = [_child("-c", _IMPORT) for _ in range(repeats)]
    return {name: statistics.median(reply[name] for reply in replies) for name in replies[0]}


def first_selection(path: str, repeats: int, *, magnification: float = 20, patch_size: int = 224) -> dict[str, float]:
    """Seconds to open, mask and select, median of fresh processes, without the imports.

    Returns
    -------
    seconds : of the three together ("total"), and of each
    """
    arguments = (__file__, "first", path, f"--magnification={magnification}", f"--patch-size={patch_size}")
    replies = [_child(*arguments) for _ in range(repeats)]
    return {name: statistics.median(reply[name] for reply in replies) for name in replies[0]}


def peak_memory(
    path: str, folder: Path, *, threads: int, magnification: float = 20, patch_size: int = 224
) -> dict[str, float]:
    """Peak resident memory of a whole extraction, MiB, and what the interpreter had before it."""
    options = (
        f"--threads={threads}",
        f"--magnification={magnification}",
        f"--patch-size={patch_size}",
        f"--folder={folder}",
    )
    return _child(__file__, "memory", path, *options)


def peak_mib() -> float:
    """Peak resident memory of this process so far.

    Linux's own counter: `ru_maxrss` of a child starts at its parent's memory.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024


def _first(path: str, magnification: float, patch_size: int) -> dict[str, float]:
    import msdask as ms

    functions = ms.open_slide, ms.tissue_mask, ms.grid  # imported before the clock runs
    times = [time.perf_counter()]
    slide = functions[0](path)
    times.append(time.perf_counter())
    mask = functions[1](slide)
    times.append(time.perf_counter())
    functions[2](slide, mask, magnification=magnification, patch_size=patch_size)
    times.append(time.perf_counter())
    names = ("open", "mask", "select")
    seconds = {name: times[i + 1] - times[i] for i, name in enumerate(names)}
    return {"total": times[-1] - times[0], **seconds}


def _memory(path: str, magnification: float, patch_size: int, threads: int, folder: Path) -> dict[str, float]:
    import dask

    import msdask as ms

    slide = ms.open_slide(path)
    selection = ms.grid(slide, ms.tissue_mask(slide), magnification=magnification, patch_size=patch_size)
    before = peak_mib()
    target = folder / "memory.zarr"
    shutil.rmtree(target, ignore_errors=True)
    with dask.config.set(scheduler="threads", num_workers=threads):
        ms.PatchStore(target).write(ms.patches(slide, selection))
    shutil.rmtree(target)
    return {"peak": peak_mib(), "before": before, "patches": selection.sizes["patch"]}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["first", "memory"])
    parser.add_argument("path")
    parser.add_argument("--magnification", type=float, required=True)
    parser.add_argument("--patch-size", type=int, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args(arguments)
    if given.what == "first":
        reply = _first(given.path, given.magnification, given.patch_size)
    else:
        reply = _memory(given.path, given.magnification, given.patch_size, given.threads, given.folder)
    print(json.dumps(reply))


if __name__ == "__main__":
    main()
