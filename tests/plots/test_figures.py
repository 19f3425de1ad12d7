"""Figures show what they say: as many squares as patches, bars as long as they claim, pixels read only where shown."""

from __future__ import annotations

import cv2
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from numpy.typing import NDArray
from skimage.color import rgb2lab

from msdask import plots
from msdask.cutting.lazy_patches import patches as lazy_patches
from msdask.errors import MissingScaleError, SpecError
from msdask.plots import drawing
from msdask.sample.slides import SampleSlide
from msdask.selection.select import centroids
from msdask.slides.slide import open_slide


class PlainSlide:
    """A slide in memory: white glass with a brown square of tissue."""

    name = "plain slide.svs"

    def __init__(self, shape: tuple[int, int] = (600, 1000), mpp_used: float = 0.25) -> None:
        self.shape = shape
        self.mpp_used = self.mpp = mpp_used
        self.pixels = np.full((*shape, 3), 240, dtype=np.uint8)
        self.pixels[200:400, 600:800] = (120, 70, 40)

    def thumbnail(self, max_size: int = 1024) -> NDArray[np.uint8]:
        return self._resized(min(1.0, max_size / max(self.shape)))

    def at(self, *, mpp: float | None = None) -> xr.DataArray:
        assert mpp is not None
        return xr.DataArray(self._resized(self.mpp_used / mpp), dims=("y", "x", "channel"))

    def _resized(self, factor: float) -> NDArray[np.uint8]:
        return np.asarray(cv2.resize(self.pixels, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA))


def make_table(
    cells: list[tuple[int, int]],
    *,
    magnifications: tuple[float, ...] = (40.0,),
    side: int = 100,
    labels: list[int] | None = None,
) -> xr.Dataset:
    """A selection on the 6 x 10 lattice of PlainSlide; cells are (row, column)."""
    cell = np.array(cells, dtype=np.int64).reshape(-1, 2)
    footprint = [side * magnifications[0] / m for m in magnifications]
    center = (cell + 0.5) * side
    x0 = np.stack([center[:, 1] - f / 2 for f in footprint], axis=-1)
    y0 = np.stack([center[:, 0] - f / 2 for f in footprint], axis=-1)
    label = np.full(x0.shape, -1) if labels is None else np.tile(np.array(labels)[:, None], (1, len(magnifications)))
    pair = ("patch", "magnification")
    return xr.Dataset(
        {
            "x0": (pair, x0.astype(np.int32)),
            "y0": (pair, y0.astype(np.int32)),
            "tissue": ("patch", np.ones(len(cell), dtype=np.float32)),
            "label": (pair, label.astype(np.int16)),
        },
        coords={"magnification": np.array(magnifications)},
        attrs={
            "start": (0.0, 0.0),
            "step": float(side),
            "footprint": footprint,
            "grid_shape": (6, 10),
            "shape": (600, 1000),
            "mpp_used": 0.25,
        },
    )


def find(axes: Axes, gid: str) -> list[PolyCollection]:
    return [c for c in axes.collections if isinstance(c, PolyCollection) and c.get_gid() == gid]


def vertices(collection: PolyCollection) -> NDArray[np.float64]:
    """(n, 5, 2) closed outlines of drawn squares."""
    return np.array([np.asarray(path.vertices, dtype=np.float64) for path in collection.get_paths()])


def corners(collection: PolyCollection) -> NDArray[np.float64]:
    """(n, 2) upper left corners of drawn squares."""
    return np.asarray(vertices(collection).min(axis=1))


def sides(collection: PolyCollection) -> NDArray[np.float64]:
    """(n, 2) widths and heights of drawn squares."""
    return np.ptp(vertices(collection), axis=1)


def edge_color(collection: PolyCollection) -> str:
    return to_hex(np.asarray(collection.get_edgecolor())[0].tolist()).upper()


def shown_pixels(axes: Axes) -> NDArray[np.uint8]:
    return np.asarray(axes.images[0].get_array())


