"""Object stores that run on this machine alone, and a proxy in front of them that fails on request."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import fsspec
import fsspec.config
import portpicker
import pytest

from earthgpt_jax.common import files
from earthgpt_jax.common.buckets import BucketPath, file_system

_START_LIMIT = 30  # seconds
_COMMANDS = {
    "gs": [str(Path(__file__).with_name("gcs_emulator.py")), "start", "--in-memory", "--host", "127.0.0.1", "--port"],
    "s3": ["-m", "moto.server", "-H", "127.0.0.1", "-p"],
}
_DUMMY_KEYS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "dummy-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
}


class Stores(contextlib.ExitStack):
    """The emulators of a test session, each started when it is first needed."""

    def __init__(self) -> None:
        super().__init__()
        self._urls: dict[str, str] = {}

    def url(self, scheme: str) -> str:
        if scheme not in self._urls:
            self._urls[scheme] = self.enter_context(emulator(scheme))
        return self._urls[scheme]


class FaultyBucket(NamedTuple):
    """A bucket, and the proxy through which it is reached."""

    path: BucketPath
    proxy: FaultyProxy


@contextlib.contextmanager
def new_bucket(scheme: str, stores: Stores, monkeypatch: pytest.MonkeyPatch, *, url: str = "") -> Iterator[BucketPath]:
    """Yield an empty bucket, which this process and those that it starts reach by environment variables.

    Args:
        url: that of a proxy; "" reaches the emulator directly.
    """
    address = make_bucket(scheme, stores.url(scheme), f"test-{uuid.uuid4().hex[:12]}")
    for name, value in variables(scheme, url or stores.url(scheme)).items():
        monkeypatch.setenv(name, value)
    if scheme == "gs":
        monkeypatch.setitem(fsspec.config.conf.setdefault("gs", {}), "token", "anon")
    file_system(scheme).clear_instance_cache()  # an instance keeps the address of its service
    path = files.path(address)
    assert isinstance(path, BucketPath)
    yield path
    file_system(scheme).clear_instance_cache()


def variables(scheme: str, url: str) -> dict[str, str]:
    """Return the environment variables that direct all libraries to the object store at `url`."""
    if scheme == "gs":
        # gcsfs, TensorStore, array_record
        names = ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL", "CLOUD_STORAGE_EMULATOR_ENDPOINT")
        return dict.fromkeys(names, url) | {"FSSPEC_GS_TOKEN": "anon"}
    return _DUMMY_KEYS | {"AWS_ENDPOINT_URL": url, "AWS_EC2_METADATA_DISABLED": "true"}


@contextlib.contextmanager
def emulator(scheme: str) -> Iterator[str]:
    """Start an emulator of `gs` or `s3` in a process of its own and yield its URL; it keeps objects in memory."""
    port = portpicker.pick_unused_port()
    command = [sys.executable, *_COMMANDS[scheme], str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_it_answers(url, process)
        yield url
    finally:
        process.kill()
        process.wait()


def _wait_until_it_answers(url: str, process: subprocess.Popen) -> None:
    end = time.monotonic() + _START_LIMIT
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"the emulator at {url} did not start (status {process.poll()})")


def make_bucket(scheme: str, url: str, name: str) -> str:
    """Make a bucket and return its address, such as `gs://name`."""
    if scheme == "gs":
        request = urllib.request.Request(
            f"{url}/storage/v1/b?project=test", data=b'{"name": "%s"}' % name.encode(),
            headers={"Content-Type": "application/json"}, method="POST",
        )  # fmt: skip
    else:
        request = urllib.request.Request(f"{url}/{name}", method="PUT", headers={
            "Authorization": "AWS4-HMAC-SHA256 Credential=testing/20260101/us-east-1/s3/aws4_request"
        })  # fmt: skip
    with urllib.request.urlopen(request, timeout=10):
        return f"{scheme}://{name}"


# ------------------------------------------------------------------------------------------------ faults
# Instead of a status: close the connection without an answer, or after half of it.
RESET, CUT = 0, 1

Rule = Callable[[str, str], int | None]  # method and path of a request -> status, RESET, CUT, or None to pass it on


class FaultyProxy:
    """Passes requests on to an object store, except those for which `rule` returns an error.

    Attributes:
        url: where it listens.
        requests: method and path of all requests so far.
        rule: decides about each request; may be replaced.
    """

    def __init__(self, target: str):
        self.rule: Rule = lambda method, path: None
        self.requests: list[tuple[str, str]] = []
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler(target.removeprefix("http://")))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(proxy, target: str) -> type[http.server.BaseHTTPRequestHandler]:
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                proxy.requests.append((self.command, self.path))
                status = proxy.rule(self.command, self.path)
                if status == RESET:
                    self.close_connection = True
                    self.connection.close()
                elif status in (None, CUT):
                    self.forward(body, cut=status == CUT)
                else:
                    self.send_error(status)

            def forward(self, body: bytes, *, cut: bool) -> None:
                connection = http.client.HTTPConnection(target, timeout=60)
                connection.request(self.command, self.path, body, dict(self.headers.items()))
                response = connection.getresponse()
                content = response.read()
                self.send_response(response.status)
                for name, value in response.getheaders():
                    if name.lower() not in ("transfer-encoding", "connection", "date", "server", "content-length"):
                        self.send_header(name, value)
                length = response.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
                self.send_header("Content-Length", length or "0")
                self.end_headers()
                self.wfile.write(content[: len(content) // 2] if cut else content)
                self.close_connection = cut

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = answer

            def send_error(self, code: int, *_: object) -> None:
                self.send_response(code)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        return Handler


def few_times(status: int, count: int, *, method: str = "") -> Rule:
    """Return a rule that answers the first `count` requests (with `method`, if given) with `status`."""
    left = [count]

    def rule(given: str, path: str) -> int | None:
        if left[0] and given.startswith(method):
            left[0] -= 1
            return status
        return None

    return rule
