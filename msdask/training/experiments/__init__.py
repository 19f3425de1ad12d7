"""Experiments: a grid of models over repeated splits, judged on the same patches, as a table that can be believed."""
