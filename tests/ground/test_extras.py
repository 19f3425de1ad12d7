"""What msdask says where an optional dependency is missing: the command for where this msdask came from."""

from __future__ import annotations

import importlib.metadata
import json
from types import SimpleNamespace

import pytest

from msdask.extras import MissingExtraError, how_to_install, require

CHECKOUT = {"url": "file:///home/ann%20e/msdask", "dir_info": {"editable": True}}
COPY = {"url": "file:///src/msdask", "dir_info": {}}
GIT = {"url": "https://lab.example/msdask.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}}


@pytest.mark.parametrize(
    ("noted", "expected"),
    [
        (json.dumps(CHECKOUT), "pip install -e '/home/ann e/msdask[torch]'"),
        (json.dumps(COPY), "pip install '/src/msdask[torch]'"),
        (json.dumps(GIT), "pip install 'msdask[torch] @ git+https://lab.example/msdask.git'"),
        (None, "pip install -e '.[torch]' in a checkout of msdask"),
        ("half a no", "pip install -e '.[torch]' in a checkout of msdask"),
    ],
)
def test_the_command_is_the_one_for_where_msdask_came_from(noted, expected, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: SimpleNamespace(read_text=lambda file: noted))
    assert how_to_install("torch") == expected


def test_a_missing_package_is_named_with_its_command():
    with pytest.raises(MissingExtraError, match=r"msdask\.x needs no_such_thing, which is not installed: pip install "):
        require("msdask.x", module="no_such_thing")
