"""Splits by slide: ratios, strata, repeats, lists."""

from __future__ import annotations

import warnings
from collections import Counter

import pytest

pytest.importorskip("pytorch_lightning")

from msdask.errors import SpecError
from msdask.training import Split, splits

SLIDES = [f"s{i:02d}.svs" for i in range(30)]


def test_every_slide_is_in_exactly_one_part():
    (split,) = splits(SLIDES, ratios=(60, 20, 20))
    assert Counter([*split.train, *split.valid, *split.test]) == Counter(SLIDES)
    assert (len(split.train), len(split.valid), len(split.test)) == (18, 6, 6)


def test_the_same_seed_gives_the_same_splits_whatever_the_order_of_the_slides():
    assert splits(SLIDES, ratios=(60, 20, 20), seed=3) == splits(SLIDES[::-1], ratios=(60, 20, 20), seed=3)
    assert splits(SLIDES, ratios=(60, 20, 20), seed=3) != splits(SLIDES, ratios=(60, 20, 20), seed=4)


def test_repeats_differ_and_the_first_ones_do_not_depend_on_how_many_there_are():
    five = splits(SLIDES, ratios=(60, 20, 20), repeats=5)
    assert [s.repeat for s in five] == list(range(5))
    assert len({s.test for s in five}) == 5
    assert splits(SLIDES, ratios=(60, 20, 20), repeats=2) == five[:2]


def test_ratios_of_80_20_20_are_normalized_and_this_is_said():
    with pytest.warns(UserWarning, match=r"80/20/20 add up to 120: taken as 66\.7/16\.7/16\.7 %"):
        (split,) = splits(SLIDES)
    assert (len(split.train), len(split.valid), len(split.test)) == (20, 5, 5)


@pytest.mark.parametrize("ratios", [(0.8, 0.1, 0.1), (80, 10, 10)])
def test_ratios_that_add_up_to_1_or_100_are_taken_without_a_word(ratios):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        splits(SLIDES, ratios=ratios)


def test_strata_are_spread_as_the_ratios_say():
    organs = {s: "abc"[i % 3] for i, s in enumerate(SLIDES)}
    for split in splits(SLIDES, ratios=(60, 20, 20), repeats=4, stratify=organs):
        assert Counter(organs[s] for s in split.train) == {"a": 6, "b": 6, "c": 6}
        assert Counter(organs[s] for s in split.test) == {"a": 2, "b": 2, "c": 2}


def test_rounding_in_small_strata_does_not_add_up():
    organs = {s: str(i // 3) for i, s in enumerate(SLIDES)}  # ten organs of three slides
    for split in splits(SLIDES, ratios=(60, 20, 20), repeats=4, stratify=organs):
        assert abs(len(split.train) - 18) <= 1
        assert abs(len(split.valid) - 6) <= 1
        assert abs(len(split.test) - 6) <= 1


def test_a_part_with_a_ratio_of_0_is_empty_and_others_must_not_be():
    (split,) = splits(SLIDES, ratios=(90, 10, 0))
    assert split.test == ()
    with pytest.raises(SpecError, match="leave none for 'valid'"):
        splits(SLIDES[:3], ratios=(90, 8, 2))


@pytest.mark.parametrize("ratios", [(1, 1), (0, 1, 1), (1, -1, 1), (1, float("nan"), 0)])
def test_ratios_that_make_no_sense_are_refused(ratios):
    with pytest.raises(SpecError, match="ratios"):
        splits(SLIDES, ratios=ratios)


def test_a_slide_without_a_class_is_named():
    with pytest.raises(SpecError, match=r"no class for 29 slides, such as 's01\.svs'"):
        splits(SLIDES, stratify={"s00.svs": "a"})


def test_lists_are_read_from_a_folder_and_may_lack_the_ending(tmp_path):
    (tmp_path / "list_train.csv").write_text("s00\ns02.svs\n")
    (tmp_path / "list_valid.csv").write_text("s01\n")
    (tmp_path / "list_test.csv").write_text("s03.svs\n")
    assert splits(SLIDES, lists=tmp_path) == [Split(0, ("s00.svs", "s02.svs"), ("s01.svs",), ("s03.svs",))]


def test_a_written_split_reads_back(tmp_path):
    (split,) = splits(SLIDES, ratios=(60, 20, 20))
    assert splits(SLIDES, lists=split.write(tmp_path / "lists")) == [split]


def test_lists_that_share_a_slide_are_refused_naming_it():
    with pytest.raises(SpecError, match=r"'s01\.svs' is in 'train' and in 'test'"):
        splits(SLIDES, lists={"train": ["s01"], "test": ["s01.svs"]})


@pytest.mark.parametrize(
    ("lists", "match"),
    [({"train": ["nobody"]}, "'nobody' is none of the 30 slides"), ({"tuning": ["s00"]}, "unknown parts")],
)
def test_lists_with_unknown_names_are_refused(lists, match):
    with pytest.raises(SpecError, match=match):
        splits(SLIDES, lists=lists)


def test_a_list_may_give_the_ending_that_the_slides_lack(tmp_path):
    (split,) = splits(["a", "b"], lists={"train": ["a.svs"], "val": ["b"]})
    assert (split.train, split.valid) == (("a",), ("b",))


def test_lists_of_several_repeats_give_a_split_each(tmp_path):
    drawn = splits(SLIDES, ratios=(60, 20, 20), repeats=3)
    for split in drawn:
        split.write(tmp_path / str(split.repeat))
    assert splits(SLIDES, lists=tmp_path) == drawn


def test_a_written_split_of_names_with_commas_reads_back(tmp_path):
    split = Split(0, ("a, b.svs",), (), ("c.svs", "d, e.svs"))
    assert splits(["a, b.svs", "c.svs", "d, e.svs"], lists=split.write(tmp_path)) == [split]


def test_a_folder_without_lists_is_refused(tmp_path):
    with pytest.raises(SpecError, match=r"none of list_train\.csv"):
        splits(SLIDES, lists=tmp_path)


def test_all_slides_of_a_patient_are_in_one_part():
    patients = {s: f"p{i // 3}" for i, s in enumerate(SLIDES[:24])}  # the last six are patients of their own
    for split in splits(SLIDES, ratios=(60, 20, 20), repeats=5, patients=patients):
        parts = [{patients.get(s, s) for s in part} for part in (split.train, split.valid, split.test)]
        assert sum(map(len, parts)) == len(set().union(*parts)) == 14
        assert Counter([*split.train, *split.valid, *split.test]) == Counter(SLIDES)


def test_a_patient_has_the_class_of_most_of_its_slides():
    patients = {s: f"p{i // 3}" for i, s in enumerate(SLIDES)}
    organs = {s: "b" if i % 3 == 0 else "ac"[i // 15] for i, s in enumerate(SLIDES)}
    for split in splits(SLIDES, ratios=(60, 20, 20), repeats=3, patients=patients, stratify=organs):
        assert {len({patients[s] for s in split.train if organs[s] == organ}) for organ in "ac"} == {3}


def test_lists_with_a_patient_in_two_parts_are_refused():
    lists = {"train": ["s00.svs", "s01.svs"], "valid": ["s02.svs"], "test": ["s03.svs"]}
    with pytest.raises(SpecError, match=r"patient 'p' is in two parts: slide 's01.svs' is in 'train' and"):
        splits(SLIDES, lists=lists, patients={"s01.svs": "p", "s03.svs": "p"})
