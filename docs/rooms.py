"""The rooms of the package: draws them (docs/images/rooms.svg), and checks what no linter does.

``python docs/rooms.py`` draws; ``python docs/rooms.py --check`` fails where

- modules import each other in a circle, between rooms or inside one (imports for types and inside functions count),
- a module imports from the package's face (``from msdask import x``),
- a file has more than 400 lines, or a function more than 60 lines of code,
- a room is in no storey, or an arrow points from a storey to one above it,
- the picture is not what it would be now, or a list of the rooms (the package's docstring, docs/architecture.md) lacks
  one, or says something else of it than its own first line.

Which room may import which is import-linter's to say: see its contracts in pyproject.toml.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import rooms_picture

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "msdask"
PICTURE = ROOT / "docs" / "images" / "rooms.svg"
PAGE = ROOT / "docs" / "architecture.md"
MOST_LINES = 400
MOST_LINES_OF_A_FUNCTION = 60

STOREYS = {
    "edge": ["cli", "report", "sample"],
    "learning": ["inference", "training", "models", "data", "plots"],
    "extraction": ["exports", "extraction", "store", "engines", "selection", "cutting", "progress"],
    "input": ["slides", "masks", "readers", "storage"],
    "ground": ["spec", "scale", "computing", "extras", "upper", "html", "colors", "errors", "_version"],
}
"""The house from the top down. Arrows between storeys point down, and everyone may stand on the ground."""

Graph = dict[str, set[str]]


def modules() -> dict[str, Path]:
    """Dotted name below the package -> file; a room's own name is its `__init__`."""
    names = {".".join(p.relative_to(PACKAGE).with_suffix("").parts): p for p in sorted(PACKAGE.rglob("*.py"))}
    return {name.removesuffix(".__init__"): path for name, path in names.items()}


def layers() -> list[str]:
    """Rooms from the top down, as import-linter's contract names them."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contract = next(c for c in config["tool"]["importlinter"]["contracts"] if c["type"] == "layers")
    return [room.strip() for layer in contract["layers"] for room in layer.replace("|", ":").split(":")]


def imported(name: str, path: Path, known: dict[str, Path]) -> Iterator[tuple[int, str]]:
    """(line, module below the package) of every import of a file; "" is the package's face."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "msdask":
            base = node.module[len("msdask.") :]
            for alias in node.names:
                inner = f"{base}.{alias.name}".strip(".")
                yield node.lineno, inner if inner in known else base
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "msdask":
                    yield node.lineno, alias.name[len("msdask.") :]


def graphs() -> tuple[Graph, Graph, list[str]]:
    """(module -> modules it imports, room -> rooms it imports, imports from the face)."""
    known = modules()
    inner: Graph = {}
    outer: Graph = {}
    faces = []
    for name, path in known.items():
        if name == "__init__":
            continue
        for line, target in imported(name, path, known):
            if target in ("", "__init__"):
                faces.append(f"{path.relative_to(ROOT)}:{line} imports from the package's face")
            elif target != name:
                inner.setdefault(name, set()).add(target)
                if target.split(".")[0] != name.split(".")[0]:
                    outer.setdefault(name.split(".")[0], set()).add(target.split(".")[0])
    return inner, outer, faces


def circle(graph: Graph) -> list[str] | None:
    """One circle of a graph, or None."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found: list[str] = error.args[1]
        return found
    return None


def one_line(room: str) -> str:
    """First line of a room's docstring, without its name."""
    path = PACKAGE / room / "__init__.py"
    path = path if path.exists() else PACKAGE / f"{room}.py"
    text = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]
    _, _, rest = text.partition(": ")
    return rest.rstrip(".") or text.rstrip(".")


def needed(graph: Graph) -> Graph:
    """A graph without the arrows that others imply."""

    def reach(start: str, seen: set[str]) -> set[str]:
        for target in graph.get(start, ()):
            if target not in seen:
                seen.add(target)
                reach(target, seen)
        return seen

    return {
        room: {t for t in targets if not any(t in reach(other, set()) for other in targets - {t})}
        for room, targets in graph.items()
    }


def draw() -> str:
    """The picture, SVG."""
    lines = {room: one_line(room) for rooms in STOREYS.values() for room in rooms}
    return rooms_picture.draw(STOREYS, needed(graphs()[1]), lines)


def storey_problems(outer: Graph) -> list[str]:
    """Rooms in no storey, or in none that is left, and arrows from a storey to one above it."""
    level = {room: i for i, rooms in enumerate(STOREYS.values()) for room in rooms}
    known = set(layers())
    found = [f"docs/rooms.py: STOREYS lacks '{room}'" for room in sorted(known - level.keys())]
    found += [f"docs/rooms.py: STOREYS has '{room}', which is no room" for room in sorted(level.keys() - known)]
    arrows = [(room, target) for room, targets in sorted(outer.items()) for target in sorted(targets)]
    return found + [f"an arrow up: {a} imports {b}" for a, b in arrows if level.get(b, 9) < level.get(a, 0)]


def long_pieces() -> list[str]:
    """Files and functions that are too long; docstrings, comments and blank lines of a function do not count."""
    found = []
    for path in modules().values():
        text = path.read_text(encoding="utf-8")
        lines = text.split("\n")
        if len(lines) - 1 > MOST_LINES:
            found.append(f"{path.relative_to(ROOT)} has {len(lines) - 1} lines, at most {MOST_LINES}")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) is not None else node.body
                if body:
                    own = [*range(node.lineno, node.body[0].lineno), *range(body[0].lineno, (node.end_lineno or 0) + 1)]
                    code = sum(1 for n in own if lines[n - 1].strip() and not lines[n - 1].strip().startswith("#"))
                    if code > MOST_LINES_OF_A_FUNCTION:
                        where = f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
                        found.append(f"{where} has {code} lines of code, at most {MOST_LINES_OF_A_FUNCTION}")
    return found


def check() -> list[str]:
    """What is wrong, a sentence each."""
    inner, outer, problems = graphs()
    for graph in (outer, inner):
        if found := circle(graph):
            problems.append("a circle of imports: " + " -> ".join(found))
            break
    problems += [*storey_problems(outer), *long_pieces()]
    if not PICTURE.exists() or PICTURE.read_text(encoding="utf-8") != draw():
        problems.append(f"{PICTURE.relative_to(ROOT)} is old: run `make map`")
    face = ast.get_docstring(ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))) or ""
    page = PAGE.read_text(encoding="utf-8")
    for room in (room for room in layers() if (PACKAGE / room).is_dir()):
        if f"`{room}` {one_line(room)}" not in " ".join(face.split()):
            problems.append(f"msdask/__init__.py: its docstring lacks the line `{room}` {one_line(room)}")
        if f"| `{room}` | {one_line(room)} |" not in page:
            problems.append(f"{PAGE.relative_to(ROOT)}: its table lacks the row | `{room}` | {one_line(room)} |")
    return problems


def main() -> int:
    """Draw or check; prints what rooms there are."""
    if "--check" in sys.argv[1:]:
        problems = check()
        print("\n".join(problems) or f"{len(graphs()[1])} rooms: no circles, no long pieces, the picture is true")
        return bool(problems)
    PICTURE.write_text(draw(), encoding="utf-8")
    print(PICTURE.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
