"""Loaded by every worker: small blocks, and faults that slides ask for by their names."""

import os
import threading
from pathlib import Path

import msdask.cutting.lazy_patches
import msdask.extraction.slide_job as slidejob

msdask.cutting.lazy_patches.MAX_PATCHES_PER_BLOCK = 16
# Dask may load this twice.
run_block = getattr(slidejob.run_block, "original", slidejob.run_block)
begin_slide = getattr(slidejob.begin_slide, "original", slidejob.begin_slide)


def faulty_block(job, block, **options):
    name = Path(job.slide.path).name
    if "exit" in name and block == 1:
        os._exit(3)
    if "hang" in name and block == 1:
        threading.Event().wait()
    if "memory" in name and block == 1:
        raise MemoryError
    if "recursion" in name and block == 1:
        return faulty_block(job, block, **options)
    if "once" in name and block == 1:
        mark = Path(job.slide.path + ".once")
        if not mark.exists():
            mark.touch()
            os._exit(3)
    return run_block(job, block, **options)


def faulty_begin(row, *args, **options):
    if "unopenable" in Path(row.path).name:
        os._exit(3)
    return begin_slide(row, *args, **options)


faulty_block.original, faulty_begin.original = run_block, begin_slide
slidejob.run_block, slidejob.begin_slide = faulty_block, faulty_begin
for function, name in ((faulty_block, "run_block"), (faulty_begin, "begin_slide")):
    function.__module__, function.__qualname__ = "msdask.extraction.slide_job", name
