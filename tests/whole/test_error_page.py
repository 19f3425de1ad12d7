"""docs/errors.md quotes messages that the code has: what is renamed there must be renamed here."""

from __future__ import annotations

import ast
import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = REPOSITORY / "docs" / "errors.md"
SHORTEST = 12
"""Letters that a message must share with the code at the least, in one piece."""


def _template(node: ast.expr) -> str | None:
    """Text of a string in the code, with `...` for what is put in; None where it is no string."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=values):
            return "".join(str(v.value) if isinstance(v, ast.Constant) else "..." for v in values)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            texts = _template(left), _template(right)
            return None if texts == (None, None) else "".join(t or "..." for t in texts)
    return None


def _templates() -> list[str]:
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in sorted((REPOSITORY / "msdask").rglob("*.py")))
    found = (_template(node) for tree in trees for node in ast.walk(tree) if isinstance(node, ast.expr))
    return [text for text in found if text and len(text) >= SHORTEST]


def _pieces(message: str) -> list[str]:
    """The words between what is put in; what ends a sentence before it belongs to another string of the code."""
    pieces = [piece.strip() for piece in message.replace("'...'", "...").split("...") if piece.strip()]
    return [pieces[0].lstrip(" :;"), *pieces[1:]]


def _is_in(message: str, template: str) -> bool:
    """Whether the pieces of a message stand in a template, in their order."""
    at = 0
    template = template.replace("'...'", "...")
    for piece in _pieces(message):
        at = template.find(piece, at)
        if at < 0:
            return False
        at += len(piece)
    return True


def test_every_message_of_the_page_is_one_of_the_code() -> None:
    rows = re.finditer(r"^\| (`+) ?(?P<message>.+?) ?\1 \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    messages = [row["message"] for row in rows]
    assert len(messages) > 40
    templates = _templates()
    lost = []
    for message in messages:
        assert max(map(len, _pieces(message))) >= SHORTEST, f"too short to tell: {message}"
        if not any(_is_in(message, template) for template in templates):
            lost.append(message)
    assert not lost, "\n".join(lost)
