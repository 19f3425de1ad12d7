"""Which patch set an exported folder holds: one set's images never come upon those of another.

The layout of Multi_Scale_Tools names magnifications only, so that two sets of one magnification have one folder. What
was exported is noted in ``.msdask-export.json`` of the output folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from msdask.errors import StoreError
from msdask.exports.exported_set import ExportedSet
from msdask.storage.files import write_file

__all__ = ["CLAIMS", "check_claims", "claim"]

CLAIMS = ".msdask-export.json"


def check_claims(output: str | os.PathLike[str], sets: Iterable[ExportedSet]) -> None:
    """Refuse sets whose folder another set has, of this call or of an earlier one.

    Raises
    ------
    StoreError
        Two sets have one folder; or what was noted cannot be read.
    """
    known = _read(output)
    first: dict[str, str] = {}
    for s in sets:
        name = s.patch_set.name
        if s.root in first:
            raise StoreError(
                f"patch sets '{first[s.root]}' and '{name}' would both go to '{s.root}': the layout names "
                "magnifications only; export them one at a time, into different folders, or take layout='flat', which "
                "has a folder a set"
            )
        first[s.root] = name
        there = known.get(_key(output, s))
        if there is None or there == _value(s) or not os.path.isdir(s.root):
            continue
        same = there.get("set") == name
        what = f"an earlier '{name}', of another spec" if same else f"patch set '{there.get('set')}'"
        advice = "remove that folder first" if same else "take layout='flat', which has a folder a set, remove that one"
        raise StoreError(f"'{s.root}' holds {what}: '{name}' would replace its slides; {advice}, or export elsewhere")


def claim(output: str | os.PathLike[str], sets: Iterable[ExportedSet]) -> None:
    """Note which sets are exported; the folder is made.

    Raises
    ------
    FileWriteError
        The folder cannot be written.
    """
    known = {**_read(output), **{_key(output, s): _value(s) for s in sets}}
    write_file(Path(output, CLAIMS), json.dumps(known, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def _read(output: str | os.PathLike[str]) -> dict[str, Any]:
    path = Path(output, CLAIMS)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise StoreError(f"'{path}' cannot be read: {error}; remove it, or export to another folder") from error
    if not isinstance(found, dict) or not all(isinstance(value, dict) for value in found.values()):
        raise StoreError(f"'{path}': expected an object of folders; remove it, or export to another folder")
    return found


def _key(output: str | os.PathLike[str], s: ExportedSet) -> str:
    return os.path.relpath(s.root, os.path.abspath(output)).replace(os.sep, "/")


def _value(s: ExportedSet) -> dict[str, str]:
    return {"set": s.patch_set.name, "spec_hash": s.patch_set.spec_hash}
