"""COCO JSON and the JSON files of HIT-UAV."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from earthgpt_jax.boxes import (
    polygon_to_rect,
    rotated_to_polygon,
)
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.datasets.cards import SegmentationBox, load_cards
from earthgpt_jax.records import Task
from tests.support.native_datasets import OBB, CardFolder, Native, card, png, why


def _coco(images: list, annotations: list) -> dict:
    return {"images": images, "annotations": annotations, "categories": [{"id": 7, "name": "ship"}]}


def test_coco(native: Native) -> None:
    native.put("i/x.png", png())
    ring = [2, 3, 12, 3, 12, 9, 2, 9]
    rows = [
        {"image_id": 1, "category_id": 7, "bbox": [2, 3, 10, 6], "segmentation": [ring]},
        {"image_id": 1, "category_id": 8, "bbox": [2, 3, 10, 6], "segmentation": [ring]},
        {"image_id": 1, "category_id": 7, "bbox": [2, 3, 0, 6], "segmentation": {"counts": "x"}},
        {"image_id": 1, "category_id": 7, "bbox": [2, 3], "segmentation": [[1, 2, 3]]},
        {"image_id": 9, "category_id": 7, "bbox": [2, 3, 10, 6], "segmentation": [ring]},
    ]
    native.put("a/all.json", _coco([{"id": 1, "file_name": "x.png"}, {"id": 2, "file_name": "../x2.png"}], rows))
    for segmentation_box in SegmentationBox:
        found = card("coco", {"annotations": "a/all.json", "images": "i"}, segmentation_box=segmentation_box)
        records, rejected, _ = native.read(found)
        np.testing.assert_allclose(records["x"].objects[0].polygon, ring, atol=1e-5)
        reasons = why(rejected)
        assert len(reasons["x"]) == 3
        assert reasons["x"][0] == "object: unknown class 'category 8'"
        assert reasons["9"] == ["object: missing pair: no image has the id 9"]
        assert reasons["x2"] == ["image: missing image '../x2.png'"]


def test_coco_with_invalid_fields(native: Native) -> None:
    for name in "xyz":
        native.put(f"i/{name}.png", png())
    images = [
        {"id": 1, "file_name": "x.png", "width": "wide", "height": None},
        {"id": 1, "file_name": "y.png"},
        {"file_name": "z.png"},
    ]
    box = {"bbox": [2, 3, 10, 6], "category_id": 7}
    rows = [{**box, "image_id": 1}, box, {**box, "image_id": [1]}, {**box, "image_id": 1, "category_id": {}}]
    native.put("a.json", _coco(images, rows))
    records, rejected, _ = native.read(card("coco", {"annotations": "a.json", "images": "i"}))
    assert records == {}
    reasons = why(rejected)
    assert reasons["x"] == reasons["y"] == ["annotation: 2 images have the id 1"]  # whose boxes these are is not known
    assert reasons["1"] == ["object: missing pair: several images have the id 1"]
    assert reasons["z"][0] == "annotation: no id"  # and the box without image_id is not assigned to z
    assert reasons["[1]"] == ["object: missing pair: no image has the id '[1]'"]


@pytest.mark.parametrize(
    ("key", "box", "bad"),
    [("annotation", [2, 3, 10, 6], [2, 3, -1, 6]), ("annotations", [7, 6, 10, 6, 0.0], [7, 6, 10, 6])],
)
def test_hit_uav_json(native: Native, key: str, box: list, bad: list) -> None:
    native.put("i/x.png", png())
    rows = [{"image_id": 0, "category_id": 0, "bbox": b} for b in (box, bad)]
    content = {"images": [{"id": 0, "filename": "x.png"}], "categories": [{"id": 0, "name": "ship"}], key: rows}
    native.put("a.json", content)
    found = card("hit_uav_json", {"annotations": "a.json", "images": "i"})
    records, rejected, _ = native.read(found)
    np.testing.assert_allclose(records["x"].objects[0].polygon, [2, 3, 12, 3, 12, 9, 2, 9], atol=1e-5)
    assert len(rejected) == 1
    native.put("a.json", {"images": [], "categories": []})
    with pytest.raises(EarthGPTError, match="expected one list"):
        native.read(found)


def test_hit_uav_in_the_layout_of_its_repository(tmp_path: Path) -> None:
    """The card's default layout is that of the samples, a part of the repository's."""
    tree = CardFolder(tmp_path, load_cards()["hit_uav"].variant("official"))
    for split in ("train", "val", "test"):
        tree.put(f"rotate_json/{split}/{split}.jpg", png())
        box = {"image_id": 0, "category_id": 3, "bbox": [20, 15, 12, 4, 0.5]}
        names = [{"id": 3, "name": "OtherVehicle"}]
        images = [{"id": 0, "filename": f"{split}.jpg", "width": 40, "height": 30}]
        tree.put(f"rotate_json/annotations/{split}.json", {"images": images, "categories": names, "annotations": [box]})
    records, rejected, _ = tree.records()
    assert {name: record.split for name, record in records.items()} == {s: s for s in ("train", "val", "test")}
    expected = rotated_to_polygon(cx=20, cy=15, w=12, h=4, angle=0.5)
    for record in records.values():
        np.testing.assert_allclose(record.objects[0].polygon, expected, atol=1e-4)
        assert record.objects[0].label == "other vehicle"
    assert rejected == {}


def test_hrsid_oriented_boxes_come_from_polygons(tmp_path: Path) -> None:
    found = load_cards()["hrsid"]
    tree = CardFolder(tmp_path, found)
    box = {"category_id": 1, "bbox": [10, 1, 8, 8], "iscrowd": 0}
    ring = [10, 5, 14, 1, 16, 3, 18, 5, 14, 9]  # a rotated ship, with an extra point on one side
    for image, split in enumerate(("train", "test")):
        name = f"P000{image}_0_800_0_800.jpg"
        tree.put(f"JPEGImages/{name}", png())
        rows = [{"image_id": image, "segmentation": [ring], **box}, {"image_id": image, "segmentation": [], **box}]
        content = {
            "images": [{"id": image, "file_name": name, "width": 40, "height": 30}],
            "categories": [{"id": 1, "name": "ship"}],
            "annotations": rows,
        }
        tree.put(f"annotations/{split}2017.json", content)
    records, rejected, _ = tree.records()
    assert {record.split for record in records.values()} == {"train", "test"}
    for name, record in records.items():
        np.testing.assert_allclose(record.objects[0].polygon, [14, 1, 18, 5, 14, 9, 10, 5], atol=1e-4)
        assert record.tasks[:2] == OBB
        assert rejected[name] == ["object: no polygon in `segmentation`"]
    records, rejected, _ = CardFolder(tmp_path, found.variant("axis_aligned")).records()
    assert rejected == {}
    for record in records.values():
        np.testing.assert_array_equal(polygon_to_rect(record.objects[1].polygon), (10, 1, 18, 9))
        assert Task.OBB not in record.tasks


def test_ids_may_be_numbers_in_one_list_and_text_in_another(native: Native) -> None:
    native.put("i/x.png", png())
    native.put("i/y.png", png())
    box = {"category_id": "7", "bbox": [2, 3, 10, 6]}
    images = [{"id": 1, "file_name": "x.png"}, {"id": 2, "file_name": "y.png"}]
    native.put("a.json", _coco(images, [{"image_id": "1", **box}, {"image_id": 2, **box}]))
    found = card("coco", {"annotations": "a.json", "images": "i"})
    records, rejected, _ = native.read(found)
    assert rejected == [] and all(len(records[name].objects) == 1 and records[name].complete for name in "xy")
    # Where both kinds of id exist, they are different ids.
    images = [{"id": 1, "file_name": "x.png"}, {"id": "1", "file_name": "y.png"}]
    native.put("a.json", _coco(images, [{"image_id": "1", **box}]))
    records, rejected, _ = native.read(found)
    assert {name: len(record.objects) for name, record in records.items()} == {"x": 0, "y": 1}


def test_an_image_is_not_empty_while_boxes_have_no_image(native: Native) -> None:
    for name in "xyz":
        native.put(f"i/{name}.png", png())
    images = [{"id": number, "file_name": f"{name}.png"} for number, name in enumerate("xyz")]
    box = {"category_id": 7, "bbox": [2, 3, 10, 6]}
    native.put("a.json", _coco(images, [{"image_id": 0, **box}, {"image_id": 77, **box}]))
    records, rejected, _ = native.read(card("coco", {"annotations": "a.json", "images": "i"}))
    assert set(records) == {"x"} and not records["x"].complete  # the other box may be in x, too
    reasons = why(rejected)
    assert reasons["y"] == ["image: it has no object, but 1 objects of the annotation file have no image"]
    assert reasons["77"] == ["object: missing pair: no image has the id 77"]


def test_equal_names_in_two_folders_are_two_images(native: Native) -> None:
    native.put("i/a/1.png", png(40, 30))
    native.put("i/b/1.png", png(30, 40))
    native.put("i/b/2.png", png())
    images = [{"id": i, "file_name": f"{folder}/1.png", "width": w, "height": 70 - w}
              for i, (folder, w) in enumerate((("a", 40), ("b", 30)))]  # fmt: skip
    images += [{"id": 3, "file_name": "b/2.png"}, {"id": 4, "file_name": "a/2.png"}]  # the second one is missing
    rows = [{"image_id": i, "category_id": 7, "bbox": [2, 3, 5, 4 + i]} for i in (0, 1, 3, 4)]
    native.put("a.json", _coco(images, rows))
    records, rejected, _ = native.read(card("coco", {"annotations": "a.json", "images": "i"}))
    bottoms = {name: (record.width, polygon_to_rect(record.objects[0].polygon)[3]) for name, record in records.items()}
    assert bottoms == {"a/1": (40, 7), "b/1": (30, 8), "b/2": (40, 10)}
    assert why(rejected)["a/2"][0] == "image: missing image 'a/2.png'"