def bars(figure: Figure) -> list[tuple[Axes, Rectangle]]:
    return [(a, p) for a in figure.axes for p in a.patches if isinstance(p, Rectangle) and p.get_gid() == "scale bar"]


def bar_text(axes: Axes) -> str:
    return next(text.get_text() for text in axes.texts if text.get_text().endswith("m"))


def micrometres(text: str) -> float:
    number, unit = text.split()
    return float(number) * {"µm": 1.0, "mm": 1000.0}[unit]


# Scale bars


@given(width=st.floats(1, 1e6), mpp=st.floats(0.05, 200))
def test_a_bar_has_a_round_length_that_fits(width: float, mpp: float) -> None:
    length = drawing.round_length(0.3 * width * mpp)
    assert 0.3 * width * mpp / 2.5 < length * (1 + 1e-6)
    assert length <= 0.3 * width * mpp * (1 + 1e-6)
    leading = length / 10 ** np.floor(np.log10(length) + 1e-9)
    assert min(abs(leading - digit) for digit in (1, 2, 5)) < 1e-6


@pytest.mark.parametrize(("mpp", "text"), [(0.25, "50 µm"), (1.0, "200 µm"), (8.0, "2 mm"), (0.499, "100 µm")])
def test_a_bar_is_as_long_as_it_says(mpp: float, text: str) -> None:
    axes = Figure(figsize=(4, 3)).add_axes((0, 0, 1, 1))
    axes.set_xlim(0, 1000)
    axes.set_ylim(700, 0)
    bar = drawing.scale_bar(axes, mpp)
    assert bar_text(axes) == text
    assert bar.get_width() == pytest.approx(micrometres(text) / mpp)


@pytest.mark.parametrize("upward", [False, True])
def test_a_bar_lies_inside_its_axes(upward: bool) -> None:
    axes = Figure(figsize=(4, 3)).add_axes((0, 0, 1, 1))
    axes.set_xlim(50, 250)
    axes.set_ylim(*((20, 170) if upward else (170, 20)))
    x, y = drawing.scale_bar(axes, 0.5).get_corners().T
    assert 50 < x.min() < x.max() < 250
    assert 20 < y.min() < y.max() < 170
    assert (y.mean() < 95) == upward, "the bar is at the bottom of what is seen"


# Selection


def test_selected_and_rejected_positions_are_drawn_once_each() -> None:
    cells = [(2, 6), (2, 7), (3, 6)]
    axes = plots.selection(PlainSlide(), make_table(cells)).axes[0]
    (selected,), (rejected,) = find(axes, "selected"), find(axes, "rejected")
    np.testing.assert_array_equal(corners(selected), [[600, 200], [700, 200], [600, 300]])
    expected = {(100 * c, 100 * r) for r in range(6) for c in range(10)} - {(100 * c, 100 * r) for r, c in cells}
    assert {(int(x), int(y)) for x, y in corners(rejected)} == expected
    assert edge_color(selected) == drawing.SELECTED


def test_an_odd_lattice_finds_its_rounded_origins() -> None:
    table = make_table([(0, 0)] * 4)
    step, start = 494.918, np.array([3.4, 5.6])
    cell = np.array([(0, 0), (1, 3), (2, 7), (5, 9)])
    table["x0"][:, 0] = np.rint(start[0] + cell[:, 1] * step)
    table["y0"][:, 0] = np.rint(start[1] + cell[:, 0] * step)
    table.attrs |= {"start": tuple(start), "step": step, "footprint": [step]}
    axes = plots.selection(PlainSlide((3000, 5000)), table).axes[0]
    drawn = np.rint((corners(find(axes, "rejected")[0]) - start) / step).astype(int)
    assert len(drawn) == 56
    assert not {(int(r), int(c)) for r, c in cell} & {(int(y), int(x)) for x, y in drawn}


