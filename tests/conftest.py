"""Fixtures that several test files share: real data where it is there, and small generated slides."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# Before any library looks: the tests run beside each other, and threads of small networks wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import dask
import pytest

from msdask.sample.slides import SampleSlide, make_slide

collect_ignore = ["tools"]
"""What tests use; among it programs of the fuzz suite, which run as processes of their own."""

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module", autouse=True)
def no_scheduler_is_left() -> Iterator[None]:
    """Dask's clients put back the default that they found: one that closes after a later one leaves what is gone."""
    yield
    dask.config.config.pop("scheduler", None)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder with real slides: MSDASK_DATA_DIR, else ../shared/data beside the repository; skips without it."""
    named = os.environ.get("MSDASK_DATA_DIR")
    folder = Path(named) if named else REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real slides: {folder} is not a folder; set MSDASK_DATA_DIR to run this test")
    return folder


@pytest.fixture(scope="session")
def cmu_small(data_dir: Path) -> Path:
    """OpenSlide's CMU-1-Small-Region.svs: Aperio, 2220 x 2967 px (width x height), 0.499 um/px, one level."""
    path = data_dir / "CMU-1-Small-Region.svs"
    if not path.is_file():
        pytest.skip(f"no {path.name} in {data_dir}")
    return path


@pytest.fixture(scope="session")
def small_slide(tmp_path_factory: pytest.TempPathFactory) -> SampleSlide:
    """A generated 40x slide, 2304 x 3072 px (height x width), levels 1, 4 and 16, JPEG 4:2:0, three classes."""
    return make_slide(tmp_path_factory.mktemp("small") / "small.svs", size=(2304, 3072), seed=1)


@pytest.fixture(scope="session")
def odd_slide(tmp_path_factory: pytest.TempPathFactory) -> SampleSlide:
    """A generated slide whose sides divide by nothing: 1501 x 2003 px, 0.2263 um/px, lossless, levels 1 and 4."""
    folder = tmp_path_factory.mktemp("odd")
    return make_slide(
        folder / "odd.svs",
        size=(1501, 2003),
        mpp=0.2263,
        seed=2,
        levels=(1, 4),
        compression="deflate",
        associated=False,
    )


@pytest.fixture(scope="session")
def scaleless_slide(tmp_path_factory: pytest.TempPathFactory) -> SampleSlide:
    """A generated slide that does not say how large its pixels are."""
    folder = tmp_path_factory.mktemp("scaleless")
    return make_slide(folder / "scaleless.svs", size=(1024, 1280), seed=3, levels=(1, 4), write_mpp=False)


@pytest.fixture(scope="session")
def twin_slide(tmp_path_factory: pytest.TempPathFactory) -> SampleSlide:
    """Two copies of a section side by side, the left one with more tissue."""
    return make_slide(tmp_path_factory.mktemp("twin") / "twin.svs", size=(2048, 4096), seed=4, copies=True)
