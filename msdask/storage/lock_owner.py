"""Who holds a lock, as a small document: for people, and for others to see whether that process still lives."""

from __future__ import annotations

import getpass
import json
import os
import platform
import socket
import uuid
from functools import lru_cache
from pathlib import Path
from typing import Any

__all__ = ["as_document", "is_dead", "parsed", "shown", "this_owner"]


def this_owner() -> dict[str, Any]:
    """Who holds a lock: for people, and for others to see whether it still lives."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": _start_time(os.getpid()),
        "user": _user(),
        "boot": _boot(),
        "namespace": _namespace(),
        "token": uuid.uuid4().hex,
    }


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container's user without a name
        return "unknown"


@lru_cache(maxsize=1)
def _boot() -> str:
    """Names this run of this machine's kernel, where it can."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return platform.node()


def _namespace() -> str:
    """Names the set of processes that a pid counts in: containers of one machine have their own."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _start_time(pid: int) -> str | None:
    """When a process of this machine began, in the kernel's ticks; None where there is none, or it cannot be known."""
    try:
        # the name in parentheses may hold anything
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]  # killed, and nobody has asked for its exit status yet
    except (OSError, IndexError):
        return None


def is_dead(owner: dict[str, Any]) -> bool:
    """Whether a lock's owner ran here, and runs no more: certain, or False."""
    if not owner.get("started") or (owner.get("boot"), owner.get("namespace")) != (_boot(), _namespace()):
        return False
    try:
        return _start_time(int(owner["pid"])) != owner["started"]
    except (KeyError, TypeError, ValueError):  # no document of ours
        return False


def as_document(owner: dict[str, Any]) -> bytes:
    """An owner as it is stored."""
    return json.dumps(owner).encode()


def parsed(data: bytes) -> dict[str, Any]:
    """An owner's document; {} where it is none."""
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def shown(owner: dict[str, Any]) -> str:
    """An owner in a message."""
    facts = {key: owner[key] for key in ("host", "pid", "started", "user") if owner.get(key) is not None}
    return json.dumps(facts) if facts else "unknown"