def test_patches_have_the_colour_of_their_class() -> None:
    table = make_table([(2, 6), (2, 7), (3, 6), (3, 7)], labels=[1, 0, 1, -1])
    mask = xr.DataArray(np.zeros((6, 10), dtype=np.uint8), dims=("y", "x"), attrs={"classes": ("benign", "cancer")})
    axes = plots.selection(PlainSlide(), table, mask=mask).axes[0]
    assert [len(c.get_paths()) for c in find(axes, "selected")] == [1, 2, 1]
    edges = [edge_color(c) for c in find(axes, "selected")]
    assert edges == [*plots.LABEL_COLORS[:2], drawing.UNLABELED]
    legend = axes.get_legend()
    assert legend is not None
    texts = [text.get_text() for text in legend.get_texts()]
    assert {"class benign (1)", "class cancer (2)", "no class (1)"} <= set(texts)


def test_a_few_tuples_show_their_contexts_whole() -> None:
    table = make_table([(r, c) for r in range(1, 5) for c in range(10)], magnifications=(40.0, 20.0, 10.0))
    axes = plots.selection(PlainSlide(), table, tuples=4).axes[0]
    for gid, side in (("centroid", 100), ("context 20x", 200), ("context 10x", 400)):
        (squares,) = find(axes, gid)
        np.testing.assert_allclose(sides(squares), np.full((4, 2), side))
        middle = corners(squares) + side / 2
        np.testing.assert_allclose(middle, corners(find(axes, "centroid")[0]) + 50)
        assert (corners(squares)[:, 0] >= axes.get_xlim()[0]).all()
        assert (corners(squares)[:, 1] >= axes.get_ylim()[1]).all()
    colors = {edge_color(find(axes, gid)[0]) for gid in ("centroid", "context 20x", "context 10x")}
    assert len(colors) == 3


def test_the_mask_outline_follows_the_tissue_in_level_0_px() -> None:
    mask = xr.DataArray(np.zeros((60, 100), dtype=bool), dims=("y", "x"))
    mask[20:40, 60:80] = True
    axes = plots.selection(PlainSlide(), make_table([]), mask=mask).axes[0]
    lines = np.concatenate(
        [
            np.asarray(p.vertices, dtype=np.float64)
            for c in axes.collections
            if not isinstance(c, PolyCollection)
            for p in c.get_paths()
        ]
    )
    np.testing.assert_allclose(lines.min(axis=0), [600, 200], atol=10)
    np.testing.assert_allclose(lines.max(axis=0), [800, 400], atol=10)


def test_nothing_selected_is_still_a_picture() -> None:
    figure = plots.selection(PlainSlide(), make_table([]))
    assert len(find(figure.axes[0], "rejected")[0].get_paths()) == 60
    assert not find(figure.axes[0], "selected")


