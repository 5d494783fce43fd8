"""Logs on a disk and in buckets: what was written is read, whatever killed the process that wrote it."""

from __future__ import annotations

from pathlib import Path

import pytest

from earthgpt_jax.common import json_lines
from earthgpt_jax.common.buckets import BucketError, BucketPath
from earthgpt_jax.common.json_lines import JsonLines


def _steps(path: Path) -> list[int]:
    return [line["step"] for line in json_lines.read(path)]


def _write(path: Path, *steps: int, text: str = "") -> None:
    log = JsonLines(path)
    for step in steps:
        log.write({"step": step, "text": text})
    log.close()


def test_a_log_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    assert json_lines.read(path) == []
    _write(path, 1, 2)
    log = JsonLines(path)
    log.write({"step": 3})
    assert _steps(path) == [1, 2, 3], "a line is in the file at once"
    with path.open("a") as file:
        file.write('{"step": 4, "te')
    assert _steps(path) == [1, 2, 3]
    resumed = JsonLines(path, keep=lambda line: line["step"] <= 2)
    assert [line["step"] for line in resumed.earlier] == [1, 2]
    resumed.write({"step": 3})
    assert path.read_text().count("\n") == 3 and _steps(path) == [1, 2, 3]


def test_a_log_in_a_bucket(bucket: BucketPath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_lines, "PART_BYTES", 1000)
    path = bucket / "run" / "log.jsonl"
    assert json_lines.read(path) == []
    log = JsonLines(path)
    for step in range(1, 41):
        log.write({"step": step, "text": "x" * 70})
    steps = _steps(path)
    assert steps == list(range(1, len(steps) + 1)), "at any time, the beginning of the log"
    log.flush()
    assert _steps(path) == list(range(1, 41)), "after a flush, all of it"
    log.write({"step": 41})
    parts = sorted(path.iterdir())
    assert len(parts) == 4 and all(part.stat().st_size < 1100 for part in parts)
    # The process is killed now, and another one resumes after step 20.
    untouched = parts[0].version_and_size()
    log = JsonLines(path, keep=lambda line: line["step"] <= 20)
    assert [line["step"] for line in log.earlier] == _steps(path) == list(range(1, 21))
    log.write({"step": 21})
    log.close()
    assert _steps(path) == list(range(1, 22)) and parts[0].version_and_size() == untouched
    _write(path, 22)
    assert _steps(path) == list(range(1, 23))


def test_lines_in_a_bucket_are_uploaded_now_and_then(bucket: BucketPath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_lines, "UPLOAD_SECONDS", 0)
    log = JsonLines(bucket / "log.jsonl")
    log.write({"step": 1})
    log._writer._thread.shutdown()  # type: ignore[union-attr]
    assert _steps(bucket / "log.jsonl") == [1]


def test_a_log_that_cannot_be_uploaded_stops_the_run(faulty_bucket) -> None:
    log = JsonLines(faulty_bucket.path / "log.jsonl")
    faulty_bucket.proxy.rule = lambda method, path: 403 if method in ("PUT", "POST") else None
    log.write({"step": 1})
    with pytest.raises(BucketError, match=r"writing .*log.jsonl/00000.jsonl: .* denied"):
        log.flush()
