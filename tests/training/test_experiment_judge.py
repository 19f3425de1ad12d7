"""What an experiment's runs say together: by hand-made runs, against the formulas written out."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("pytorch_lightning")

from scipy import stats

from msdask.training.class_scores import SCORES
from msdask.training.experiments.judge import Judged, judge
from msdask.training.experiments.rows import Row
from msdask.training.experiments.tables import latex, markdown

FUSION = Row("features", (10.0, 5.0), "n+1")
ROWS = [
    Row("single", (5.0,)),
    Row("single", (10.0,)),
    FUSION,
    Row("matched", (5.0,), copies=2, head="features"),
    Row("matched", (10.0,), copies=2, head="features"),
    Row("pooled", (10.0, 5.0), "n+1"),
]
DRAWN = dict.fromkeys(range(5), (12, 36))
TEST = {  # kappa of each split
    ROWS[0].name: [0.50, 0.52, 0.48, 0.51, 0.49],
    ROWS[1].name: [0.60, 0.70, 0.50, 0.65, 0.55],
    FUSION.name: [0.71, 0.73, 0.70, 0.72, 0.69],
    ROWS[3].name: [0.51, 0.52, 0.50, 0.53, 0.49],
    ROWS[4].name: [0.70, 0.40, 0.90, 0.60, 0.30],
    ROWS[5].name: [0.61, 0.62, 0.60, 0.63, 0.59],
}
VALID = {
    ROWS[0].name: 0.9,
    ROWS[1].name: 0.2,
    FUSION.name: 0.5,
    ROWS[3].name: 0.8,
    ROWS[4].name: 0.1,
    ROWS[5].name: 0.5,
}


def made(leave_out: tuple[tuple[str, int], ...] = ()) -> Judged:
    runs, predictions = {}, {}
    for name, values in TEST.items():
        for split, value in enumerate(values):
            if (name, split) in leave_out:
                continue
            branches = {f"{s}_{scale}": 0.25 for s in SCORES for scale in ("10x", "5x")} if name.endswith("n+1") else {}
            runs[name, split] = {
                "parameters": 1000,
                "valid": dict.fromkeys(SCORES, VALID[name]),
                "test": {**dict.fromkeys(SCORES, value), **branches},
            }
            rng = np.random.default_rng([split, len(name)])
            label = np.random.default_rng(split).integers(0, 3, 60)
            right = rng.random(60) < value
            predicted = np.where(right, label, (label + 1) % 3)
            patient = [f"p{i % 6}" for i in range(60)]
            predictions[name, split] = pd.DataFrame({"patient": patient, "label": label, "predicted": predicted})
    ablation = pd.DataFrame(
        [
            {"branch": branch, "repeat": repeat, **dict.fromkeys(SCORES, value)}
            for branch, repeat, value in [
                ("none", 0, 0.7),
                ("10x", 0, 0.4),
                ("10x", 1, 0.2),
                ("5x", 0, 0.7),
                ("5x", 1, 0.7),
            ]
        ]
    )
    ablations = {(FUSION.name, split): ablation for split in range(5)}
    return judge(ROWS, runs, predictions, ablations, drawn=DRAWN, draws=200)


def test_differences_are_judged_by_the_corrected_test_with_holm_over_the_table():
    table = made().comparisons.set_index(["row", "against"])
    assert list(table["baseline"]) == [ROWS[0].name, ROWS[3].name, ROWS[5].name, ROWS[0].name]
    p = []
    for (row, _), found in table.iterrows():
        d = np.subtract(TEST[row], TEST[found["baseline"]])
        t = d.mean() / math.sqrt(d.var(ddof=1) * (1 / 5 + 12 / 36))
        p.append(2 * stats.t.sf(abs(t), 4))
        assert found["difference"] == pytest.approx(d.mean())
        assert found["t"] == pytest.approx(t)
        assert found["p"] == pytest.approx(p[-1])
        assert found["p"] > stats.ttest_rel(TEST[row], TEST[found["baseline"]]).pvalue  # which is not believed
    order = np.argsort(p)
    adjusted = np.empty(4)
    adjusted[order] = np.minimum(np.maximum.accumulate(np.sort(p) * [4, 3, 2, 1]), 1)
    np.testing.assert_allclose(table["p_holm"].astype(float), adjusted)


def test_the_bootstrap_stands_beside_it():
    judged = made()
    found = judged.comparisons.iloc[0]
    assert found["splits"] == 5
    assert found["boot_low"] < found["boot_high"]


def test_baselines_are_chosen_in_validation_not_by_their_test():
    judged = made()
    assert judged.best_single == ROWS[0].name  # worse in the test than 10x
    assert set(judged.comparisons["baseline"]) == {ROWS[0].name, ROWS[3].name, ROWS[5].name}


def test_the_table_says_where_no_difference_is_shown():
    noisy = dict(TEST)
    try:
        TEST[FUSION.name] = [0.71, 0.30, 0.90, 0.52, 0.49]
        verdicts = made().comparisons["verdict"].tolist()
        text = markdown(made(), caption="Five splits.", notes=["A note."], metric="kappa")
    finally:
        TEST.update(noisy)
    assert verdicts[:3] == ["no difference shown"] * 3
    assert text.count("| no difference shown |") >= 3
    assert made().comparisons["verdict"].tolist()[0] == f"{FUSION.name} is better"


def test_means_and_spreads_are_those_of_the_splits():
    judged = made()
    row = judged.table.set_index("row").loc[FUSION.name]
    assert row["kappa"] == pytest.approx(np.mean(TEST[FUSION.name]))
    assert row["kappa_std"] == pytest.approx(np.std(TEST[FUSION.name], ddof=1))
    branches = judged.branches[judged.branches["row"] == FUSION.name].set_index("branch")
    assert branches.loc["5x", "kappa"] == 0.25
    ablation = judged.ablation.set_index("branch")
    assert ablation["kappa"].to_dict() == pytest.approx({"10x": 0.7 - 0.3, "5x": 0.0})


def test_comparisons_take_the_splits_that_both_have():
    judged = made(leave_out=((FUSION.name, 1), (FUSION.name, 4), (ROWS[0].name, 0)))
    found = judged.comparisons.iloc[0]
    assert found["splits"] == 2
    assert found["difference"] == pytest.approx(np.mean([0.70 - 0.48, 0.72 - 0.51]))
    none = made(leave_out=tuple((FUSION.name, split) for split in range(5)))
    assert FUSION.name not in set(none.comparisons["row"])
    one = made(leave_out=tuple((FUSION.name, split) for split in range(1, 5)))
    assert one.comparisons["verdict"].tolist()[0] == "not tested: one split"
    text = markdown(one, caption="", notes=[], metric="kappa")
    assert "| combine features (1 of 5 splits) | 5x/10x | n + 1 | 1,000 | 0.7100 | 0.7100 | 0.7100 |" in text


def test_the_layout_is_that_of_the_paper_s_table():
    lines = markdown(made(), caption="Five splits.", notes=["A note."], metric="kappa").splitlines()
    head = lines.index("| model | magnifications | losses | parameters | kappa | balanced accuracy | macro F1 |")
    cells = [line.strip("| ").split(" | ") for line in lines[head + 2 : head + 8]]
    assert [row[:3] for row in cells] == [
        ["single scale", "5x", "one"],
        ["single scale", "10x", "one"],
        ["combine features", "5x/10x", "n + 1"],
        ["single scale, 2 branches", "5x", "one"],
        ["single scale, 2 branches", "10x", "one"],
        ["fine patches for contexts", "5x/10x", "n + 1"],
    ]
    assert cells[2][4] == "0.7100 ± 0.0158"
    assert "## Differences in kappa" in lines
    assert "- A note." in lines
    tex = latex(made(), caption="Five splits, 95 % of p_1.", metric="kappa")
    assert r"combine features & 5x/10x & n + 1 & 1,000 & 0.7100 $\pm$ 0.0158" in tex
    assert r"\caption{Five splits, 95 \% of p\_1.}" in tex
    assert tex.count(r"\begin{tabular}") == tex.count(r"\end{tabular}") == 2
