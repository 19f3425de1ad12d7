"""Masks: where there is tissue, and which class; found by msdask, or read from files of any format."""
