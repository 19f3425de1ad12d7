"""Tissue masks beside others' rules: intersection over union with the truth, and seconds a slide.

    python benchmarks/masks.py                    # a minute; masks.md and masks.json in benchmarks/results

Generated scenes and real tissue (tests/tools/mask_scenes.py): CMU-1-Small-Region with a mask drawn by hand, and crops
of MoNuSeg laid on glass, where MSDASK_DATA_DIR or ../shared/data has them. Exit code 1 if msdask is under 0.9 anywhere.
The others' rules are written anew in peer_masks.py after their published descriptions; none of their code is in it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import tifffile
from numpy.typing import NDArray
from peer_masks import PEERS
from verdict import machine

from msdask.masks.tissue import tissue_from_rgb
from msdask.slides.slide import open_slide
from tests.tools.mask_scenes import KINDS, MPP, Scene, drawn_mask, iou, make_scene, tissue_on_glass

LEAST = 0.9
ROUNDS = 3
LAID_ON_GLASS = ("TCGA-B0-5710-01Z-00-DX1", "TCGA-21-5786-01Z-00-DX1")

Rule = Callable[[NDArray[np.uint8], float], NDArray[np.bool_]]


def msdask_rule(image: NDArray[np.uint8], mpp: float) -> NDArray[np.bool_]:
    """`msdask.tissue_mask` without opening and reading a slide."""
    return tissue_from_rgb(image, mpp=mpp)


RULES: dict[str, Rule] = {"msdask": msdask_rule, **PEERS}


def scenes(data: Path) -> Iterator[Scene]:
    """Generated ones, then those of real tissue that is here."""
    for kind in KINDS:
        for variant in (0, 1):
            yield make_scene(kind, variant)
    cmu = data / "CMU-1-Small-Region.svs"
    if cmu.is_file():
        slide = open_slide(cmu)
        image = np.ascontiguousarray(slide.at(mpp=MPP).to_numpy())
        yield Scene("CMU-1-Small-Region, by hand", 0, image, drawn_mask(slide.shape, image.shape[:2]))
    for seed, name in enumerate(LAID_ON_GLASS):
        path = data / "monuseg" / "images" / f"{name}.tif"
        if path.is_file():
            pixels = np.ascontiguousarray(tifffile.imread(path)[..., :3])
            yield tissue_on_glass(pixels, mpp=0.25, seed=seed)


def seconds_a_slide(shape: tuple[int, int]) -> dict[str, float]:
    """Median seconds of every rule on a slide of this many mask px, in turns."""
    image = make_scene("pale beside strong", 0).image
    repeats = -(-shape[0] // image.shape[0]), -(-shape[1] // image.shape[1]), 1
    large = np.ascontiguousarray(np.tile(image, repeats)[: shape[0], : shape[1]])
    times: dict[str, list[float]] = {name: [] for name in RULES}
    for _ in range(ROUNDS):
        for name, rule in RULES.items():
            started = time.perf_counter()
            rule(large, MPP)
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def report(facts: dict[str, object], rows: Sequence[dict[str, object]], seconds: dict[str, float], side: int) -> str:
    """The Markdown that is printed and kept."""
    lines = ["| scene | " + " | ".join(RULES) + " |", "| --- |" + " --- |" * len(RULES)]
    for row in rows:
        lines.append(f"| {row['scene']} | " + " | ".join(f"{row[name]:.3f}" for name in RULES) + " |")
    least = {name: min(float(str(row[name])) for row in rows) for name in RULES}
    lines.append("| **least** | " + " | ".join(f"{least[name]:.3f}" for name in RULES) + " |")
    lines.append("| seconds a slide | " + " | ".join(f"{seconds[name]:.2f}" for name in RULES) + " |")
    about = "; ".join(f"{name} {value}" for name, value in facts.items() if name != "versions")
    verdict = "pass" if least["msdask"] >= LEAST else "**FAIL**"
    return "\n\n".join(
        [
            "# Tissue masks",
            about,
            f"Intersection over union with the truth at {MPP:g} um/px. Seconds: a slide of {side * MPP / 1000:.0f} mm "
            f"square ({side:,} x {side:,} mask px), median of {ROUNDS} rounds in turns, without reading.",
            "\n".join(lines),
            f"msdask: least {least['msdask']:.3f}, at least {LEAST:g} asked for: {verdict}.",
            "The other rules are written anew after published descriptions, not checked against those programs; "
            "HistoQC's is its light and dark rules alone: benchmarks/peer_masks.py.",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    default = Path(__file__).parents[2] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("MSDASK_DATA_DIR", default)))
    parser.add_argument("--side", type=int, default=2500, help="of the slide that is timed, mask px")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args(arguments)
    facts = machine()
    rows: list[dict[str, object]] = []
    for scene in scenes(given.data):
        scores = {name: round(iou(rule(scene.image, MPP), scene.truth), 4) for name, rule in RULES.items()}
        rows.append({"scene": f"{scene.kind} {scene.variant + 1}", **scores})
        print(rows[-1], file=sys.stderr)
    seconds = seconds_a_slide((given.side, given.side))
    text = report(facts, rows, seconds, given.side)
    print(text)
    given.output.mkdir(parents=True, exist_ok=True)
    (given.output / "masks.md").write_text(text + "\n", encoding="utf-8")
    document = {"machine": facts, "mpp": MPP, "iou": rows, "seconds": seconds, "side": given.side}
    (given.output / "masks.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0 if all(float(str(row["msdask"])) >= LEAST for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
