"""What the runs of an experiment say together: scores of each row, and differences that can be believed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from msdask.errors import SpecError
from msdask.spec import format_magnification
from msdask.training.class_scores import SCORES
from msdask.training.comparison import NO_DIFFERENCE, bootstrap_patients, corrected_t_test, holm
from msdask.training.experiments.rows import Row

__all__ = ["Judged", "judge"]

Run = Mapping[str, Any]
LEVEL = 0.05
AGAINST = {"single": "best single scale", "matched": "same number of parameters", "pooled": "fine patches for contexts"}


@dataclass(frozen=True)
class Judged:
    """An experiment's results.

    Attributes
    ----------
    scores : a row a run: row, split, parameters, scores of the test
    table : a row a model: row, title, scales, losses, parameters, splits (done), and mean and std of each score
    comparisons : a row a comparison: row, against (what kind of baseline), baseline (its row), splits, difference, low,
        high, t, p, p_holm, boot_low, boot_high, boot_p, verdict
    branches : a row a branch of a model with n + 1 losses: row, branch, splits, mean and std of each score
    ablation : a row a branch: row, branch, splits, repeats, mean and std of the fall of each score
    best_single : row of the single scale that does best in validation; "" without one
    """

    scores: pd.DataFrame
    table: pd.DataFrame
    comparisons: pd.DataFrame
    branches: pd.DataFrame
    ablation: pd.DataFrame
    best_single: str = ""


def judge(
    rows: Sequence[Row],
    runs: Mapping[tuple[str, int], Run],
    predictions: Mapping[tuple[str, int], pd.DataFrame],
    ablations: Mapping[tuple[str, int], pd.DataFrame],
    *,
    drawn: Mapping[int, tuple[int, int]],
    metric: str = "kappa",
    metrics: Sequence[str] = tuple(SCORES),
    draws: int = 2000,
    seed: int = 0,
) -> Judged:
    """Put the runs that are done together.

    Differences are tested by the corrected resampled t-test over splits, adjusted by Holm over all comparisons of the
    table; beside it is the bootstrap over patients of the pooled test predictions. Which of several baselines is the
    best is decided on validation data.

    Parameters
    ----------
    rows : of the table
    runs : (row, split) -> what its done.json says
    predictions : (row, split) -> predictions of its test patches
    ablations : (row, split) -> what `permute_branches` gave
    drawn : split -> patients (or slides) for testing, and for training
    metric : that is compared
    metrics : that the tables have
    draws, seed : of the bootstrap
    """
    scores = pd.DataFrame(
        [
            {"row": row, "split": split, "parameters": run["parameters"], **{m: run["test"][m] for m in metrics}}
            for (row, split), run in sorted(runs.items())
        ],
        columns=["row", "split", "parameters", *metrics],
    )
    valid = {
        row.name: float(np.mean([run["valid"][metric] for (name, _), run in runs.items() if name == row.name]))
        for row in rows
        if any(name == row.name for name, _ in runs)
    }
    singles = [row for row in rows if row.is_single and row.name in valid]
    best = _best(singles, valid)
    pairs = [pair for row in rows for pair in _pairs(row, rows, best, valid) if row.name in valid]
    found = [_compared(*pair, scores, predictions, drawn, metric, draws, seed) for pair in pairs]
    tested = [one for one in found if np.isfinite(one["p"])]
    for one, adjusted in zip(tested, holm([one["p"] for one in tested]) if tested else [], strict=True):
        one["p_holm"] = float(adjusted)
        better = one["row"] if one["difference"] > 0 else one["baseline"]
        one["verdict"] = NO_DIFFERENCE if adjusted >= LEVEL else f"{better} is better"
    return Judged(
        scores,
        _table(rows, scores, metrics),
        pd.DataFrame(found, columns=_COMPARED),
        _branches(rows, runs),
        _ablation(rows, ablations),
        best.name if best else "",
    )


_COMPARED = [
    *("row", "against", "baseline", "splits", "difference", "low", "high", "t", "p", "p_holm"),
    *("boot_low", "boot_high", "boot_p", "verdict"),
]


def _best(rows: Sequence[Row], valid: Mapping[str, float]) -> Row | None:
    """The row that does best in validation; the first of equal ones."""
    known = [row for row in rows if np.isfinite(valid.get(row.name, np.nan))]
    return max(known, key=lambda row: valid[row.name], default=None)


def _pairs(row: Row, rows: Sequence[Row], best: Row | None, valid: Mapping[str, float]) -> list[tuple[Row, str, Row]]:
    """What a row is compared with: a fusion with each baseline, pooled contexts with the best single scale."""
    if not row.is_fusion and row.kind != "pooled":
        return []
    pairs = [] if best is None else [(row, "single", best)]
    if row.is_fusion:
        size = len(row.magnifications)
        matched = [
            r for r in rows if r.kind == "matched" and r.copies == size and r.magnifications[0] in row.magnifications
        ]
        same = (row.magnifications, row.losses)  # so that they differ in nothing but magnification
        pooled = [r for r in rows if r.kind == "pooled" and (r.magnifications, r.losses) == same]
        for kind, candidates in (("matched", matched), ("pooled", pooled)):
            chosen = _best(candidates, valid)
            pairs += [] if chosen is None else [(row, kind, chosen)]
    return pairs


def _compared(
    row: Row,
    against: str,
    baseline: Row,
    scores: pd.DataFrame,
    predictions: Mapping[tuple[str, int], pd.DataFrame],
    drawn: Mapping[int, tuple[int, int]],
    metric: str,
    draws: int,
    seed: int,
) -> dict[str, Any]:
    """One comparison, not adjusted yet."""
    first, second = (scores[scores["row"] == r.name].set_index("split")[metric] for r in (row, baseline))
    splits = sorted(set(first.index) & set(second.index))
    difference = (first[splits] - second[splits]).to_numpy(np.float64)
    found: dict[str, Any] = dict.fromkeys(_COMPARED, np.nan)
    found |= {"row": row.name, "against": AGAINST[against], "baseline": baseline.name, "splits": len(splits)}
    found["difference"] = float(difference.mean()) if len(splits) else np.nan
    if len(splits) < 2:
        found["verdict"] = "not tested: one split" if splits else "not tested: no split has both"
    elif not np.isfinite(difference).all():
        found["verdict"] = f"not tested: {metric} is undefined in a split"
    else:
        n_test, n_train = (float(np.mean([drawn[s][i] for s in splits])) for i in (0, 1))
        test = corrected_t_test(difference, n_test=n_test, n_train=n_train)
        found |= {"low": test.low, "high": test.high, "t": test.t, "p": test.p}
    if splits:
        pooled = [pd.concat([predictions[r.name, s] for s in splits]) for r in (row, baseline)]
        try:
            boot = bootstrap_patients(pooled[0], pooled[1], metric, draws=draws, seed=seed)
        except SpecError:  # too few patients, or undefined in many draws: the columns stay empty
            return found
        found |= {"boot_low": boot.low, "boot_high": boot.high, "boot_p": boot.p}
    return found


def _summary(values: pd.DataFrame, names: Sequence[str]) -> dict[str, float]:
    """Mean and standard deviation (of a sample) of some columns."""
    spread = values[list(names)].std(ddof=1)
    return {
        f"{name}{end}": float(of[name])
        for name in names
        for end, of in (("", values[list(names)].mean()), ("_std", spread))
    }


def _table(rows: Sequence[Row], scores: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    found = []
    for row in rows:
        mine = scores[scores["row"] == row.name]
        facts = {"row": row.name, "title": row.title, "scales": row.scales, "losses": row.losses}
        parameters = int(mine["parameters"].iloc[0]) if len(mine) else 0
        found.append({**facts, "parameters": parameters, "splits": len(mine), **_summary(mine, metrics)})
    return pd.DataFrame(found)


def _branches(rows: Sequence[Row], runs: Mapping[tuple[str, int], Run]) -> pd.DataFrame:
    found = []
    for row in rows:
        tests = [run["test"] for (name, _), run in sorted(runs.items()) if name == row.name]
        if row.losses != "n+1" or not tests:
            continue
        for scale in map(format_magnification, row.magnifications):
            values = pd.DataFrame([{score: test[f"{score}_{scale}"] for score in SCORES} for test in tests])
            found.append({"row": row.name, "branch": scale, "splits": len(tests), **_summary(values, list(SCORES))})
    return pd.DataFrame(found, columns=None if found else ["row", "branch", "splits"])


def _ablation(rows: Sequence[Row], ablations: Mapping[tuple[str, int], pd.DataFrame]) -> pd.DataFrame:
    found = []
    for row in rows:
        falls = []
        for (name, _), table in sorted(ablations.items()):
            if name != row.name:
                continue
            whole = table[table["branch"] == "none"].iloc[0]
            means = table[table["branch"] != "none"].groupby("branch", sort=False)[list(SCORES)].mean()
            falls.append(pd.Series(whole[list(SCORES)], dtype=float) - means)
        for scale in map(format_magnification, row.magnifications if falls else ()):
            values = pd.DataFrame([fall.loc[scale] for fall in falls])
            found.append({"row": row.name, "branch": scale, "splits": len(falls), **_summary(values, list(SCORES))})
    return pd.DataFrame(found, columns=None if found else ["row", "branch", "splits"])
