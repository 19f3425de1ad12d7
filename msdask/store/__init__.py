"""Store: patch sets in sharded Zarr, verified, resumable."""

from msdask.store.patch import Patch
from msdask.store.patch_set import PatchSet
from msdask.store.patch_store import PatchStore

__all__ = ["Patch", "PatchSet", "PatchStore"]
