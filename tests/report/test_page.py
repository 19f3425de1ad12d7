"""The report is one file, escapes what it is given, and its sliders work on the numbers that were measured."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from msdask.errors import MsdaskError, SpecError
from msdask.report import measurements as measured_module
from msdask.report import page as report_module
from msdask.report.measurements import SHOWN, measurements
from msdask.report.page import Picture, RunReport, SlideReport, picture, write_report
from msdask.spec import ExtractionSpec

NASTY = '<script>alert("1 & 2")</script> </script> Größe.svs'
PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)
JPEG = b"\xff\xd8\xff\xe0" + bytes(20)


class Page(HTMLParser):
    """Elements with their attributes, and the text of the page outside scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self.within = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.within = tag

    def handle_endtag(self, tag: str) -> None:
        self.within = ""

    def handle_data(self, data: str) -> None:
        if self.within == "script":
            self.scripts.append(data)
        elif self.within != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def measured_slide(slide_id: str = "a.svs", count: int = 50, **changes: Any) -> SlideReport:
    random = np.random.default_rng(0)
    facts: dict[str, Any] = {
        "state": "complete",
        "candidates": 400,
        "selected": count,
        "kept": count,
        "written": count,
        "seconds": 2.0,
        "brightness": random.uniform(100, 240, count).astype(np.float32),
        "contrast": random.uniform(0, 0.4, count).astype(np.float32),
        "tissue": random.uniform(0.7, 1, count).astype(np.float32),
        "brightness_threshold": 205.0,
    }
    return SlideReport(slide_id, **(facts | changes))


def write(tmp_path: Path, *slides: SlideReport, **facts: Any) -> str:
    return write_report(tmp_path / "report.html", RunReport("Run", slides, **facts)).read_text(encoding="utf-8")


def embedded(html: str) -> dict[str, Any]:
    (text,) = re.findall(r'<script type="application/json" id="measurements">(.*?)</script>', html, flags=re.DOTALL)
    values: dict[str, Any] = json.loads(text)
    return values


def test_every_slide_is_in_the_table_escaped(tmp_path: Path) -> None:
    failed = SlideReport("gone.svs", "failed", reason=NASTY + " is missing", warnings=("<i>odd</i>",))
    html = write(tmp_path, measured_slide(NASTY, pictures=(Picture("t", PNG),)), failed)
    page = Page(html)
    heads = [attrs for tag, attrs in page.elements if tag == "th" and attrs.get("scope") == "row"]
    assert len(heads) == 3, "two slides and the total"
    assert NASTY in page.text
    assert "gone.svs" in page.text
    assert NASTY + " is missing" in page.text
    assert NASTY not in html
    assert "<i>odd" not in html
    assert len([tag for tag, _ in page.elements if tag == "script"]) == 2, "the data and the program, nothing injected"
    assert embedded(html)["slides"][0]["name"] == NASTY


def test_the_file_needs_nothing_else(tmp_path: Path) -> None:
    pictures = (Picture("one", PNG, "a slide"), Picture("two", JPEG))
    html = write(tmp_path, measured_slide(pictures=pictures), specs={"s": ExtractionSpec("grid", (20,)).to_dict()})
    assert "http:" not in html
    assert "https:" not in html
    assert "@import" not in html
    assert "url(" not in html
    page = Page(html)
    assert not [tag for tag, _ in page.elements if tag in ("link", "iframe", "object", "embed")]
    sources = [attrs["src"] for _, attrs in page.elements if "src" in attrs]
    assert [str(source).partition(",")[0] for source in sources] == ["data:image/png;base64", "data:image/jpeg;base64"]


def test_pictures_have_alternative_texts_and_controls_have_labels(tmp_path: Path) -> None:
    page = Page(
        write(tmp_path, measured_slide(pictures=(Picture("Selection", PNG), Picture("Sheet", PNG, "six tuples"))))
    )
    assert [attrs["alt"] for tag, attrs in page.elements if tag == "img"] == ["Selection of a.svs", "six tuples"]
    labelled = {attrs.get("for") for tag, attrs in page.elements if tag == "label"}
    sliders = {attrs["id"] for tag, attrs in page.elements if tag == "input" and attrs.get("type") == "range"}
    assert sliders == {"brightness-0", "contrast-0", "tissue-0"} <= labelled
    assert ("html", {"lang": "en"}) in page.elements


