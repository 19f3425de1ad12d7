"""The page of faults tells the truth: every test that it names exists, and every row names one or says why not."""

from __future__ import annotations

import ast
import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs" / "faults.md").read_text(encoding="utf-8")


def test_every_test_that_the_page_names_exists() -> None:
    named = set(re.findall(r"`([a-z]+/test_\w+\.py)::(test_\w+)`", PAGE))
    assert len(named) > 40
    for file, name in sorted(named):
        tree = ast.parse((REPOSITORY / "tests" / file).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{file}::{name}"


def test_every_fault_has_a_test_or_is_called_a_limit() -> None:
    rows = [line.split("|") for line in PAGE.splitlines() if line.startswith("| ") and "---" not in line]
    faults = [row for row in rows if row[1].strip() != "what happens"]
    assert len(faults) > 25
    for row in faults:
        assert "::test_" in row[3] or "limit" in row[2] or "belong to" in row[2], row[1]
