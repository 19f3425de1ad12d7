"""Nuclei of real tissue: HookNet with a target at 40x and a context at 10x against U-Nets of as many parameters.

One organ of the monuseg crops is left out at a time, three times each with other crops for validation and other random
numbers. Crops are 1,000 px, so that a context of 284 px at 10x always leaves its crop: crops are mirrored at their
borders, and how much of what a model sees is mirrored is counted. Mirrored px have no label. All models are judged on
the same px at 40x. Nuclei need little context: that HookNet is no better is to be expected.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

import msdask as ms
from msdask.selection.coverage import outside_shares

__all__ = ["nuclei"]

SIZE, STRIDE, SCALES = 284, 234, (40.0, 20.0, 10.0)
FILTERS, UNET_FILTERS = 8, 11
SEEDS, EPOCHS = 3, 2
MARGIN = 568
"""Px of 40x that are mirrored at each side: half a context."""
ORGANS = {
    "breast": "A7-A13E A7-A13F AR-A1AK AR-A1AS E2-A14V E2-A1B5",
    "kidney": "B0-5698 B0-5710 B0-5711",
    "lung": "18-5592 21-5784 21-5786 38-6178 49-4488 50-5931",
    "prostate": "CH-5767 G9-6336 G9-6348 G9-6356 G9-6362 G9-6363",
}
"""Kidney HE-7128 to HE-7130 were scanned at 20x; brain and lung 44-2665 have no nuclei: left out."""


def crops(folder: Path, *, quick: bool) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    """Mirrored crops and their label masks on disk: rows for `msdask.extract`, and the ids of each organ."""
    data = Path(os.environ.get("MSDASK_DATA_DIR") or Path(__file__).parents[2] / "shared" / "data") / "monuseg"
    if not data.is_dir():
        raise SystemExit(f"'{data}' is not there: set MSDASK_DATA_DIR, or leave the part 'nuclei' out")
    rows, organs = [], {}
    (folder / "masks").mkdir(parents=True, exist_ok=True)
    for organ, places in list(ORGANS.items())[: 2 if quick else None]:
        ids = []
        for place in places.split()[: 2 if quick else None]:
            (path,) = (data / "images").glob(f"*{place}*.tif")
            image = np.pad(tifffile.imread(path)[..., :3], ((MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)), mode="reflect")
            mask = np.asarray(Image.open(data / "nuclei" / f"{path.stem}.png")) + np.uint8(1)
            Image.fromarray(image).save(folder / f"{place}.png")
            Image.fromarray(np.pad(mask, MARGIN)).save(folder / "masks" / f"{place}.png")
            rows.append({"path": folder / f"{place}.png", "mask": folder / "masks" / f"{place}.png", "mpp": 0.25})
            ids.append(f"{place}.png")
        organs[organ] = ids
    return rows, organs


def lists(folder: Path, organs: dict[str, list[str]], *, seeds: int) -> Path:
    """A folder of lists for every organ that is left out and every seed."""
    number = 0
    for seed in range(seeds):
        for organ, test in organs.items():
            rng = np.random.default_rng([seed, number])
            valid = [str(rng.choice(ids)) for other, ids in organs.items() if other != organ]
            others = [one for other, ids in organs.items() if other != organ for one in ids]
            parts = {"train": [one for one in others if one not in valid], "valid": valid, "test": test}
            (folder / str(number)).mkdir(parents=True, exist_ok=True)
            for name, ids in parts.items():
                (folder / str(number) / f"list_{name}.csv").write_text("".join(f"{one}\n" for one in ids))
            number += 1
    return folder


def mirrored(patches: ms.PatchStore, name: str) -> dict[float, float]:
    """Mean share of each magnification's patches that lies outside of the crops, and is mirrored."""
    found = []
    for slide in patches[name].slides:
        attrs = patches[name].attrs(slide)
        x0, y0 = (values - MARGIN for values in patches[name].columns(slide, ["x0", "y0"]))
        height, width = attrs["shape"]
        inside = (height - 2 * MARGIN, width - 2 * MARGIN)
        found.append(outside_shares(x0, y0, attrs["footprint"], inside))
    return dict(zip(SCALES, np.concatenate(found).mean(0).tolist(), strict=True))


def nuclei(folder: Path, *, quick: bool, epochs: int | None = None) -> tuple[str, bool]:
    """The experiment: text of the page; there is no bar to reach."""
    began, processor = time.perf_counter(), sum(os.times()[:4])
    if quick:
        shutil.rmtree(folder / "experiment", ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    rows, organs = crops(folder, quick=quick)
    store = ms.PatchStore(folder / "nuclei.zarr")
    start = MARGIN - (SIZE - 70) // 2  # the first output begins in the corner of the crop
    length = 1000 + SIZE - 70
    spec = ms.ExtractionSpec(
        "centroids",
        SCALES,
        SIZE,
        stride=2 * STRIDE if quick else STRIDE,
        roi=(start, start, length, length),
        min_tissue=0.0,
        unlabeled="keep",
        label_maps=True,
    )
    report = ms.extract(rows, store, spec, values=[1, 2], name="nuclei", progress=False)
    if not report.is_complete:
        raise SystemExit(f"extraction failed: {report.failures}")
    config = {
        "task": "segment",
        "store": store.path,
        "output": str(folder / "experiment"),
        "magnifications": [[40], [20], [10], [40, 10]],
        "baselines": [],
        "lists": str(lists(folder / "lists", organs, seeds=1 if quick else SEEDS)),
        "classes": ["background", "nucleus"],
        "filters": 1 if quick else FILTERS,
        "unet_filters": 1 if quick else UNET_FILTERS,
        "recipe": {"epochs": epochs or (1 if quick else EPOCHS)},
    }
    result = ms.experiment(config, listener=lambda one: print(one, flush=True))
    if result.failures:
        raise SystemExit(f"runs failed: {result.failures}")
    seen = ", ".join(f"{scale:g}x {share:.1%}" for scale, share in mirrored(store, "nuclei").items())
    seconds, processor = time.perf_counter() - began, sum(os.times()[:4]) - processor
    text = [
        "## Nuclei, one organ left out at a time",
        "",
        f"{len(rows)} crops of {len(organs)} organs, {len(store['nuclei']):,} tuples, {len(result.judged.scores)} runs "
        f"in {seconds:,.0f} s ({processor:,.0f} s of processor time). Mirrored of what is seen: {seen}. Organ and "
        "stain are confounded, and crops are few; nuclei need little context.",
        "",
        result.text.replace("# Experiment\n\n", "").strip(),
        "",
    ]
    return "\n".join(text), True
