"""A proxy on loopback before an S3 server that fails as networks and servers do, where a rule says so."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import urlsplit

Fault = Literal["busy", "denied", "expired", "missing", "reset", "half", "cut", "whole", "lost", "hang"] | None
"""503, 403, 400 of an expired token, 404; connection reset, half of the bytes with a length to match, half of the bytes
and the connection ends, all bytes where a range was asked for; done but the answer is lost, no answer."""

_ANSWERS = {
    "busy": (503, "SlowDown", "Please reduce your request rate."),
    "denied": (403, "AccessDenied", "Access Denied"),
    "expired": (400, "ExpiredToken", "The provided token has expired."),
    "missing": (404, "NoSuchKey", "The specified key does not exist."),
}

Rule = Callable[[str, str], Fault]
"""Of a request's method and path: what goes wrong with it."""

HANG_SECONDS = 120.0


class FaultyServer:
    """The proxy: set `rule`; `requests` counts what came, `faults` what went wrong."""

    def __init__(self, endpoint: str) -> None:
        self.upstream = urlsplit(endpoint).netloc
        self.rule: Rule = lambda method, path: None
        self.requests: list[tuple[str, str, Fault]] = []
        self.ended = threading.Event()

    @property
    def faults(self) -> int:
        """Requests that went wrong."""
        return sum(fault is not None for _, _, fault in self.requests)


def first(count: int, fault: Fault, *, method: str = "", part: str = "") -> Rule:
    """A rule: the first `count` requests of a method whose path holds `part` go wrong."""
    seen = [0]

    def rule(found: str, path: str) -> Fault:
        if (method and found != method) or part not in path:
            return None
        seen[0] += 1
        return fault if seen[0] <= count else None

    return rule


@contextmanager
def faulty_server(endpoint: str) -> Iterator[tuple[FaultyServer, str]]:
    """(the proxy before a server, its URL)."""
    state = FaultyServer(endpoint)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fault = state.rule(self.command, self.path)
            state.requests.append((self.command, self.path, fault))
            if fault in _ANSWERS:
                status, code, message = _ANSWERS[fault]
                document = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
                return self.send(status, {}, document.encode())
            if fault == "hang":
                state.ended.wait(HANG_SECONDS)
            if fault in ("reset", "hang"):
                return self.reset()
            connection = http.client.HTTPConnection(state.upstream, timeout=60)
            skipped = ("connection", "transfer-encoding", "content-length", *(["range"] if fault == "whole" else []))
            headers = {k: v for k, v in self.headers.items() if k.lower() not in skipped}
            connection.request(self.command, self.path, body, {**headers, "Content-Length": str(len(body))})
            response = connection.getresponse()
            data = response.read()
            connection.close()
            if fault == "lost":
                return self.reset()
            kept = {k: v for k, v in response.getheaders() if k.lower() not in (*skipped, "date", "server")}
            length = int(response.getheader("Content-Length") or 0) if self.command == "HEAD" else len(data)
            if fault == "half":
                length //= 2
            self.send(response.status, kept, data[: length // 2 if fault == "cut" else length], length)
            if fault == "cut":
                self.wfile.flush()
                self.reset()

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = answer

        def send(self, status: int, headers: dict[str, str], data: bytes, length: int | None = None) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data) if length is None else length))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def reset(self) -> None:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except (OSError, ValueError):  # the connection was reset
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield state, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        state.ended.set()
        server.shutdown()
        server.server_close()


def until(seconds: float, fault: Fault) -> Rule:
    """A rule: everything goes wrong for so long from the first request on."""
    begun: list[float] = []

    def rule(method: str, path: str) -> Fault:
        begun.append(time.monotonic())
        return fault if begun[-1] - begun[0] < seconds else None

    return rule
