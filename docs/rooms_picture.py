"""The picture of the rooms as SVG: a band a storey, rooms in rows, arrows that run between the boxes.

The layout is Sugiyama's: an arrow over several rows gets a narrow place of its own in each row that it passes, rows are
ordered so that few arrows cross, and everything moves towards what it is joined to.
"""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from html import escape

Node = str | tuple[str, str, int]
"""A room, or where an arrow (from, to) passes a row."""
Graph = Mapping[str, set[str]]

WIDTH, HEIGHT = 220, 76
GAP, ROW_GAP, BAND_GAP = 26, 44, 30
LABEL = 120
"""Left of the rooms, for the names of the storeys."""
PASSAGE = 26
GROUND_HEIGHT = 84
TINTS = ("#eef3fb", "#f3effa", "#edf7f1", "#fdf4e7", "#f1f1f1")
INKS = ("#33588f", "#6b4a96", "#2f7a51", "#9a6a1c", "#555555")


def levels(rooms: Sequence[str], graph: Graph) -> list[list[str]]:
    """Rows of one storey: a room lies below all rooms of the storey that import it."""
    level = dict.fromkeys(rooms, 0)
    for _ in rooms:
        for room in rooms:
            for target in graph.get(room, set()) & level.keys():
                level[target] = max(level[target], level[room] + 1)
    return [[room for room in rooms if level[room] == i] for i in range(max(level.values()) + 1)]


class Layout:
    """Where rooms and arrows lie.

    Parameters
    ----------
    rows : rooms, from the top down
    graph : arrows to draw, all of them downward
    """

    def __init__(self, rows: Sequence[Sequence[str]], graph: Graph) -> None:
        self.row_of = {room: i for i, row in enumerate(rows) for room in row}
        self.rows: list[list[Node]] = [list(row) for row in rows]
        self.above: dict[Node, list[Node]] = {}
        self.below: dict[Node, list[Node]] = {}
        self.chains: list[list[Node]] = []
        for room, targets in sorted(graph.items()):
            for target in sorted(targets & self.row_of.keys()) if room in self.row_of else ():
                between = range(self.row_of[room] + 1, self.row_of[target])
                chain: list[Node] = [room, *((room, target, i) for i in between), target]
                for i in between:
                    self.rows[i].append((room, target, i))
                for upper, lower in itertools.pairwise(chain):
                    self.below.setdefault(upper, []).append(lower)
                    self.above.setdefault(lower, []).append(upper)
                self.chains.append(chain)
        self._order()
        self.x = self._places()

    def _order(self) -> None:
        """Sort each row by the mean place of its neighbours, downward and upward, and keep the best order seen."""
        best, fewest = [list(row) for row in self.rows], self._crossings()
        for sweep in range(24):
            down = sweep % 2 == 0
            joined = self.above if down else self.below
            for i in range(1, len(self.rows)) if down else range(len(self.rows) - 2, -1, -1):
                other = self.rows[i - 1 if down else i + 1]
                place = {node: (k + 0.5) / len(other) for k, node in enumerate(other)}
                own = {node: (k + 0.5) / len(self.rows[i]) for k, node in enumerate(self.rows[i])}
                self.rows[i].sort(key=lambda n: _mean((place[m] for m in joined.get(n, ())), own[n]))
            if (found := self._crossings()) < fewest:
                best, fewest = [list(row) for row in self.rows], found
        self.rows = best

    def _crossings(self) -> int:
        count = 0
        for upper, lower in zip(self.rows, self.rows[1:], strict=False):
            place = {node: k for k, node in enumerate(lower)}
            ends = [(k, place[m]) for k, node in enumerate(upper) for m in self.below.get(node, ())]
            count += sum((a[0] - b[0]) * (a[1] - b[1]) < 0 for i, a in enumerate(ends) for b in ends[:i])
        return count

    def _places(self) -> dict[Node, float]:
        """Middle of every node: as near to its neighbours as the others of its row allow."""
        x = {node: place for row in self.rows for node, place in _apart(row, dict.fromkeys(row, 0.0)).items()}
        for _ in range(60):
            for row in self.rows:
                wanted = {}
                for node in row:
                    near = [*self.above.get(node, ()), *self.below.get(node, ())]
                    # the passages of one arrow pull together, so that it runs straight
                    pull = [x[m] for m in near for _ in range(4 if isinstance(m, tuple) else 1)]
                    wanted[node] = _mean(pull, x[node])
                x |= _apart(row, wanted)
        left = min(x[node] - _width(node) / 2 for node in x)
        return {node: place - left for node, place in x.items()}

    @property
    def width(self) -> float:
        """From the left edge of the first room to the right edge of the last one."""
        return max(place + _width(node) / 2 for node, place in self.x.items())


