"""Messages in the shell name options: what they say of Python's arguments is put into the words of the command line.

Every message of msdask writes an argument in one way, its name and an equals sign: `min_tissue=70.0`, `overwrite=True`,
`mpp=...`, `labels=`. So it is found in any sentence, also in one that has come from a worker or a store.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

__all__ = ["ARGUMENTS", "in_flags"]


def _mask_magnification(mpp: str) -> str:
    try:
        return f"--mask-magnification {10 / float(mpp):g}"
    except (ValueError, ZeroDivisionError):
        return "--mask-magnification"


ARGUMENTS: dict[str, str | Callable[[str], str]] = {
    "allow_upsampling": "--allow-upsampling",
    "backbone": "--backbone",
    "batch_size": "--batch-size",
    "bottleneck": "--bottleneck",
    "class_weights": "--class-weights",
    "classes": "--classes",
    "codec": "--codec",
    "context_size": "--context-size",
    "copies": "--copies",
    "decode": "--decode",
    "delta": "--delta",
    "device": "--device",
    "dropout": "--dropout",
    "ema": "--ema",
    "embedding": "--embedding",
    "epochs": "--epochs",
    "form": "--format",
    "fuse": "--fuse",
    "keep": "--keep",
    "label_maps": "--label-maps",
    "labels": "--labels",
    "layout": "--layout",
    "lists": "--lists",
    "loss": "--loss",
    "loss_weights": "--loss-weights",
    "losses": "--losses",
    "lr": "--lr",
    "magnification": "--slide-magnification",
    "magnifications": "--magnification",
    "mask_magnification": "--mask-magnification",
    "mask_mpp": _mask_magnification,
    "masks": "--masks",
    "max_hole_um2": "--max-hole-um2",
    "merge": "--merge",
    "min_area_um2": "--min-area-um2",
    "min_label": "--threshold",
    "min_tissue": "--threshold",
    "mode": "--mode",
    "monitor": "--monitor",
    "mpp": "--mpp",
    "n_crops": "--crops",
    "name": "--name",
    "on_bad_tile": "--on-bad-tile",
    "overlap": "--overlap",
    "overwrite": "--overwrite",
    "padding": "--padding",
    "patch_size": "--size",
    "patience": "--patience",
    "precision": "--precision",
    "probabilities": "--probabilities",
    "quality": "--quality",
    "ratios": "--ratios",
    "region": "--region",
    "relation": "--relation",
    "resume": "--resume",
    "roi": "--roi",
    "schedule": "--schedule",
    "slides": "--slides",
    "source": "--source",
    "stride": lambda px: f"size + gap of {px} px",
    "table": "--table",
    "target": "--target",
    "threads": "--threads",
    "tile": "--tile",
    "timeout": "--timeout",
    "tries": "--tries",
    "unlabeled": "--unlabeled",
    "values": "--values",
    "warmup": "--warmup",
    "weights": "--weights",
    "workers": "--workers",
}
"""Argument of a public function -> the option that it is in the shell, or how its value is said there."""

_VALUE = r"\.\.\.|'[^']*'|\[[^\]]*\]|\([^)]*\)|\{[^}]*\}|[^\s,;:()]*"
_TWICE = re.compile(r"(--[a-z-]+ [^;:]+)(?:; \1)+(?=[:;])")
"""What two arguments that are one option say alike."""
# Not within a path or a quoted name, and not a comparison.
_ARGUMENT = re.compile(rf"(?<![^\s(`])({'|'.join(ARGUMENTS)})=(?!=)({_VALUE})")


def in_flags(text: str, options: Collection[str]) -> str:
    """A message in the words of the command line.

    Parameters
    ----------
    text : as an error says it
    options : of the command that runs; arguments that it has no option for stay as they are

    Examples
    --------
    >>> in_flags("workers=0: expected at least 1", ["--workers"])
    '--workers 0: expected at least 1'
    >>> in_flags("'a.svs' is there: pass overwrite=True", ["--overwrite"])
    "'a.svs' is there: pass --overwrite"
    >>> in_flags("magnifications=(20.0, 1.25): expected one", ["--magnification"])
    '--magnification 20 1.25: expected one'
    """

    def option(found: re.Match[str]) -> str:
        known = ARGUMENTS[found[1]]
        if not isinstance(known, str):
            return known(_plain(found[2]))
        if known not in options:
            return found[0]
        value = _plain(found[2])
        return known if value in ("True", "") else f"{known} {value}"

    return _TWICE.sub(r"\1", _ARGUMENT.sub(option, text))


def _plain(value: str) -> str:
    """A value as it is typed: without quotes, brackets and the ".0" of whole numbers."""
    if value[:1] in ("[", "("):
        return " ".join(_plain(part.strip()) for part in value[1:-1].split(",") if part.strip())
    if value[:1] == "'" and " " not in value:
        return value[1:-1]
    return re.sub(r"^(-?\d+)\.0$", r"\1", value)
