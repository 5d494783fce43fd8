from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import tensorflow_datasets as tfds

from earthgpt_jax.cli.main import main
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.datasets.build.writer import write_dataset
from earthgpt_jax.datasets.collection import ConcatSource, open_records
from earthgpt_jax.datasets.examples import to_example
from earthgpt_jax.datasets.image_digests import read_image_digests
from earthgpt_jax.datasets.manifest import MANIFEST, read_manifest
from earthgpt_jax.datasets.store import RecordSource
from earthgpt_jax.records import Object, Record, Sensor, Task, Turn

Built = tuple[Path, dict[str, list[Record]]]  # a dataset directory and its records by split


def _record(number: int, **changes: Any) -> Record:
    values: dict[str, Any] = {
        "id": f"s/train/{number}", "image": bytes([0, 255, number]), "height": 3, "width": 4, "sensor": Sensor.SAR,
        "source": "s", "split": "train", "tasks": (Task.VQA, Task.OBB), "label": "harbor",
        "turns": (Turn(question="schön?", answer="yes", question_type="presence"),), "references": ("a", "b c"),
        "objects": (
            Object(label="ship", polygon=np.arange(8, dtype=np.float32) / 3, difficult=True, phrase="the ship",
                   visible=0.5),
            Object(label="bus", polygon=np.ones(8, np.float32)),
        ),
    }  # fmt: skip
    return Record(**values | changes)


