"""Progress: what happens while many slides are worked on, and what became of each; events, progress bar, reports."""

from msdask.progress import events as events
