"""The table of docs/readers.md of what is read how: makes a slide of every kind, opens it, and says what it found.

``python docs/readers_table.py`` writes the table, ``python docs/readers_table.py --check`` fails where it is not true
any more. What it says of checks is held by tests/readers/test_kinds.py, which reads the same slides.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "readers.md"
BEGIN, END = "<!-- made by docs/readers_table.py -->", "<!-- end of the table -->"
HEAD = ("format", "compression", "colour", "layout", "levels", "scale from", "file", "checked to the pixel against")
REAL = (
    "CMU-1-Small-Region.svs | JPEG | RGB | tiles of 240 x 240 | 1 | aperio | real | OpenSlide, tifffile",
    "27 crops of MoNuSeg (TIFF) | LZW, PACKBITS | RGB | strips | 1 |  | real | tifffile",
)
"""Of files in ../shared/data; test_kinds.py and test_tiff.py read them where they are there."""
OPENSLIDE = {
    "all": "OpenSlide (all levels, scale)",
    "level 0": "OpenSlide (level 0)",
    "regions": "OpenSlide (each region, all levels)",
    "none": "",
}

sys.path.insert(0, str(ROOT))


def rows() -> Iterator[str]:
    """One row a kind, as it is found by opening it."""
    from msdask.readers import open_reader
    from tests.tools.slide_kinds import KINDS

    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            path = Path(folder) / kind.name
            written = kind.write(path)
            reader = open_reader(path)
            facts, first = reader.metadata.properties, reader.levels[0]
            # a strip is as wide as the picture, or as high where the orientation turns it
            is_strip = first.tile[1] == first.shape[1] or first.tile[0] == first.shape[0]
            layout = "strips" if is_strip and reader.format == "tiff" else f"tiles of {first.tile[1]} x {first.tile[0]}"
            checks = ["the pixels that were written"] * (written is not None)
            checks += [OPENSLIDE[kind.agrees]] if kind.agrees != "none" else [] if checks else ["tifffile or Pillow"]
            cells = (
                kind.format,
                facts.get("tiff.Compression", ""),
                facts.get("tiff.PhotometricInterpretation", ""),
                layout if reader.format == "tiff" else "",
                str(len(reader.levels)),
                reader.metadata.mpp_source or "",
                "generated",
                ", ".join(checks),
            )
            reader.close()
            yield " | ".join(cells)


def page_with_table(text: str) -> str:
    """The page, with the table as it is now between its marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    lines = [f"| {' | '.join(HEAD)} |", f"|{' --- |' * len(HEAD)}", *(f"| {row} |" for row in (*REAL, *rows()))]
    return f"{before}{BEGIN}\n\n" + "\n".join(lines) + f"\n\n{END}{after}"


def main() -> int:
    """Write the table, or check it."""
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    text = PAGE.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise SystemExit(f"{PAGE.relative_to(ROOT)}: expected the marks {BEGIN!r} and {END!r} around the table")
    found = page_with_table(text)
    logging.disable(logging.NOTSET)
    if "--check" in sys.argv[1:]:
        if found == text:
            print("the table of readers is true")
            return 0
        print(f"{PAGE.relative_to(ROOT)}: the table is not true any more: python docs/readers_table.py writes it")
        return 1
    PAGE.write_text(found, encoding="utf-8")
    print(PAGE.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
