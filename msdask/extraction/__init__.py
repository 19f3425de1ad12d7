"""Extraction: many slides into one store, and its repair."""
