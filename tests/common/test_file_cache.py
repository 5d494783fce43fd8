"""Local copies of objects: shared by processes, limited in size, never half-downloaded."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from earthgpt_jax.common import file_cache, files
from earthgpt_jax.common.buckets import BucketPath
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.file_cache import CacheFullError, open_copy
from tests.support.buckets import FaultyBucket

SIZE = 1_000_000


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(file_cache.LIMIT_VARIABLE, "0.0025")  # two and a half copies
    monkeypatch.setattr(file_cache, "_PART", 300_000)
    return tmp_path


def _copies() -> list[str]:
    """Return the names of the objects that have a copy."""
    paths = (files.cache_folder() / "objects").iterdir()
    return sorted(path.name.split("-", 1)[1] for path in paths if not path.name.endswith((".lock", ".partial")))


def _object(bucket: BucketPath, name: str, fill: bytes) -> BucketPath:
    files.write_bytes(bucket / name, fill * SIZE)
    return bucket / name


def test_a_copy_is_downloaded_once_and_again_when_the_object_is_replaced(
    faulty_bucket: FaultyBucket, cache: Path
) -> None:
    bucket, proxy = faulty_bucket
    source = _object(bucket, "a", b"1")
    with ThreadPoolExecutor(4) as threads:
        copies = list(threads.map(lambda _: open_copy(source, size=SIZE), range(4)))
    assert {copy.path for copy in copies} == {copies[0].path} and copies[0].path.read_bytes() == b"1" * SIZE
    downloads = [path for method, path in proxy.requests if method == "GET" and ("alt=media" in path or "/a" in path)]
    assert 0 < len([path for path in downloads if "alt=media" in path] or downloads) <= 4 + 4  # parts, and metadata
    _object(bucket, "a", b"2")
    assert open_copy(source).path.read_bytes() == b"2" * SIZE and copies[0].path.read_bytes() == b"1" * SIZE
    with pytest.raises(EarthGPTError, match="expected 7 bytes, got 1000000"):
        open_copy(source, size=7)
    with pytest.raises(FileNotFoundError):
        open_copy(bucket / "absent")


def test_the_least_recently_used_copies_are_deleted_but_none_in_use(
    bucket: BucketPath, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = {name: _object(bucket, name, name.encode()) for name in "abcd"}
    a, b = open_copy(sources["a"]), open_copy(sources["b"])
    with pytest.raises(CacheFullError, match=r"/c: .* 0.001 GB does not fit: .* 0.002 of at most 0.0025 GB"):
        open_copy(sources["c"])
    assert _copies() == ["a", "b"]
    b.close()
    c = open_copy(sources["c"])  # replaces b
    assert _copies() == ["a", "c"] and a.path.read_bytes() == b"a" * SIZE
    a.close()
    c.close()
    os.utime(a.path, (1, 1))
    open_copy(sources["a"]).close()  # now more recent than c
    open_copy(sources["d"]).close()
    assert _copies() == ["a", "d"]
    assert sum(path.stat().st_size for path in (cache / "earthgpt" / "objects").iterdir()) == 2 * SIZE
    monkeypatch.setenv(file_cache.LIMIT_VARIABLE, "much")
    with pytest.raises(EarthGPTError, match="EARTHGPT_CACHE_GB: expected a number of gigabytes, got 'much'"):
        open_copy(sources["b"])


_KILLED = """
import os, signal, sys
from earthgpt_jax.common import file_cache, files
from earthgpt_jax.common.buckets import BucketPath
file_cache._PART = 300_000
file_cache._REQUESTS = 1
read = BucketPath.read_range
def read_range(path, start, stop):
    if start:
        os.kill(os.getpid(), signal.SIGKILL)
    return read(path, start, stop)
BucketPath.read_range = read_range
file_cache.open_copy(files.path(sys.argv[1]))
"""


def test_a_killed_download_leaves_nothing_that_is_read_or_counted(bucket: BucketPath, cache: Path) -> None:
    source = _object(bucket, "a", b"1")
    command = [sys.executable, "-c", _KILLED, str(source)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert [path.stat().st_size for path in (cache / "earthgpt" / "objects").glob("*.partial")] == [SIZE]
    others = [open_copy(_object(bucket, name, b"2")) for name in "bc"]  # they need the room of the partial file
    assert _copies() == ["b", "c"] and len({copy.path for copy in others}) == 2
    others[0].close()
    assert open_copy(source).path.read_bytes() == b"1" * SIZE