def _width(node: Node) -> float:
    return WIDTH if isinstance(node, str) else PASSAGE


def _mean(values: Iterable[float], default: float) -> float:
    found = list(values)
    return sum(found) / len(found) if found else default


def _apart(row: Sequence[Node], wanted: Mapping[Node, float]) -> dict[Node, float]:
    """Places in the order of the row, as near to the wanted ones as boxes and gaps allow (least squares)."""
    shift, offsets = 0.0, []
    for i, node in enumerate(row):
        if i:
            shift += (_width(row[i - 1]) + _width(node)) / 2 + GAP
        offsets.append(shift)
    blocks: list[tuple[float, int]] = []  # (mean, count) of what moves together
    for node, offset in zip(row, offsets, strict=True):
        mean, count = wanted[node] - offset, 1
        while blocks and blocks[-1][0] >= mean:
            before, n = blocks.pop()
            mean, count = (before * n + mean * count) / (n + count), n + count
        blocks.append((mean, count))
    starts = [mean for mean, count in blocks for _ in range(count)]
    return {node: start + offset for node, start, offset in zip(row, starts, offsets, strict=True)}


def draw(storeys: Mapping[str, Sequence[str]], graph: Graph, lines: Mapping[str, str]) -> str:
    """The picture.

    Parameters
    ----------
    storeys : name -> rooms, from the top down; the last one is the ground, to which no arrows are drawn
    graph : room -> rooms that it imports, without the arrows that others imply
    lines : room -> what it is for
    """
    names = list(storeys)
    rows, bands = [], []
    for name in names[:-1]:
        inside = levels(storeys[name], graph)
        bands.append((len(rows), len(inside)))
        rows += inside
    layout = Layout(rows, graph)
    tops, y = [], 16.0
    shapes = []
    wide = LABEL + layout.width + 3 * GAP
    for (_, count), tint, ink, name in zip(bands, TINTS, INKS, names, strict=False):
        tall = count * HEIGHT + (count - 1) * ROW_GAP + 2 * 16
        shapes.append(_band(name, y, tall, wide, tint, ink))
        tops += [y + 16 + i * (HEIGHT + ROW_GAP) for i in range(count)]
        y += tall + BAND_GAP
    shapes.append(_band(names[-1], y, GROUND_HEIGHT + 32, wide, TINTS[-1], INKS[-1]))
    places = {room: (LABEL + GAP + layout.x[room], tops[row]) for room, row in layout.row_of.items()}
    shapes += [_arrow(points) for points in _lines(layout, tops, places)]
    for room, (x, top) in places.items():
        ink = next(i for i, (first, count) in enumerate(bands) if first <= layout.row_of[room] < first + count)
        shapes.append(_box(room, lines[room], x, top, WIDTH, HEIGHT, INKS[ink]))
    ground = storeys[names[-1]]
    each = (wide - LABEL - 2 * GAP) / len(ground)
    for i, room in enumerate(ground):
        middle = LABEL + GAP + (i + 0.5) * each
        shapes.append(_box(room, lines[room], middle, y + 16, each - 10, GROUND_HEIGHT, INKS[-1]))
    tall = y + GROUND_HEIGHT + 32 + 34
    note = "An arrow: a room imports from another. Left out: arrows that others imply, and those to the ground."
    shapes.append(f'<text x="{LABEL + GAP}" y="{tall - 12:.0f}" class="line left">{note}</text>')
    style = (
        "text{font-family:Helvetica,Arial,sans-serif;fill:#222;text-anchor:middle}.name{font-size:15px;font-weight:bold}"
        ".line{font-size:11px;fill:#555}.left{text-anchor:start}.storey{font-size:17px;font-weight:bold}"
        ".room{fill:#fff;stroke-width:1.4}.arrow{fill:none;stroke:#777;stroke-width:1.3}"
    )
    tip = (
        '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z" fill="#777"/></marker>'
    )
    size = f'width="{wide + 16:.0f}" height="{tall:.0f}" viewBox="0 0 {wide + 16:.0f} {tall:.0f}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}><title>The rooms of msdask</title>'
    white = '<rect width="100%" height="100%" fill="#fff"/>'
    return "\n".join([head, f"<style>{style}</style><defs>{tip}</defs>", white, *shapes, "</svg>"]) + "\n"


