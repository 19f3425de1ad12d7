"""The code blocks of a page, what stands before them, and what runs or only reads each.

A block runs as it stands, after those before it on its page. An HTML comment on the line before it says where that is
not so:

- ``<!-- not run: needs a GPU -->``: it is read only. Python is compiled and its names are looked up, commands are
  parsed by the real command line.
- ``<!-- slow: trains a network -->``: it and all that comes after it on its page run with the slow tests; with the fast
  ones it is read.
- ``<!-- file: grid.toml -->``: it is what this file of the folder holds.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msdask.cli.app import app

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md")))
LANGUAGES = ("python", "sh", "toml", "json", "yaml", "text")
MARKS = ("not run", "slow", "file")

_FENCE = re.compile(r"^(?P<fence>`{3,})(?P<language>[^\n`]*)\n(?P<code>.*?)^(?P=fence)$", re.MULTILINE | re.DOTALL)
_MARK = re.compile(r"^<!-- (?P<mark>[\w ]+): (?P<text>.+) -->$")
_PLAIN = re.compile(r"^msdask [^|&;<>$`]*$")


@dataclass(frozen=True)
class Block:
    """One code block of a page."""

    page: Path
    line: int
    """Of its first line of code, from 1."""
    language: str
    code: str
    mark: str = ""
    text: str = ""
    """What the mark says: the reason, or the file's name."""

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    """All code blocks of a page, in order; an error where one is in a way that nobody would run."""
    text = page.read_text(encoding="utf-8")
    found = []
    for fence in _FENCE.finditer(text):
        above = text[: fence.start()].splitlines()
        mark = _MARK.match(above[-1]) if above else None
        line = len(above) + 2
        language = fence["language"].strip()
        assert language in LANGUAGES, f"{page.name}:{line - 1}: a block of {language!r}; expected one of {LANGUAGES}"
        if mark is not None:
            assert mark["mark"] in MARKS, f"{page.name}:{line - 2}: {mark['mark']!r}; expected one of {MARKS}"
        found.append(
            Block(page, line, language, fence["code"], mark["mark"] if mark else "", mark["text"] if mark else "")
        )
    outside = _FENCE.sub(lambda fence: "x\n" * fence[0].count("\n"), text)
    for number, (before, line_text) in enumerate(zip(outside.split("\n"), outside.split("\n")[1:], strict=False), 2):
        is_code = re.match(r"    (?![-*] )\S", line_text) and not before.strip()
        assert not is_code, f"{page.name}:{number}: an indented block of code; nobody runs it: use a fence"
        assert "```" not in line_text, f"{page.name}:{number}: a fence that is not closed"
    return found


def commands_of(block: Block) -> list[str]:
    """The commands of a shell block: lines put together where they go on, without comments and blank lines."""
    joined = re.sub(r"\\\n\s*", "", block.code)
    return [line.strip() for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def read(block: Block) -> None:
    """Read a block that is not run: syntax, names of `ms`, options of commands."""
    match block.language:
        case "python":
            look_up(block)
        case "sh":
            for command in commands_of(block):
                parse_command(block, command)
        case "toml":
            tomllib.loads(block.code)
        case "json":
            json.loads(block.code)


def look_up(block: Block) -> None:
    """Compile Python, and look up every ``ms.name`` and the names of the arguments of its calls."""
    tree = ast.parse(block.code, str(block))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (path := _dotted(node)) is not None:
            _named(block, path)
        if isinstance(node, ast.Call) and (path := _dotted(node.func)) is not None:
            parameters = inspect.signature(_named(block, path)).parameters
            if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
                continue
            unknown = {str(k.arg) for k in node.keywords if k.arg} - set(parameters)
            assert not unknown, f"{block}: ms.{path} has no argument {sorted(unknown)}"


def _dotted(node: ast.AST) -> str | None:
    names = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return ".".join(reversed(names)) if isinstance(node, ast.Name) and node.id == "ms" and names else None


def _named(block: Block, path: str) -> Any:
    found: Any = importlib.import_module("msdask")
    for name in path.split("."):
        assert hasattr(found, name), f"{block}: msdask has no {path}"
        found = getattr(found, name)
    return found


def parse_command(block: Block, command: str) -> None:
    """Read a shell line: `msdask` by its own command line, `make` by its targets, everything else by bash -n."""
    words = shlex.split(command, comments=True)
    if words[0] == "msdask":
        app.parse_args(words[1:], exit_on_error=False, print_error=False)
    elif words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        missing = [w for w in words[1:] if "=" not in w and w not in targets]
        assert not missing, f"{block}: the Makefile has no target {missing}"
    else:
        said = subprocess.run(["bash", "-n"], input=command, text=True, capture_output=True, check=False)
        assert said.returncode == 0, f"{block}: {said.stderr}"


def run(block: Block, namespace: dict[str, Any]) -> None:
    """Run a block in the current folder; an error where it fails."""
    if block.mark == "file":
        Path(block.text).write_text(block.code, encoding="utf-8")
    match block.language:
        case "python":
            read(block)
            code = compile("\n" * (block.line - 1) + block.code, str(block.page), "exec")
            exec(code, namespace)
        case "sh":
            run_commands(block)
        case _:
            read(block)


def run_commands(block: Block) -> None:
    """Commands of msdask in this process, which imports nothing anew; a block with any other one in bash."""
    commands = commands_of(block)
    for command in commands:
        parse_command(block, command)
    if not all(_PLAIN.match(re.sub(r"\s#\s.*", "", command)) for command in commands):
        start = 'msdask() { "$PYTHON" -c "from msdask.cli import main; main()" "$@"; }; set -euo pipefail\n'
        environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(REPOSITORY)}
        said = subprocess.run(
            ["bash", "-c", start + block.code], text=True, capture_output=True, check=False, env=environment
        )
        assert said.returncode == 0, f"{block}: exit code {said.returncode}\n{said.stdout}\n{said.stderr}"
        return
    for command in commands:
        words = [w for word in shlex.split(command, comments=True) for w in _expanded(word)]
        code = app(words[1:], exit_on_error=False, print_error=False, result_action="return_value")
        assert not code, f"{block}: `{command}` left with exit code {code}"


def _expanded(word: str) -> list[str]:
    """A word as the shell gives it: file names for a pattern that fits some."""
    names = sorted(str(p) for p in Path().glob(word)) if re.search(r"[*?]", word) and not word.startswith("/") else []
    return names or [word]


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Work in a folder, and leave nothing open that a page began."""
    here = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(here)
        if "matplotlib.pyplot" in sys.modules:
            sys.modules["matplotlib.pyplot"].close("all")
