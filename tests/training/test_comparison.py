"""Comparing models: published worked examples, and what the tests say of models that are equal."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

pytest.importorskip("pytorch_lightning")

from msdask.errors import SpecError
from msdask.training.class_scores import balanced_accuracy, confusion, kappa
from msdask.training.comparison import bootstrap_patients, compare, corrected_t_test, holm


def test_the_formula_of_nadeau_and_bengio():
    d = [0.03, -0.01, 0.02, 0.05, 0.00, 0.01, 0.02]
    found = corrected_t_test(d, n_test=20, n_train=80)
    mean = sum(d) / 7
    variance = sum((x - mean) ** 2 for x in d) / 6
    error = (variance * (1 / 7 + 20 / 80)) ** 0.5
    assert found.t == pytest.approx(mean / error)
    assert found.degrees == 6
    assert found.p == pytest.approx(2 * (1 - stats.t.cdf(mean / error, 6)))
    assert (found.low, found.high) == pytest.approx((mean - 2.446912 * error, mean + 2.446912 * error), rel=1e-6)


def test_a_published_worked_example():
    """Scikit-learn's of 10 times 10-fold cross-validation on 100 samples: t 2.611 uncorrected, 0.750 corrected."""
    d = np.random.default_rng(0).normal(size=100)
    d = (d - d.mean()) / d.std(ddof=1) + 2.611 / 10
    assert stats.ttest_1samp(d, 0).statistic == pytest.approx(2.611)
    found = corrected_t_test(d, n_test=10, n_train=90)
    assert found.t == pytest.approx(0.750, abs=5e-4)
    assert found.p / 2 == pytest.approx(0.227, abs=1e-3)  # theirs is one-sided


def test_without_test_slides_to_speak_of_it_is_the_paired_t_test():
    d = np.random.default_rng(1).normal(0.3, 1, 12)
    found, plain = corrected_t_test(d, n_test=1e-9, n_train=1), stats.ttest_1samp(d, 0)
    assert (found.t, found.p) == pytest.approx((plain.statistic, plain.pvalue), rel=1e-6)


def test_differences_that_are_all_the_same():
    nothing, all_alike = (corrected_t_test([value] * 4, n_test=1, n_train=4) for value in (0.0, 0.5))
    assert (nothing.t, nothing.p, nothing.low, nothing.high) == (0, 1, 0, 0)
    assert (all_alike.t, all_alike.p) == (np.inf, 0)


@pytest.mark.parametrize(
    ("d", "options", "match"),
    [
        ([0.1], {}, "two or more"),
        ([0.1, float("nan")], {}, "undefined cannot be compared"),
        ([0.1, 0.2], {"n_test": 0}, "above 0"),
        ([0.1, 0.2], {"confidence": 95}, "share between 0 and 1"),
    ],
)
def test_what_cannot_be_compared_is_refused(d, options, match):
    with pytest.raises(SpecError, match=match):
        corrected_t_test(d, **{"n_test": 1, "n_train": 4} | options)


def test_holm_as_worked_out_in_textbooks():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.02, 0.02, 0.9]), [0.06, 0.06, 0.9])
    np.testing.assert_allclose(holm([0.7, 0.8]), [1, 1])
    assert holm([]).size == 0
    with pytest.raises(SpecError, match="from 0 to 1"):
        holm([0.1, float("nan")])


def null_experiments(experiments: int, repeats: int, seed: int = 0, slides: int = 60) -> np.ndarray:
    """Differences of accuracy (experiments, repeats) of two learners of equal skill, on 80/20 splits of slides.

    Each slide shows two features, equally good and independent given its class; each learner puts a threshold halfway
    between the means of the two classes of its own feature, as its training slides show them.
    """
    rng = np.random.default_rng(seed)
    label = np.tile(np.arange(slides) % 2, (experiments, 1))
    features = rng.normal(size=(2, experiments, 1, slides)) + 1.2 * label[:, None]
    is_test = rng.random((experiments, repeats, slides)).argsort(-1) < slides // 5
    truth = label[:, None].astype(bool)
    means = [np.where(~is_test & (truth == k), features, 0).sum(-1) / (~is_test & (truth == k)).sum(-1) for k in (0, 1)]
    said = features > ((means[0] + means[1]) / 2)[..., None]
    right = (said == truth) & is_test
    accuracy = right.sum(-1) / is_test.sum(-1)
    return accuracy[0] - accuracy[1]


