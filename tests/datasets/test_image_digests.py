"""Images of an evaluation split are excluded from training when several datasets are opened together."""

from __future__ import annotations

import hashlib
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from earthgpt_jax.cli.main import main
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.datasets import image_digests as digests
from earthgpt_jax.datasets.build.writer import write_dataset
from earthgpt_jax.datasets.collection import open_records
from earthgpt_jax.datasets.image_digests import read_image_digests
from earthgpt_jax.datasets.inspect.validate import find_problems
from earthgpt_jax.records import Record, Sensor, Task


def _record(source: str, split: str, image: bytes, task: Task = Task.CAPTION) -> Record:
    return Record(
        id=f"{source}/{split}/{image!r}", image=image, height=1, width=1, sensor=Sensor.OPTICAL, source=source,
        split=split, tasks=(task,), references=("a",),
    )  # fmt: skip


def _folder(out: Path, datasets: dict[str, dict[str, list[bytes]]], **tasks: Task) -> Path:
    """Write datasets, given as the image files of each split by dataset name."""
    for name, splits in datasets.items():
        task = tasks.get(name, Task.CAPTION)
        records = {split: [_record(name, split, image, task) for image in images] for split, images in splits.items()}
        write_dataset(records, out=out / name, name=name)
    return out


SHARING = {
    "captions": {"train": [b"1", b"2", b"3", b"4"], "val": [b"5"]},
    "questions": {"train": [b"5", b"3", b"6", b"6"], "test": [b"2", b"2"], "val": [b"4"]},
}


def _images(folder: Path, split: str, **options: Any) -> list[tuple[str, bytes]]:
    return [(record.source, record.image) for record in open_records(folder, split, **options)]


def test_training_excludes_images_that_any_dataset_holds_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = _folder(tmp_path, SHARING)
    with caplog.at_level(logging.WARNING):
        source = open_records(folder, "train")
    kept = [("captions", b"1"), ("captions", b"3"), ("questions", b"3"), ("questions", b"6"), ("questions", b"6")]
    assert [(record.source, record.image) for record in source] == kept
    assert [source[i].image for i in (4, -1, -5, 1)] == [b"6", b"6", b"1", b"3"]
    assert pickle.loads(pickle.dumps(source))[2].id == "questions/train/b'3'"
    for index in (5, -6):
        with pytest.raises(IndexError):
            source[index]
    assert [r.message.partition("images: ")[2] for r in caplog.records] == ["captions 2 of 4, questions 1 of 4"]


def test_evaluation_splits_and_single_datasets_are_not_reduced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = _folder(tmp_path, SHARING | {"repeats": {"train": [b"7", b"8"], "test": [b"7"]}})
    with caplog.at_level(logging.WARNING):
        assert [image for _, image in _images(folder, "test")] == [b"2", b"2", b"7"]
        assert [image for _, image in _images(folder, "val")] == [b"5", b"4"]
        assert [image for _, image in _images(folder / "repeats", "train")] == [b"7", b"8"]
    assert not caplog.records
    # Opened with other datasets, it excludes its own test images from training, too.
    assert ("repeats", b"7") not in _images(folder, "train")


def test_overlap_is_excluded_for_any_choice_of_tasks(tmp_path: Path) -> None:
    """Training on captions alone must still exclude the images of the questions' test split."""
    folder = _folder(tmp_path, SHARING, questions=Task.CLASSIFICATION)
    assert _images(folder, "train", tasks=[Task.CAPTION]) == [("captions", b"1"), ("captions", b"3")]


def test_zero_shot_benchmarks_are_trained_on_only_if_opened_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = _folder(tmp_path, {"captions": {"train": [b"1"]}})
    write_dataset(
        {"train": [_record("bench", "train", b"9")]},
        out=tmp_path / "bench",
        name="bench",
        manifest={"card": {"role": "zero_shot"}},
    )
    with caplog.at_level(logging.WARNING):
        assert _images(folder, "train") == [("captions", b"1")]
    assert "bench: not trained on: its card says zero_shot" in caplog.text
    assert _images(folder / "bench", "train") == [("bench", b"9")]


