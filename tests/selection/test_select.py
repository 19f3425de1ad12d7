"""Grid and centroid selections: spec sections 3, 4 and 5, against loops over positions and mask pixels."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from msdask.errors import MaskError, MissingScaleError, SlideError, SpecError
from msdask.selection.positions import Lattice, Region, morton_order, region_of_interest, round_coordinates
from msdask.selection.select import centroids, grid, select
from msdask.spec import ExtractionSpec


def round_half_away(value: float) -> int:
    """Nearest integer, halves away from zero: the one rounding of stored coordinates."""
    return int(math.copysign(math.floor(abs(value) + 0.5), value))


@pytest.mark.parametrize(
    ("value", "rounded"),
    [(0.5, 1), (-0.5, -1), (1.5, 2), (2.5, 3), (-2.5, -3), (2.4, 2), (-2.4, -2), (0.0, 0), (-0.2, 0)],
)
def test_halves_are_rounded_away_from_zero(value: float, rounded: int) -> None:
    assert round_half_away(value) == round_coordinates(np.array([value]))[0] == rounded


@dataclass(frozen=True)
class Geometry:
    """A slide as far as selection is concerned."""

    shape: tuple[int, int]
    mpp_used: float | None = 0.25
    name: str = "a.svs"
    tolerance: float = 0.05


# --- the rules, said slowly -------------------------------------------------------------------------------------------


def naive_fraction(mask: np.ndarray, x: float, y: float, side: float, shape: tuple[int, int]) -> float:
    sy, sx = mask.shape[0] / shape[0], mask.shape[1] / shape[1]
    total = 0.0
    for row in range(max(0, math.floor(y * sy)), min(mask.shape[0], math.ceil((y + side) * sy))):
        for column in range(max(0, math.floor(x * sx)), min(mask.shape[1], math.ceil((x + side) * sx))):
            if mask[row, column]:
                width = min((x + side) * sx, column + 1) - max(x * sx, column)
                height = min((y + side) * sy, row + 1) - max(y * sy, row)
                total += width * height
    return total / (side * sx * side * sy)


def naive_label(labels: np.ndarray, x: float, y: float, side: float, shape: tuple[int, int], least: float):
    best, best_class = 0.0, -1
    for k in range(int(labels.max())):
        fraction = naive_fraction(labels == k + 1, x, y, side, shape)
        if fraction > best + 1e-9:
            best, best_class = fraction, k
    return (best_class, best) if best_class >= 0 and best + 1e-9 >= least else (-1, 0.0)


def naive_select(slide: Geometry, spec: ExtractionSpec, mask, labels, start=None) -> dict[tuple[int, int], dict]:
    """{(column, row): what the table should say}, from loops over all positions."""
    height, width = slide.shape
    rx, ry, rw, rh = (0, 0, width, height) if spec.roi == "whole" else spec.roi
    left, top, right, bottom = max(rx, 0), max(ry, 0), min(rx + rw, width), min(ry + rh, height)
    sides = [spec.patch_size * (10 / m) / slide.mpp_used for m in spec.magnifications]
    step = spec.stride * (10 / spec.magnifications[0]) / slide.mpp_used
    x_start, y_start = (left, top) if start is None else start
    tissue = mask if mask is not None else (labels > 0 if labels is not None else np.ones(slide.shape, dtype=bool))
    selected = {}

    def lines(begin: float, low: float, high: float) -> list[float]:
        found, i = [], 0
        while begin + i * step < high:
            origin = begin + i * step
            fits = origin + sides[0] <= high + 1e-6 if spec.inside else origin < high - 1e-6
            if origin >= low - 1e-6 and fits:
                found.append(origin)
            i += 1
        return found

    for row, y in enumerate(lines(y_start, top, bottom)):
        for column, x in enumerate(lines(x_start, left, right)):
            fraction = naive_fraction(tissue, x, y, sides[0], slide.shape)
            if fraction + 1e-9 < spec.min_tissue:
                continue
            center = x + sides[0] / 2, y + sides[0] / 2
            origins = [(x, y)] + [(center[0] - side / 2, center[1] - side / 2) for side in sides[1:]]
            found = [(-1, 0.0)] * len(sides)
            if labels is not None:
                found = [
                    naive_label(labels, ox, oy, side, slide.shape, spec.min_label)
                    for (ox, oy), side in zip(origins, sides, strict=True)
                ]
                if spec.unlabeled == "drop" and found[0][0] < 0:
                    continue
            selected[column, row] = {
                "x0": [round_half_away(ox) for ox, _ in origins],
                "y0": [round_half_away(oy) for _, oy in origins],
                "tissue": fraction,
                "label": [label for label, _ in found],
                "label_fraction": [value for _, value in found],
            }
    return selected


def naive_morton(column: int, row: int) -> int:
    code = 0
    for bit in range(32):
        code |= (column >> bit & 1) << (2 * bit) | (row >> bit & 1) << (2 * bit + 1)
    return code


# --- worked cases -----------------------------------------------------------------------------------------------------


def test_case_3_eight_positions() -> None:
    table = grid(Geometry((500, 1000)), magnification=40)
    assert table.sizes["patch"] == 8
    assert table.attrs["grid_shape"] == [2, 4]
    assert table.attrs["candidates"] == 8


def test_case_4_contexts_of_a_20x_centroid() -> None:
    slide = Geometry((4000, 4000))
    table = centroids(slide, magnifications=[20, 10, 5])
    row = np.flatnonzero((table.x0[:, 0] == 896).values & (table.y0[:, 0] == 1344).values).item()
    assert table.x0[row].values.tolist() == [896, 672, 224]
    assert table.y0[row].values.tolist() == [1344, 1120, 672]


def test_case_4_contexts_come_from_the_unrounded_center() -> None:
    slide = Geometry((6000, 6000), mpp_used=0.2263)
    table = centroids(slide, magnifications=[20, 10, 5])
    row = np.flatnonzero((table.x0[:, 0] == 1485).values & (table.y0[:, 0] == 3464).values).item()
    assert table.attrs["footprint"][0] == pytest.approx(494.918, abs=1e-3)
    assert table.x0[row].values.tolist() == [1485, 1237, 742]
    assert table.y0[row].values.tolist() == [3464, 3217, 2722]


def test_case_1_footprints_are_stored() -> None:
    table = centroids(Geometry((9000, 9000)), magnifications=[40, 20, 15, 10, 5, 1.25])
    np.testing.assert_allclose(table.attrs["footprint"], [224, 448, 597.3333, 896, 1792, 7168], rtol=1e-6)


# --- the table --------------------------------------------------------------------------------------------------------


def test_table_has_the_agreed_variables_types_and_attributes() -> None:
    mask = xr.DataArray(np.ones((30, 40), dtype=bool), dims=("y", "x"))
    labels = np.ones((30, 40), dtype=np.uint8)
    table = centroids(Geometry((3000, 4000)), mask, labels=labels, magnifications=[10, 20])
    assert {name: (variable.dims, variable.dtype) for name, variable in table.variables.items()} == {
        "magnification": (("magnification",), np.dtype("float64")),
        "x0": (("patch", "magnification"), np.dtype("int32")),
        "y0": (("patch", "magnification"), np.dtype("int32")),
        "tissue": (("patch",), np.dtype("float32")),
        "label": (("patch", "magnification"), np.dtype("int16")),
        "label_fraction": (("patch", "magnification"), np.dtype("float32")),
        "mask": (("mask_y", "mask_x"), np.dtype("uint8")),
    }
    assert table.magnification.values.tolist() == [20.0, 10.0]
    attrs = json.loads(json.dumps(table.attrs))
    assert attrs == table.attrs
    assert attrs["slide_id"] == "a.svs"
    assert attrs["shape"] == [3000, 4000]
    assert attrs["mpp_used"] == 0.25
    assert attrs["start"] == [0.0, 0.0]
    assert attrs["step"] == 448.0
    assert ExtractionSpec.from_dict(attrs["spec"]) == ExtractionSpec("centroids", (20, 10))


def test_the_mask_that_decided_is_kept_with_the_table() -> None:
    slide = Geometry((1000, 1000))
    mask = np.arange(100).reshape(10, 10) % 3 > 0
    labels = np.arange(100, dtype=np.int64).reshape(10, 10) // 40
    assert "mask" not in grid(slide, magnification=40)
    np.testing.assert_array_equal(grid(slide, mask, magnification=40).mask, mask)
    np.testing.assert_array_equal(grid(slide, mask, labels=labels, magnification=40).mask, labels)


def test_the_spec_takes_the_tolerance_that_the_slide_was_opened_with() -> None:
    slide = Geometry((1000, 1000), tolerance=0.0)
    for table in (grid(slide, magnification=40), centroids(slide, magnifications=[40, 20])):
        assert table.attrs["spec"]["tolerance"] == 0.0


@pytest.mark.parametrize("labels", [None, np.ones((10, 10), dtype=np.uint8)])
def test_a_slide_smaller_than_a_patch_gives_an_empty_table(labels: np.ndarray | None) -> None:
    table = centroids(Geometry((100, 100)), labels=labels, magnifications=[40, 20])
    assert table.x0.shape == (0, 2)
    assert (table.x0.dtype, table.tissue.dtype, table.label.dtype) == (np.int32, np.float32, np.int16)
    assert table.attrs["candidates"] == 0


def test_an_empty_mask_gives_an_empty_table() -> None:
    table = grid(Geometry((1000, 1000)), np.zeros((50, 50), dtype=bool), magnification=40)
    assert table.sizes["patch"] == 0
    assert table.attrs["candidates"] == 16


# --- against the loops ------------------------------------------------------------------------------------------------


@st.composite
def requests(draw: st.DrawFn):
    """A slide a few footprints wide, and everything that can be asked of it."""
    mpp = draw(st.sampled_from([0.25, 0.5, 0.2263, 0.137]))
    highest = draw(st.sampled_from([m for m in (40, 30, 20, 15, 10) if 10 / m >= mpp]))
    others = draw(st.lists(st.sampled_from([8, 5, 2.5]), unique=True, max_size=2))
    patch_size = draw(st.integers(9, 70))
    stride = max(1, patch_size + draw(st.integers(-patch_size // 2, 30)))
    ratio = 10 / highest / mpp
    widths = []
    for _ in range(2):
        exact = ratio * (patch_size + draw(st.integers(0, 5)) * stride)
        widths.append(
            max(1, draw(st.sampled_from([math.floor, math.ceil]))(exact + draw(st.sampled_from([0, 0, 7.5]))))
        )
    shape = (widths[0], widths[1])
    reduction = draw(st.sampled_from([11, 16, 23.5]))
    mask_shape = tuple(max(1, math.ceil(size / reduction)) for size in shape)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    coarse = rng.random(tuple(-(-size // 4) for size in mask_shape))
    values = np.kron(coarse, np.ones((4, 4)))[: mask_shape[0], : mask_shape[1]]
    mask = draw(st.sampled_from([None, values < 0.6]))
    labels = draw(st.sampled_from([None, (values * 4).astype(np.uint8)]))
    roi = draw(
        st.one_of(
            st.just("whole"),
            st.tuples(
                st.floats(-50, shape[1] * 0.4),
                st.floats(-50, shape[0] * 0.4),
                st.floats(60, shape[1] + 100),
                st.floats(60, shape[0] + 100),
            ),
        )
    )
    start = draw(st.one_of(st.none(), st.tuples(st.floats(-300, shape[1]), st.floats(-300, shape[0]))))
    spec = ExtractionSpec(
        "centroids",
        (highest, *others),
        patch_size=patch_size,
        stride=stride,
        min_tissue=draw(st.sampled_from([0.0, 0.5, 0.7, 1.0])),
        min_label=draw(st.sampled_from([0.0, 0.4, 0.7])),
        unlabeled=draw(st.sampled_from(["drop", "keep"])),
        roi=roi,
        inside=draw(st.booleans()),
    )
    return Geometry(shape, mpp), spec, mask, labels, start


@given(requests())
@settings(max_examples=150, deadline=None)
def test_selection_equals_loops_over_positions_and_pixels(request) -> None:
    slide, spec, mask, labels, start = request
    table = select(slide, spec, mask=mask, labels=labels, start=start)
    expected = naive_select(slide, spec, mask, labels, start)
    cells = sorted(expected, key=lambda cell: naive_morton(*cell))
    assert table.sizes["patch"] == len(cells)
    for i, cell in enumerate(cells):
        for name in ("x0", "y0", "label"):
            assert table[name][i].values.tolist() == expected[cell][name]
        assert float(table.tissue[i]) == pytest.approx(expected[cell]["tissue"], abs=1e-6)
        assert table.label_fraction[i].values.tolist() == pytest.approx(expected[cell]["label_fraction"], abs=1e-6)


@given(requests())
@settings(max_examples=100, deadline=None)
def test_every_footprint_lies_inside_the_region(request) -> None:
    slide, spec, mask, labels, start = request
    table = select(slide, spec, mask=mask, labels=labels, start=start)
    x, y, width, height = table.attrs["region"]
    reach = table.attrs["footprint"][0] if spec.inside else 0
    for name, low, high in (("x0", x, x + width), ("y0", y, y + height)):
        origin = table[name][:, 0].values
        assert (origin >= low - 0.501).all()
        assert (origin + reach <= high + 0.501).all()
    assert 0 <= x < x + width <= slide.shape[1] + 1e-6
    assert 0 <= y < y + height <= slide.shape[0] + 1e-6


# --- the lattice ------------------------------------------------------------------------------------------------------


@given(
    st.integers(1, 300),
    st.integers(16, 512),
    st.sampled_from([40, 30, 20, 15, 10, 8, 5]),
    st.sampled_from([0.25, 0.2263, 0.1137]),
)
def test_a_region_exactly_n_footprints_wide_holds_n(n: int, patch_size: int, magnification: float, mpp: float) -> None:
    side = patch_size * (10 / magnification) / mpp
    lattice = Lattice.within(Region(0, 0, n * side, side), step=side, side=side)
    assert lattice.shape == (1, n)


@pytest.mark.parametrize("n", [3, 30, 111])
def test_a_15x_slide_exactly_3n_footprints_wide_holds_3n(n: int) -> None:
    assert grid(Geometry((1792, 1792 * n)), magnification=15).attrs["grid_shape"] == [3, 3 * n]


def test_positions_are_never_accumulated() -> None:
    step = 224 * 0.5 / 0.2263
    lattice = Lattice.within(Region(0, 0, 2_000_000, 2 * step), step=step, side=step)
    np.testing.assert_array_equal(lattice.x, [i * step for i in range(lattice.x.size)])


def test_lattice_starts_at_the_origin_of_the_region() -> None:
    table = grid(Geometry((3000, 3000)), magnification=40, roi=(100, 200, 1000, 500))
    assert (table.x0.min().item(), table.y0.min().item()) == (100, 200)
    assert table.sizes["patch"] == 8
    assert table.attrs["start"] == [100.0, 200.0]


def test_a_region_is_cut_to_the_slide() -> None:
    table = grid(Geometry((500, 1000)), magnification=40, roi=(-100, -100, 5000, 5000))
    assert table.attrs["region"] == [0.0, 0.0, 1000.0, 500.0]
    assert table.sizes["patch"] == 8


@pytest.mark.parametrize("roi", [(1000, 0, 10, 10), (0, 500, 10, 10), (-20, 0, 20, 10)])
def test_a_region_outside_the_slide_is_refused(roi: tuple[float, float, float, float]) -> None:
    with pytest.raises(SpecError, match=r"a\.svs.*1000 x 500"):
        grid(Geometry((500, 1000)), magnification=40, roi=roi)


def test_start_moves_the_grid() -> None:
    slide = Geometry((2240, 2240))
    at_origin = grid(slide, magnification=40)
    moved = grid(slide, magnification=40, start=(96, 32))
    assert at_origin.attrs["grid_shape"] == [10, 10]
    assert moved.attrs["grid_shape"] == [9, 9]
    inner = at_origin.isel(patch=((at_origin.x0 < 2000) & (at_origin.y0 < 2000)).values[:, 0])
    np.testing.assert_array_equal(np.unique(moved.x0), np.unique(inner.x0) + 96)
    np.testing.assert_array_equal(np.unique(moved.y0), np.unique(inner.y0) + 32)


def test_a_start_before_the_region_keeps_its_lattice() -> None:
    slide = Geometry((3000, 3000))
    whole = grid(slide, magnification=40)
    part = grid(slide, magnification=40, roi=(500, 900, 1000, 1000), start=(0, 0))
    assert part.attrs["start"] == [672.0, 1120.0]
    assert set(np.unique(part.x0)) < set(np.unique(whole.x0))
    assert part.sizes["patch"] == 3 * 3


def test_nothing_lies_before_start() -> None:
    table = grid(Geometry((3000, 3000)), magnification=40, start=(1000, 2000))
    assert (table.x0.min().item(), table.y0.min().item()) == (1000, 2000)


@pytest.mark.parametrize("start", [(math.nan, 0), (0, math.inf), (1,)])
def test_a_start_that_is_no_point_is_refused(start) -> None:
    with pytest.raises(SpecError, match="start"):
        grid(Geometry((3000, 3000)), magnification=40, start=start)


def test_gap_and_overlap_are_px_at_the_target_magnification() -> None:
    slide = Geometry((4480, 4480))
    assert np.diff(np.unique(grid(slide, magnification=20, stride=224 + 32).x0)).tolist() == [512] * 7
    assert set(np.diff(np.unique(grid(slide, magnification=20, stride=224 - 32).x0))) == {384}


def test_inside_false_keeps_footprints_over_the_edge() -> None:
    slide = Geometry((500, 1000))
    assert grid(slide, magnification=40, inside=False, min_tissue=0).attrs["grid_shape"] == [3, 5]
    assert grid(Geometry((448, 896)), magnification=40, inside=False, min_tissue=0).attrs["grid_shape"] == [2, 4]
    fraction = grid(slide, magnification=40, inside=False, min_tissue=0).tissue.values
    assert sorted(set(np.round(fraction, 5))) == pytest.approx(
        sorted({np.round(a * b, 5) for a in (1, 52 / 224) for b in (1, 104 / 224)})
    )


# --- tissue -----------------------------------------------------------------------------------------------------------


def test_a_footprint_exactly_on_the_threshold_is_selected() -> None:
    mask = np.zeros((10, 10), dtype=bool)
    mask[:, :7] = True
    assert grid(Geometry((224, 224)), mask, magnification=40, min_tissue=0.7).sizes["patch"] == 1
    assert grid(Geometry((224, 224)), mask, magnification=40, min_tissue=0.7001).sizes["patch"] == 0


def test_not_zero_is_tissue_in_an_integer_mask() -> None:
    mask = np.zeros((100, 100), dtype=np.uint8)
    mask[:50] = 255
    from_integers = grid(Geometry((1000, 1000)), mask, magnification=40)
    xr.testing.assert_identical(from_integers, grid(Geometry((1000, 1000)), mask > 0, magnification=40))
    assert from_integers.sizes["patch"] == 8


def test_a_mask_of_another_shape_is_refused() -> None:
    with pytest.raises(MaskError, match=r"a\.svs.*100 x 50 px.*1000 x 1000"):
        grid(Geometry((1000, 1000)), np.ones((50, 100), dtype=bool), magnification=40)


# --- labels -----------------------------------------------------------------------------------------------------------


def test_labels_are_0_based_and_none_is_minus_1() -> None:
    labels = np.zeros((2, 3), dtype=np.uint8)
    labels[0] = [1, 3, 0]
    table = grid(Geometry((448, 672)), labels=labels, magnification=40, unlabeled="keep", min_tissue=0)
    by_place = {
        (int(x), int(y)): int(k) for x, y, k in zip(table.x0[:, 0], table.y0[:, 0], table.label[:, 0], strict=True)
    }
    assert by_place == {(0, 0): 0, (224, 0): 2, (448, 0): -1, (0, 224): -1, (224, 224): -1, (448, 224): -1}


def test_patches_without_a_label_are_dropped_unless_kept() -> None:
    labels = np.zeros((20, 20), dtype=np.uint8)
    labels[:, :10], labels[:, 10:] = 1, 2
    slide = Geometry((672, 672))
    assert grid(slide, labels=labels, magnification=40).sizes["patch"] == 6
    kept = grid(slide, labels=labels, magnification=40, unlabeled="keep")
    assert kept.sizes["patch"] == 9
    assert sorted(kept.label.values[:, 0].tolist()) == [-1, -1, -1, 0, 0, 0, 1, 1, 1]


def test_without_a_tissue_mask_what_is_labelled_is_tissue() -> None:
    labels = np.zeros((20, 20), dtype=np.uint8)
    labels[:, :5] = 1
    table = grid(Geometry((448, 448)), labels=labels, magnification=40, min_tissue=0.5, min_label=0.5)
    assert table.x0.values.ravel().tolist() == [0, 0]
    np.testing.assert_allclose(table.tissue, 0.5)


def test_of_equal_classes_the_lowest_is_the_label() -> None:
    labels = np.full((9, 14), 5, dtype=np.uint8)
    labels[:, :7] = 3
    table = grid(Geometry((288, 448)), labels=labels, magnification=40, patch_size=288, min_label=0.5, start=(80, 0))
    assert table.label.values.tolist() == [[2]]
    np.testing.assert_allclose(table.label_fraction, 0.5)


def test_a_class_exactly_on_the_threshold_is_the_label() -> None:
    labels = np.ones((10, 10), dtype=np.uint8)
    labels[:, 7:] = 2
    slide = Geometry((224, 224))
    assert grid(slide, labels=labels, magnification=40, min_label=0.7).label.values.tolist() == [[0]]
    assert grid(slide, labels=labels, magnification=40, min_label=0.7001).sizes["patch"] == 0


def test_a_context_without_a_majority_is_minus_1_never_class_0() -> None:
    labels = np.zeros((100, 100), dtype=np.uint8)
    labels[40:60, 40:60] = 1
    table = centroids(Geometry((2240, 2240)), labels=labels, magnifications=[40, 10], start=(1008, 1008), min_label=0.7)
    assert table.label.values.tolist() == [[0, -1]]
    assert table.label_fraction.values[0, 1] == 0


def test_outside_the_slide_counts_as_unlabelled() -> None:
    labels = np.ones((10, 10), dtype=np.uint8)
    table = centroids(Geometry((224, 224)), labels=labels, magnifications=[40, 20], min_label=0.25)
    assert table.label.values.tolist() == [[0, 0]]
    np.testing.assert_allclose(table.label_fraction, [[1.0, 0.25]])


@pytest.mark.parametrize("values", [np.full((10, 10), -1, dtype=np.int16), np.full((10, 10), 40_000, dtype=np.uint16)])
def test_impossible_label_values_are_refused(values: np.ndarray) -> None:
    with pytest.raises(MaskError, match="class k"):
        grid(Geometry((1000, 1000)), labels=values, magnification=40)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int64, np.uint64])
def test_every_integer_type_of_labels_is_read_alike(dtype: type) -> None:
    labels = np.arange(100, dtype=dtype).reshape(10, 10) // 34
    table = grid(Geometry((2240, 2240)), labels=labels, magnification=40)
    assert sorted(set(table.label.values.ravel())) == [0, 1]


# --- region "auto" ----------------------------------------------------------------------------------------------------


def blobs(shape: tuple[int, int], *boxes: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    for top, bottom, left, right in boxes:
        mask[top:bottom, left:right] = True
    return mask


@pytest.mark.parametrize(
    ("mask", "region"),
    [
        pytest.param(
            blobs((100, 200), (10, 90, 20, 80), (10, 80, 120, 180)), (0, 0, 1000, 1000), id="fuller left copy"
        ),
        pytest.param(
            blobs((100, 200), (10, 80, 20, 80), (10, 90, 120, 180)), (1000, 0, 1000, 1000), id="fuller right copy"
        ),
        pytest.param(
            blobs((100, 200), (10, 90, 20, 80), (10, 90, 120, 180)), (0, 0, 1000, 1000), id="equal copies: left"
        ),
        pytest.param(blobs((200, 100), (20, 80, 10, 90), (115, 190, 10, 95)), (0, 1000, 1000, 1000), id="lower copy"),
        pytest.param(blobs((100, 200), (10, 90, 20, 180)), (0, 0, 2000, 1000), id="one section"),
        pytest.param(
            blobs((200, 200), (10, 80, 20, 80), (10, 80, 120, 180)), (0, 0, 1000, 2000), id="both above the middle"
        ),
        pytest.param(
            blobs((200, 200), (10, 80, 20, 80), (110, 180, 20, 81)), (0, 1000, 2000, 1000), id="both left of it"
        ),
        pytest.param(blobs((100, 200)), (0, 0, 2000, 1000), id="no tissue"),
    ],
)
def test_auto_region_keeps_the_half_with_more_tissue(mask: np.ndarray, region: tuple[float, ...]) -> None:
    shape = (mask.shape[0] * 10, mask.shape[1] * 10)
    assert region_of_interest("auto", shape, mask) == region


@pytest.mark.parametrize(("specks", "is_cut"), [(20, True), (21, False)])
def test_auto_region_allows_1_percent_of_tissue_in_the_band(specks: int, is_cut: bool) -> None:
    mask = blobs((100, 200), (20, 80, 20, 80), (20, 80, 120, 180))
    mask[20 : 20 + specks, 95] = True
    assert (region_of_interest("auto", (1000, 2000), mask).width == 1000) == is_cut


@pytest.mark.parametrize(("left", "right", "is_cut"), [(90, 110, True), (91, 110, False), (90, 109, False)])
def test_auto_region_band_is_20_mask_px_wide(left: int, right: int, is_cut: bool) -> None:
    mask = np.ones((100, 200), dtype=bool)
    mask[:, left:right] = False
    assert (region_of_interest("auto", (1000, 2000), mask).width == 1000) == is_cut


def test_auto_region_in_a_grid() -> None:
    mask = blobs((100, 200), (0, 100, 0, 80), (0, 100, 115, 200))
    table = grid(Geometry((2240, 4480)), mask, magnification=40, roi="auto")
    assert table.attrs["region"] == [2240.0, 0.0, 2240.0, 2240.0]
    assert table.x0.min().item() >= 2240


def test_auto_region_needs_a_mask() -> None:
    with pytest.raises(SpecError, match=r"a\.svs.*mask"):
        grid(Geometry((1000, 1000)), magnification=40, roi="auto")
    labels = np.ones((100, 100), dtype=np.uint8)
    assert grid(Geometry((1000, 1000)), labels=labels, magnification=40, roi="auto").sizes["patch"] == 16


# --- scale, and impossible slides -------------------------------------------------------------------------------------


def test_a_magnification_above_the_slides_own_is_refused() -> None:
    slide = Geometry((1000, 1000), mpp_used=0.5)
    with pytest.raises(SpecError, match=r"a\.svs.*0\.5 um/px \(20x\).*40x.*allow_upsampling=True"):
        grid(slide, magnification=40)
    assert grid(slide, magnification=40, allow_upsampling=True).attrs["footprint"] == [112.0]
    assert grid(slide, magnification=20).sizes["patch"] == 16


def test_half_a_px_over_the_patch_is_allowed() -> None:
    assert grid(Geometry((1000, 1000), mpp_used=0.25 * (1 + 0.4 / 224)), magnification=40).sizes["patch"] == 16
    with pytest.raises(SpecError, match="coarser"):
        grid(Geometry((1000, 1000), mpp_used=0.25 * (1 + 0.6 / 224)), magnification=40)


def test_a_slide_without_scale_is_refused() -> None:
    with pytest.raises(MissingScaleError, match=r"a\.svs.*mpp="):
        grid(Geometry((1000, 1000), mpp_used=None), magnification=40)


def test_a_slide_without_pixels_is_refused() -> None:
    with pytest.raises(SlideError, match=r"a\.svs"):
        grid(Geometry((0, 1000)), magnification=40)


def test_more_positions_than_a_table_can_hold_are_refused() -> None:
    with pytest.raises(SpecError, match="larger stride"):
        grid(Geometry((130_000, 130_000)), magnification=40, stride=1)


def test_coordinates_beyond_32_bits_are_refused() -> None:
    with pytest.raises(SpecError, match=r"2\*\*31"):
        centroids(Geometry((1000, 1000)), magnifications=[40, 1e-6])


# --- order and rounding -----------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)), max_size=50))
def test_morton_order_equals_sorting_by_interleaved_bits(cells: list[tuple[int, int]]) -> None:
    column, row = np.array(cells, dtype=np.int64).reshape(-1, 2).T
    expected = sorted(range(len(cells)), key=lambda i: naive_morton(*cells[i]))
    assert morton_order(column, row).tolist() == expected


def test_a_run_of_256_positions_covers_a_square_of_16() -> None:
    table = grid(Geometry((224 * 64, 224 * 64)), magnification=40)
    assert len(np.unique(table.x0.values * 2**20 + table.y0.values)) == 64 * 64
    for name in ("x0", "y0"):
        runs = table[name].values.reshape(-1, 256)
        assert (np.ptp(runs, axis=1) == 224 * 15).all()


@given(st.floats(-1e9, 1e9))
def test_coordinates_are_rounded_as_scale_says(value: float) -> None:
    assert round_coordinates([value])[0] == round_half_away(value)


def test_contexts_on_half_px_are_rounded_away_from_zero() -> None:
    table = centroids(Geometry((225 * 2, 225 * 3)), magnifications=[40, 20], patch_size=225)
    assert sorted(set(table.x0.values[:, 1])) == [-113, 113, 338]
