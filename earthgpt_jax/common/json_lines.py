"""Logs of JSON objects, one per line, to which a run adds and which a killed process does not damage.

On a disk, a log is a file. Objects in a bucket cannot be appended to, so there it is a folder of numbered objects of
about `PART_BYTES` (`metrics.jsonl/00000.jsonl`, ...), of which the last one is replaced as lines are added. `read`
returns the lines of both.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from earthgpt_jax.common import files
from earthgpt_jax.common.buckets import BucketPath

PART_BYTES = 1 << 20  # of an object, from which the next one is begun
UPLOAD_SECONDS = 30.0  # between uploads of new lines


def read(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a log; a line that a kill cut off is left out, and a missing log is empty."""
    return [line for text in _texts(path).values() for line, _ in _parse(text)]


class JsonLines:
    """Add lines to a log.

    On a disk, a line is in the file when `write` returns. In a bucket, new lines are uploaded in the background, and
    all are there when `flush` returns.

    Args:
        keep: which lines of earlier processes stay in the log; the others, and one that was cut off, are removed.

    Attributes:
        earlier: the lines that stay.
    """

    def __init__(self, path: Path, *, keep: Callable[[dict[str, Any]], bool] = lambda line: True) -> None:
        self.earlier: list[dict[str, Any]] = []
        # From the last object on: a process that is killed here has removed no other line.
        for part, text in reversed(_texts(path).items()):
            kept = [(line, source) for line, source in _parse(text) if keep(line)]
            self.earlier[:0] = [line for line, _ in kept]
            content = "".join(source + "\n" for _, source in kept)
            if not content and part != path:
                part.unlink()
            elif content != text:
                files.write_text(part, content)
        self._writer = (_Parts if isinstance(path, BucketPath) else _File)(path)  # type: ignore[arg-type]

    def write(self, line: Mapping[str, Any]) -> None:
        self._writer.write(json.dumps(line) + "\n")

    def flush(self) -> None:
        """Wait until all lines are stored."""
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def _texts(path: Path) -> dict[Path, str]:
    """Return the content of a log by file or object, in order."""
    parts: list[Path]
    if isinstance(path, BucketPath):
        parts = sorted(part for part in path.iterdir() if part.suffix == ".jsonl") if path.is_dir() else []
    else:
        parts = [path] if path.exists() else []
    return {part: part.read_text() for part in parts}


def _parse(text: str) -> list[tuple[dict[str, Any], str]]:
    """Return each line that was not cut off, and its source."""
    lines = []
    for source in text.splitlines():
        with contextlib.suppress(json.JSONDecodeError):  # cut off by a kill
            lines.append((json.loads(source), source))
    return lines


class _File:
    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)  # line-buffered

    def write(self, line: str) -> None:
        self._file.write(line)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class _Parts:
    def __init__(self, folder: BucketPath) -> None:
        texts = _texts(folder)
        last = max(texts, default=folder / "00000.jsonl")
        self._folder, self._number = folder, int(last.stem)
        self._lines = [texts[last]] if texts else []
        self._bytes = sum(map(len, self._lines))
        self._changed, self._uploaded = False, time.monotonic()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="log")
        self._uploads: list[Future[None]] = []

    def write(self, line: str) -> None:
        self._lines.append(line)
        self._bytes += len(line)
        self._changed = True
        if self._bytes >= PART_BYTES or time.monotonic() - self._uploaded >= UPLOAD_SECONDS:
            self._upload()

    def flush(self) -> None:
        if self._changed:
            self._upload()
        for upload in self._uploads:
            upload.result()
        self._uploads = []

    def close(self) -> None:
        try:
            self.flush()
        finally:
            self._thread.shutdown()

    def _upload(self) -> None:
        for upload in self._uploads:
            if upload.done():
                upload.result()  # raises if it failed
        self._uploads = [upload for upload in self._uploads if not upload.done()]
        path, content = self._folder / f"{self._number:05d}.jsonl", "".join(self._lines).encode()
        self._uploads.append(self._thread.submit(files.write_bytes, path, content))
        self._changed, self._uploaded = False, time.monotonic()
        if self._bytes >= PART_BYTES:
            self._number, self._lines, self._bytes = self._number + 1, [], 0
