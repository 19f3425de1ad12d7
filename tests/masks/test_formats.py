"""Mask formats: which there are, how one is added, and who says whether a mask shows tissue or classes."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from msdask.cli import main
from msdask.errors import MaskError, SpecError
from msdask.extraction.cohort import extract
from msdask.masks.choice import MaskChoice, masks_of_slide
from msdask.masks.files import find_mask, read_tissue_mask
from msdask.masks.formats import mask_formats, read_content
from msdask.masks.labels import read_label_mask
from msdask.sample.slides import SampleSlide
from msdask.slides.slide import Slide, open_slide
from msdask.spec import ExtractionSpec
from msdask.store.patch_store import PatchStore

PAGE = Path(__file__).resolve().parents[2] / "docs" / "masks.md"
OUR_FORMATS = ["HistoQC", "ASAP XML", "ImageScope XML", "GeoJSON"]
TEXT = "rectangles\ntumor 0 0 1024 1024\nstroma 1024 0 512 2048\n"


@pytest.fixture
def guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The package that docs/masks.md shows, installed: its code and its entry point are those of the page."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (code,) = [block for block in blocks if "class Rectangles" in block]
    entry = re.search(r'```toml\n\[project.entry-points."(.*?)"\]\n(.*?)```', PAGE.read_text(), re.DOTALL)
    assert entry is not None
    site = tmp_path / "site"
    about = site / "my_package-1.0.dist-info"
    about.mkdir(parents=True)
    (site / "my_package.py").write_text(code)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: my_package\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[{entry[1]}]\n{entry[2].replace(chr(34), '')}")
    monkeypatch.syspath_prepend(site)
    mask_formats.cache_clear()
    yield site
    mask_formats.cache_clear()
    sys.modules.pop("my_package", None)


class SlideOfShape:
    def __init__(self, shape: tuple[int, int], name: str = "a.svs") -> None:
        self.shape, self.name, self.path = shape, name, name


def png(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(path)
    return path


def two_values(high: int = 255, shape: tuple[int, int] = (20, 30)) -> np.ndarray:
    values = np.zeros(shape, np.uint8)
    values[:, : shape[1] // 2] = high
    return values


# --- the registry -----------------------------------------------------------------------------------------------------


def test_formats_are_asked_in_order_of_priority_and_say_why() -> None:
    formats = mask_formats()
    assert [f.priority for f in formats] == sorted(f.priority for f in formats)
    assert [f.name for f in formats] == [*OUR_FORMATS, "PNG or TIFF", "HistoQC"]
    assert all(f.reason and f.places for f in formats)


def test_a_format_of_another_package_is_found_and_asked_in_its_place(guest: Path) -> None:
    assert [f.name for f in mask_formats()] == [*OUR_FORMATS, "rectangles", "PNG or TIFF", "HistoQC"]


def test_a_format_that_cannot_be_loaded_is_left_out_with_a_warning(guest: Path) -> None:
    (guest / "my_package.py").write_text("raise RuntimeError('no luck')")
    mask_formats.cache_clear()
    with pytest.warns(UserWarning, match=r"'rectangles' of my_package:Rectangles cannot be loaded: no luck"):
        formats = mask_formats()
    assert len(formats) == len(OUR_FORMATS) + 2


def test_a_file_of_no_format_is_refused_naming_those_that_there_are(guest: Path, tmp_path: Path) -> None:
    (tmp_path / "m.xyz").write_text("something else")
    with pytest.raises(
        MaskError, match=r"m\.xyz': begins with b'somethin'; expected .*HistoQC, .*GeoJSON, rectangles, PNG or TIFF"
    ):
        read_content(str(tmp_path / "m.xyz"))


# --- a format of outlines, which names its classes --------------------------------------------------------------------


def test_outlines_are_drawn_for_the_slide_at_the_size_that_is_asked_for(guest: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.rectangles"
    path.write_text(TEXT)
    slide = SlideOfShape((2048, 4096))
    labels = read_label_mask(path, slide=slide, shape=(16, 32))
    assert labels.attrs["classes"] == ("tumor", "stroma")
    expected = np.zeros((16, 32))
    expected[:8, :8], expected[:, 8:12] = 1, 2
    np.testing.assert_array_equal(labels, expected)
    assert read_label_mask(path, slide=slide).shape == (64, 128)  # 1/32
    with pytest.raises(MaskError, match="drawn for a slide; pass slide="):
        read_label_mask(path)


@pytest.mark.parametrize(
    ("values", "classes", "names"),
    [
        (["stroma", "tumor"], None, ("stroma", "tumor")),
        ({"stroma": 0, "tumor": 1}, None, ("stroma", "tumor")),
        ({"stroma": 0, "tumor": 1}, ["S", "T"], ("S", "T")),
        (None, ["stroma", "tumor"], ("stroma", "tumor")),
    ],
)
def test_a_table_of_names_says_which_is_which_class(
    guest: Path, tmp_path: Path, values: object, classes: list[str] | None, names: tuple[str, ...]
) -> None:
    path = tmp_path / "a.rectangles"
    path.write_text(TEXT)
    labels = read_label_mask(path, values=values, classes=classes, slide=SlideOfShape((2048, 4096)), shape=(16, 32))
    assert labels.attrs["classes"] == names
    assert (int(labels[0, 0]), int(labels[0, 8])) == (2, 1)


def test_names_that_the_table_lacks_and_numbers_for_names_are_refused(guest: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.rectangles"
    path.write_text(TEXT)
    slide = SlideOfShape((2048, 4096))
    with pytest.raises(MaskError, match=r"unknown classes \['stroma'\] \(it has \['tumor', 'stroma'\]\)"):
        read_label_mask(path, values=["tumor"], slide=slide)
    assert set(np.unique(read_label_mask(path, values={"tumor": 0, "stroma": -1}, slide=slide))) == {0, 1}
    with pytest.raises(SpecError, match=r"names its classes \['tumor', 'stroma'\]; give these names"):
        read_label_mask(path, values=[1, 2], slide=slide)
    with pytest.raises(SpecError, match="expected a table or a list"):
        read_label_mask(path, values="tumor", slide=slide)  # type: ignore[arg-type]


def test_a_file_of_classes_is_no_tissue_mask_and_one_of_tissue_no_label_mask(guest: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.rectangles"
    path.write_text(TEXT)
    with pytest.raises(MaskError, match=r"annotated, with classes \['tumor', 'stroma'\].*read_label_mask"):
        read_tissue_mask(path, slide=SlideOfShape((2048, 4096)))
    histoqc = png(tmp_path / "a.svs_mask_use.png", two_values())
    with pytest.raises(MaskError, match=r"shows tissue, not classes.*values=.*read_tissue_mask"):
        read_label_mask(histoqc)
    assert read_label_mask(histoqc, values={255: 0}).max() == 1  # who says what the values mean is believed


def test_a_folder_of_masks_may_hold_files_of_any_format(guest: Path, tmp_path: Path) -> None:
    (tmp_path / "b.rectangles").write_text(TEXT)
    png(tmp_path / "b.png", two_values())
    png(tmp_path / "c_mask_use.png", two_values())
    assert find_mask(tmp_path, "b.svs") == tmp_path / "b.rectangles"
    assert find_mask(tmp_path, "c.svs") == tmp_path / "c_mask_use.png"
    labels = read_label_mask(tmp_path, slide=SlideOfShape((2048, 4096), "b.svs"))
    assert labels.attrs["source"] == str(tmp_path / "b.rectangles")


# --- tissue or labels -------------------------------------------------------------------------------------------------


@pytest.fixture
def slide(small_slide: SampleSlide) -> Slide:
    return open_slide(small_slide.path)


def kinds(slide: Slide, given: Path | None, **options: object) -> str:
    masks = masks_of_slide(
        slide, None if given is None else str(given), MaskChoice.of(**options), spec=ExtractionSpec("grid", (10,))
    )
    return "labels" if masks.tissue is None else "tissue"


def proportioned(slide: Slide, high: int = 255) -> np.ndarray:
    height, width = (side // 32 for side in slide.shape)
    return two_values(high, (height, width))


def test_a_png_shows_what_was_said_and_tissue_if_nothing_was(slide: Slide, tmp_path: Path) -> None:
    path = png(tmp_path / "m.png", proportioned(slide, 1))
    assert kinds(slide, path, masks=None) == "tissue"
    assert kinds(slide, path, masks=None, values=[1]) == "labels"
    assert kinds(slide, path, masks=None, labels=tmp_path) == "labels"
    assert kinds(slide, None, masks=None) == "tissue"


def test_where_nothing_is_said_a_format_that_knows_says_it(guest: Path, slide: Slide, tmp_path: Path) -> None:
    path = tmp_path / f"{slide.name}.rectangles"
    path.write_text(TEXT)
    assert kinds(slide, path, masks=None) == "labels"
    assert kinds(slide, None, masks=tmp_path) == "labels"
    masks = masks_of_slide(slide, str(path), MaskChoice(), spec=ExtractionSpec("grid", (10,)))
    assert masks.labels is not None
    assert masks.labels.shape == tuple(-(-int(side * slide.mpp_used) // 8) for side in slide.shape)


def test_contradictions_are_refused(slide: Slide, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"masks='a' and labels='b': a slide gets one mask"):
        MaskChoice.of("a", "b")
    with pytest.raises(MaskError, match="values= says that masks are annotated, but it has none"):
        kinds(slide, None, masks=None, values=[50])
    histoqc = png(tmp_path / slide.name / f"{slide.name}_mask_use.png", proportioned(slide))
    with pytest.raises(MaskError, match="shows tissue, not classes"):
        kinds(slide, None, masks=None, labels=tmp_path)
    assert kinds(slide, None, masks=tmp_path) == "tissue"
    with pytest.raises(MaskError, match=r"is a file; expected a folder with a mask for every slide"):
        kinds(slide, None, masks=histoqc)


def test_labels_of_a_cohort_by_folder_by_table_and_by_a_format_of_names(
    guest: Path, slide: Slide, tmp_path: Path
) -> None:
    coded, named = tmp_path / "coded", tmp_path / "named"
    height, width = (side // 32 for side in slide.shape)
    ready = np.ones((height, width))
    ready[:, width // 2 :] = 2
    png(coded / "1" / f"{slide.name}.png", ready)
    png(coded / "50" / f"{slide.name}.png", ready * 50)
    named.mkdir()
    half = slide.shape[1] // 2
    (named / f"{slide.name}.rectangles").write_text(
        f"rectangles\nb {half} 0 {half} {slide.shape[0]}\na 0 0 {half} {slide.shape[0]}\n"
    )
    spec = ExtractionSpec(mode="grid", magnifications=(10,), patch_size=64, stride=32)
    found = []
    for number, options in enumerate(
        [
            {"labels": coded / "1"},
            {"labels": coded / "50", "values": [50, 100]},
            {"masks": coded / "50", "values": [50, 100]},
            {"labels": named, "values": ["a", "b"]},
            {"masks": named, "values": {"a": 0, "b": 1}},
        ]
    ):
        report = extract([slide.path], tmp_path / f"{number}.zarr", spec, progress=False, **options)
        assert report.is_complete, report.failures
        found.append(PatchStore(tmp_path / f"{number}.zarr")[spec.name].open(slide.name)["label"].values.tolist())
    assert {0, 1} == {label for (label,) in found[0]}
    assert found[1:] == found[:1] * 4


def test_the_command_line_takes_labels_and_names_of_classes(
    guest: Path, slide: Slide, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / f"{slide.name}.rectangles").write_text(f"rectangles\na 0 0 {slide.shape[1]} {slide.shape[0]}\n")
    common = ["extract", slide.path, "-m", "10", "-s", "64", "--labels", str(tmp_path), "-q", "-o"]
    for values, labels in (([], {0}), (["--values", "b", "a"], {1})):
        store = tmp_path / f"{len(values)}.zarr"
        with pytest.raises(SystemExit) as left:
            main([*common, str(store), *values])
        assert left.value.code == 0, capsys.readouterr()
        assert set(PatchStore(store)["grid-10x-64"].table()["label"]) == labels
