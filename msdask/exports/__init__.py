"""Exports: from a store or a prediction to other programs' files; one file a target."""
