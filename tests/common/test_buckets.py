"""Paths in buckets, on emulators of both object stores: reading, writing, kills and faults."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from earthgpt_jax.common import buckets, files
from earthgpt_jax.common.buckets import BucketError, BucketPath, BucketUnavailableError
from earthgpt_jax.common.errors import EarthGPTError, RetryableError
from earthgpt_jax.common.file_cache import open_copy
from earthgpt_jax.common.files import IfExists
from tests.support.buckets import CUT, RESET, FaultyBucket, few_times


# ------------------------------------------------------------------------------------------------- names
def test_text_becomes_a_local_path_or_one_in_a_bucket() -> None:
    for text in ("runs/1", "/runs", "~", "a:b", "gs:/x", "x//y"):
        assert files.path(text) == Path(text) and not isinstance(files.path(text), BucketPath)
    for text in ("gs://bucket/runs/1", "s3://bucket/a b/ü.json", "gs://bucket"):
        path = files.path(text)
        assert isinstance(path, BucketPath) and str(path) == os.fspath(path) == text
        assert files.path(path) == path == files.path(text + "/") == pickle.loads(pickle.dumps(path))
    with pytest.raises(EarthGPTError, match=r"'hdfs://x': expected a local path, .* gs:// or s3://, got hdfs://"):
        files.path("hdfs://x")
    with pytest.raises(EarthGPTError, match="expected the name of a bucket after gs://"):
        files.path("gs://")


def test_names_are_those_of_pathlib() -> None:
    path = files.path("gs://bucket/runs") / "1" / "model.json"
    assert isinstance(path, BucketPath) and (path.scheme, path.bucket) == ("gs", "bucket")
    assert str(path.parent) == "gs://bucket/runs/1" and str(path.parents[2]) == "gs://bucket"
    assert (path.name, path.stem, path.suffix) == ("model.json", "model", ".json")
    assert str(path.with_name("x")) == "gs://bucket/runs/1/x" and str(path.with_suffix(".y")).endswith("model.y")
    assert path.relative_to(path.parents[1]) == Path("1/model.json") and path.is_relative_to(path.parent)
    assert path.absolute() == path.resolve() == path.expanduser() == path and path.is_absolute()
    assert sorted([path.parent / "b", path.parent / "a"])[0].name == "a" and len({path, files.path(str(path))}) == 1
    assert str(files.partial_folder(path.parent)) == "gs://bucket/runs/1.partial"


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets.importlib.util, "find_spec", lambda name: None)
    buckets.configure.cache_clear()
    with pytest.raises(EarthGPTError, match=r"s3:// paths need the package s3fs: .*'earthgpt-jax\[s3\]'"):
        files.path("s3://bucket/x")
    buckets.configure.cache_clear()


# ---------------------------------------------------------------------------------------- reading, listing
def test_objects_are_read_and_listed_like_files(bucket: BucketPath) -> None:
    folder = bucket / "runs" / "1"
    assert not folder.exists() and not (folder / "a.txt").is_file() and list(folder.rglob("*")) == []
    for name in ("b.txt", "a.txt", "sub/c.bin"):
        (folder / name).write_text(f"{name}\nö\n")
    assert folder.is_dir() and not folder.is_file() and (folder / "a.txt").is_file()
    assert (folder / "a.txt").stat().st_size == 9 and (folder / "a.txt").stat().st_mtime > 1.7e9
    assert [path.name for path in folder.iterdir()] == ["a.txt", "b.txt", "sub"]
    assert list(folder.glob("*.txt")) == [folder / "a.txt", folder / "b.txt"]
    assert list(bucket.glob("runs/*/a.txt")) == [folder / "a.txt"]
    assert list(bucket.rglob("*.bin")) == [folder / "sub" / "c.bin"] and len(folder.walk_files()) == 3
    with (folder / "a.txt").open() as text, (folder / "a.txt").open("rb") as raw:
        assert text.readlines() == ["a.txt\n", "ö\n"] and raw.seek(6) == 6 and raw.read() == "ö\n".encode()
    assert (folder / "b.txt").read_bytes() == "b.txt\nö\n".encode()
    assert (folder / "b.txt").read_range(2, 5) == b"txt" and (folder / "b.txt").read_range(3, 3) == b""
    assert (folder / "b.txt").read_ranges([(0, 1), (2, 5)]) == [b"b", b"txt"]
    before = (folder / "a.txt").version_and_size()
    (folder / "a.txt").write_text("new")
    assert (folder / "a.txt").read_text() == "new" and (folder / "a.txt").version_and_size() != before
    (folder / "a.txt").unlink()
    (folder / "a.txt").unlink(missing_ok=True)
    assert [path.name for path in folder.iterdir()] == ["b.txt", "sub"]
    files.remove_folder(folder)
    assert not folder.exists()
    for read in (folder.read_bytes, folder.stat, (folder / "x").open, lambda: list(folder.iterdir())):
        with pytest.raises(FileNotFoundError, match=str(folder)):
            read()


def test_objects_are_written_completely_or_not_at_all(bucket: BucketPath, tmp_path: Path) -> None:
    target = bucket / "new" / "file"
    files.write_json(target, {"x": [1]})
    assert json.loads(target.read_text()) == {"x": [1]}
    with files.atomic_open(target, durable=True) as file:
        file.write(b"later")
    with files.atomic_path(bucket / "model.bin") as path:
        assert path.suffix == ".bin"  # some writers choose the format by the name
        path.write_bytes(b"x" * (6 << 20))  # several requests
    assert target.read_bytes() == b"later" and (bucket / "model.bin").stat().st_size == 6 << 20

    def interrupted() -> None:
        with files.atomic_open(target) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert target.read_bytes() == b"later" and sorted(path.name for path in bucket.iterdir()) == ["model.bin", "new"]
    for mode in ("w", "a", "r+b"):
        with pytest.raises(OSError, match=r"common\.files"):
            target.open(mode)
    with pytest.raises(OSError, match="cannot rename"):
        target.rename(bucket / "x")
    (tmp_path / "here").write_text("here")
    for source, copied in (
        (tmp_path / "here", bucket / "a"),
        (bucket / "a", bucket / "b"),
        (bucket / "b", tmp_path / "c"),
    ):
        files.copy(source, copied)
        assert copied.read_text() == "here"
    with files.local_copy(bucket / "a") as local, files.local_copy(tmp_path / "c") as same:
        assert local.read_text() == "here" and local.name == "a" and same == tmp_path / "c"


# ----------------------------------------------------------------------------------------------- folders
def _names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_folder_is_refused_or_replaced(bucket: BucketPath) -> None:
    target = bucket / "parent" / "folder"
    with files.atomic_folder(target, key_file="key") as folder:
        (folder / "key").touch()
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_text("1")
        assert not (target / "key").exists()
    assert _names(bucket) == ["parent/folder/key", "parent/folder/sub/a"]
    with pytest.raises(EarthGPTError, match="exists already; choose"), files.atomic_folder(target, key_file="key"):
        pytest.fail("the block must not run")
    with files.atomic_folder(target, key_file="key", if_exists=IfExists.REPLACE) as folder:
        assert not target.exists()
        with files.folder_part(target) as part:  # of another process
            (part / "part").touch()
        (folder / "key").touch()
    assert _names(bucket) == ["parent/folder/key", "parent/folder/part"]

    def failing() -> None:
        with files.atomic_folder(bucket / "other", key_file="key") as folder:
            (folder / "half").touch()

    with pytest.raises(FileNotFoundError, match="other: key was not written"):
        failing()
    assert _names(bucket) == ["parent/folder/key", "parent/folder/part"]


# Reads "N VERSION" lines and writes the folder in a process of its own each time, which kills itself before its request
# number N. Processes are forked before anything is connected, because a new Python would take a second to start.
_WRITER = """
import os, signal, sys
import gcsfs, s3fs
from earthgpt_jax.common import buckets, files
target = files.path(sys.argv[1])
files._UPLOADS = 1

