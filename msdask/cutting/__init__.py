"""Cutting: from a slide and a selection to pixels, each tile decoded once, each patch measured."""
