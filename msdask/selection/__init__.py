"""Selection: which patches to take. Pure: arrays in, tables out."""

from msdask.selection.select import centroids, grid, select

__all__ = ["centroids", "grid", "select"]