def write(survive, version):
    count = 0
    def counted(method):
        def call(*args, **kwargs):
            nonlocal count
            if count == survive:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1
            return method(*args, **kwargs)
        return call
    for name in ("write_bytes", "upload", "unlink", "rmtree"):
        setattr(buckets.BucketPath, name, counted(getattr(buckets.BucketPath, name)))
    with files.atomic_folder(target, key_file="key", if_exists=files.IfExists.REPLACE) as folder:
        for name in ("a", "b", "key"):
            (folder / name).write_text(version)
        if version == "2":
            (folder / "only2").write_text(version)
    return count

for line in sys.stdin:
    survive, version = line.split()
    child = os.fork()
    if not child:
        os._exit(write(int(survive), version))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_a_folder_whose_writer_is_killed_at_any_write_is_absent_or_complete(bucket: BucketPath) -> None:
    def write(survive: int, version: int) -> int:
        """Return the number of requests, or the signal that ended the writer."""
        writer.stdin.write(f"{survive} {version}\n")
        writer.stdin.flush()
        return int(writer.stdout.readline())

    def state() -> str:
        """Return what a reader sees: absent, or a version; fail if versions are mixed."""
        if not (bucket / "folder" / "key").exists():
            return "absent"
        content = {path.name: path.read_text() for path in (bucket / "folder").iterdir()}
        assert content in ({"a": "1", "b": "1", "key": "1"}, {"a": "2", "b": "2", "key": "2", "only2": "2"})
        return content["key"]

    command = [sys.executable, "-c", _WRITER, str(bucket / "folder")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        requests = write(-1, 2)
        assert requests >= 8
        seen = []
        for survive in range(requests):
            assert write(survive, 1 + survive % 2) == -signal.SIGKILL
            seen.append(state())
        assert seen[0] == "2" and seen[-1] in ("1", "2") and "absent" in seen
        assert write(-1, 1) >= 7 and state() == "1" and _names(bucket) == ["folder/a", "folder/b", "folder/key"]
        writer.stdin.close()


def test_a_mounted_bucket_is_written_like_a_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert files.renames_folders(tmp_path / "folder") and not files.renames_folders(files.path("gs://b/folder"))
    line = f"36 35 0:40 / {tmp_path} rw,nosuid - fuse.gcsfuse bucket rw\n"
    read_text = Path.read_text
    monkeypatch.setattr(
        Path, "read_text", lambda path, *a: read_text(path, *a) + (line if path.name == "mountinfo" else "")
    )
    assert not files.renames_folders(tmp_path / "folder") and files.renames_folders(tmp_path.parent)
    replaced = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *paths: (replaced.append(Path(paths[1])), replace(*paths)))
    for name in ("first", "second"):
        with files.atomic_folder(tmp_path / "folder", key_file="key", if_exists=IfExists.REPLACE) as folder:
            (folder / name).touch()
            (folder / "key").touch()
            assert not (tmp_path / "folder" / "key").exists()
    assert _names(tmp_path) == ["folder", "folder/key", "folder/second"]
    assert [path.name for path in replaced if path.parent == tmp_path / "folder"] == ["first", "key", "second", "key"]
    with pytest.raises(EarthGPTError, match="exists already"), files.atomic_folder(tmp_path / "folder", key_file="key"):
        pytest.fail("the block must not run")


