"""`keep=`: patches by verdict, rule, function or rows, against the plain answers of pandas."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from msdask.errors import SpecError
from msdask.store.keep_rule import kept

COUNT = 60


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    random = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "slide_id": np.repeat(["a", "b", "c"], COUNT // 3),
            "row": np.tile(np.arange(COUNT // 3), 3),
            "split": np.repeat(["train", "test", ""], COUNT // 3),
            "label": random.integers(-1, 3, COUNT),
            "tissue": random.uniform(0, 1, COUNT).astype(np.float32),
            "contrast": random.uniform(0, 0.3, COUNT).astype(np.float32),
            "keep": random.integers(0, 2, COUNT).astype(bool),
        }
    )


@pytest.mark.parametrize(
    "rule",
    [
        "tissue > 0.5",
        "tissue > 0.5 and contrast >= 0.1",
        "tissue > 0.5 or not keep",
        "0.2 <= tissue < 0.8",
        "label in [0, 2] and split != 'test'",
        "slide_id not in ['a']",
        "tissue * 2 - contrast / 2 + 1 > 1.5",
        "-label >= 0",
        "keep",
        "keep and (tissue > 0.9 or label == 1)",
    ],
)
def test_a_rule_takes_what_pandas_takes(rule, table):
    expected = table.eval(rule).to_numpy(bool)
    assert kept(rule, table).tolist() == expected.tolist()
    assert 0 < expected.sum() < COUNT


def test_the_other_ways_to_say_it(table):
    assert kept(True, table).tolist() == table["keep"].tolist()
    assert kept(False, table).all()
    assert kept("True", table).all()
    assert kept(lambda t: t["label"] == 1, table).tolist() == (table["label"] == 1).tolist()
    some = table.sample(17, random_state=1)
    expected = np.isin(np.arange(COUNT), some.index)
    assert kept(some, table).tolist() == expected.tolist()
    by_slide = {slide_id: rows["row"].tolist() for slide_id, rows in some.groupby("slide_id")}
    assert kept({**by_slide, "no such slide": [0]}, table).tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ("tissue >", "cannot be read"),
        ("tissues > 0.9", r"no column 'tissues'; there are \['slide_id', 'row'"),
        ("tissue.max() > 0.9", r"'tissue.max\(\)' is not understood"),
        ("__import__('os').remove('x')", "is not understood"),
        ("tissue", "gives float32 of shape"),
        ("tissue ** 2 > 1", "is not understood"),
        (lambda table: [True], "gives bool of shape"),
        (pd.DataFrame({"row": [1]}), r"lacks \['slide_id'\]"),
        (3, "expected True, False, a rule"),
    ],
)
def test_what_is_no_rule_is_refused(keep, message, table):
    with pytest.raises(SpecError, match=message):
        kept(keep, table)