def _lines(
    layout: Layout, tops: Sequence[float], places: Mapping[str, tuple[float, float]]
) -> Iterable[list[tuple[float, float]]]:
    """Points of every arrow: it leaves and enters boxes side by side with others, and runs straight past a row."""
    for chain in layout.chains:
        room, target = str(chain[0]), str(chain[-1])
        points = [(_port(layout, chain[0], chain[1], layout.below) + places[room][0], places[room][1] + HEIGHT)]
        for node in chain[1:-1]:
            top = tops[node[2]]  # type: ignore[index]
            x = LABEL + GAP + layout.x[node]
            points += [(x, top - 4), (x, top + HEIGHT + 4)]
        points.append((_port(layout, chain[-1], chain[-2], layout.above) + places[target][0], places[target][1] - 1))
        yield points


def _port(layout: Layout, node: Node, neighbour: Node, joined: Mapping[Node, list[Node]]) -> float:
    """Where, from the middle of its box, an arrow leaves or enters."""
    others = sorted(joined[node], key=lambda other: layout.x[other])
    step = min(36.0, (WIDTH - 60) / max(1, len(others) - 1))
    return (others.index(neighbour) - (len(others) - 1) / 2) * step


def _arrow(points: Sequence[tuple[float, float]]) -> str:
    path = f"M{points[0][0]:.0f},{points[0][1]:.0f}"
    for i, ((x1, y1), (x2, y2)) in enumerate(itertools.pairwise(points)):
        if i % 2:
            path += f" L{x2:.0f},{y2:.0f}"
        else:
            middle = (y1 + y2) / 2
            path += f" C{x1:.0f},{middle:.0f} {x2:.0f},{middle:.0f} {x2:.0f},{y2:.0f}"
    return f'<path d="{path}" class="arrow" marker-end="url(#tip)"/>'


def _band(name: str, y: float, tall: float, wide: float, tint: str, ink: str) -> str:
    rectangle = f'<rect x="8" y="{y:.0f}" width="{wide:.0f}" height="{tall:.0f}" rx="10" fill="{tint}"/>'
    text = f'<text x="24" y="{y + tall / 2 + 6:.0f}" class="storey left" style="fill:{ink}">{escape(name)}</text>'
    return rectangle + text


def _box(room: str, line: str, x: float, top: float, wide: float, tall: float, ink: str) -> str:
    rectangle = f'x="{x - wide / 2:.0f}" y="{top:.0f}" width="{wide:.0f}" height="{tall:.0f}"'
    parts = [f"<title>{escape(line)}</title>", f'<rect {rectangle} rx="7" class="room" stroke="{ink}"/>']
    text = line.replace("`", "").rstrip(".")
    shown = textwrap.wrap(text, int((wide - 10) / 5.9), max_lines=4, placeholder=" ...")
    start = top + tall / 2 - 7 * len(shown) + 3
    parts.append(f'<text x="{x:.0f}" y="{start:.0f}" class="name">{escape(room)}</text>')
    for i, part in enumerate(shown):
        parts.append(f'<text x="{x:.0f}" y="{start + 15 + 13 * i:.0f}" class="line">{escape(part)}</text>')
    return f"<g>{''.join(parts)}</g>"
