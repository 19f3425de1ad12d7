"""Which readers there are, who is asked first, and how another package adds one."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from msdask.cli import main
from msdask.errors import SlideError, SpecError
from msdask.extras import MissingExtraError, how_to_install
from msdask.readers import Backend, Place, open_reader, registry
from tests.tools.reader_files import smooth_image

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs" / "readers.md").read_text(encoding="utf-8")
EXAMPLE = next(code for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "BACKEND" in code)
IMAGE = smooth_image(128, 192)


@pytest.fixture
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))


def write_tiles(folder: Path) -> Path:
    """A slide as the page's example reads it."""
    folder.mkdir(parents=True)
    (folder / "slide.json").write_text(json.dumps({"height": 128, "width": 192, "tile": 64, "mpp": 0.5}))
    for row in range(2):
        for column in range(3):
            tile = IMAGE[row * 64 : row * 64 + 64, column * 64 : column * 64 + 64]
            Image.fromarray(np.ascontiguousarray(tile)).save(folder / f"{row}_{column}.png")
    return folder


def install(folder: Path, name: str, code: str) -> None:
    """A package of one module, as pip would leave it, with its reader as an entry point."""
    (folder / f"{name}.py").write_text(code)
    about = folder / f"{name}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[msdask.readers]\n{name} = {name}:BACKEND\n")


def run(site: Path, code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A Python process to which the packages in `site` are installed."""
    path = f"{site}:{REPOSITORY}"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env={"PYTHONPATH": path}, capture_output=True, text=True, timeout=120, check=False)


# The page


def test_the_example_of_the_page_is_one_short_file() -> None:
    assert len([line for line in EXAMPLE.splitlines() if line.strip()]) < 40


def test_the_example_of_the_page_reads_a_folder_once_it_is_installed(tmp_path: Path) -> None:
    install(tmp_path, "msdask_tiles", EXAMPLE)
    slide = write_tiles(tmp_path / "slides" / "a.tiles")
    code = (
        "import sys, numpy as np, msdask as ms; slide = ms.open_slide(sys.argv[1]); "
        "print(slide.format, slide.shape, slide.mpp, len(slide.fingerprint())); "
        "np.save(sys.argv[2], slide.at(magnification=20).values)"
    )
    found = run(tmp_path, code, slide, tmp_path / "pixels.npy")
    assert (found.stdout, found.stderr) == ("tiles (128, 192) 0.5 64\n", "")
    np.testing.assert_array_equal(np.load(tmp_path / "pixels.npy"), IMAGE)


def test_folders_that_an_installed_reader_takes_are_the_slides_of_a_cohort(tmp_path: Path) -> None:
    install(tmp_path, "msdask_tiles", EXAMPLE)
    for name in ("a.tiles", "b.tiles"):
        write_tiles(tmp_path / "slides" / name)
    (tmp_path / "slides" / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    code = (
        "import sys, msdask as ms; spec = ms.ExtractionSpec('grid', (20.0,), 64, min_tissue=0.0); "
        "report = ms.extract(sys.argv[1], sys.argv[2], spec, threads=1, progress=False); "
        "print(report.is_complete, ms.PatchStore(sys.argv[2])['grid-20x-64'].slides)"
    )
    found = run(tmp_path, code, tmp_path / "slides", tmp_path / "s.zarr")
    assert found.stdout == "True ['a.tiles', 'b.tiles']\n", found.stderr
    found = run(tmp_path, code, tmp_path / "slides" / "a.tiles", tmp_path / "one.zarr")
    assert found.stdout == "True ['a.tiles']\n", found.stderr


def test_a_broken_plug_in_is_a_warning_that_names_it(tmp_path: Path) -> None:
    install(tmp_path, "msdask_broken", "import no_such_module\n")
    install(tmp_path, "msdask_wrong", "BACKEND = 'tiles'\n")
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    found = run(tmp_path, "import sys, msdask as ms; print(ms.open_slide(sys.argv[1]).format)", tmp_path / "a.png")
    assert found.stdout == "image\n"
    assert re.search(r"'msdask_broken' of msdask_broken .*left out: ModuleNotFoundError", found.stderr)
    assert re.search(r"'msdask_wrong' of msdask_wrong .*left out: TypeError: it is a str", found.stderr)


def test_the_readers_of_the_package_need_no_entry_point() -> None:
    assert [p.value for p in importlib.metadata.entry_points(group=registry.ENTRY_POINTS) if "msdask." in p.value] == []


# Order and choice


@pytest.mark.usefixtures("_registry")
def test_a_registered_reader_is_asked_in_the_place_of_its_priority(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(IMAGE).save(path)
    mine = Backend("mine", "tests.tools.plain_reader", ("PNG",), priority=5)
    registry.register(mine)
    assert list(registry.backends()) == ["mine", "tiff", "openslide", "image"]
    assert open_reader(path).format == "plain"
    assert open_reader(path, backend="image").format == "image"
    registry.register(mine)  # the same again is no fault
    with pytest.raises(SpecError, match=r"'mine'.*another name"):
        registry.register(Backend("mine", "tests.tools.plain_reader", ("PNG",), priority=50))


@pytest.mark.usefixtures("_registry")
def test_a_later_reader_is_not_asked_of_what_an_earlier_one_took(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(IMAGE).save(path)
    registry.register(Backend("mine", "no.such.module", ("PNG",)))
    assert open_reader(path).format == "image"


@pytest.mark.usefixtures("_registry")
def test_a_reader_whose_library_is_missing_says_what_to_install(tmp_path: Path) -> None:
    path = tmp_path / "a.xyz"
    path.write_bytes(b"plain")
    registry.register(Backend("mine", "tests.tools.plain_reader", ("XYZ",), needs="no_such_library"))
    with pytest.raises(MissingExtraError, match=r"a\.xyz.*'mine' \(XYZ\) needs no_such_library.*pip install no_such"):
        open_reader(path)


def test_a_folder_that_no_reader_takes_says_what_is_in_it(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "README").write_text("x")
    with pytest.raises(
        SlideError, match=r"directory with 2 folders \('one', 'two'\) and 1 file \('README'\).*no reader"
    ):
        open_reader(tmp_path)
    with pytest.raises(SlideError, match="directory, which backend 'tiff' does not read"):
        open_reader(tmp_path, backend="tiff")


def test_info_lists_the_readers_in_order_and_what_an_extra_would_add(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(registry, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="0"):
        main(["info", "--readers"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == ["tiff", "openslide", "image"]
    assert "MRXS" in lines[3]
    assert lines[4].strip() == f"not installed: {how_to_install('openslide')}"
    assert lines[1].strip() == "available"
    assert "begins as a JPEG" in lines[5]


def test_info_without_a_slide_says_what_is_expected(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="1"):
        main(["info"])
    assert "expected a slide, a patch store, or --readers" in capsys.readouterr().err


def test_every_reader_says_what_it_reads_and_why_it_is_asked_then() -> None:
    for backend in registry._OWN:
        assert backend.formats
        assert backend.reason
        assert all(ending.startswith(".") and ending == ending.lower() for ending in backend.endings)
        assert backend.accepts(Place(REPOSITORY)) is False
