"""Every code block of README.md and docs/*.md runs as it stands, or says before it why it does not."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.tools.doc_folders import folder_of, write_base
from tests.tools.doc_pages import PAGES, Block, blocks_of, inside, read, run
from tests.tools.s3_server import s3_server


@pytest.fixture(scope="module")
def bucket() -> Iterator[None]:
    """The bucket ``lab`` of an S3 server on loopback, to which the environment leads."""
    with s3_server() as client:
        client.create_bucket(Bucket="lab")
        yield


def _name(page: Path) -> str:
    return page.stem


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the folders of pages are made from: slides, masks, a table, stores."""
    folder = tmp_path_factory.mktemp("base")
    write_base(folder)
    return folder


@pytest.fixture
def play(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Run the blocks of a page, in order, in a folder of its own with what the page says is there."""
    monkeypatch.setenv("MPLBACKEND", "Agg")

    def run_all(page: Path, blocks: list[Block], *, slow: bool = False) -> None:
        folder_of(page, base, tmp_path, slow=slow)
        namespace = {"__name__": "__main__"}
        with inside(tmp_path), warnings.catch_warnings():
            for block in blocks:
                if block.mark == "not run":
                    read(block)
                    continue
                try:
                    run(block, namespace)
                except BaseException as error:
                    error.add_note(f"in the block at {block}")
                    raise

    yield run_all
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_block_runs_or_says_why_not(page, play, request):
    if page.stem == "object_storage":
        request.getfixturevalue("bucket")
    blocks = blocks_of(page)
    slow = next((n for n, block in enumerate(blocks) if block.mark == "slow"), len(blocks))
    for block in blocks[slow:]:
        read(block)
    if any(block.language in ("python", "sh") for block in blocks[:slow]):
        play(page, blocks[:slow])


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if any(b.mark == "slow" for b in blocks_of(p))], ids=_name)
def test_pages_with_slow_blocks_run_to_their_end(page, play):
    play(page, blocks_of(page), slow=True)
