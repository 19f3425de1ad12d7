"""A small experiment on the cohort of `class_tools`: heads on frozen features, which are trained in a moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msdask as ms
from tests.tools.class_tools import write_class_cohort


def write_store(folder: Path) -> ms.PatchStore:
    """The store that the configuration reads."""
    return write_class_cohort(folder)


def small_config(store: str | Path, output: Path, **changes: Any) -> dict[str, Any]:
    """Five models on two splits."""
    return {
        "store": str(store),
        "output": str(output),
        "relation": "upper_region",
        "magnifications": [[10], [10, 5]],
        "models": ["single", "features"],
        "losses": ["n+1"],
        "ratios": [50, 25, 25],
        "repeats": 2,
        "features": "frozen",
        "backbone": "scalenet",
        "embedding": 8,
        "dropout": 0.2,
        "recipe": {"epochs": 2, "lr": 0.01, "accelerator": "cpu"},
        **changes,
    }


def result_files(folder: Path) -> dict[str, str]:
    """What an experiment found, without what depends on its path."""
    names = ("table.csv", "comparisons.csv", "scores.csv", "branches.csv", "ablation.csv", "table.md")
    return {name: (folder / name).read_text(encoding="utf-8") for name in names if (folder / name).exists()}
