"""Compare released datasets with native ones: real differences are reported, rounding is not."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from earthgpt_jax.boxes import rect_to_polygon
from earthgpt_jax.cli.main import main
from earthgpt_jax.datasets.build.writer import write_dataset
from earthgpt_jax.datasets.cards import load_cards
from earthgpt_jax.datasets.inspect.agreement import compare
from earthgpt_jax.datasets.readers import read
from earthgpt_jax.input.prompts.questions import BoxStyle, build_question, question_indices
from earthgpt_jax.records import Object, Record, Sensor, Task, Turn


def _record(name: str, image: bytes, *tasks: Task, split: str = "train", **truth: Any) -> Record:
    return Record(
        id=f"{name}/{split}/{image.decode()}", image=image, height=600, width=800, sensor=Sensor.OPTICAL,
        source=name, split=split, tasks=tasks, **truth,
    )  # fmt: skip


def _object(*box: float, label: str = "ship", phrase: str = "") -> Object:
    return Object(label=label, polygon=rect_to_polygon(*box), phrase=phrase)


def _categories(released: Record, native: Record) -> list[str]:
    return sorted(item.category for item in compare([released], [native]).disagreements)


def test_images_are_matched_by_their_bytes() -> None:
    native = [_record("n", b"a", Task.CLASSIFICATION, label="port"), _record("n", b"b", Task.CLASSIFICATION)]
    released = [_record("r", b"a", Task.CLASSIFICATION, label="port"), _record("r", b"c", Task.CLASSIFICATION)]
    found = compare(released, native)
    assert (found.shared, found.only_released, found.disagreements) == (1, ("r/train/c",), ())


def test_classes_captions_and_answers_are_compared() -> None:
    native = _record(
        "n", b"a", Task.CAPTION, Task.VQA, split="test", label="port",
        references=("A port .", "a port .", "many ships ."),
        turns=(Turn(question="Is it a port?", answer="yes"), Turn(question="How many?", answer="2")),
    )  # fmt: skip
    copy = dataclasses.replace(native, id="r/test/a", references=("a port", "A port.", "Many ships"))
    assert _categories(copy, native) == []
    released = _record(
        "r", b"a", Task.CAPTION, Task.VQA, label="harbor",
        references=("a port .", "many ships .", "a pier"),
        turns=(Turn(question="is it a port?", answer="No"), Turn(question="Where?", answer="left")),
    )  # fmt: skip
    assert _categories(released, native) == [
        "a caption is missing",
        "a caption that the source lacks",
        "a question that the source lacks",
        "another answer",
        "another class",
        "trains on an image that the source holds out as test",
    ]
    assert compare([released, released], [native]).counts()["another answer"] == 2
    only_captions = dataclasses.replace(released, tasks=(Task.CAPTION,), label="", split="test")
    assert _categories(only_captions, native) == ["a caption is missing", "a caption that the source lacks"]


def test_boxes_may_differ_by_rounding_to_two_decimals() -> None:
    native = _record("n", b"a", Task.HBB, objects=(_object(10, 10, 50, 50), _object(100, 100, 300, 200, label="car")))
    rounded = tuple(
        dataclasses.replace(item, polygon=(np.round(item.polygon / 8) * 8).astype(np.float32))
        for item in native.objects
    )
    released = dataclasses.replace(native, objects=tuple(rounded[::-1]))
    assert _categories(released, native) == []
    moved = dataclasses.replace(native, objects=(_object(30, 10, 70, 50), rounded[1]))
    assert _categories(moved, native) == ["a box is missing", "a box that the source lacks"]
    renamed = dataclasses.replace(native, objects=(rounded[0], dataclasses.replace(rounded[1], label="truck")))
    assert _categories(renamed, native) == ["another class of a box"]
    assert _categories(dataclasses.replace(native, objects=()), native) == ["a box is missing"] * 2


def test_phrases_of_regions_are_compared() -> None:
    tasks = (Task.GROUNDING, Task.REGION_CAPTION)
    native = _record("n", b"a", Task.HBB, *tasks, objects=(_object(10, 10, 50, 50, phrase="The ship on the left"),))
    released = _record(
        "r", b"a", *tasks, objects=(_object(8, 8, 48, 48, label="object", phrase="the ship on the left"),)
    )
    assert _categories(released, native) == []
    other = _record("r", b"a", *tasks, objects=(_object(8, 8, 48, 48, label="object", phrase="a car"),))
    assert _categories(other, native) == ["another phrase of a box"]


# Real images and annotations, written in the documented format of the release and read with its cards.
COPIES = {  # card of the release: native card, variant, task, path of the images
    "mmrs1m_caption": ("rsicd", "", Task.CAPTION, "caption/RSICD"),
    "mmrs1m_vqa": ("rsvqa_hr", "", Task.VQA, "VQA/rsvqa_high"),
    "mmrs1m_classification": ("rsscn7", "", Task.CLASSIFICATION, "classification/RSSCN7_split/train"),
    "mmrs1m_infrared": ("hit_uav", "normal_xml", Task.HBB, "detection/HIT-UAV"),
    "mmrs1m_sar": ("ssdd_yolo", "", Task.HBB, "detection/SSDD"),
    "mmrs1m_optical": ("dota", "", Task.HBB, "detection/dotav2"),
}


def _native(root: Path, name: str, variant: str) -> list[Record]:
    card = load_cards()[name].variant(variant) if variant else load_cards()[name]
    return [event for event in read(root, card) if isinstance(event, Record)]


def _dialogues(records: list[Record], task: Task, folder: Path, below: str) -> Iterator[dict]:
    (folder / "data" / below).mkdir(parents=True)
    for number, record in enumerate(records):
        image = f"data/{below}/{number}.png"
        (folder / image).write_bytes(record.image)
        turns = []
        for index in question_indices(record, task.value):
            question = build_question(record, task.value, index, box_style=BoxStyle(decimals=2))
            text = record.turns[index].question if task is Task.VQA else question.text
            turns += [{"from": "human", "value": text}, {"from": "gpt", "value": question.answer}]
        yield {"image": image, "conversations": turns}


@pytest.mark.realdata
@pytest.mark.parametrize("name", COPIES)
def test_a_faithful_copy_of_real_data_agrees(name: str, realdata: Path, tmp_path: Path) -> None:
    source, variant, task, below = COPIES[name]
    native = _native(realdata, source, variant)
    folder = tmp_path / "MMRS-1M"
    rows = list(_dialogues(native, task, folder, below))
    path = folder / load_cards()[name].parts[0]["annotations"] / "copy.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(rows))
    released = _native(tmp_path, name, "")
    assert len(released) == len(native)
    found = compare(released, native)
    assert (found.shared, found.only_released) == (len(native), ())
    held_out_records = sum(record.split != "train" for record in native)
    held_out = {name: count for name, count in found.counts().items() if name.startswith("trains on")}
    assert sum(held_out.values()) == held_out_records
    assert set(found.counts()) == set(held_out)


def test_the_command_compares_dataset_directories(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = Task.CLASSIFICATION
    native = [_record("n", b"a", task, label="port"), _record("n", b"b", task, split="test", label="sea")]
    released = [_record("r", b"a", task, label="port"), _record("r", b"b", task, label="lake")]
    write_dataset({"train": native[:1], "test": native[1:]}, out=tmp_path / "n", name="n")
    write_dataset({"train": released}, out=tmp_path / "r", name="r")
    words = ["data", "check", str(tmp_path / "r"), "--against", str(tmp_path / "n")]
    assert main(words) == 1
    output = capsys.readouterr().out.splitlines()
    assert output[0] == f"{tmp_path / 'r'}: 2 images are in {tmp_path / 'n'}, 0 are not"
    assert sorted(output[1:3]) == ["  1: another class", "  1: trains on an image that the source holds out as test"]
    assert output[3:] == [
        "  r/train/b, n/test/b: trains on an image that the source holds out as test: train, test",
        "  r/train/b, n/test/b: another class: 'lake', 'sea'",
    ]
    assert main([*words[:2], str(tmp_path / "n"), "--against", str(tmp_path / "n")]) == 0