def test_the_fingerprint_depends_on_the_excluded_records(tmp_path: Path) -> None:
    """A run must not resume with other training records."""
    train = {"train": [b"1", b"2", b"3"]}
    held_out: dict[str, dict[str, list[bytes]]] = {
        "none": {"test": [b"9"]}, "one": {"test": [b"1"]}, "other": {"test": [b"2"]}, "again": {"val": [b"1", b"8"]},
    }  # fmt: skip
    prints = {
        name: open_records(_folder(tmp_path / name, {"a": train, "b": splits}), "train").fingerprint
        for name, splits in held_out.items()
    }
    assert prints["one"] == prints["again"]
    assert len({prints["none"], prints["one"], prints["other"]}) == 3
    assert prints["none"] == open_records(tmp_path / "none" / "a", "train").fingerprint


def test_records_without_image_never_overlap(tmp_path: Path) -> None:
    folder = _folder(tmp_path, {"a": {"train": [b"1", b""]}, "b": {"test": [b""]}})
    assert [image for _, image in _images(folder, "train")] == [b"1", b""]


def test_an_error_if_all_training_images_are_excluded(tmp_path: Path) -> None:
    folder = _folder(tmp_path, {"a": {"train": [b"1"]}, "b": {"test": [b"1"]}})
    with pytest.raises(EarthGPTError, match="all its training images are in evaluation splits"):
        open_records(folder, "train")


def test_a_digest_is_computed_from_the_bytes_of_the_file(tmp_path: Path) -> None:
    assert digests.image_digest(b"") == digests.NO_IMAGE
    assert digests.image_digest(b"abc") == int.from_bytes(hashlib.sha256(b"abc").digest()[:8], "little")
    folder = _folder(tmp_path, SHARING)
    found = read_image_digests(folder / "questions")
    assert {split: values.dtype for split, values in found.items()} == dict.fromkeys(SHARING["questions"], np.uint64)
    assert {split: values.tolist() for split, values in found.items()} == {
        split: [digests.image_digest(image) for image in images] for split, images in SHARING["questions"].items()
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "image_digests.npz is missing.*Delete the folder and build it again"),
        (b"", "damaged"),
        (b"PK\x03\x04 torn", "damaged"),
        ({"train": [1]}, "does not fit this folder's records"),
        ({"train": [1, 2, 3, 4]}, "does not fit this folder's records"),
    ],
)
def test_missing_and_damaged_digests_are_reported(tmp_path: Path, content: Any, message: str) -> None:
    folder = _folder(tmp_path, SHARING)
    path = folder / "captions" / digests.FILE
    path.unlink()
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        digests.write_image_digests(folder / "captions", content)
    with pytest.raises(EarthGPTError, match=message):
        open_records(folder, "train")
    assert len(find_problems(folder / "captions")) == 1
    assert len(open_records(folder, "val")) == 2
    assert len(open_records(folder / "captions", "train")) == 4


def test_check_finds_the_digest_of_another_image(tmp_path: Path) -> None:
    folder = _folder(tmp_path, {"a": {"train": [b"1", b"2"]}})
    digests.write_image_digests(folder / "a", {"train": [digests.image_digest(b"1"), 5]})
    named = [problem for problem in find_problems(folder / "a") if digests.FILE in problem]
    assert named == ["a/train/b'2': image_digests.npz has the digest of another image"]


def test_a_dataset_without_digests_is_not_called_identical(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data", "build", "synthetic", "--splits", "train=2", "--size", "48", "--out", str(tmp_path)]
    assert main(words) == 0 == main(words)
    (tmp_path / "synthetic" / digests.FILE).unlink()
    assert main(words) == 2
    assert "delete this folder" in capsys.readouterr().err


@pytest.mark.realdata
def test_no_held_out_image_of_real_datasets_is_trained_on(
    realdata: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sharing = ("rsicd", "rsivqa", "sydney_captions", "dota")
    assert main(["data", "build", *sharing, "--root", str(realdata), "--out", str(tmp_path / "out")]) == 1
    with caplog.at_level(logging.WARNING):
        source = open_records(tmp_path / "out", "train")
    assert "images: rsicd 37 of 108, rsivqa 15 of 94, sydney_captions 1 of 4" in caplog.text
    held_out = {r.image for split in ("val", "test") for r in open_records(tmp_path / "out", split)}
    assert len(source) == 209 - 53 and not held_out & {record.image for record in source}