@pytest.mark.parametrize("repeats", [5, 10, 25])
def test_of_1000_experiments_with_equal_models_at_most_7_percent_show_a_difference(repeats):
    differences = null_experiments(1000, repeats)
    found = [corrected_t_test(d, n_test=12, n_train=48).p < 0.05 for d in differences]
    plain = stats.ttest_1samp(differences, 0, axis=1).pvalue < 0.05
    assert np.mean(found) <= 0.07
    assert np.mean(plain) > 0.11  # what the correction is for: the same experiments, judged as if independent


def test_a_model_that_is_better_is_found():
    rng = np.random.default_rng(0)
    scores = pd.DataFrame({"single": 0.6 + rng.normal(0, 0.01, 10)})
    scores["fusion"] = scores["single"] + 0.1 + rng.normal(0, 0.01, 10)
    scores["other"] = scores["single"] + rng.normal(0, 0.01, 10)
    table = compare(scores, n_test=12, n_train=48)
    assert list(zip(table["first"], table["second"], table["verdict"], strict=True)) == [
        ("single", "fusion", "fusion is better"),
        ("single", "other", "no difference shown"),
        ("fusion", "other", "fusion is better"),
    ]
    np.testing.assert_allclose(table["p_holm"], holm(table["p"]))
    one = compare(scores, n_test=12, n_train=48, pairs=[("fusion", "single")])
    assert one["difference"].item() == pytest.approx((scores["fusion"] - scores["single"]).mean())
    assert one["verdict"].item() == "fusion is better"
    with pytest.raises(SpecError, match=r"models \['fusoin'\]: expected some of"):
        compare(scores, n_test=12, n_train=48, pairs=[("fusoin", "single")])


def predictions(skill: float, seed: int, patients: int = 12, patches: int = 40) -> pd.DataFrame:
    """Patches of patients that are easier or harder, and of three classes."""
    rng = np.random.default_rng(seed)
    label = np.random.default_rng(0).integers(0, 3, (patients, patches))
    ease = np.random.default_rng(1).normal(0, 0.15, (patients, 1))
    is_right = rng.random(label.shape) < skill + ease
    said = np.where(is_right, label, rng.integers(0, 3, label.shape))
    patient = np.repeat([f"p{i:02d}" for i in range(patients)], patches)
    return pd.DataFrame({"patient": patient, "label": label.ravel(), "predicted": said.ravel()})


def test_the_bootstrap_draws_patients():
    first, second = predictions(0.7, 2), predictions(0.5, 3)
    found = bootstrap_patients(first, second, "balanced_accuracy", draws=300, seed=5)
    of = [balanced_accuracy(confusion(t["label"].to_numpy(), t["predicted"].to_numpy(), 3)) for t in (first, second)]
    assert found.difference == pytest.approx(of[0] - of[1])
    assert found.patients == 12
    assert 0 < found.low < found.difference < found.high
    assert found.p < 0.05
    # the same by a loop that puts the tables of the drawn patients together
    weights = np.random.default_rng(5).multinomial(12, np.full(12, 1 / 12), 300)
    groups = [[part for _, part in table.groupby("patient")] for table in (first, second)]
    drawn = []
    for w in weights:
        scores = []
        for parts in groups:
            table = pd.concat([part for part, n in zip(parts, w, strict=True) for _ in range(n)])
            scores.append(balanced_accuracy(confusion(table["label"].to_numpy(), table["predicted"].to_numpy(), 3)))
        drawn.append(scores[0] - scores[1])
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])))


def test_the_bootstrap_of_equal_models_holds_its_level():
    misses = [bootstrap_patients(predictions(0.6, 2 * i), predictions(0.6, 2 * i + 1), draws=200).p for i in range(100)]
    assert np.mean(np.array(misses) < 0.05) <= 0.13  # of 100 experiments; 12 patients are few


def test_tables_that_cannot_be_compared_are_refused():
    table = predictions(0.6, 0)
    with pytest.raises(SpecError, match="1 are in one table only, such as 'p11'"):
        bootstrap_patients(table, table[table["patient"] != "p11"])
    with pytest.raises(SpecError, match="predictions of 1 patients"):
        bootstrap_patients(*[table[table["patient"] == "p11"]] * 2)
    with pytest.raises(SpecError, match="score='auc'"):
        bootstrap_patients(table, table, "auc")
    with pytest.raises(SpecError, match="kappa is undefined in"):
        bootstrap_patients(
            table[table["label"] == 0].assign(predicted=0), table[table["label"] == 0].assign(predicted=0)
        )
    with pytest.raises(SpecError, match="without a label"):
        bootstrap_patients(table.assign(label=-1), table)
    assert bootstrap_patients(table, table).p == 1.0
    assert kappa(np.eye(2)) == 1
