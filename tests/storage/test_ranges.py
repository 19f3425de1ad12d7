"""Slides behind servers that fail: read whole and right, or an error that says what was said; never white or mixed."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from msdask.cutting.lazy_patches import patches
from msdask.errors import SlideError, UnreachableError
from msdask.readers import Place, slides_in
from msdask.sample.slides import SampleSlide
from msdask.selection.select import grid
from msdask.slides.slide import open_slide
from msdask.storage.patience import PassingError
from msdask.storage.ranges import RemoteSource
from msdask.storage.source import open_source
from tests.tools.s3_faults import FaultyServer, faulty_server, first, until
from tests.tools.s3_server import place_of, put, s3_server

# --- object storage ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with s3_server() as client:
        yield client


@pytest.fixture
def server(client: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    """A proxy that all of msdask's requests go through."""
    with faulty_server(os.environ["AWS_ENDPOINT_URL"]) as (state, url):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        monkeypatch.setenv("MSDASK_PATIENCE", "60")
        yield state


@pytest.fixture
def url(client: Any, server: FaultyServer, small_slide: SampleSlide, request: pytest.FixtureRequest) -> str:
    """A slide in a bucket."""
    url = f"{place_of(request)}/small.svs"
    put(client, url, small_slide.path.read_bytes())
    return url


def cut(path: str | Path, *, on_bad_tile: Any = "fill") -> Any:
    """Patches of a slide, to be computed."""
    slide = open_slide(path)
    return patches(slide, grid(slide, magnification=10, patch_size=64), on_bad_tile=on_bad_tile)


def test_a_server_that_is_busy_for_a_while_makes_no_tile_white(
    url: str, server: FaultyServer, small_slide: SampleSlide
) -> None:
    data = cut(url)
    server.rule = until(1.0, "busy")
    np.testing.assert_array_equal(data["image"].to_numpy(), cut(small_slide.path)["image"].to_numpy())
    assert server.faults > 0


@pytest.mark.parametrize("fault", ["busy", "denied", "reset", "half"])
def test_a_server_that_stays_away_fails_the_slide_and_no_tile_is_filled(
    url: str, server: FaultyServer, monkeypatch: pytest.MonkeyPatch, fault: Any
) -> None:
    data = cut(url)
    monkeypatch.setenv("MSDASK_PATIENCE", "0.2")
    server.rule = until(600, fault)
    with pytest.raises(UnreachableError, match=r"small\.svs.*level 1.*cannot be read now"):
        data["image"].compute(scheduler="synchronous")


@pytest.mark.parametrize("fault", ["half", "cut", "reset", "busy"])
def test_every_fifth_answer_is_bad_and_the_slide_is_what_it_is(
    url: str, server: FaultyServer, small_slide: SampleSlide, fault: Any
) -> None:
    seen: list[str] = []

    def rule(method: str, path: str) -> Any:
        seen.append(method)
        return fault if method == "GET" and len(seen) % 5 == 2 else None

    server.rule = rule
    assert open_slide(url).fingerprint() == open_slide(small_slide.path).fingerprint()
    np.testing.assert_array_equal(cut(url)["image"].to_numpy(), cut(small_slide.path)["image"].to_numpy())
    assert server.faults > 0


