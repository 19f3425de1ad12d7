"""Tables and figure of the scale detector's benchmark, from the estimates that its turns left."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

METRICS = ("r2", "mse", "balanced_accuracy", "kappa")
SEED_PAPER = (
    ("original (ResNet34, 224 px, trained on colon): colon", 0.9997, 0.025, 0.9857, 0.9991),
    ("original: prostate", 0.8013, 19.34, 0.8514, 0.9094),
    ("original: lung", 0.6682, 32.13, 0.7973, 0.8743),
)
TARGETS = {"patch": {"r2": 0.85, "kappa": 0.93}, "image": {"r2": 0.90, "kappa": 0.95}}
Estimates = dict[str, dict[str, list[float]]]


def pairs(estimates: Estimates, names: Sequence[str], *, of_images: bool) -> tuple[np.ndarray, np.ndarray]:
    """(estimated, true) magnifications of patches, or of images: medians over their patches at one magnification."""
    estimated, true = [], []
    for name in names:
        for stated, values in estimates[name].items():
            found = [float(np.median(values))] if of_images else values
            estimated += found
            true += [float(stated)] * len(found)
    return np.array(estimated), np.array(true)


def measured(estimates: Estimates, names: Sequence[str], *, of_images: bool) -> dict[str, float]:
    """The metrics of spec 8, by the package's own code."""
    import torch

    from msdask.training import scale_metrics

    estimated, true = pairs(estimates, names, of_images=of_images)
    found = {}
    for name, metric in scale_metrics(sorted(set(true.tolist()))).items():
        metric.update(torch.tensor(estimated).float(), torch.tensor(true).float())
        found[name] = float(metric.compute())
    return found


def bias(estimates: Estimates, names: Sequence[str]) -> dict[float, float]:
    """Mean difference from the truth in octaves, by magnification."""
    estimated, true = pairs(estimates, names, of_images=False)
    return {m: float(np.log2(estimated[true == m] / m).mean()) for m in sorted(set(true.tolist()))}


def suspicion(runs: Sequence[dict[str, Any]], test: Sequence[str]) -> dict[str, tuple[float, str]]:
    """Image -> (octaves between stated and estimated scale, organ), each by models that never saw its organ.

    The median over the patches of each magnification, the mean over magnifications and seeds.
    """
    found: dict[str, list[float]] = defaultdict(list)
    organ_of = {}
    for run in runs:
        if len(run["test"]) == 1 and run["test"][0] in test:
            for name, by_scale in run["estimates"].items():
                if name != "CMU-1":
                    differences = [np.log2(np.median(v) / float(m)) for m, v in by_scale.items()]
                    found[name].append(float(np.mean(differences)))
                    organ_of[name] = run["test"][0]
    means = {name: float(np.mean(v)) for name, v in found.items()}
    return {n: (means[n], organ_of[n]) for n in sorted(means, key=lambda n: -abs(means[n]))}


