"""The names that a slide goes by, in lists and in folders of masks: with its ending and without."""

from __future__ import annotations

import os

__all__ = ["names_of"]


def names_of(slide: str) -> list[str]:
    """A slide's file name with its ending and without; for .ome.tif without the .ome as well.

    >>> names_of("slides/a.b.svs"), names_of("a.ome.tif")
    (['a.b.svs', 'a.b'], ['a.ome.tif', 'a.ome', 'a'])
    """
    name = os.path.basename(slide.rstrip("/\\"))
    stem = os.path.splitext(name)[0]
    names = [name, stem, stem[:-4] if stem.lower().endswith(".ome") else stem]
    return [n for n in dict.fromkeys(names) if n]
