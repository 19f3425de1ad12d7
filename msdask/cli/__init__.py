"""Command line: `msdask ...`; it parses, calls and prints."""

from msdask.cli.app import app, main

__all__ = ["app", "main"]