def report(files: Sequence[Path], output: Path, figure: Path, *, mislabelled: Sequence[str]) -> str:
    """Write scale_detector.json, .md and the figure; returns the Markdown."""
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        groups[run["turn"].rsplit("-", 1)[0] if run["turn"] not in ("default", "free") else run["turn"]].append(run)
    rows: dict[str, dict[str, list[dict[str, float]]]] = {}
    biases: dict[str, dict[float, float]] = {}
    for group, members in groups.items():
        if group == "default":
            continue
        rows[group] = {"patch": [], "image": []}
        for run in members:
            names = [n for n in run["estimates"] if n not in mislabelled and n != "CMU-1"]
            for level in ("patch", "image"):
                rows[group][level].append(measured(run["estimates"], names, of_images=level == "image"))
        found = [bias(r["estimates"], [n for n in r["estimates"] if n not in (*mislabelled, "CMU-1")]) for r in members]
        biases[group] = {m: float(np.mean([f[m] for f in found])) for m in found[0]}
    single = [g for g in ("breast", "kidney", "lung", "prostate") if g in rows]
    ranking = suspicion(runs, single)
    lines = [*_metric_table(rows, single, groups), "", *_bias_table(biases), "", *_ranking(ranking, mislabelled)]
    lines += ["", *_cmu(runs), "", *_cost(runs)]
    text = "\n".join(lines) + "\n"
    output.mkdir(parents=True, exist_ok=True)
    (output / "scale_detector.md").write_text("# The scale detector, measured\n\n" + text, encoding="utf-8")
    content = {"metrics": rows, "bias_octaves": biases, "ranking": ranking, "progress": runs}
    (output / "scale_detector.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if single:
        draw(runs, ranking, figure, mislabelled=mislabelled)
    return text


def _cell(values: Sequence[float]) -> str:
    mean, spread = float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    digits = 1 if mean > 2 else 3
    return f"{mean:.{digits}f} ± {spread:.{digits}f}" if len(values) > 1 else f"{mean:.{digits}f}"


def _metric_table(
    rows: dict[str, dict[str, list[dict[str, float]]]], single: Sequence[str], groups: dict[str, list[Any]]
) -> list[str]:
    labels = {
        "two": "lung + prostate, trained on breast + kidney",
        "other-two": "breast + kidney, trained on lung + prostate",
        "free": "all organs up to 20x, model `free`",
    }
    lines = []
    for level, what in (("patch", "A patch of 96 px"), ("image", "An image: the median of its 16 patches")):
        lines += [
            f"**{what}**",
            "",
            "| organ never seen | R2 | MSE | balanced accuracy | kappa |",
            "|---|---|---|---|---|",
        ]
        for group in [*single, *(g for g in ("two", "other-two", "free") if g in rows)]:
            found = rows[group][level]
            cells = [_cell([f[m] for f in found]) for m in METRICS]
            name = labels.get(group, f"{group}, trained on the others")
            lines.append(f"| {name} ({len(found)} seed{'s' if len(found) > 1 else ''}) | " + " | ".join(cells) + " |")
        if len(single) > 1:
            pooled = [f for group in single for f in rows[group][level]]
            cells = [_cell([f[m] for f in pooled]) for m in METRICS]
            lines.append(
                f"| **one organ left out, {len(pooled)} turns** | " + " | ".join(f"**{c}**" for c in cells) + " |"
            )
            goals = TARGETS[level]
            lines.append(f"| to be reached | {goals['r2']:.2f} | | | {goals['kappa']:.2f} |")
        if level == "patch":
            for name, r2, mse, accuracy, kappa in SEED_PAPER:
                lines.append(f"| {name} | {r2} | {mse} | {accuracy} | {kappa} |")
        lines.append("")
    return lines[:-1]


def _bias_table(biases: dict[str, dict[float, float]]) -> list[str]:
    scales = sorted({m for found in biases.values() for m in found})
    lines = ["**Mean error in octaves** (+0.1: 7 % too high), by true magnification", ""]
    lines += ["| turn | " + " | ".join(f"{m:g}x" for m in scales) + " |", "|---" * (len(scales) + 1) + "|"]
    for group, found in biases.items():
        lines.append(f"| {group} | " + " | ".join(f"{found[m]:+.2f}" if m in found else "" for m in scales) + " |")
    return lines


def _ranking(ranking: dict[str, tuple[float, str]], mislabelled: Sequence[str]) -> list[str]:
    if not ranking:
        return []
    order = list(ranking)
    places = ", ".join(str(p) for p in sorted(order.index(n) + 1 for n in mislabelled if n in order))
    lines = [
        f"**Mislabelled images** among {len(order)}, by the distance between stated and estimated scale; "
        f"the three that are 20x scans stated as 40x are at places {places or '(kidney not run)'}",
        "",
        '| place | image | organ | octaves | reads as, at "40x" |',
        "|---|---|---|---|---|",
    ]
    for place, (name, (value, organ)) in enumerate(ranking.items(), 1):
        if place <= 8:
            mark = " **(20x scan)**" if name in mislabelled else ""
            lines.append(f"| {place} | {name}{mark} | {organ} | {value:+.2f} | {40 * 2**value:.0f}x |")
    return lines


def _cmu(runs: Sequence[dict[str, Any]]) -> list[str]:
    found = [r["estimates"]["CMU-1"] for r in runs if "CMU-1" in r["estimates"]]
    if not found:
        return []
    scales = sorted({float(m) for f in found for m in f})
    cells = [_cell([float(np.median(f[f"{m:g}"])) for f in found]) for m in scales]
    return [
        f"**CMU-1-Small-Region**, scanned at 20x, by the {len(found)} models learnt from MoNuSeg: median over patches",
        "",
        "| true | " + " | ".join(f"{m:g}x" for m in scales) + " |",
        "|---" * (len(scales) + 1) + "|",
        "| estimated | " + " | ".join(cells) + " |",
    ]


def _cost(runs: Sequence[dict[str, Any]]) -> list[str]:
    if not runs:
        return []
    cpu = [r["train_cpu_s"] for r in runs]
    return [
        f"{len(runs)} trainings of {runs[0]['crops']:,} crops, {np.mean(cpu):.0f} s of one core each: "
        f"{sum(cpu) / 60:.0f} core minutes in all, {sum(cpu) / 120:.0f} minutes on two cores with nothing else to do."
    ]


def draw(
    runs: Sequence[dict[str, Any]], ranking: dict[str, tuple[float, str]], path: Path, *, mislabelled: Any
) -> None:
    """Estimated against true scale of every image, and the ranking."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.1))
    colors = {"breast": "#4477aa", "kidney": "#ee6677", "lung": "#228833", "prostate": "#ccbb44"}
    rng = np.random.default_rng(0)
    labelled = set()
    for run in runs:
        if len(run["test"]) != 1:
            continue
        organ = run["test"][0]
        for name, by_scale in run["estimates"].items():
            if name == "CMU-1":
                continue
            true = np.array([float(m) for m in by_scale])
            found = np.array([np.median(v) for v in by_scale.values()])
            is_bad = name in mislabelled
            label = "20x scan stated as 40x" if is_bad else organ
            left.plot(
                true * np.exp2(rng.uniform(-0.07, 0.07, len(true))),
                found,
                "x" if is_bad else "o",
                color="black" if is_bad else colors[organ],
                markersize=5 if is_bad else 4,
                alpha=0.75,
                linestyle="none",
                label=None if label in labelled else label,
            )
            labelled.add(label)
    ticks = [5, 8, 10, 15, 20, 30, 40]
    left.plot([4, 60], [4, 60], color="0.6", zorder=0)
    left.set(xscale="log", yscale="log", xlim=(4, 60), ylim=(3, 70), xlabel="stated magnification")
    left.set(ylabel="estimated, median of 16 patches", title="Images of organs never seen")
    for axis in (left.xaxis, left.yaxis):
        axis.set_ticks(ticks, labels=[f"{t}x" for t in ticks])
        axis.set_ticks([], minor=True)
    left.legend(frameon=False, fontsize=8)
    names = list(ranking)
    values = [ranking[n][0] for n in names]
    right.barh(range(len(names)), values, color=["black" if n in mislabelled else colors[ranking[n][1]] for n in names])
    right.set_yticks(range(len(names)), labels=names, fontsize=7)
    right.invert_yaxis()
    right.axvline(0, color="0.6", linewidth=0.8)
    right.set(xlabel="estimated against stated scale, octaves", title="Ranked by how far they are apart")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
