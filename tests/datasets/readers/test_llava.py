"""LLaVA dialogues and the released MMRS-1M."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from earthgpt_jax.boxes import (
    BoxKind,
    Square,
    format_boxes,
    format_detection,
    polygon_to_rect,
    rect_to_polygon,
)
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.datasets.cards import Card, SplitRule, UnannotatedImages, load_cards
from earthgpt_jax.records import Task
from tests.support.native_datasets import Native, card, png, read_records, why


def _row(image: str, *texts: str) -> dict:
    turns = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]
    return {"image": image, "conversations": turns}


def test_dialogues(native: Native) -> None:
    native.put("i/x.png", png())
    native.put("i/y.png", png())
    rows = [
        {"id": "1", **_row("x.png", "<image>\nIs it a port?", "Yes", "How many ships?", "")},
        {"id": "2", **_row("x.png", "Where?\n<image>", "left")},
        {"id": "3", **_row("y.png", "Where?", "left", "When?")},
        {"id": "4", "conversations": []},
        {"id": "5", "image_path": "z.png", "conversations": [{"from": "gpt", "value": "a"}]},
        7,
    ]
    native.put("a.json", rows)
    part = {"annotations": "a.json", "images": "i"}
    records, rejected, _ = native.read(card("llava", part, tasks=(Task.VQA,)))
    assert [(t.question, t.answer) for t in records["x"].turns] == [("Is it a port?", "Yes"), ("Where?", "left")]
    assert why(rejected) == {
        "row 3": ["annotation: no image"],
        "row 5": ["annotation: no image"],
        "x": ["question: no answer"],
        "y": ["annotation: row 2: expected alternating human and gpt messages, got human, gpt, human"],
        "z": ["annotation: row 4: expected alternating human and gpt messages, got gpt"],
    }
    native.put("a.json", {})
    with pytest.raises(EarthGPTError, match="expected a list, got dict"):
        native.read(card("llava", part, tasks=(Task.VQA,)))


def test_image_paths_of_another_machine(native: Native) -> None:
    for name in ("i/one/x.png", "i/two/x.png", "i/z.png"):
        native.put(name, png())
    paths = ("/home/someone/i/one/x.png", "C:\\data\\i\\two\\x.png", "share/z.png", "share/x.png")
    native.put("a.json", [_row(path, "Where?", "left") for path in paths])
    part = {"annotations": "a.json", "images": "i"}
    records, rejected, _ = native.read(card("llava", part, tasks=(Task.VQA,)))
    assert set(records) == {"one/x", "two/x", "share/z"}
    assert why(rejected)["share/x"][0] == "image: several images are called 'share/x.png'"


class Released(Native):
    """A folder with the layout of the released MMRS-1M: data/json/<task>/ next to data/<task>/ with the images."""

    def task(self, task: str, *rows: dict, images: tuple[str, ...] = (), file: str = "a.json") -> None:
        self.put(f"data/json/{task}/{file}", list(rows))
        for image in images:
            self.put(f"data/{task}/{image}", png())

    def card(self, task: str, *tasks: Task, **kwargs: Any) -> Card:
        part = {"annotations": f"data/json/{task}", "images": f"data/{task}", "split": "train"}
        only = {"only": kwargs.pop("only")} if "only" in kwargs else {}
        values = {
            "split_rule": SplitRule.NATIVE,
            "unannotated_images": UnannotatedImages.DROP,
            "open_classes": True,
            **kwargs,
        }
        return card("llava", {**part, **only}, tasks=tasks, **values)


@pytest.fixture
def released(tmp_path: Path) -> Released:
    return Released(tmp_path)


def test_released_captions_become_references(released: Released) -> None:
    ask = "Describe the image."
    released.task("caption", _row("data/caption/UCM/1.tif", *(t for i in range(5) for t in (ask, f"caption {i}"))),
                  images=("UCM/1.tif", "Sydney/1.tif"), file="caption_ucm.json")  # fmt: skip
    released.task("caption", _row("data/caption/Sydney/1.tif", ask, "a bay"), file="caption_syndney.json")
    records, rejected, _ = released.read(released.card("caption", Task.CAPTION))
    assert set(records) == {"UCM/1", "Sydney/1"}  # same file name in two folders
    record = records["UCM/1"]
    assert record.references == tuple(f"caption {i}" for i in range(5))
    assert (record.turns, record.tasks, record.split) == ((), (Task.CAPTION,), "train")
    assert rejected == []


def test_released_classes(released: Released) -> None:
    ask = "What is the category?"
    released.task(
        "classification",
        _row("data/classification/WHU-RS19_split/train/Port/1.jpg", ask, "football_field."),
        _row("data/classification/WHU-RS19_split/test/Port/2.jpg", ask, "port"),
        _row("data/classification/WHU-RS19_split/train/Port/3.jpg", ask, "port", ask, "pond"),
        images=tuple(f"WHU-RS19_split/{path}" for path in ("train/Port/1.jpg", "test/Port/2.jpg", "train/Port/3.jpg")),
    )
    records, rejected, _ = released.read(released.card("classification", Task.CLASSIFICATION))
    assert {record.split: record.label for record in records.values()} == {"train": "football field", "test": "port"}
    assert list(why(rejected).values()) == [["annotation: expected one class, got 'pond', 'port'"]]


def test_released_boxes_are_converted_to_pixels(released: Released) -> None:
    """Images are 40x30, so the square has 5 pixels of padding above and below."""
    boxes = {"ship": [(4, 3, 20, 15), (24, 10, 36, 28)], "small vehicle": [(1, 20, 9, 27)]}
    polygons = {name: [rect_to_polygon(*box) for box in found] for name, found in boxes.items()}
    answer = format_detection(polygons, square=Square(40, 30), decimals=2, kind=BoxKind.HBB)
    assert answer.startswith("There are <p>two ships</p>[0.10,0.20,0.50,0.50;")
    ask = "Please detect all objects in this image."
    released.task(
        "detection",
        _row("data/detection/SSDD/1.png", ask, answer),
        _row("data/detection/SSDD/2.png", ask, "There are <p>2 ships</p>[0.10,0.20,0.50,0.50;0.30,0.40,0.30,0.90]."),
        _row("data/detection/SSDD/3.png", ask, "There are no objects in the image."),
        _row("data/detection/SSDD/4.png", ask, "I see a ship."),
        _row("data/detection/SSDD/5.png", ask, "There are <p>2 ships</p>[0.10,0.20,0.50,0.50;0.30,0.4"),
        _row("data/detection/dior/1.png", ask, answer),
        images=tuple(f"SSDD/{i}.png" for i in range(1, 6)),
        file="SSDD/ship.json",
    )
    records, rejected, dropped = released.read(released.card("detection", Task.HBB, only="/(SSDD|SARV2)/"))
    first = records["SSDD/1"]
    assert [item.label for item in first.objects] == ["ship", "ship", "small vehicle"]
    for item, box in zip(first.objects, [*boxes["ship"], *boxes["small vehicle"]], strict=True):
        np.testing.assert_allclose(polygon_to_rect(item.polygon), box, atol=0.2 + 1e-4)  # half of a rounding step
    assert len(records["SSDD/2"].objects) == 1  # a box has zero width with two decimals
    assert records["SSDD/3"].objects == ()
    reasons = why(rejected)
    assert set(reasons) == {f"SSDD/{i}" for i in (2, 4, 5)}
    assert "no area" in reasons["SSDD/2"][0]
    assert reasons["SSDD/4"][0] == "object: no box in the answer 'I see a ship.'"
    assert "the bracket is not closed" in reasons["SSDD/5"][0]
    assert [event.reason for event in dropped] == ["its path does not match /(SSDD|SARV2)/"]


def test_released_regions(released: Released) -> None:
    def box(*numbers: float) -> str:
        return format_boxes([rect_to_polygon(*numbers)], square=Square(40, 30), decimals=2, kind=BoxKind.HBB)

    def describe(text: str) -> str:
        return f"Please provide a short description for this region in this remote sensing image :{text}"

    def find(phrase: str) -> str:
        return (
            "Please provide the horizontal bounding box coordinate of the region which is described as:"
            f"{phrase} in this remote sensing image"
        )

    one, two, three = box(4, 3, 20, 15), box(24, 10, 36, 28), box(1, 20, 9, 27)
    image = "data/RSVG/1.png"
    released.task(
        "RSVG",  # one dialogue per direction
        _row(image, describe(one), "The tiny ship", describe(two), "A ship in the port", describe(three), "A car"),
        _row(image, find("The tiny ship"), one, find("A car"), three, find("A car"), two),
        _row(image, find("A pier"), "[0.1,0.2,1.3,0.4]", find("A pier"), "I cannot see one [", "Where?", one),
        images=("1.png",),
    )
    found = released.card("RSVG", Task.GROUNDING, Task.REGION_CAPTION)
    records, rejected, _ = released.read(found)
    (item,) = records["1"].objects
    assert (item.label, item.phrase) == ("object", "The tiny ship")
    np.testing.assert_allclose(polygon_to_rect(item.polygon), (4, 3, 20, 15), atol=0.2 + 1e-4)
    assert records["1"].tasks == (Task.GROUNDING, Task.REGION_CAPTION)
    assert [reason.removeprefix("object: ") for reason in why(rejected)["1"]] == [
        "asked in one direction only: box to phrase",
        "ambiguous phrase 'A car': it describes 2 boxes",
        "ambiguous phrase 'A car': it describes 2 boxes",
        "'0.1,0.2,1.3,0.4': 1.3 exceeds the square, whose side is 1",
        "'[': the bracket is not closed",
        "no phrase in 'Where?'",
    ]


def test_cards_divide_the_detection_folders_of_the_release(tmp_path: Path) -> None:
    folders = {
        "optical": ("dior", "dotav2", "FAR1M", "HRRSD", "NWPUVHR10", "RSOD", "UCAS", "VisDrone"),
        "sar": ("HRSID_HBB", "HRSID_OBB", "SARV2", "SSDD"),
        "infrared": (
            "HIT-UAV", "infrared_ship_fusion", "infrared_ship_lwir", "infrared_ship_swir", "IR_peoplecar",
            "IR_security", "IR_ship", "IR_streetscene",
        ),
    }  # fmt: skip
    answer = "There is <p>one ship</p>[0.25,0.25,0.50,0.50] in the image."
    data = tmp_path / "MMRS-1M" / "data"
    for folder in (name for names in folders.values() for name in names):
        image = data / "detection" / folder / "train" / "1.png"
        annotation = data / "json" / "detection" / f"{folder}_detection" / "a.json"
        for path in (image, annotation):
            path.parent.mkdir(parents=True)
        image.write_bytes(png())
        annotation.write_text(json.dumps([_row(f"data/detection/{folder}/train/1.png", "?", answer)]))
    for sensor, names in folders.items():
        records = read_records(tmp_path, load_cards()[f"mmrs1m_{sensor}"])
        assert {record.id.split("/")[2] for record in records} == set(names)
        assert {record.sensor.value for record in records} == {sensor}
        assert all(record.objects[0].label == "ship" for record in records)
