"""Storage: bytes by path or URL, in folders and in object storage; locks.

Modules say `places.at(path).read(path)`: `places` knows which storage a path leads to.
"""

from msdask.storage.places import zarr_store

__all__ = ["zarr_store"]