def test_the_program_finds_every_element_that_it_asks_for_in_the_panel_of_each_set(tmp_path: Path) -> None:
    qualities = {name: np.linspace(0, 1, 50) for name in ("focus", "blank", "pen", "dark")}
    slides = [measured_slide(patch_set=name, qualities=qualities) for name in ("grid-10x", "grid-20x")]
    page = Page(write(tmp_path, *slides))
    asked = set(re.findall(r'find\("([\w-]+)"\)', page.scripts[-1]))
    asked |= {name + part for name in (shape.name for shape in SHOWN) for part in ("", "-value", "-cut", "-histogram")}
    assert len(asked) > 30
    assert {f"{name}-{k}" for name in asked for k in (0, 1)} <= {a["id"] for _, a in page.elements if "id" in a}


def test_a_reason_is_said_once_and_names_the_sets(tmp_path: Path) -> None:
    failed = [SlideReport("gone.svs", "failed", name, reason="no such file") for name in ("grid-10x", "grid-20x")]
    text = Page(write(tmp_path, *failed, measured_slide("a.svs", patch_set="grid-10x"))).text
    assert text.count("no such file") == 1
    assert "gone.svs (in grid-10x, grid-20x): no such file" in text
    assert "1 slides failed" in text


def test_the_pictures_of_a_slide_stand_together(tmp_path: Path) -> None:
    slides = [measured_slide(i, patch_set=s, pictures=(Picture(f"{i} {s}", PNG),)) for s in "pq" for i in ("a", "b")]
    page = Page(write(tmp_path, *slides))
    assert [a["alt"] for tag, a in page.elements if tag == "img"] == [f"{i} {s} of {i}" for i in "ab" for s in "pq"]
    assert sum(tag == "details" for tag, _ in page.elements) == 2


def test_totals_and_rates() -> None:
    slides = (
        measured_slide("a", written=300, seconds=2.0, kept=40),
        measured_slide("b", written=100, magnifications=3, seconds=8.0, kept=30),
        SlideReport("c", "failed", reason="no"),
        SlideReport("d", "skipped", selected=5, kept=5),
    )
    totals = RunReport("Run", slides, seconds=8.0).totals()
    assert [totals[state] for state in ("slides", "complete", "failed", "skipped")] == [4, 2, 1, 1]
    assert [totals[name] for name in ("candidates", "selected", "kept", "written", "rate")] == [800, 105, 75, 400, 50.0]
    assert totals["counted"] == "300 patches and 100 tuples"
    assert [slide.rate for slide in slides] == [150.0, 12.5, None, None]
    assert RunReport("Run", slides).totals()["rate"] is None


@given(
    st.lists(st.tuples(st.floats(0, 255, width=32), st.floats(0, 1, width=32), st.floats(0, 1, width=32)), min_size=1),
    st.integers(0, 255),
    st.integers(0, 100),
    st.integers(0, 100),
)
def test_sliders_decide_as_the_measured_values_would(
    values: list[tuple[float, float, float]], brightness: int, contrast: int, tissue: int
) -> None:
    measured = np.array(values, dtype=np.float32)
    slide = SlideReport("a", "complete", brightness=measured[:, 0], contrast=measured[:, 1], tissue=measured[:, 2])
    data = measurements([slide])
    rounded, steps = data["slides"][0]["values"], {shape["name"]: shape["step"] for shape in data["measures"]}
    # As in the page: thresholds are whole multiples of the steps.
    limits = (
        round(brightness / steps["brightness"]),
        round(0.005 * contrast / steps["contrast"]),
        round(0.01 * tissue / steps["tissue"]),
    )
    got = [
        b <= limits[0] and c >= limits[1] and t >= limits[2]
        for b, c, t in zip(rounded["brightness"], rounded["contrast"], rounded["tissue"], strict=True)
    ]
    slack = 1e-6
    surely = [b <= brightness and c >= 0.005 * contrast and t >= 0.01 * tissue for b, c, t in values]
    perhaps = [
        b <= brightness + 1e2 * slack and c >= 0.005 * contrast - slack and t >= 0.01 * tissue - 5 * slack
        for b, c, t in values
    ]
    assert all(g or not s for g, s in zip(got, surely, strict=True))
    assert all(p or not g for g, p in zip(got, perhaps, strict=True))


