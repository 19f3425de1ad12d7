"""The groups that `--help` shows commands and options in; what is typed every day stands first, without a group."""

from __future__ import annotations

from cyclopts import Group

__all__ = [
    "HELP",
    "LEARNING",
    "MODELS",
    "NETWORK",
    "PATCHES",
    "PIXELS",
    "RUN",
    "SCALE",
    "SELECTION",
    "SLIDES",
    "SPLITS",
    "STORES",
]

SLIDES = Group("Slides", sort_key=1)
PATCHES = Group("Patches", sort_key=2)
STORES = Group("Stores", sort_key=3)
MODELS = Group("Models", sort_key=4)

HELP = Group("Help", sort_key=5)

SELECTION = Group("Which patches", sort_key=11)
PIXELS = Group("Pixels and storage", sort_key=12)
SCALE = Group("Size of a pixel", sort_key=13)
SPLITS = Group("Which slides are for what", sort_key=14)
NETWORK = Group("The network", sort_key=15)
LEARNING = Group("How it learns", sort_key=16)
RUN = Group("What it runs on", sort_key=17)
