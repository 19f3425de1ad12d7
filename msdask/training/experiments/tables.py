"""An experiment's table, in the layout of the paper's Table 4: Markdown, LaTeX and CSV."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from msdask.training.class_scores import SCORES
from msdask.training.experiments.judge import AGAINST, Judged

__all__ = ["latex", "markdown"]

SHOWN = ("kappa", "balanced_accuracy", "macro_f1")
_LOSSES = {"one": "one", "n+1": "n + 1"}


def markdown(judged: Judged, *, caption: str, notes: Sequence[str], metric: str, shown: Sequence[str] = SHOWN) -> str:
    """The tables and what there is to know of them.

    Parameters
    ----------
    judged : results
    caption : of the table
    notes : sentences below it
    metric : that is compared
    shown : scores that the table has
    """
    head = ["model", "magnifications", "losses", "parameters", *map(_said, shown)]
    lines = ["# Experiment", "", caption, "", *_grid(head, _main(judged, " ± ", shown))]
    if len(judged.comparisons):
        lines += ["", f"## Differences in {_said(metric)}", "", _HOW, ""]
        lines += _grid(_COMPARED, _comparisons(judged.comparisons))
    if len(judged.branches):
        lines += ["", "## Branches alone, of models with n + 1 losses", ""]
        lines += _grid(["model", "branch", *map(_said, SHOWN)], _parts(judged.branches, " ± "))
    if len(judged.ablation):
        lines += ["", "## Permuted branches", "", _ABLATION, ""]
        lines += _grid(["model", "branch", *(f"fall of {_said(s)}" for s in SHOWN)], _parts(judged.ablation, " ± "))
    if notes:
        lines += ["", "## Notes", "", *(f"- {note}" for note in notes)]
    return "\n".join(lines) + "\n"


def latex(judged: Judged, *, caption: str, metric: str, shown: Sequence[str] = SHOWN) -> str:
    r"""The table and the differences as two `tabular`s that need no package."""
    head = ["Model", "Magnifications", "Losses", "Parameters", *(_said(s).capitalize() for s in shown)]
    parts = [_tabular(head, _main(judged, r" $\pm$ ", shown), caption)]
    if len(judged.comparisons):
        parts.append(_tabular(_COMPARED, _comparisons(judged.comparisons), f"Differences in {_said(metric)}. {_HOW}"))
    return "\n".join(parts)


_COMPARED = ["model", "against", "difference (95 % interval)", "p (Holm)", "bootstrap over patients", "verdict"]
_HOW = (
    "Mean difference over the splits with the interval and p of the corrected resampled t-test (Nadeau and Bengio "
    "2003), p adjusted by Holm over this table; beside it the 95 % interval of a bootstrap over patients of the pooled "
    "test predictions. Which single scale and which magnification of a baseline are meant was decided in validation."
)
_ABLATION = (
    "How much scores fall when the inputs of one branch are those of other test patches: mean over the permutations, "
    "then over the splits."
)


def _said(score: str) -> str:
    return score.replace("_", " ").replace("f1", "F1")


def _cell(mean: float, std: float, between: str) -> str:
    if not np.isfinite(mean):
        return "–"
    return f"{mean:.4f}{between}{std:.4f}" if np.isfinite(std) else f"{mean:.4f}"


def _main(judged: Judged, between: str, shown: Sequence[str]) -> list[list[str]]:
    most = int(judged.table["splits"].max()) if len(judged.table) else 0
    cells = []
    for row in judged.table.to_dict("records"):
        short = "" if row["splits"] == most else f" ({row['splits']} of {most} splits)"
        cells.append(
            [
                f"{row['title']}{short}",
                str(row["scales"]),
                _LOSSES[str(row["losses"])],
                f"{row['parameters']:,}" if row["splits"] else "–",
                *(_cell(row[s], row[f"{s}_std"], between) for s in shown),
            ]
        )
    return cells


def _comparisons(table: pd.DataFrame) -> list[list[str]]:
    cells = []
    for row in table.to_dict("records"):
        difference = "–" if not np.isfinite(row["difference"]) else f"{row['difference']:+.4f}"
        if np.isfinite(row["low"]):
            difference += f" ({row['low']:+.4f} to {row['high']:+.4f})"
        boot = f"{row['boot_low']:+.4f} to {row['boot_high']:+.4f}" if np.isfinite(row["boot_low"]) else "–"
        p = _p(row["p_holm"]) if np.isfinite(row["p_holm"]) else "–"
        cells.append([row["row"], f"{row['against']}: {row['baseline']}", difference, p, boot, row["verdict"]])
    return cells


def _p(value: float) -> str:
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def _parts(table: pd.DataFrame, between: str) -> list[list[str]]:
    return [
        [row["row"], row["branch"], *(_cell(row[s], row[f"{s}_std"], between) for s in SHOWN)]
        for row in table.to_dict("records")
    ]


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}", *(f"| {' | '.join(row)} |" for row in rows)]


def _tabular(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    lines = [" & ".join(map(_escaped, row)) + r" \\" for row in (head, *rows)]
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{_escaped(caption)}}}",
            rf"\begin{{tabular}}{{{'l' * len(head)}}}",
            r"\hline",
            lines[0],
            r"\hline",
            *lines[1:],
            r"\hline",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _escaped(text: str) -> str:
    for sign in "%&#_":
        text = text.replace(sign, "\\" + sign)
    return text.replace("–", "--").replace("±", r"$\pm$").replace("<", "$<$")


assert set(SHOWN) <= set(SCORES)
assert set(AGAINST) == {"single", "matched", "pooled"}