def test_values_on_a_threshold_are_on_its_right_side() -> None:
    values = {"brightness": [195.0, 205.0, 205.01], "contrast": [0.05, 0.0499, 0.0501], "tissue": [0.7, 0.29, 1.0]}
    slide = SlideReport("a", "complete", **{k: np.array(v, dtype=np.float32) for k, v in values.items()})  # type: ignore[arg-type]
    entry = measurements([slide])["slides"][0]["values"]
    assert entry["brightness"] == [19500, 20500, 20501]
    assert entry["contrast"] == [500, 499, 501]
    assert entry["tissue"] == [700, 290, 1000]


def test_large_cohorts_are_sampled_and_say_how_many_there_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured_module, "SAMPLES_PER_REPORT", 60)
    slides = [measured_slide("a", 1000), measured_slide("b", 7), measured_slide("c", 0), SlideReport("d", "failed")]
    entries = measurements(slides)["slides"]
    assert [(entry["name"], entry["patches"], len(entry["values"]["tissue"])) for entry in entries] == [
        ("a", 1000, 30),
        ("b", 7, 7),
    ]


def test_unmeasured_patches_are_left_out_and_unequal_lengths_refused() -> None:
    slide = SlideReport("a", "complete", brightness=[100.0, np.nan, 120.0], contrast=[0.1, 0.2, np.nan])
    assert measurements([slide])["slides"][0]["values"]["brightness"] == [10000]
    with pytest.raises(SpecError, match="slide 'b': 2 brightness, 1 contrast, 2 tissue"):
        measurements([SlideReport("b", "complete", brightness=[1.0, 2.0], contrast=[0.1])])


def test_a_run_without_measurements_has_no_sliders(tmp_path: Path) -> None:
    html = write(tmp_path, SlideReport("a", "failed", reason="empty file"))
    assert "measurements" not in html
    assert "threshold" not in Page(html).text
    assert "empty file" in html


def test_versions_specs_and_facts_are_shown(tmp_path: Path) -> None:
    spec = ExtractionSpec("centroids", (5, 20, 10))
    text = Page(
        write(tmp_path, specs={spec.name: spec.to_dict()}, versions={"zarr": "3.1"}, facts={"store": "<x>"})
    ).text
    for words in (
        "centroids-20x-10x-5x-224",
        "magnifications 20, 10, 5",
        "allow_upsampling no",
        "zarr 3.1",
        "store <x>",
    ):
        assert words in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "\u2013"), (4.24, "4.2 s"), (59.96, "1 min 0 s"), (245, "4 min 5 s"), (7380, "2 h 3 min")],
)
def test_durations_read_well(seconds: float | None, text: str) -> None:
    assert report_module._duration(seconds) == text


@pytest.mark.parametrize(("quality", "head"), [(90, b"\xff\xd8\xff"), (None, b"\x89PNG")])
def test_figures_become_pictures(quality: int | None, head: bytes) -> None:
    made = picture(Figure(figsize=(1, 1)), "Empty", alt="nothing", quality=quality)
    assert made.data.startswith(head)
    assert (made.title, made.alt) == ("Empty", "nothing")


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="picture 'x': starts with b'GIF89a'; expected"):
        write(tmp_path, measured_slide(pictures=(Picture("x", b"GIF89a"),)))
    assert not list(tmp_path.iterdir())


def test_an_existing_report_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    write(tmp_path, measured_slide("first.svs"))
    html = write(tmp_path, measured_slide("second.svs"))
    assert "second.svs" in html
    assert "first.svs" not in html
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_an_unwritable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "report.html", tmp_path / "folder"):
        with pytest.raises(MsdaskError, match=re.escape(f"cannot write report '{path}': ")):
            write_report(path, RunReport("Run", ()))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"]
