"""The engine that a caller's options mean."""

from __future__ import annotations

from typing import Any

import pytest

from msdask.engines.open_engine import open_engine
from msdask.errors import SpecError


@pytest.mark.parametrize(
    "options",
    [
        {"client": object(), "threads": 2},
        {"client": object(), "workers": 2},
        {"workers": 2, "threads": 0},
        {"threads": 2, "timeout": 5.0},
        {"tries": 0},
        {"workers": 0},
        {"workers": 1, "timeout": 0},
        {"threads": -1},
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(SpecError), open_engine(jobs=1, **options):
        pass


@pytest.mark.parametrize(("threads", "facts"), [(0, {"kind": "plain"}), (3, {"kind": "threads", "threads": 3})])
def test_the_number_of_threads_chooses_the_engine(threads: int, facts: dict[str, Any]) -> None:
    with open_engine(threads=threads, jobs=1) as engine:
        assert engine.facts() == facts
