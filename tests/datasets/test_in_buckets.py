"""Datasets in buckets: built from files there, read, checked, audited, with the same bytes as on a disk."""

from __future__ import annotations

import json
import pickle
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from earthgpt_jax.cli.main import main
from earthgpt_jax.common import file_cache, files
from earthgpt_jax.common.buckets import BucketPath
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.datasets.collection import open_records
from earthgpt_jax.datasets.store import RecordSource
from earthgpt_jax.synthetic import SyntheticSource

BUILD = ["data", "build", "synthetic", "--splits", "train=20,test=6", "--size", "32", "--workers", "1", "--out"]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_dataset_in_a_bucket_is_the_one_on_a_disk(
    bucket: BucketPath, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, local = bucket / "data", tmp_path / "data"
    assert main([*BUILD, str(out)]) == main([*BUILD, str(local)]) == 0
    assert _contents(out) == _contents(local)
    assert not list((tmp_path / "cache").rglob("*.building"))
    assert main([*BUILD, str(out)]) == 0 and "already built and identical" in capsys.readouterr().out

    source = pickle.loads(pickle.dumps(RecordSource(out / "synthetic", "train")))
    expected = SyntheticSource("train", 20, size=32, seed=0)
    with ThreadPoolExecutor(4) as threads:
        read = list(threads.map(source.__getitem__, range(20)))
    assert [record.image for record in read] == [expected[i].image for i in range(20)]
    assert source.fingerprint == RecordSource(local / "synthetic", "train").fingerprint
    assert len(open_records(out, "test")) == 6

    for words in (
        ["check", out], ["stats", out, "--json", bucket / "stats.json", "--html", bucket / "stats.html"],
        ["audit", out], ["preview", out, "--out", bucket / "page"], ["preview", out, "--out", bucket / "sheet.png"],
    ):  # fmt: skip
        status = main(["data", *map(str, words)])
        captured = capsys.readouterr()
        assert status == 0, captured.err
    assert "no problems" in captured.out or captured.err.startswith("wrote")
    assert json.loads((bucket / "stats.json").read_text())[0]["name"] == "synthetic"
    page, statistics = ((bucket / name).read_text() for name in ("page/index.html", "stats.html"))
    assert all("UTC: `earthgpt data" in text and "Digests: " in text for text in (page, statistics))
    assert page.startswith("<!") and (bucket / "sheet.png").is_file()

    (out / "synthetic" / "earthgpt_records-test.array_record-00000-of-00001").write_bytes(b"short")
    with pytest.raises(EarthGPTError, match=r"test\.array_record-00000-of-00001: expected \d+ bytes, got 5"):
        RecordSource(out / "synthetic", "test")
    with pytest.raises(
        EarthGPTError, match=r"data .*/absent: expected a dataset directory .*; there is no such folder"
    ):
        RecordSource(bucket / "absent", "test")


_KILLED = """
import os, signal, sys
from earthgpt_jax.cli.main import main
from earthgpt_jax.common import buckets, files
files._UPLOADS, left = 1, int(sys.argv.pop(1))
def counted(method):
    def call(*args, **kwargs):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return method(*args, **kwargs)
    return call
for name in ("write_bytes", "upload", "unlink"):
    setattr(buckets.BucketPath, name, counted(getattr(buckets.BucketPath, name)))
main(sys.argv[1:])
"""


def test_a_build_that_is_killed_while_it_uploads_continues_there(
    bucket: BucketPath, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = bucket / "data"
    assert main([*BUILD, str(tmp_path / "data")]) == 0
    command = [sys.executable, "-c", _KILLED, "5", *BUILD, str(out)]
    assert subprocess.run(command, check=False, capture_output=True).returncode == -signal.SIGKILL
    assert (bucket / "data" / "synthetic.partial").exists()
    with pytest.raises(EarthGPTError, match="expected a dataset directory"):
        RecordSource(out / "synthetic", "train")
    present = set(_contents(out / "synthetic"))
    assert len(present) >= 2
    uploaded = []
    upload = BucketPath.upload
    monkeypatch.setattr(BucketPath, "upload", lambda path, source: (uploaded.append(path.name), upload(path, source)))
    assert main([*BUILD, str(out)]) == 0
    assert _contents(out) == _contents(tmp_path / "data")
    assert uploaded and not present & set(uploaded) and uploaded[-1] == "manifest.json"


def test_native_files_may_be_in_a_bucket(
    bucket: BucketPath, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for name in ("000001", "000002", "000003"):
        folder = tmp_path / "native" / "sar" / "SSDD-yolo"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (30, 40, 3), np.uint8)).save(folder / f"{name}.jpg")
        (folder / f"{name}.txt").write_text("0 0.5 0.5 0.5 0.2\n")
    for name, content in _contents(tmp_path / "native").items():
        files.write_bytes(bucket / "native" / name, content)
    words = ["data", "build", "ssdd_yolo", "--workers", "1"]
    for root, out in ((tmp_path / "native", tmp_path / "out"), (bucket / "native", bucket / "out")):
        assert main([*words, "--root", str(root), "--out", str(out)]) == 0, capsys.readouterr().err
    assert _contents(bucket / "out") == _contents(tmp_path / "out")
    capsys.readouterr()
    assert main([*words, "--root", str(bucket / "native"), "--out", str(bucket / "out")]) == 0
    assert "already built and identical" in capsys.readouterr().out
    (bucket / "native" / "sar" / "SSDD-yolo" / "000001.txt").write_text("0 0.5 0.5 0.5 0.3\n")
    assert main([*words, "--root", str(bucket / "native"), "--out", str(bucket / "out")]) == 2
    assert "contains another build" in capsys.readouterr().err


def test_a_dataset_larger_than_the_cache_is_read_by_replacing_copies(
    bucket: BucketPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from earthgpt_jax.datasets.build import shards

    monkeypatch.setattr(shards.SplitLayout, "divide", _one_shard_per_piece(shards.SplitLayout.divide))
    main([*BUILD, str(bucket / "data")])
    source = RecordSource(bucket / "data" / "synthetic", "train")
    sizes = source._sizes
    assert len(sizes) == 4
    monkeypatch.setenv(file_cache.LIMIT_VARIABLE, str(2.5 * max(sizes) / 1e9))
    expected = SyntheticSource("train", 20, size=32, seed=0)
    assert all(source[i].image == expected[i].image for i in [*range(20), *range(20)])
    assert caplog.text.count("do not fit into the limit") == 1 and len([*(tmp_path / "cache").rglob("*-00004")]) == 2
    monkeypatch.setenv(file_cache.LIMIT_VARIABLE, str(0.5 * min(sizes) / 1e9))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    with pytest.raises(EarthGPTError, match=r"does not fit: .* set EARTHGPT_CACHE_GB to allow more"):
        RecordSource(bucket / "data" / "synthetic", "train")[0]


def _one_shard_per_piece(divide):
    def several(layout):
        """Divide a split into four shards; TFDS makes one of so few records."""
        pieces = divide(layout)
        if len(layout.digests) < 20:
            return pieces
        ((path, starts, sizes),) = pieces[0]
        return [[(path, starts[i : i + 5], sizes[i : i + 5])] for i in range(0, 20, 5)]

    return several
