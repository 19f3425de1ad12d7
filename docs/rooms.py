"""The rooms of the package: draws them (docs/images/rooms.svg), and checks what no linter does.

``python docs/rooms.py`` draws; ``python docs/rooms.py --check`` fails where

- modules import each other in a circle, between rooms or inside one (imports for types and inside functions count),
- a module imports from the package's face (``from msdask import x``),
- a file has more than 400 lines, or a function more than 60 lines of code,
- the picture, or the list of rooms in the package's docstring, is not what it would be now.

Which room may import which is import-linter's to say: its layers in pyproject.toml are the storeys of the picture.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "msdask"
PICTURE = ROOT / "docs" / "images" / "rooms.svg"
MOST_LINES = 400
MOST_LINES_OF_A_FUNCTION = 60

Graph = dict[str, set[str]]


def modules() -> dict[str, Path]:
    """Dotted name below the package -> file; a room's own name is its `__init__`."""
    names = {".".join(p.relative_to(PACKAGE).with_suffix("").parts): p for p in sorted(PACKAGE.rglob("*.py"))}
    return {name.removesuffix(".__init__"): path for name, path in names.items()}


def storeys() -> list[list[str]]:
    """Rooms from the top down, as the layers of import-linter's contract name them."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contract = next(c for c in config["tool"]["importlinter"]["contracts"] if c["type"] == "layers")
    return [[room.strip() for room in layer.replace("|", ":").split(":")] for layer in contract["layers"]]


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
    """The picture, SVG: a row a storey, an arrow where a room imports another one and no other arrow implies it."""
    width, height, gap, left, top = 176, 46, 62, 20, 20
    rows = storeys()
    wide = max(len(row) for row in rows) * (width + 24) + 2 * left
    place: dict[str, tuple[float, float]] = {}
    boxes = []
    for y, row in enumerate(rows):
        for x, room in enumerate(row):
            at = (wide / 2 + (x - (len(row) - 1) / 2) * (width + 24), top + y * (height + gap) + height / 2)
            place[room] = at
            rectangle = f'x="{at[0] - width / 2:.0f}" y="{at[1] - height / 2:.0f}" width="{width}" height="{height}"'
            boxes.append(f'<rect {rectangle} rx="6" class="room"/>')
            boxes.append(f'<text x="{at[0]:.0f}" y="{at[1] + 5:.0f}" class="name">{room}</text>')
            boxes[-1] = f"<g>{boxes[-1]}<title>{one_line(room)}</title></g>"
    arrows = []
    for room, targets in sorted(needed(graphs()[1]).items()):
        for target in sorted(targets):
            (x1, y1), (x2, y2) = place[room], place[target]
            y1, y2 = y1 + height / 2, y2 - height / 2 - 2
            bend = (y2 - y1) / 2
            path = f"M{x1:.0f},{y1:.0f} C{x1:.0f},{y1 + bend:.0f} {x2:.0f},{y2 - bend:.0f} {x2:.0f},{y2:.0f}"
            arrows.append(f'<path d="{path}" class="arrow" marker-end="url(#tip)"/>')
    tall = top * 2 + len(rows) * (height + gap) - gap
    style = (
        ".room{fill:#fff;stroke:#444}.name{font:14px sans-serif;text-anchor:middle}"
        ".arrow{fill:none;stroke:#8a8a8a}svg{background:#fafafa}"
    )
    tip = (
        '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z" fill="#8a8a8a"/></marker>'
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{tall}" viewBox="0 0 {wide} {tall}">'
    return "\n".join([head, f"<style>{style}</style><defs>{tip}</defs>", *arrows, *boxes, "</svg>"]) + "\n"


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
    problems += long_pieces()
    if not PICTURE.exists() or PICTURE.read_text(encoding="utf-8") != draw():
        problems.append(f"{PICTURE.relative_to(ROOT)} is old: run `make map`")
    face = ast.get_docstring(ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))) or ""
    for room in (room for row in storeys() for room in row if (PACKAGE / room).is_dir()):
        if f"`{room}` {one_line(room)}" not in " ".join(face.split()):
            problems.append(f"msdask/__init__.py: its docstring lacks the line `{room}` {one_line(room)}")
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
