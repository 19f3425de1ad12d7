"""Exports: from a store to other programs' files; one file a target."""
