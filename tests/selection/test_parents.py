"""Upper-region links: spec section 7, against a loop over all pairs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from msdask.errors import SpecError
from msdask.selection.parents import complete_tuples, link_upper_regions
from msdask.selection.select import centroids, grid


@dataclass(frozen=True)
class Geometry:
    shape: tuple[int, int]
    mpp_used: float | None = 0.25
    name: str = "a.svs"
    tolerance: float = 0.05


def boxes(table: xr.Dataset) -> list[tuple[int, int, float]]:
    side = table.attrs["footprint"][0]
    return [(int(x), int(y), side) for x, y in zip(table.x0.values[:, 0], table.y0.values[:, 0], strict=True)]


def naive_links(fine: xr.Dataset, coarse: xr.Dataset, *, tolerance: float = 1.0) -> list[int]:
    """Every fine patch against every coarse one; of several parents the first by row, then column."""
    parents = []
    reach = tolerance + 1e-6
    for x, y, side in boxes(fine):
        found = [
            (parent_y, parent_x, row)
            for row, (parent_x, parent_y, parent_side) in enumerate(boxes(coarse))
            if x >= parent_x - reach
            and y >= parent_y - reach
            and x + side <= parent_x + parent_side + reach
            and y + side <= parent_y + parent_side + reach
        ]
        parents.append(min(found)[2] if found else -1)
    return parents


def row_at(table: xr.Dataset, x: int, y: int) -> int:
    return np.flatnonzero((table.x0.values[:, 0] == x) & (table.y0.values[:, 0] == y)).item()


def test_case_7_parents_at_10x() -> None:
    slide = Geometry((2688, 3584))
    fine, coarse = grid(slide, magnification=20), grid(slide, magnification=10)
    parent = link_upper_regions(fine, coarse)
    assert parent.dtype == np.int32
    assert parent[row_at(fine, 448, 448)] == row_at(coarse, 0, 0)
    assert parent[row_at(fine, 896, 448)] == row_at(coarse, 896, 0)


@pytest.mark.parametrize("mpp", [0.25, 0.2263, 0.1991])
@pytest.mark.parametrize(("fine_at", "coarse_at", "n"), [(15, 5, 3), (20, 10, 2), (30, 10, 3), (20, 5, 4)])
def test_grids_that_nest_lose_no_parent_and_gain_no_false_one(mpp: float, fine_at: int, coarse_at: int, n: int) -> None:
    side = 224 * 10 / coarse_at / mpp
    slide = Geometry((math.ceil(7 * side), math.ceil(9 * side)), mpp)
    fine, coarse = grid(slide, magnification=fine_at), grid(slide, magnification=coarse_at)
    parent = link_upper_regions(fine, coarse)
    step = fine.attrs["step"]
    for axis in ("x0", "y0"):
        cell = np.rint(fine[axis].values[:, 0] / step).astype(int)
        parent_cell = np.rint(coarse[axis].values[parent, 0] / side).astype(int)
        whole = cell < n * min(coarse.attrs["grid_shape"][::-1] if axis == "x0" else coarse.attrs["grid_shape"])
        np.testing.assert_array_equal(parent_cell[whole], cell[whole] // n)
    assert (parent >= 0).sum() == coarse.sizes["patch"] * n * n


def test_rounded_origins_alone_would_lose_parents() -> None:
    side = 224 * 2.0 / 0.2263
    slide = Geometry((math.ceil(6 * side), math.ceil(6 * side)), 0.2263)
    fine, coarse = grid(slide, magnification=15), grid(slide, magnification=5)
    assert -1 in naive_links(fine, coarse, tolerance=0.0)
    assert (link_upper_regions(fine, coarse) >= 0).all()


@st.composite
def pairs(draw: st.DrawFn) -> tuple[xr.Dataset, xr.Dataset]:
    mpp = draw(st.sampled_from([0.25, 0.2263, 0.1991]))
    slide = Geometry((draw(st.integers(1, 900)), draw(st.integers(1, 900))), mpp)
    fine_at = draw(st.sampled_from([40, 30, 20, 15]))
    coarse_at = draw(st.sampled_from([m for m in (30, 20, 15, 10, 5) if m < fine_at]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    tables = []
    for magnification in (fine_at, coarse_at):
        patch_size = draw(st.sampled_from([16, 25])) if magnification == fine_at else 25
        tables.append(
            grid(
                slide,
                rng.random(slide.shape) < draw(st.sampled_from([0.5, 0.98])),
                magnification=magnification,
                patch_size=patch_size,
                stride=patch_size + draw(st.integers(-15, 20)),
                min_tissue=draw(st.sampled_from([0.0, 0.5])),
                start=draw(st.one_of(st.none(), st.tuples(st.floats(0, 60), st.floats(0, 60)))),
                inside=draw(st.booleans()),
            )
        )
    # Keep the loop over all pairs short, and the coarse grid full of holes.
    fine, coarse = (
        table.isel(patch=rng.random(table.sizes["patch"]) < 150 / max(table.sizes["patch"], 1)) for table in tables
    )
    return fine, coarse


@given(pairs())
@settings(max_examples=100, deadline=None)
def test_links_equal_a_loop_over_all_pairs(pair: tuple[xr.Dataset, xr.Dataset]) -> None:
    fine, coarse = pair
    assert link_upper_regions(fine, coarse).tolist() == naive_links(fine, coarse)


@given(pairs())
@settings(max_examples=50, deadline=None)
def test_a_parent_contains_its_child_within_1_px(pair: tuple[xr.Dataset, xr.Dataset]) -> None:
    fine, coarse = pair
    parent = link_upper_regions(fine, coarse)
    child = parent >= 0
    for axis in ("x0", "y0"):
        low = fine[axis].values[child, 0] - coarse[axis].values[parent[child], 0]
        assert (low >= -1).all()
        assert (low + fine.attrs["footprint"][0] <= coarse.attrs["footprint"][0] + 1 + 1e-6).all()


def test_of_several_parents_the_first_in_row_major_order() -> None:
    slide = Geometry((3584, 3584))
    fine = grid(slide, magnification=40, start=(1792, 1792))
    coarse = grid(slide, magnification=10, stride=56)
    parent = link_upper_regions(fine, coarse)
    first = row_at(fine, 1792, 1792)
    assert (coarse.x0.values[parent[first], 0], coarse.y0.values[parent[first], 0]) == (1120, 1120)


def test_parents_are_sought_in_later_rows_and_columns_where_the_first_are_missing() -> None:
    slide = Geometry((3584, 3584))
    fine = grid(slide, magnification=40, start=(1792, 1792))
    coarse = grid(slide, magnification=10, stride=56)
    x, y = coarse.x0.values[:, 0], coarse.y0.values[:, 0]
    coarse = coarse.isel(patch=(y > 1344) & ((y > 1568) | (x > 1120)))
    parent = link_upper_regions(fine, coarse)[row_at(fine, 1792, 1792)]
    assert (coarse.x0.values[parent, 0], coarse.y0.values[parent, 0]) == (1344, 1568)


def test_a_parent_may_be_of_a_table_with_contexts() -> None:
    slide = Geometry((3584, 3584))
    fine = centroids(slide, magnifications=[20, 10, 5])
    np.testing.assert_array_equal(
        link_upper_regions(fine, centroids(slide, magnifications=[10, 5])),
        link_upper_regions(grid(slide, magnification=20), grid(slide, magnification=10)),
    )


def test_grids_with_gaps_and_starts_of_the_three_scale_task_link_one_to_one() -> None:
    slide = Geometry((256 * 6, 256 * 5), mpp_used=0.5)
    fine = grid(slide, magnification=20, patch_size=64, stride=256, start=(96, 96))
    middle = grid(slide, magnification=10, patch_size=64, stride=128, start=(64, 64))
    coarse = grid(slide, magnification=5, patch_size=64)
    everyone = np.arange(30)
    np.testing.assert_array_equal(link_upper_regions(fine, middle), everyone)
    np.testing.assert_array_equal(link_upper_regions(fine, coarse), everyone)


@pytest.mark.parametrize("empty", ["fine", "coarse", "both"])
def test_empty_tables_link_to_nothing(empty: str) -> None:
    slide = Geometry((2000, 2000))
    fine, coarse = grid(slide, magnification=40), grid(slide, magnification=10)
    if empty in ("fine", "both"):
        fine = fine.isel(patch=slice(0))
    if empty in ("coarse", "both"):
        coarse = coarse.isel(patch=slice(0))
    assert link_upper_regions(fine, coarse).tolist() == [-1] * fine.sizes["patch"]


@pytest.mark.parametrize(
    ("other", "found"),
    [
        (Geometry((2000, 2000), name="b.svs"), "slide_id"),
        (Geometry((2000, 3000)), "shape"),
        (Geometry((2000, 2000), mpp_used=0.24), "mpp_used"),
    ],
)
def test_tables_of_different_slides_are_refused(other: Geometry, found: str) -> None:
    with pytest.raises(SpecError, match=found):
        link_upper_regions(grid(Geometry((2000, 2000)), magnification=20), grid(other, magnification=10))


def test_parents_must_be_coarser_and_larger() -> None:
    slide = Geometry((2000, 2000))
    fine = grid(slide, magnification=20)
    with pytest.raises(SpecError, match="lower magnification"):
        link_upper_regions(fine, grid(slide, magnification=20))
    with pytest.raises(SpecError, match="lower magnification"):
        link_upper_regions(fine, grid(slide, magnification=40))
    with pytest.raises(SpecError, match="smaller"):
        link_upper_regions(fine, grid(slide, magnification=10, patch_size=64))


def test_tuples_lacking_a_parent_are_not_complete() -> None:
    fine = grid(Geometry((224, 672)), magnification=40)
    parents = {10.0: np.array([0, -1, 2], dtype=np.int32), 5.0: np.array([-1, 0, 0], dtype=np.int32)}
    assert complete_tuples(fine, parents).tolist() == [False, False, True]
    assert complete_tuples(fine, {}).tolist() == [True, True, True]
    with pytest.raises(SpecError, match="10x"):
        complete_tuples(fine, {10.0: np.zeros(2, dtype=np.int32)})