# ------------------------------------------------------------------------------------------------ faults
@pytest.fixture
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the waits between attempts."""
    sleep = asyncio.sleep
    monkeypatch.setattr(asyncio, "sleep", lambda seconds, *args: sleep(min(seconds, 0.01), *args))


def test_half_an_answer_is_never_taken_for_an_object(
    faulty_bucket: FaultyBucket, tmp_path: Path, no_waits: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, proxy = faulty_bucket
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source, content = path / "file", b"0123456789" * 10
    source.write_bytes(content)

    def opened() -> bytes:
        with source.open("rb") as file:
            return file.read()

    def copied() -> bytes:
        files.copy(source, tmp_path / "copy")
        return (tmp_path / "copy").read_bytes()

    reads = {
        source.read_bytes: content, lambda: source.read_range(10, 90): content[10:90],
        lambda: source.read_ranges([(10, 90), (0, 50)]): [content[10:90], content[:50]],
        opened: content, copied: content, lambda: open_copy(source).path.read_bytes(): content,
    }  # fmt: skip
    for read, expected in reads.items():
        proxy.requests.clear()
        proxy.rule = few_times(CUT, 1, method="GET")
        assert read() == expected and len(proxy.requests) >= 2


@pytest.mark.parametrize("status", [503, RESET])
@pytest.mark.parametrize("request_number", [0, 1])
def test_an_upload_in_several_requests_is_retried(
    faulty_bucket: FaultyBucket, tmp_path: Path, no_waits: None, status: int, request_number: int
) -> None:
    path, proxy = faulty_bucket
    content = bytes(range(256)) * (6 << 12)  # 6 MiB
    (tmp_path / "file").write_bytes(content)
    seen: list[str] = []

    def rule(method: str, address: str) -> int | None:
        seen.extend([method] if method in ("PUT", "POST") else [])
        return status if len(seen) == request_number + 1 and method == seen[-1] else None

    proxy.rule = rule
    files.copy(tmp_path / "file", path / "file")
    assert (path / "file").read_bytes() == content


@pytest.mark.parametrize("status", [429, 503, RESET])
def test_passing_faults_are_retried(
    faulty_bucket: FaultyBucket, status: int, no_waits: None, caplog: pytest.LogCaptureFixture
) -> None:
    path, proxy = faulty_bucket
    proxy.rule = few_times(status, 1)
    (path / "file").write_bytes(b"content")
    proxy.rule = few_times(status, 2)
    assert (path / "file").read_bytes() == b"content"
    proxy.rule = few_times(status, 1)
    assert [name.name for name in path.iterdir()] == ["file"]
    assert len(proxy.requests) >= 3 + 4
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


@pytest.mark.parametrize(("status", "expected"), [(403, BucketError), (503, BucketUnavailableError)])
def test_lasting_faults_are_one_clear_line(
    faulty_bucket: FaultyBucket, status: int, expected: type[EarthGPTError], no_waits: None,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    path, proxy = faulty_bucket
    (path / "file").write_bytes(b"before")
    proxy.rule = lambda method, address: status
    permissions = buckets.SERVICES[path.scheme].permissions
    for action, attempt in {
        buckets.Action.READ: (path / "file").read_bytes,
        buckets.Action.WRITE: lambda: files.write_output(path / "file", b"after"),
        buckets.Action.LIST: lambda: list(path.iterdir()),
    }.items():
        with pytest.raises(expected) as caught:
            attempt()
        message = str(caught.value)
        assert "\n" not in message and str(path) in message and action.value in message
        assert (permissions[action] in message) == (status == 403)
        assert isinstance(caught.value, RetryableError) == (status == 503)
        assert "testing" not in message and "dummy-secret" not in message
    proxy.rule = lambda method, address: None
    assert (path / "file").read_bytes() == b"before"
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_a_missing_bucket_is_named(bucket: BucketPath) -> None:
    missing = files.path(f"{bucket.scheme}://no-such-bucket") / "folder"
    for attempt in (missing.exists, missing.read_bytes, lambda: files.write_output(missing, b"x")):
        with pytest.raises(
            BucketError, match=f"{missing}: there is no bucket {bucket.scheme}://no-such-bucket; create"
        ):
            attempt()


def test_missing_credentials_are_explained(bucket: BucketPath, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    bucket.fs.clear_instance_cache()
    if bucket.scheme == "gs":
        pytest.skip("the emulator accepts requests without credentials")
    with pytest.raises(BucketError, match=r"expected valid credentials and got none; run `aws configure`, or set AWS"):
        (bucket / "x").write_bytes(b"x")