def test_a_head_that_lies_about_the_size_is_not_believed(
    url: str, server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MSDASK_PATIENCE", "0.2")
    server.rule = first(2, "half", method="HEAD")
    with pytest.raises(UnreachableError, match=r"says that it has \d+ bytes, and said \d+ before"):
        open_slide(url)


def test_a_slide_that_was_replaced_is_an_error_and_opened_anew_it_is_the_new_one(
    url: str, client: Any, small_slide: SampleSlide, odd_slide: SampleSlide
) -> None:
    old = cut(url)
    put(client, url, odd_slide.path.read_bytes())
    with pytest.raises(UnreachableError, match="was replaced while it was read"):
        old["image"].compute()
    assert open_slide(url).shape == open_slide(odd_slide.path).shape


@pytest.mark.parametrize("fault", ["busy", "denied"])
def test_what_cannot_be_asked_is_neither_missing_nor_left_out(
    url: str, server: FaultyServer, monkeypatch: pytest.MonkeyPatch, fault: Any
) -> None:
    monkeypatch.setenv("MSDASK_PATIENCE", "0.2")
    server.rule = until(600, fault)
    with pytest.raises(UnreachableError, match=r"small\.svs.*(503|403)"):
        open_source(url)
    with pytest.raises(UnreachableError, match=r"503|403"):
        slides_in(url.rpartition("/")[0])
    with pytest.raises(UnreachableError, match=r"503|403"):
        _ = Place(url).is_folder
    server.rule = lambda method, path: None
    with pytest.raises(SlideError, match="no such file"):
        open_source(f"{url}.gone")


# --- web servers ------------------------------------------------------------------------------------------------------


class Web(BaseHTTPRequestHandler):
    """Serves the server's `data` by ranges; `faults` says how the next answers go wrong."""

    server: Any

    def do_HEAD(self) -> None:
        self._answer(200, b"", len(self.server.data))

    def do_GET(self) -> None:
        if "Range" not in self.headers:
            return self._answer(200, self.server.data, len(self.server.data))
        begin, end = self.headers["Range"].removeprefix("bytes=").split("-")
        part = self.server.data[int(begin) : int(end) + 1]
        return self._answer(206, part, len(part), f"bytes {begin}-{end}/{len(self.server.data)}")

    def _answer(self, status: int, body: bytes, length: int, content_range: str | None = None) -> None:
        fault = self.server.faults.pop(0) if self.server.faults else None
        if isinstance(fault, int):
            status, body, length, content_range = fault, b"", 0, None
        elif fault == "half" and self.command == "GET":
            body, length = body[: length // 2], length // 2
        elif fault == "cut" and self.command == "GET":
            body = body[: length // 2]
        self.send_response(status)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(length))
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A web server with a file of 10,000 bytes; set `.faults`."""
    pytest.importorskip("aiohttp", reason="fsspec needs aiohttp for http")
    monkeypatch.setenv("MSDASK_PATIENCE", "60")
    running: Any = ThreadingHTTPServer(("127.0.0.1", 0), Web)
    running.data, running.faults = bytes(range(250)) * 40, []
    running.url = f"http://127.0.0.1:{running.server_port}/a.svs"
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


@pytest.mark.parametrize("fault", [503, 429, "half", "cut"])
def test_a_web_server_is_asked_again(web: Any, fault: Any) -> None:
    web.faults = [503, 503]
    source = open_source(web.url)
    web.faults = [fault] * 3
    assert source.read(100, 1000) == web.data[100:1100]
    assert web.faults == []


@pytest.mark.parametrize("status", [403, 401])
def test_a_web_server_that_refuses_is_not_asked_again(web: Any, status: int) -> None:
    web.faults = [status] * 100
    with pytest.raises(UnreachableError, match=rf"a\.svs.*cannot be opened now.*access denied \({status}"):
        open_source(f"{web.url}?X-Amz-Signature=secret")
    assert len(web.faults) >= 96  # HEAD and GET, by fsspec


def test_a_web_server_that_has_no_such_file_says_so(web: Any) -> None:
    web.faults = [404] * 10
    with pytest.raises(SlideError, match="no such file"):
        open_source(web.url)


def test_what_a_web_server_said_is_in_the_error(web: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(web.url)
    monkeypatch.setenv("MSDASK_PATIENCE", "0.2")
    web.faults = [503] * 100
    with pytest.raises(
        UnreachableError, match=r"cannot be read now: 'http.*a\.svs': the server says: 503.*tried for 0 s"
    ):
        source.read(0, 10)


def test_prefetching_fails_as_reading_does() -> None:
    class Broken(RemoteSource):
        path, size = "https://server/a.svs", 1000

        def _fetch(self, offset: int, size: int) -> bytes:
            raise PassingError("no answer")

    with pytest.raises(UnreachableError, match=r"'https://server/a\.svs': no answer"):
        Broken().prefetch([(0, 10), (20, 10)])
