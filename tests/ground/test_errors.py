"""A notebook shows an error of ours as one sentence and the line that asked for it."""

from __future__ import annotations

import linecache
import sys
import traceback

import pytest

import msdask as ms
from msdask.errors import MsdaskError, StoreError


def test_the_sentence_and_the_line_that_asked_are_all_that_is_shown() -> None:
    cell = "import msdask as ms\nms.open_slide('nothere.svs').thumbnail()\n"
    linecache.cache["cell-1"] = (len(cell), None, cell.splitlines(keepends=True), "cell-1")
    with pytest.raises(MsdaskError) as caught:
        exec(compile(cell, "cell-1", "exec"), {})
    assert "".join(traceback.format_exception(caught.value)).count("\n") > 10
    shown = caught.value._render_traceback_()
    assert shown == [
        "\x1b[31mSlideError\x1b[0m: slide 'nothere.svs': no such file; check the path",
        "  line 2: ms.open_slide('nothere.svs').thumbnail()",
    ]


def test_an_error_that_was_never_raised_is_its_sentence() -> None:
    assert StoreError("it is gone")._render_traceback_() == ["\x1b[31mStoreError\x1b[0m: it is gone"]


def test_ipython_asks_for_it(tmp_path) -> None:
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    shell = InteractiveShell.instance()
    try:
        with capture_output() as seen:
            shell.run_cell(f"import msdask as ms\nms.PatchStore({str(tmp_path)!r})['grid-10x']")
    finally:
        InteractiveShell.clear_instance()
    assert sys.modules["msdask"] is ms
    text = seen.stdout
    assert "has no patch set 'grid-10x'" in text or "StoreError" in text
    assert "Traceback" not in text
    assert len(text.strip().splitlines()) <= 3
