"""Optional dependencies: one clear sentence where one is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from urllib.parse import unquote, urlsplit

from msdask.errors import MsdaskError

__all__ = ["MissingExtraError", "how_to_install", "require"]


class MissingExtraError(MsdaskError, ImportError):
    """A part of msdask was asked for whose dependencies are not installed."""


def how_to_install(extra: str) -> str:
    """What installs an extra of msdask: the command for where this msdask came from, which is no package index.

    Installers note the place (PEP 610): a checkout, or the address of a git repository. Where they did not, the command
    is the one to type in a checkout.
    """
    try:
        noted = json.loads(importlib.metadata.distribution("msdask").read_text("direct_url.json") or "{}")
    except (importlib.metadata.PackageNotFoundError, ValueError):
        noted = {}
    url, vcs = noted.get("url", ""), noted.get("vcs_info", {}).get("vcs")
    if vcs:
        return f"pip install 'msdask[{extra}] @ {vcs}+{url}'"
    if "dir_info" in noted and url.startswith("file:"):
        editable = "-e " if noted["dir_info"].get("editable") else ""
        return f"pip install {editable}'{unquote(urlsplit(url).path)}[{extra}]'"
    return f"pip install -e '.[{extra}]' in a checkout of msdask"


def require(part: str, *, module: str = "torch", extra: str = "torch") -> None:
    """Check that an optional dependency is there, without importing it.

    Parameters
    ----------
    part : what needs it, as a sentence names it: "msdask.data"
    module : that must be importable
    extra : of msdask that installs it

    Raises
    ------
    MissingExtraError
        It is not; says what to install.
    """
    if importlib.util.find_spec(module) is None:
        raise MissingExtraError(f"{part} needs {module}, which is not installed: {how_to_install(extra)}")
