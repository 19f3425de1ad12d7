"""An S3 server in the test's own process, on loopback, and what a client of it sees."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

BUCKET = "patches"
SECRET = "not-a-real-secret"


@contextmanager
def s3_server() -> Iterator[Any]:
    """A boto3 client of a server with the bucket `BUCKET`; the environment leads there. Skips without moto."""
    moto_server = pytest.importorskip("moto.server", reason="needs moto, an S3 server: pip install 'moto[s3,server]'")
    boto3 = pytest.importorskip("boto3", reason="needs boto3: pip install 'moto[s3,server]'")
    pytest.importorskip("obstore", reason="needs obstore: pip install obstore")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "tester")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_REGION", "us-east-1")
        running = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        running.start()
        _make_conditional_writes_atomic(running._server)
        host, port = running.get_host_and_port()
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
        client.create_bucket(Bucket=BUCKET)
        yield client
        running.stop()


def _make_conditional_writes_atomic(server: Any) -> None:
    """As S3 promises; moto looks and writes in two steps, so that of two writers at once both may win."""
    app, one_at_a_time = server.app, threading.Lock()

    def atomic(environ: dict[str, Any], start_response: Any) -> Any:
        if environ["REQUEST_METHOD"] == "PUT" and ("HTTP_IF_NONE_MATCH" in environ or "HTTP_IF_MATCH" in environ):
            with one_at_a_time:
                return app(environ, start_response)
        return app(environ, start_response)

    server.app = atomic


def place_of(request: pytest.FixtureRequest) -> str:
    """URL of a place for one test alone."""
    return f"s3://{BUCKET}/{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]}"


def keys(client: Any, url: str) -> list[str]:
    """Keys below a URL, relative to it, as the server has them."""
    prefix = url.removeprefix(f"s3://{BUCKET}/") + "/"
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
    return [entry["Key"].removeprefix(prefix) for page in pages for entry in page.get("Contents", [])]


def get(client: Any, url: str) -> bytes:
    """An object."""
    body: bytes = client.get_object(Bucket=BUCKET, Key=url.removeprefix(f"s3://{BUCKET}/"))["Body"].read()
    return body


def put(client: Any, url: str, data: bytes) -> None:
    """Write an object."""
    client.put_object(Bucket=BUCKET, Key=url.removeprefix(f"s3://{BUCKET}/"), Body=data)


def objects(client: Any, url: str) -> dict[str, str]:
    """Like `store_tools.tree`."""
    return {key: hashlib.sha256(get(client, f"{url}/{key}")).hexdigest() for key in sorted(keys(client, url))}