def test_twenty_thousand_patches_are_a_handful_of_artists() -> None:
    table = make_table([(0, 0)] * 20_000)
    i = np.arange(20_000)
    table["x0"][:, 0], table["y0"][:, 0] = 4 * (i % 200), 4 * (i // 200)
    table.attrs |= {"step": 4.0, "footprint": [4.0], "grid_shape": (150, 250)}
    axes = plots.selection(PlainSlide(), table).axes[0]
    assert len(find(axes, "selected")[0].get_paths()) == 20_000
    assert len(find(axes, "rejected")[0].get_paths()) == 150 * 250 - 20_000
    assert len(axes.get_children()) < 40


# Pyramid


def test_a_pyramid_shows_the_same_point_at_every_scale() -> None:
    slide = PlainSlide()
    slide.pixels[290:310, 690:710] = 0
    figure = plots.pyramid(slide, magnifications=[10, 40, 20], center=(700, 300), size_px=100)
    panels = figure.axes[1:]
    assert [axes.get_title().split()[0] for axes in panels] == ["10x", "20x", "40x"]
    for axes, dark in zip(panels, (5, 10, 20), strict=True):
        pixels = shown_pixels(axes)
        assert pixels.shape == (100, 100, 3)
        rows, columns = np.nonzero(pixels.max(axis=-1) < 10)
        np.testing.assert_allclose([rows.mean(), columns.mean()], 49.5, atol=0.6)
        np.testing.assert_allclose([np.ptp(rows) + 1, np.ptp(columns) + 1], dark, atol=1)


def test_a_pyramids_squares_are_the_next_panels_footprint() -> None:
    figure = plots.pyramid(PlainSlide(), magnifications=[40, 10], center=(700, 300), size_px=100)
    overview, coarse, fine = figure.axes
    assert sides(find(overview, "outline")[0])[0] == pytest.approx(400)
    assert sides(find(coarse, "outline")[0])[0] == pytest.approx(25)
    assert not find(fine, "outline")


def test_every_panel_has_its_own_scale_bar() -> None:
    figure = plots.pyramid(PlainSlide(), magnifications=[40, 10], center=(700, 300), size_px=100)
    drawn = bars(figure)
    assert len(drawn) == 3
    for (axes, bar), mpp in zip(drawn, (0.25, 1.0, 0.25), strict=True):
        assert bar.get_width() == pytest.approx(micrometres(bar_text(axes)) / mpp)


def test_the_default_center_is_on_tissue_and_outside_is_white() -> None:
    figure = plots.pyramid(PlainSlide(), size_px=100, magnifications=[40])
    pixels = shown_pixels(figure.axes[1])
    assert (pixels == (120, 70, 40)).all()
    corner = plots.pyramid(PlainSlide(), size_px=100, magnifications=[40], center=(0, 0))
    pixels = shown_pixels(corner.axes[1])
    white = (pixels == 255).all(axis=-1)
    inside = np.zeros((100, 100), dtype=bool)
    inside[50:, 50:] = True
    np.testing.assert_array_equal(white, ~inside)


def test_default_magnifications_are_the_slides_own_and_its_halvings() -> None:
    figure = plots.pyramid(PlainSlide(mpp_used=0.5), size_px=100)
    assert [axes.get_title().split()[0] for axes in figure.axes] == ["whole", "5x", "10x", "20x"]


def test_a_pyramid_refuses_what_makes_no_sense() -> None:
    with pytest.raises(SpecError, match=r"center=\(2000, 5\) lies outside its 1000 x 600"):
        plots.pyramid(PlainSlide(), center=(2000, 5))
    with pytest.raises(SpecError, match="magnifications"):
        plots.pyramid(PlainSlide(), magnifications=[])
    with pytest.raises(SpecError, match="size_px=0"):
        plots.pyramid(PlainSlide(), size_px=0)


# Patches


def make_patches(count: int, magnifications: tuple[float, ...], *, lazy: bool = False) -> xr.Dataset:
    """Patch i is a flat image of value i + 100 * magnification index."""
    value = np.arange(count)[:, None] + 100 * np.arange(len(magnifications))
    image = np.broadcast_to(value[..., None, None, None], (*value.shape, 64, 64, 3)).astype(np.uint8)
    array = da.from_array(image, chunks=(2, -1, -1, -1, -1)) if lazy else image
    return xr.Dataset(
        {
            "image": (("patch", "magnification", "y", "x", "channel"), array),
            "x0": (("patch", "magnification"), 1000 + value.astype(np.int32)),
            "y0": (("patch", "magnification"), 2000 + value.astype(np.int32)),
            "tissue": ("patch", np.full(count, 0.75, dtype=np.float32)),
        },
        coords={"magnification": np.array(magnifications)},
    )


def test_a_sheet_has_a_row_a_tuple_and_a_column_a_magnification() -> None:
    figure = plots.patches(make_patches(20, (20.0, 10.0, 5.0)), rows=[3, 17])
    shown = [int(shown_pixels(axes)[0, 0, 0]) for axes in figure.axes]
    assert shown == [3, 103, 203, 17, 117, 217]
    top = [axes.get_position().y1 for axes in figure.axes]
    assert top[0] == top[1] == top[2] > top[3]
    assert [axes.get_title().split()[0] for axes in figure.axes[:3]] == ["20x", "10x", "5x"]
    assert any(text.get_text() == "patch 17\ntissue 75%\nx 1017\ny 2017" for text in figure.texts)


def test_contexts_show_the_finest_patchs_footprint_in_their_middle() -> None:
    figure = plots.patches(make_patches(2, (20.0, 10.0, 5.0)), n=1)
    assert not find(figure.axes[0], "outline")
    for axes, side in zip(figure.axes[1:], (32, 16), strict=True):
        square = vertices(find(axes, "outline")[0])[0]
        np.testing.assert_allclose([square.min(axis=0), square.max(axis=0)], [[32 - side / 2] * 2, [32 + side / 2] * 2])


def test_each_patch_has_a_bar_of_its_scale() -> None:
    figure = plots.patches(make_patches(2, (20.0, 5.0)), n=1)
    assert len(bars(figure)) == 2
    for (axes, bar), mpp in zip(bars(figure), (0.5, 2.0), strict=True):
        assert bar.get_width() == pytest.approx(micrometres(bar_text(axes)) / mpp)


def test_a_lazy_sheet_computes_only_the_blocks_that_it_shows() -> None:
    seen: list[int] = []

    def read(block: NDArray[np.uint8]) -> NDArray[np.uint8]:
        seen.append(int(block[0, 0, 0, 0, 0]))
        return block

    dataset = make_patches(20, (20.0,), lazy=True)
    dataset["image"] = dataset["image"].copy(
        data=dataset["image"].data.map_blocks(read, dtype=np.uint8, meta=np.empty((0,) * 5, np.uint8))
    )
    plots.patches(dataset, rows=[4, 5, 19])
    assert sorted(seen) == [4, 18]


def test_one_magnification_fills_a_sheet_row_by_row() -> None:
    figure = plots.patches(make_patches(20, (20.0,)), n=8)
    assert len(figure.axes) == 8
    assert len({round(axes.get_position().y0, 6) for axes in figure.axes}) == 2


def test_an_empty_set_says_so_and_rows_out_of_range_are_refused() -> None:
    assert plots.patches(make_patches(0, (20.0, 10.0))).texts[0].get_text() == "no patches"
    with pytest.raises(SpecError, match="from 0 to 3"):
        plots.patches(make_patches(4, (20.0,)), rows=[4])


def test_figures_leave_pyplot_alone_and_show_themselves_in_notebooks() -> None:
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    figure = plots.patches(make_patches(3, (20.0, 10.0)), n=1)
    assert plt.get_fignums() == before
    assert figure._repr_jpeg_().startswith(b"\xff\xd8\xff")  # type: ignore[attr-defined]


# Real slides


def test_every_figure_works_on_a_slide_file(small_slide: SampleSlide) -> None:
    slide = open_slide(small_slide.path)
    mask = xr.DataArray(small_slide.mask, dims=("y", "x"))
    tuples = centroids(slide, mask, magnifications=[20, 10, 5], patch_size=128)
    figure = plots.selection(slide, tuples, mask=mask, max_size=400)
    rows, columns = tuples.attrs["grid_shape"]
    chosen = find(figure.axes[0], "selected")[0]
    assert len(chosen.get_paths()) == tuples.sizes["patch"] > 20
    assert len(find(figure.axes[0], "rejected")[0].get_paths()) == rows * columns - tuples.sizes["patch"]
    middle = corners(chosen) + tuples.attrs["footprint"][0] / 2
    row, column = (middle[:, 1] * mask.shape[0] / slide.shape[0]), (middle[:, 0] * mask.shape[1] / slide.shape[1])
    assert mask.values[row.astype(int), column.astype(int)].mean() > 0.9, "the green squares lie on tissue"
    sheet = plots.patches(lazy_patches(slide, tuples), n=2)
    assert [axes.get_title().split()[0] for axes in sheet.axes[:3]] == ["20x", "10x", "5x"]
    assert len(plots.pyramid(slide, size_px=128).axes) == 6


def test_a_pyramid_panel_shows_the_pixels_of_its_patch(small_slide: SampleSlide) -> None:
    slide = open_slide(small_slide.path)
    tuples = centroids(slide, None, magnifications=[40, 10], patch_size=96, start=(512, 768)).isel(patch=[0])
    image = lazy_patches(slide, tuples)["image"].values[0]
    center = (float(tuples["x0"][0, 0]) + 48, float(tuples["y0"][0, 0]) + 48)
    panels = plots.pyramid(slide, magnifications=[40, 10], center=center, size_px=96).axes[1:]
    np.testing.assert_array_equal(shown_pixels(panels[1]), image[0])
    assert np.abs(shown_pixels(panels[0]).astype(int) - image[1]).mean() < 2


def test_a_slide_without_scale_says_what_to_do(scaleless_slide: SampleSlide) -> None:
    with pytest.raises(MissingScaleError, match="mpp="):
        plots.pyramid(open_slide(scaleless_slide.path))


# What all of them keep to


def every_figure() -> dict[str, Figure]:
    slide, table = PlainSlide(), make_table([(2, 6), (2, 7)], magnifications=(40.0, 20.0), labels=[0, 1])
    mask = xr.DataArray(np.eye(60, 100, dtype=np.uint8), dims=("y", "x"), attrs={"classes": ("a quite long name",)})
    return {
        "selection": plots.selection(slide, table),
        "pyramid": plots.pyramid(slide, magnifications=[40, 10], size_px=100),
        "tuples": plots.patches(make_patches(3, (20.0, 10.0)), n=2),
        "patches": plots.patches(make_patches(7, (20.0,)), n=7),
        "mask": plots.mask(slide, mask),
    }


def test_nothing_that_is_drawn_is_cut_off_and_all_fits_a_notebooks_screen() -> None:
    for name, figure in every_figure().items():
        FigureCanvasAgg(figure)
        box, (wide, high) = figure.get_tightbbox(), figure.get_size_inches()
        assert min(box.x0, box.y0, wide - box.x1, high - box.y1) == pytest.approx(0.1, abs=0.06), name
        assert wide * figure.dpi <= 1400, name
        sizes = [text.get_fontsize() for text in figure.findobj(Text) if text.get_text()]
        assert min(sizes) >= 8, name


def test_the_colours_of_classes_are_none_of_the_scales() -> None:
    lab = rgb2lab(np.array([to_rgb(color) for color in (*plots.LABEL_COLORS, *plots.SCALE_COLORS)]))
    apart = np.linalg.norm(lab[:, None] - lab[None], axis=-1)
    classes = len(plots.LABEL_COLORS)
    assert apart[:classes, classes:].min() > 20
    assert (apart[:classes, :classes] + 99 * np.eye(classes)).min() > 20


def test_every_bar_lies_on_a_backing_that_holds_its_text() -> None:
    figure = plots.patches(make_patches(3, (20.0, 10.0)), n=1)
    FigureCanvasAgg(figure)
    for axes, bar in bars(figure):
        backing = next(p for p in axes.patches if p.get_facecolor()[:3] == (1, 1, 1))
        around = backing.get_window_extent()
        label = next(text for text in axes.texts if text.get_text().endswith("m"))
        for inner in (bar.get_window_extent(), label.get_window_extent()):
            assert around.x0 < inner.x0
            assert inner.x1 < around.x1
            assert around.y0 < inner.y0


def test_a_selection_draws_the_mask_that_it_carries() -> None:
    mask = xr.DataArray(np.zeros((60, 100), np.uint8), dims=("mask_y", "mask_x"))
    mask[20:40, 60:80] = 1
    figure = plots.selection(PlainSlide(), make_table([(2, 6)]).assign(mask=mask))
    assert "mask" in [text.get_text() for text in figure.axes[0].get_legend().get_texts()]  # type: ignore[union-attr]


def test_each_column_of_a_sheet_names_its_scale() -> None:
    figure = plots.patches(make_patches(7, (20.0,)), n=7)
    assert [text.get_text() for text in figure.texts].count("20x   0.5 µm/px") == 5