def _same(a: Record, b: Record) -> bool:
    plain = ("id", "image", "height", "width", "sensor", "source", "split", "tasks", "label", "turns", "references")
    return all(getattr(a, name) == getattr(b, name) for name in plain) and all(
        (x.label, x.difficult, x.phrase, x.visible) == (y.label, y.difficult, y.phrase, y.visible)
        and np.array_equal(x.polygon, y.polygon)
        for x, y in zip(a.objects, b.objects, strict=True)
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    out = tmp_path_factory.mktemp("store") / "s"
    bare = _record(9, turns=(), references=(), objects=(), tasks=(Task.CLASSIFICATION,), image=b"")
    splits = {"train": [_record(1), bare, _record(2)], "test": [_record(3)]}
    write_dataset(splits, out=out, name="s", quarantine=[{"id": "x", "reason": "torn"}], manifest={"origin": "here"})
    return out, splits


def test_records_are_read_back_unchanged_and_in_order(built: Built) -> None:
    out, splits = built
    for split, records in splits.items():
        source = RecordSource(out, split)
        assert len(source) == len(records)
        assert all(_same(source[i], records[i]) for i in range(len(records)))
        assert _same(source[-1], records[-1])
        with pytest.raises(IndexError):
            source[len(records)]
    clone = pickle.loads(pickle.dumps(RecordSource(out, "train")))
    assert _same(clone[2], splits["train"][2])


def _through_tfds(folder: Path, split: str) -> Iterator[dict]:
    yield from tfds.builder_from_directory(str(folder)).as_data_source(split=split)


def _agree(record: Record, example: dict) -> None:
    """Assert that TFDS's decoding of a record has the same value in every field."""
    as_written = to_example(record)
    assert example.keys() == as_written.keys()
    for key, value in as_written.items():
        if key not in ("objects", "turns"):
            expected = [_bytes(v) for v in value] if isinstance(value, list) else _bytes(value)
            got = example[key]
            assert (got.tolist() if isinstance(got, np.ndarray) else got) == expected, key
            continue
        for part, column in example[key].items():
            np.testing.assert_array_equal(column, [_bytes(item[part]) for item in value] or column[:0], part)
            assert len(column) == len(value)


def _bytes(value: Any) -> Any:
    return value.encode() if isinstance(value, str) else value


def test_tfds_decodes_the_same_records(built: Built) -> None:
    out, splits = built
    for split in splits:
        for record, example in zip(RecordSource(out, split), _through_tfds(out, split), strict=True):
            _agree(record, example)


@pytest.mark.realdata
def test_tfds_decodes_the_same_real_records(realdata: Path, tmp_path: Path) -> None:
    assert main(["data", "build", "hit_uav", "rsicd", "rsvqa_lr", "--root", str(realdata), "--out", str(tmp_path)]) == 0
    for folder in tmp_path.iterdir():
        for split in read_manifest(folder)["counts"]:
            for record, example in zip(RecordSource(folder, split), _through_tfds(folder, split), strict=True):
                _agree(record, example)


def test_the_manifest_has_counts_and_every_shard(built: Built) -> None:
    out, _ = built
    values = read_manifest(out)
    train = values["counts"]["train"]
    assert train["total"] == {"objects": 4, "records": 3, "references": 4, "turns": 2}
    assert train["object"] == train["records_with_object"] == {"bus": 2, "ship": 2}
    assert values["origin"] == "here"
    assert set(values["shards"]) == {path.name for path in out.glob("*.array_record*")}
    assert {split: len(values) for split, values in read_image_digests(out).items()} == {"train": 3, "test": 1}
    without_image = [int(value) == 0 for value in read_image_digests(out)["train"]]
    assert without_image == [False, True, False]
    assert json.loads((out / "quarantine.jsonl").read_text()) == {"id": "x", "reason": "torn"}


def test_the_same_records_give_the_same_bytes(built: Built, tmp_path: Path) -> None:
    out, splits = built
    write_dataset(splits, out=tmp_path / "again", name="s")
    assert read_manifest(tmp_path / "again")["shards"] == read_manifest(out)["shards"]
    write_dataset(splits | {"test": [_record(4)]}, out=tmp_path / "other", name="s")
    assert read_manifest(tmp_path / "other")["fingerprint"] != read_manifest(out)["fingerprint"]


_PROCESS = """
import sys, numpy
from pathlib import Path
from earthgpt_jax.records import Object, Record, Sensor, Task
from earthgpt_jax.datasets.build.writer import write_dataset
from earthgpt_jax.datasets.store import RecordSource
item = Object(label="ship", polygon=numpy.arange(8, dtype=numpy.float32))
record = Record(id="s/train/1", image=b"x", height=1, width=1, sensor=Sensor.SAR, source="s", split="train",
                tasks=(Task.HBB,), references=("a",), objects=(item,))
write_dataset({"train": [record]}, out=Path(sys.argv[1]), name="s")
assert RecordSource(Path(sys.argv[1]), "train")[0].objects[0].label == "ship"
assert "tensorflow" not in sys.modules
"""


def test_other_processes_write_the_same_bytes_without_tensorflow(tmp_path: Path) -> None:
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", _PROCESS, str(tmp_path / seed)], check=True, env=environment)
    first, second = ({path.name: path.read_bytes() for path in (tmp_path / seed).iterdir()} for seed in "12")
    assert first == second


def test_a_killed_build_leaves_no_dataset(built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even if it is killed in the last moment, before the complete directory is renamed."""

    rename = os.replace

    def killed(source: Path, target: Path) -> None:
        if Path(target) == tmp_path / "s":
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "replace", killed)
    monkeypatch.setattr(tempfile.TemporaryDirectory, "cleanup", lambda self: self._finalizer.detach())
    with pytest.raises(KeyboardInterrupt):
        write_dataset({"train": [_record(1)]}, out=tmp_path / "s", name="s")
    (left,) = tmp_path.iterdir()
    assert left.name.startswith("s.partial-")
    assert list(left.rglob(MANIFEST))
    with pytest.raises(EarthGPTError, match="no dataset at all"):
        open_records(tmp_path, "train")


def test_failed_writes_leave_no_files(built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EarthGPTError, match="exists already"):
        write_dataset({}, out=built[0], name="s")

    def breaks() -> Iterator[Record]:
        yield _record(1)
        raise RuntimeError("reader broke")

    with pytest.raises(RuntimeError, match="reader broke"):
        write_dataset({"train": breaks()}, out=tmp_path / "broken", name="s")

    def full_disk(*_: Any) -> NoReturn:
        raise OSError(28, "No space left on device")

    (tmp_path / "file").write_text("")
    with pytest.raises(EarthGPTError, match=r"File exists \(.*/file\); no partial files remain.* another folder"):
        write_dataset({"train": [_record(1)]}, out=tmp_path / "file" / "s", name="s")
    (tmp_path / "file").unlink()

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(EarthGPTError, match="the disk is full; no partial files remain"):
        write_dataset({"train": [_record(1)]}, out=tmp_path / "full", name="s")

    def full_disk_as_runtime_error() -> Iterator[Record]:
        yield _record(1)
        raise RuntimeError("write() failed: No space left on device; writing x")  # as ArrayRecord reports it

    with pytest.raises(EarthGPTError, match="the disk is full; no partial files remain"):
        write_dataset({"train": full_disk_as_runtime_error()}, out=tmp_path / "full", name="s")
    assert not list(tmp_path.iterdir())


def test_an_error_for_a_folder_that_is_not_a_dataset(built: Built, tmp_path: Path) -> None:
    with pytest.raises(EarthGPTError, match="there is no such folder"):
        RecordSource(tmp_path / "nowhere", "train")
    with pytest.raises(EarthGPTError, match="something else"):
        RecordSource(tmp_path, "train")
    with pytest.raises(EarthGPTError, match="something else"):
        RecordSource(built[0] / "manifest.json", "train")
    with pytest.raises(EarthGPTError, match="no split 'val'; it has train, test"):
        RecordSource(built[0], "val")


def test_a_dataset_of_an_earlier_version_is_refused(built: Built, tmp_path: Path) -> None:
    """Older records lack a feature; without this check TFDS would fail later, with an unclear message."""
    shutil.copytree(built[0], tmp_path / "s")
    values = read_manifest(tmp_path / "s")
    for old in ({**values, "version": "1.0.0"}, {key: values[key] for key in values if key != "version"}):
        (tmp_path / "s" / "manifest.json").write_text(json.dumps(old))
        with pytest.raises(EarthGPTError, match=r"version 4\.0\.0, got 1\.0\.0: it was built by an earlier version"):
            RecordSource(tmp_path / "s", "train")


def test_concatenated_sources_tell_which_records_are_kept(tmp_path: Path) -> None:
    for name, count in (("a", 3), ("b", 2), ("c", 4)):
        records = [_record(number, id=f"{name}/train/{number}") for number in range(count)]
        write_dataset({"train": records}, out=tmp_path / name, name=name)
    excluded = np.array([0, 1, 0, 1, 1, 0, 0, 0, 1], bool)
    together = ConcatSource([RecordSource(tmp_path / name, "train") for name in "abc"], excluded=excluded)
    found = [(source.name, records.tolist()) for source, records in together.parts()]
    assert found == [("a", [0, 2]), ("b", []), ("c", [0, 1, 2])]
    assert [f"{name}/train/{number}" for name, numbers in found for number in numbers] == [r.id for r in together]
    concatenated = ConcatSource([RecordSource(tmp_path / "b", "train")])
    assert [records.tolist() for _, records in concatenated.parts()] == [[0, 1]]
