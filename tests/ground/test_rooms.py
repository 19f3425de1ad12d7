"""The map of the rooms: `docs/rooms.py` finds what it is meant to find, and its picture can be read."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def rooms() -> Iterator[ModuleType]:
    sys.path.insert(0, str(DOCS))
    yield importlib.import_module("rooms")
    sys.path.remove(str(DOCS))


def test_a_circle_is_found(rooms):
    assert rooms.circle({"a": {"b"}, "b": {"c"}}) is None
    assert set(rooms.circle({"a": {"b"}, "b": {"c"}, "c": {"a"}})) == {"a", "b", "c"}


def test_arrows_that_others_imply_are_left_out(rooms):
    graph = {"a": {"b", "c", "d"}, "b": {"c"}, "c": {"d"}}
    assert rooms.needed(graph) == {"a": {"b"}, "b": {"c"}, "c": {"d"}}


def test_an_arrow_up_and_a_room_without_a_storey_are_found(rooms, monkeypatch):
    assert rooms.storey_problems({"cli": {"storage"}}) == []
    assert rooms.storey_problems({"storage": {"cli"}}) == ["an arrow up: storage imports cli"]
    monkeypatch.setattr(rooms, "layers", lambda: [*(r for s in rooms.STOREYS.values() for r in s), "attic"])
    assert rooms.storey_problems({}) == ["docs/rooms.py: STOREYS lacks 'attic'"]


def test_every_import_of_a_file_counts_wherever_it_is(rooms, tmp_path):
    file = tmp_path / "a.py"
    file.write_text(
        "from msdask.store import layout\nfrom msdask import open_slide\ndef f():\n    import msdask.scale\n"
    )
    found = list(rooms.imported("a", file, {"store.layout": file, "scale": file}))
    assert found == [(1, "store.layout"), (2, ""), (4, "scale")]


def test_a_long_file_and_a_long_function_are_found(rooms, monkeypatch, tmp_path):
    file = tmp_path / "long.py"
    file.write_text('def f():\n    """' + "\n".join(["Text."] * 80) + '"""\n' + "    x = 1\n" * 59)
    monkeypatch.setattr(rooms, "ROOT", tmp_path)
    monkeypatch.setattr(rooms, "modules", lambda: {"long": file})
    assert rooms.long_pieces() == []
    file.write_text(file.read_text() + "    y = 1\n" + "\n" * 300)
    assert rooms.long_pieces() == [
        "long.py has 441 lines, at most 400",
        "long.py:1 f has 61 lines of code, at most 60",
    ]


def test_no_box_of_the_picture_hides_another_and_arrows_point_down(rooms):
    picture = rooms.draw()
    found = re.findall(r'<rect x="(\d+)" y="(\d+)" width="(\d+)" height="(\d+)" rx="7"', picture)
    boxes = [tuple(map(int, box)) for box in found]
    assert len(boxes) == sum(len(storey) for storey in rooms.STOREYS.values())
    for i, (x, y, wide, tall) in enumerate(boxes):
        for other_x, other_y, other_wide, other_tall in boxes[:i]:
            beside = x + wide <= other_x or other_x + other_wide <= x
            assert beside or y + tall <= other_y or other_y + other_tall <= y
    arrows = re.findall(r'<path d="M\d+,(\d+) .*?(\d+)" class="arrow"', picture)
    assert len(arrows) >= len(rooms.STOREYS)
    assert all(int(start) < int(end) for start, end in arrows)
