"""Rules that apply to every format: matching images, validation, splits, user errors."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.datasets.cards import Images, SplitRule, UnannotatedImages, load_cards
from earthgpt_jax.datasets.readers import locate, read
from earthgpt_jax.records import Record, Task
from tests.support.native_datasets import (
    BOX,
    DIAMOND,
    OBB,
    RING,
    CardFolder,
    Native,
    card,
    corner_object,
    fair1m_file,
    fair1m_object,
    hrsc_file,
    hrsc_object,
    png,
    region_object,
    voc_file,
    voc_object,
    why,
)


def test_missing_pairs_and_damaged_files_are_rejected(native: Native) -> None:
    whole = png(200, 200)
    boxes = voc_file(voc_object("ship", 1, 2, 11, 12), width=200, height=200)
    native.put("i/good.png", whole)
    native.put("i/short.png", whole[: len(whole) // 2])
    native.put("i/lonely.png", whole)
    native.put("i/broken.png", whole)
    native.put("i/notes.md", "not an image")
    native.put("i/blind.png", png())
    for name in ("good", "short", "nowhere"):
        native.put(f"a/{name}.xml", boxes)
    native.put("a/broken.xml", boxes[:-20])
    native.put("a/blind.xml", voc_file(voc_object("ship", 9, 9, 1, 1)))
    records, rejected, _ = native.read(card("voc"))
    assert list(records) == ["good"]
    reasons = why(rejected)
    assert reasons["nowhere"][0] == "image: missing image 'nowhere'"
    assert reasons["nowhere"][1].startswith("object: its image or annotation was rejected")
    assert "cannot be decoded" in reasons["short"][0]
    assert reasons["lonely"] == ["image: no annotation names it"]
    assert reasons["broken"][0].startswith("annotation: not XML")
    assert reasons["blind"][-1] == "image: every object of it was rejected"


def test_the_annotated_size_must_be_that_of_the_image(native: Native) -> None:
    native.put("i/x.png", png(80, 60))  # twice the annotated size
    native.put("a/x.xml", voc_file(voc_object("ship", 1, 2, 11, 12)))
    native.put("i/unknown.png", png(80, 60))
    native.put("a/unknown.xml", voc_file(voc_object("ship", 1, 2, 11, 12), width=0, height=0))
    records, rejected, _ = native.read(card("voc"))
    assert (records["unknown"].width, records["unknown"].height) == (80, 60)
    assert why(rejected)["x"][0] == "annotation: the annotation is of a 40x30 image, the image is 80x60"


def test_scenes_too_large_to_decode_are_quarantined(native: Native, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    native.put("i/x.png", png())
    native.put("a/x.xml", voc_file(voc_object("ship", 1, 2, 11, 12)))
    records, rejected, _ = native.read(card("voc"))
    assert not records
    assert "exceeds limit" in why(rejected)["x"][0]


def test_an_ambiguous_or_similar_image_name_is_rejected(native: Native) -> None:
    for path in ("i/a.png", "i/b.png", "i/b.jpg", "i/c.png", "i/e.f.png", "i/one/g.png", "i/two/g.png"):
        native.put(path, png())
    rows = [{"filename": name, "sentences": [{"raw": "text"}]} for name in (
        "a.1", "b", "b.png", "c.tif", "x\\E.F.PNG", "g.png", "two/g.png",
    )]  # fmt: skip
    native.put("a.json", {"images": rows})
    records, rejected, _ = native.read(
        card("captions", {"annotations": "a.json", "images": "i"}, tasks=(Task.CAPTION,))
    )
    assert {name.rsplit("\\", 1)[-1] for name in records} == {"c", "E.F", "two/g"}
    reasons = why(rejected)
    assert reasons["a"][0] == "image: missing image 'a.1'"  # not a.png
    assert reasons["b"][0] == "image: several images are called 'b'"
    assert reasons["g"][0] == "image: several images are called 'g.png'"


def test_unlisted_images_can_be_dropped(native: Native) -> None:
    native.put("i/lonely.png", png())
    native.put("i/good.png", png())
    native.put("a/good.xml", voc_file())
    records, rejected, dropped = native.read(card("voc", unannotated_images=UnannotatedImages.DROP))
    assert (list(records), rejected, len(dropped)) == (["good"], [], 1)
    assert records["good"].tasks == (Task.HBB,)


def test_the_only_object_of_a_class_gets_a_phrase_and_its_tasks(native: Native) -> None:
    native.put("i/x.png", png())
    vehicle = voc_object("small vehicle", 1, 2, 5, 6)
    native.put("a/x.xml", voc_file(voc_object("ship", 1, 2, 11, 12), vehicle, vehicle, voc_object("Fog", 1, 1, 9, 9)))
    found = card("voc", drop={"Fog": "not an object"})
    records, rejected, dropped = native.read(found)
    record = records["x"]
    assert [o.phrase for o in record.objects] == ["the only ship", "", ""]
    assert record.tasks == (Task.HBB, Task.GROUNDING, Task.REGION_CAPTION)
    assert (rejected, dropped[0].reason) == ([], "class Fog: not an object")


def test_root_may_be_the_dataset_folder_itself(native: Native) -> None:
    native.put("i/x.png", png())
    native.put("a/x.xml", voc_file(voc_object("ship", 1, 2, 11, 12)))
    by_parent, by_folder = (
        [event for event in read(root, card("voc")) if isinstance(event, Record)]
        for root in (native.root, native.root / "d")
    )
    assert (by_parent[0].id, by_parent[0].image) == (by_folder[0].id, by_folder[0].image)
    with pytest.raises(
        EarthGPTError, match=r"expected the dataset in .*i/d \(no such folder\) or in .*i \(without a, i\)"
    ):
        read(native.root / "d" / "i", card("voc"))
    # A layout of "." alone matches every folder, so the folder name decides.
    flat = card("yolo", {"annotations": ".", "images": "."}, folder="sar/d")
    assert locate(native.root / "d", flat) == native.root / "d"
    with pytest.raises(EarthGPTError, match=r"not called d"):
        locate(native.root, flat)


def test_a_second_record_with_the_same_id_is_rejected(native: Native) -> None:
    native.put("i/x.png", png())
    native.put("a/x.xml", voc_file())
    part = {"annotations": "a", "images": "i"}
    records, rejected, _ = native.read(card("voc", part, part))
    assert len(records) == 1
    assert why(rejected) == {"x": ["annotation: the id x occurs twice"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "parquet"}, "unknown format 'parquet'"),
        ({"folder": "elsewhere"}, "no such folder"),
        ({"parts": ({"annotations": "b", "images": "i"},)}, "lacks b"),
        ({"parts": ({"annotations": "a"},)}, "needs `images`"),
        ({"format": "coco", "parts": ({"annotations": "bad.json", "images": "i"},)}, "cannot be read as JSON"),
        ({"format": "coco", "parts": ({"annotations": "list.json", "images": "i"},)}, "expected a dict, got list"),
        ({"format": "captions", "parts": ({"annotations": "other.json", "images": "i"},)}, "a list under 'images'"),
        ({"format": "captions", "parts": ({"annotations": "row.json", "images": "i"},)}, "row 1 of 'images': expected"),
    ],
)
def test_user_errors(native: Native, change: dict, message: str) -> None:
    native.put("bad.json", "{")
    native.put("list.json", "[]")
    native.put("other.json", "{}")
    native.put("row.json", {"images": [{}, "x"]})
    values = {"format": "voc", "parts": (), **change}
    with pytest.raises(EarthGPTError, match=message):
        native.read(card(values.pop("format"), *values.pop("parts"), **values))


def test_dior_splits_by_lists(tmp_path: Path) -> None:
    tree = CardFolder(tmp_path, load_cards()["dior"])
    annotations = "Annotations/Horizontal Bounding Boxes"
    for name, folder in (("00001", "trainval"), ("00002", "trainval"), ("11726", "test"), ("11727", "test")):
        tree.put(f"JPEGImages-{folder}/{name}.jpg", png())
        tree.put(f"{annotations}/{name}.xml", voc_file(region_object("Expressway-toll-station", "", *BOX)))
    tree.put("ImageSets/Main/train.txt", "00001 \n\n")
    tree.put("ImageSets/Main/val.txt", "00002.jpg\n")
    tree.put("ImageSets/Main/test.txt", "11726 1\n20000\n")  # test labels are missing in some mirrors
    records, rejected, _ = tree.records()
    assert {name: record.split for name, record in records.items()} == {
        "00001": "train",
        "00002": "val",
        "11726": "test",
    }
    assert records["00001"].objects[0].label == "expressway toll station"
    assert rejected == {
        "11727": [
            "annotation: not in any split list",
            "object: its image or annotation was rejected: not in any split list",
        ],
        "20000": ["annotation: in a split list, but not annotated"],
    }
    tree.put("ImageSets/Main/test.txt", "00001\n")
    with pytest.raises(EarthGPTError, match=r"test.txt: 00001 is also in the train list; the splits would overlap"):
        tree.records()
    (tmp_path / tree.card.folder / "ImageSets/Main/test.txt").unlink()
    with pytest.raises(EarthGPTError, match=r"lacks ImageSets/Main/test\.txt"):
        tree.records()


def test_mar20_official_split(tmp_path: Path) -> None:
    tree = CardFolder(tmp_path, load_cards()["mar20"].variant("official"))
    for name in ("1", "2"):
        tree.put(f"JPEGImages/{name}.jpg", png())
        tree.put(f"Annotations/Horizontal Bounding Boxes/{name}.xml", voc_file(region_object("A2", "", *BOX)))
    tree.put("ImageSets/Main/train.txt", "2\n")
    tree.put("ImageSets/Main/test.txt", "1\n")
    assert {name: record.split for name, record in tree.records()[0].items()} == {"1": "test", "2": "train"}


def test_upper_case_suffixes(native: Native) -> None:
    native.put("i/6651.JPG", png())
    native.put("i/6652.jpg", png())
    row = {"Question": "How many?", "Ground_Truth": 3, "Question_Type": "Simple_Counting"}
    native.put("a.json", {"0": {"Image_ID": "6651.JPG", **row}, "1": {"Image_ID": "6652.JPG", **row}})
    part = {"annotations": "a.json", "images": "i"}
    records, rejected, _ = native.read(card("floodnet", part, tasks=(Task.VQA,)))
    assert (set(records), rejected) == ({"6651", "6652"}, [])


FORMATS = {  # format -> (suffix of annotation files, tasks, a valid annotation, a damaged one)
    "fair1m": (".xml", OBB, fair1m_file(fair1m_object("ship", *RING)), ""),
    "hrsc": (".xml", OBB, hrsc_file(hrsc_object(Class_ID="ship")), "<HRSC_Image><HRSC_Objects>"),
    "rotated_voc": (".xml", OBB, voc_file(corner_object("ship", *DIAMOND)), "\x00"),
    "ucas_aod": (".txt", OBB, "10 5 14 1 18 5 14 9 45 10 1 8 8", ""),
    "visdrone": (".txt", (Task.HBB,), "10,1,8,8,1,1,0,0", ""),
}


@pytest.mark.parametrize("name", FORMATS)
def test_an_invalid_file_does_not_affect_others(native: Native, name: str) -> None:
    suffix, tasks, good, damaged = FORMATS[name]
    part = {"annotations": "a", "images": "i"} | ({"label": "ship"} if name == "ucas_aod" else {})
    found = card(name, part, part, tasks=tasks, images=Images.FILES, split_rule=SplitRule.HASH)
    whole = png(40, 30)
    for image in ("good", "cut", "damaged", "lonely"):
        native.put(f"i/{image}.png", whole)
    native.put("i/cut.png", whole[: len(whole) // 2])
    for image in ("good", "cut", "absent"):
        native.put(f"a/{image}{suffix}", good)
    native.put(f"a/damaged{suffix}", damaged)
    records, rejected, _ = native.read(found)
    reasons = why(rejected)
    assert set(records) == ({"good"} if suffix == ".xml" else {"good", "damaged"})  # an empty text file: no objects
    assert [item.label for item in records["good"].objects] == ["ship"]
    assert "annotation: the id good occurs twice" in reasons["good"]  # both parts contain it
    assert "cannot be decoded" in reasons["cut"][0]
    assert reasons["absent"][0] == "image: missing image 'absent'"
    assert reasons["lonely"] == ["image: no annotation names it"]
    if suffix == ".xml":
        assert reasons["damaged"][0].startswith("annotation: not XML")
