"""Readers: the exact counts of real samples, dialects against each other, and malformed files by hand."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from earthgpt_jax.boxes import canonical, polygon_to_rect
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.datasets.build.counts import BuildCounts
from earthgpt_jax.datasets.cards import Card, Images, SegmentationBox, SplitRule, UnannotatedImages, load_cards
from earthgpt_jax.datasets.readers import locate, missing_paths, read
from earthgpt_jax.records import Record, Task
from tests.support.native_datasets import Native, card, png, why


@pytest.fixture
def native(tmp_path: Path) -> Native:
    return Native(tmp_path)


# ------------------------------------------------------------------------------------------ real samples
# folder's card, variant -> native and kept counts (images, objects, questions, captions), by the samples' README
COUNTS = {
    ("hit_uav", ""): ((90, 916, 0, 0), (90, 909, 0, 0)),
    ("hit_uav", "normal_xml"): ((90, 916, 0, 0), (90, 909, 0, 0)),
    ("hit_uav", "normal_json"): ((90, 916, 0, 0), (90, 909, 0, 0)),
    ("hit_uav", "rotate_json"): ((90, 916, 0, 0), (90, 909, 0, 0)),
    ("ssdd_yolo", ""): ((100, 221, 0, 0), (100, 221, 0, 0)),
    ("ssdd", ""): ((4, 8, 0, 0), (4, 8, 0, 0)),
    ("ssdd", "voc"): ((4, 8, 0, 0), (4, 8, 0, 0)),
    ("ssdd", "segments"): ((4, 8, 0, 0), (4, 8, 0, 0)),
    ("ssdd", "coco"): ((4, 8, 0, 0), (4, 8, 0, 0)),
    ("dota", ""): ((4, 587, 0, 0), (4, 585, 0, 0)),  # two boxes of a tile have no width
    ("rsicd", ""): ((130, 0, 0, 650), (130, 0, 0, 650)),
    ("rsscn7", ""): ((42, 0, 0, 0), (42, 0, 0, 0)),
    ("rsvqa_lr", ""): ((10, 0, 600, 0), (6, 0, 600, 0)),  # four rows are inactive
    ("rsvqa_hr", ""): ((9, 0, 901, 0), (9, 0, 901, 0)),
    ("sydney_captions", ""): ((4, 0, 0, 20), (4, 0, 0, 20)),
    ("rsivqa", ""): ((142, 0, 161, 0), (141, 0, 161, 0)),  # UCM 4, Sydney 4, RSICD 130, DOTA 3 of 4
    ("hrrsd", ""): ((30, 145, 0, 0), (30, 145, 0, 0)),
    ("nwpu_vhr10", ""): ((30, 284, 0, 0), (30, 284, 0, 0)),
    ("floodnet_vqa", ""): ((68, 0, 200, 0), (68, 0, 200, 0)),
}


def _real(root: Path, name: str, variant: str = "") -> list:
    found = load_cards()[name]
    return list(read(root, found.variant(variant) if variant else found))


@pytest.mark.realdata
@pytest.mark.parametrize(("name", "variant"), COUNTS)
def test_counts_of_real_samples(realdata: Path, name: str, variant: str) -> None:
    counts = BuildCounts()
    for event in _real(realdata, name, variant):
        counts.add(event)
    counts.check(name)
    native, kept = COUNTS[name, variant]
    assert tuple(row["native"] for row in counts.items.values()) == native
    assert tuple(row["kept"] for row in counts.items.values()) == kept


@pytest.mark.realdata
def test_every_card_is_counted(realdata: Path) -> None:
    expected = {
        (name, variant)
        for name, found in load_cards().items()
        for variant in ("", *found.variants)
        if _is_there(realdata, found.variant(variant) if variant else found)
    }
    assert expected == set(COUNTS)


def _is_there(root: Path, found: Card) -> bool:
    """There are samples of some sources only."""
    lists = [set(part.values()) for part in found.parts]
    absent = set(missing_paths(root / found.folder, found))
    return (root / found.folder).is_dir() and any(not paths & absent for paths in lists)


@pytest.mark.realdata
def test_hit_uav_dialects_agree(realdata: Path) -> None:
    sets = {
        variant: {r.id: r for r in _real(realdata, "hit_uav", variant) if isinstance(r, Record)}
        for variant in ("", "normal_xml", "normal_json", "rotate_json")
    }
    assert len({frozenset(records) for records in sets.values()}) == 1
    boxes = 0
    for name, rotated in sets[""].items():
        others = {variant: records[name] for variant, records in sets.items() if variant}
        for other in others.values():
            assert [o.label for o in other.objects] == [o.label for o in rotated.objects]
            assert other.image == rotated.image
        for i, item in enumerate(rotated.objects):
            np.testing.assert_allclose(others["rotate_json"].objects[i].polygon, item.polygon, atol=0.01)
            xml, js = (others[v].objects[i].polygon for v in ("normal_xml", "normal_json"))
            np.testing.assert_array_equal(xml, js)
            upright = np.clip(polygon_to_rect(item.polygon), 0, (640, 512, 640, 512))
            np.testing.assert_allclose(polygon_to_rect(xml), upright, atol=2.0)
            boxes += 1
        assert rotated.tasks[:2] == (Task.HBB, Task.OBB)
        assert others["normal_xml"].tasks[0] is Task.HBB
        assert Task.OBB not in others["normal_xml"].tasks
    assert boxes == 909


@pytest.mark.realdata
def test_ssdd_formats_agree(realdata: Path) -> None:
    sets = [
        {r.id.rsplit("/", 1)[1]: r for r in _real(realdata, "ssdd", v) if isinstance(r, Record)}
        for v in ("", "voc", "segments", "coco")
    ]
    for name, rotated in sets[0].items():
        for other in sets[1:]:
            for a, b in zip(rotated.objects, other[name].objects, strict=True):
                np.testing.assert_allclose(polygon_to_rect(a.polygon), polygon_to_rect(b.polygon), atol=9)
        for a, b in zip(sets[2][name].objects, sets[3][name].objects, strict=True):
            np.testing.assert_allclose(a.polygon, b.polygon, atol=6)
    assert sets[0]["000001"].split == "test"  # 1 and 9 are the official test set
    assert {sets[0][n].split for n in ("000002", "000006", "000015")} <= {"train", "val"}


@pytest.mark.realdata
def test_details_of_real_samples(realdata: Path) -> None:
    vhr = {r.id.rsplit("/", 1)[1]: r for r in _real(realdata, "nwpu_vhr10") if isinstance(r, Record)}
    np.testing.assert_array_equal(vhr["009"].objects[2].polygon, [652, 73, 694, 73, 694, 123, 652, 123])
    assert (vhr["009"].image, vhr["009"].height) == (b"", 0)
    hrrsd = {r.id.rsplit("/", 1)[1]: r for r in _real(realdata, "hrrsd") if isinstance(r, Record)}
    assert (hrrsd["00019"].width, hrrsd["00019"].height) == (1597, 1837)
    dota = {r.id.rsplit("/", 1)[1]: r for r in _real(realdata, "dota") if isinstance(r, Record)}
    assert sum(o.difficult for r in dota.values() for o in r.objects) == 71 + 5 - 2
    assert dota["P0003"].objects[0].label == "small vehicle"
    scenes = Counter(r.label for r in _real(realdata, "rsscn7") if isinstance(r, Record))
    assert set(scenes.values()) == {6}
    assert len(scenes) == 7
    flood = [t for r in _real(realdata, "floodnet_vqa") if isinstance(r, Record) for t in r.turns]
    assert sum(turn.answer.isdigit() for turn in flood) == 28
    rsvqa = [r for r in _real(realdata, "rsvqa_lr") if isinstance(r, Record)]
    assert {r.id for r in rsvqa} == {f"rsvqa_lr/train/{i}" for i in (72, 102, 465)} | {
        f"rsvqa_lr/val/{i}" for i in (491, 530, 543)
    }
    assert rsvqa[0].turns[1].question == "What is the number of roads?"
    assert (rsvqa[0].turns[1].answer, rsvqa[0].turns[1].question_type) == ("69", "count")


# ---------------------------------------------------------------------------------------- written by hand
def _voc(*objects: str, width: int = 40, height: int = 30) -> str:
    size = f"<size><width>{width}</width><height>{height}</height></size>"
    return f"<annotation>{size}{''.join(objects)}</annotation>"


def _upright(name: str, *corners: object, difficult: int = 0) -> str:
    tags = "".join(f"<{t}>{v}</{t}>" for t, v in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{tags}</bndbox></object>"


def test_voc_judges_every_object(native: Native) -> None:
    native.put("i/one.PNG", png())
    native.put(
        "a/one.xml",
        _voc(
            _upright("Ship", 1, 2, 11, 12, difficult=1),
            _upright("small-vehicle", 30, 20, 60, 28),  # reaches beyond the border
            _upright("balloon", 1, 2, 3, 4),
            _upright("small vehicle", 5, 5, 5, 9),
            _upright("small vehicle", 5, "many", 6, 9),
            _upright("small vehicle", 5, "nan", 6, 9),
            _upright("small vehicle", 50, 5, 60, 9),
            "<object><name>ship</name></object>",
        ),
    )
    records, rejected, _ = native.read(card("voc"))
    (record,) = records.values()
    assert (record.width, record.height, record.image) == (40, 30, png())
    assert [o.label for o in record.objects] == ["ship", "small vehicle"]
    np.testing.assert_array_equal(record.objects[0].polygon, [1, 2, 11, 2, 11, 12, 1, 12])
    np.testing.assert_array_equal(record.objects[1].polygon, [30, 20, 40, 20, 40, 28, 30, 28])
    assert [o.difficult for o in record.objects] == [True, False]
    assert why(rejected)["one"] == [
        "object: unknown class 'balloon'",
        "object: degenerate box: expected min < max, got 5,5,5,9",
        "object: bad number 'many'",
        "object: bad number 'nan'",
        "object: degenerate box: outside of the 40x30 image",
        "object: no <bndbox>",
    ]
    assert rejected[0].file == "a/one.xml"
    assert all(o.phrase == "" for o in record.objects)  # other ships and vehicles were only rejected


def test_pairs_and_damage(native: Native) -> None:
    whole = png(200, 200)
    boxes = _voc(_upright("ship", 1, 2, 11, 12), width=200, height=200)
    native.put("i/good.png", whole)
    native.put("i/short.png", whole[: len(whole) // 2])
    native.put("i/lonely.png", whole)
    native.put("i/broken.png", whole)
    native.put("i/notes.md", "not an image")
    native.put("i/blind.png", png())
    for name in ("good", "short", "nowhere"):
        native.put(f"a/{name}.xml", boxes)
    native.put("a/broken.xml", boxes[:-20])
    native.put("a/blind.xml", _voc(_upright("ship", 9, 9, 1, 1)))
    records, rejected, _ = native.read(card("voc"))
    assert list(records) == ["good"]
    reasons = why(rejected)
    assert reasons["nowhere"][0] == "image: missing image 'nowhere'"
    assert reasons["nowhere"][1].startswith("object: its image or annotation was rejected")
    assert "cannot be decoded" in reasons["short"][0]
    assert reasons["lonely"] == ["image: no annotation names it"]
    assert reasons["broken"][0].startswith("annotation: not XML")
    assert reasons["blind"][-1] == "image: every object of it was rejected"


def test_the_annotation_must_be_of_this_image(native: Native) -> None:
    native.put("i/x.png", png(80, 60))  # twice the size that its boxes were drawn on
    native.put("a/x.xml", _voc(_upright("ship", 1, 2, 11, 12)))
    native.put("i/unsaid.png", png(80, 60))
    native.put("a/unsaid.xml", _voc(_upright("ship", 1, 2, 11, 12), width=0, height=0))
    records, rejected, _ = native.read(card("voc"))
    assert (records["unsaid"].width, records["unsaid"].height) == (80, 60)
    assert why(rejected)["x"][0] == "annotation: the annotation is of a 40x30 image, the image is 80x60"


def test_scenes_too_large_to_decode_are_quarantined(native: Native, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    native.put("i/x.png", png())
    native.put("a/x.xml", _voc(_upright("ship", 1, 2, 11, 12)))
    records, rejected, _ = native.read(card("voc"))
    assert not records
    assert "exceeds limit" in why(rejected)["x"][0]


def test_an_image_is_never_guessed(native: Native) -> None:
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
    native.put("a/good.xml", _voc())
    records, rejected, dropped = native.read(card("voc", unannotated_images=UnannotatedImages.DROP))
    assert (list(records), rejected, len(dropped)) == (["good"], [], 1)
    assert records["good"].tasks == (Task.HBB,)


def test_only_ones_get_phrases_and_tasks(native: Native) -> None:
    native.put("i/x.png", png())
    vehicle = _upright("small vehicle", 1, 2, 5, 6)
    native.put("a/x.xml", _voc(_upright("ship", 1, 2, 11, 12), vehicle, vehicle, _upright("Fog", 1, 1, 9, 9)))
    found = card("voc", drop={"Fog": "not an object"})
    records, rejected, dropped = native.read(found)
    record = records["x"]
    assert [o.phrase for o in record.objects] == ["the only ship", "", ""]
    assert record.tasks == (Task.HBB, Task.GROUNDING, Task.REGION_CAPTION)
    assert (rejected, dropped[0].reason) == ([], "class Fog: not an object")


def test_rotated_dialects(native: Native) -> None:
    robnd = (
        "<object><name>ship</name><robndbox><cx>20</cx><cy>10</cy><w>{}</w><h>4</h>"
        "<angle>{}</angle></robndbox></object>"
    )
    points = ((10, 5), (14, 1), (18, 5), (14, 9))
    corners = "".join(f"<x{i}>{x}</x{i}><y{i}>{y}</y{i}>" for i, (x, y) in enumerate(points, start=1))
    native.put("i/x.png", png())
    native.put(
        "a/x.xml",
        _voc(
            robnd.format(10, 0.0),
            robnd.format(10, np.pi / 2),
            f"<object><name>ship</name><rotated_bndbox>{corners}</rotated_bndbox></object>",
            robnd.format(0, 0.0),
        ),
    )
    records, rejected, _ = native.read(card("rotated_voc", tasks=(Task.HBB, Task.OBB)))
    level, upright, diamond = (o.polygon for o in records["x"].objects)
    np.testing.assert_allclose(level, [15, 8, 25, 8, 25, 12, 15, 12], atol=1e-5)
    np.testing.assert_allclose(upright, [18, 5, 22, 5, 22, 15, 18, 15], atol=1e-5)
    np.testing.assert_array_equal(diamond, [14, 1, 18, 5, 14, 9, 10, 5])
    assert why(rejected)["x"] == ["object: degenerate box: expected sides above 0, got 0 x 4"]


def test_polygon_voc(native: Native) -> None:
    def segment(*points: str) -> str:
        inner = "".join(f"<point>{point}</point>" for point in points)
        return f"<object><name>ship</name><segm>{inner}</segm></object>"

    native.put("i/x.png", png())
    native.put(
        "a/x.xml",
        _voc(
            segment("2,3", "12,3", "12,9", "7,9", "2,9"),
            segment("1,1", "2,2"),
            segment("1,1", "2,2", "3,3"),
            segment("1,1", "2,z", "3,3"),
        ),
    )
    records, rejected, _ = native.read(card("polygon_voc", tasks=(Task.HBB, Task.OBB)))
    np.testing.assert_allclose(records["x"].objects[0].polygon, [2, 3, 12, 3, 12, 9, 2, 9], atol=1e-5)
    reasons = why(rejected)["x"]
    assert [reason.split(":")[1] for reason in reasons] == [" degenerate box", " degenerate box", " bad number 'z'"]


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


def test_json_of_coco_build_with_odd_fields(native: Native) -> None:
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
    assert {name: len(record.objects) for name, record in records.items()} == {"x": 1}
    reasons = why(rejected)
    assert reasons["x"] == ["object: unknown class 'category {}'"]
    assert reasons["y"] == ["annotation: a second image with the id 1"]
    assert reasons["z"][0] == "annotation: no id"  # nor does the box without image_id become one of z
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


def test_yolo(native: Native) -> None:
    for name in ("x", "empty"):
        native.put(f"i/{name}.png", png())
    native.put("a/classes.txt", "ship\n")
    native.put("a/empty.txt", "\n")
    native.put(
        "a/x.txt",
        "1 0.5 0.5 0.5 0.2\n5 .5 .5 .1 .1\n0 .5 .5 .1\n0 .5 .5 0 .1\n0 .5 x .1 .1\n0 20 20 5 5\n² .5 .5 .1 .1\n",
    )
    records, rejected, _ = native.read(card("yolo"))
    (item,) = records["x"].objects
    np.testing.assert_allclose(item.polygon, [10, 12, 30, 12, 30, 18, 10, 18], atol=1e-4)
    assert item.label == "small vehicle"
    assert records["empty"].objects == ()
    assert [reason.split(",")[0] for reason in why(rejected)["x"]] == [
        "object: unknown class '5'",
        "object: expected `class cx cy w h`",
        "object: degenerate box: expected fractions and sides above 0",
        "object: bad number 'x'",
        "object: degenerate box: expected fractions and sides above 0",
        "object: unknown class '²'",
    ]


def test_dota(native: Native) -> None:
    native.put("i/x.png", png())
    native.put(
        "a/x.txt",
        "imagesource:GoogleEarth\ngsd:null\n12 9 2 9 2 3 12 3 ship 0\n-2 3 8 3 8 9 -2 9 small-vehicle\n"
        "1 1 1 1 1 9 1 9 ship 2\n1 2 3 4 ship 0\n1 2 3 4 5 6 7 inf ship 0\n1 1 9 1 9 9 1 9 ship 2\n",
    )
    records, rejected, _ = native.read(card("dota", tasks=(Task.HBB, Task.OBB)))
    objects = records["x"].objects
    np.testing.assert_array_equal(objects[0].polygon, [2, 3, 12, 3, 12, 9, 2, 9])
    np.testing.assert_array_equal(objects[1].polygon, [-2, 3, 8, 3, 8, 9, -2, 9])  # beyond the border is kept
    assert [o.difficult for o in objects] == [False, False, True]
    assert all(np.array_equal(o.polygon, canonical(o.polygon)) for o in objects)
    assert len(rejected) == 3


def test_captions(native: Native) -> None:
    native.put("i/x.png", png())
    native.put("i/mute.png", png())
    rows = [
        {"filename": "x.png", "split": "restval", "sentences": [{"raw": " a ship . "}, {"raw": ""}, "b"]},
        {"filename": "gone.tif", "split": "test", "sentences": [{"raw": "b"}]},
        {"filename": "mute.png", "split": "test", "sentences": "b"},
        {"split": "test"},
    ]
    native.put("a.json", {"images": rows})
    found = card(
        "captions", {"annotations": "a.json", "images": "i"}, tasks=(Task.CAPTION,), split_rule=SplitRule.NATIVE
    )
    records, rejected, _ = native.read(found)
    assert records["x"].references == ("a ship .",)
    assert records["x"].split == "train"
    reasons = why(rejected)
    assert reasons["x"] == ["caption: empty", "caption: empty"]
    assert reasons["gone"][0] == "image: missing image 'gone.tif'"
    assert reasons[""] == ["annotation: no filename"]
    assert reasons["mute"] == ["image: nothing valid is left for caption"]


def test_rsvqa(native: Native) -> None:
    native.put("i/3.png", png())
    ask = {"active": True, "type": "count", "question": "How many?"}
    native.put("im.json", {"images": [{"id": 3, "active": True}, {"id": 4, "active": False}]})
    questions = [
        {"id": 0, "img_id": 3, "answers_ids": [5], **ask},
        {"id": 1, "img_id": 3, "answers_ids": [6], **ask},  # its answer is inactive
        {"id": 2, "active": False},
        {"id": 3, "img_id": 4, "answers_ids": [5], **ask},  # its image is inactive
    ]
    native.put("q.json", {"questions": questions})
    native.put("an.json", {"answers": [{"id": 5, "active": True, "answer": 12}, {"id": 6, "active": False}]})
    part = {"index": "im.json", "questions": "q.json", "answers": "an.json", "images": "i", "split": "val"}
    records, rejected, dropped = native.read(card("rsvqa", part, tasks=(Task.VQA,), split_rule=SplitRule.NATIVE))
    (turn,) = records["3"].turns
    assert (turn.question, turn.answer, turn.question_type) == ("How many?", "12", "count")
    assert records["3"].id == "s/val/3"
    reasons = why(rejected)
    assert reasons["3"] == ["question: question 1 has no active answer (answers_ids [6])"]
    assert reasons["4"] == ["question: missing pair: no active image has the id 4"]
    assert sorted(event.item_type for event in dropped) == ["image", "question"]


def test_rsivqa(native: Native) -> None:
    native.put("i/P1.png", png())
    native.put("a.txt", "P1: is it 9:30? or later?yes \n\nP1:no mark\nnonsense\nP2:a?b\nP1:what?\n")
    records, rejected, _ = native.read(card("rsivqa", {"annotations": "a.txt", "images": "i", "prefix": "D/"}))
    (turn,) = records["D/P1"].turns
    assert (turn.question, turn.answer) == ("is it 9:30? or later?", "yes")
    reasons = why(rejected)
    assert len(reasons["D/P1"]) == 2
    assert reasons["line 4"] == ["question: expected image:question?answer, got 'nonsense'"]
    assert reasons["D/P2"][0] == "image: missing image 'P2'"


def test_folders(native: Native) -> None:
    native.put("i/aShip/1.png", png())
    native.put("i/small_vehicle/1.png", png())  # the same file name in another class
    native.put("i/fog/2.png", png())
    native.put("i/aShip/2.png", b"")
    found = card("folders", {"images": "i"}, tasks=(Task.CLASSIFICATION,), synonyms={"aShip": "ship"})
    records, rejected, _ = native.read(found)
    assert {name: r.label for name, r in records.items()} == {"aShip/1": "ship", "small_vehicle/1": "small vehicle"}
    reasons = why(rejected)
    assert reasons["fog/2"] == ["annotation: unknown class 'fog'"]
    assert "cannot be decoded" in reasons["aShip/2"][0]


def test_vhr10(native: Native) -> None:
    native.put("a/001.txt", "( 1, 2),(11 ,12), 1 \n\n(1,2),(3,4),0\n(5,5),(5,9),1\nfog\n(1,2),(3,x),1\n(1,2),(3,4),3\n")
    records, rejected, _ = native.read(card("vhr10", {"annotations": "a"}, images=Images.NONE))
    np.testing.assert_array_equal(records["001"].objects[0].polygon, [1, 2, 11, 2, 11, 12, 1, 12])
    reasons = why(rejected)["001"]
    assert (len(reasons), reasons[0], reasons[-1]) == (5, "object: unknown class '0'", "object: unknown class '3'")


def test_floodnet(native: Native) -> None:
    row = {"Image_ID": "7.JPG", "Question": "How many?", "Ground_Truth": 0, "Question_Type": "Simple_Counting"}
    odd = {"1": {**row, "Ground_Truth": None}, "2": {"Question": "?"}, "3": 4, "5": {**row, "Question": ["?"]}}
    native.put("a.json", {"0": row, **odd})
    records, rejected, _ = native.read(card("floodnet", {"annotations": "a.json"}, images=Images.NONE))
    (turn,) = records["7"].turns
    assert (turn.answer, turn.question_type) == ("0", "simple_counting")
    assert {name: len(reasons) for name, reasons in why(rejected).items()} == {"2": 1, "3": 1, "7": 2}


def test_the_folder_of_native_files_may_be_named_itself(native: Native) -> None:
    native.put("i/x.png", png())
    native.put("a/x.xml", _voc(_upright("ship", 1, 2, 11, 12)))
    here, there = (
        [event for event in read(root, card("voc")) if isinstance(event, Record)]
        for root in (native.root, native.root / "d")
    )
    assert (here[0].id, here[0].image) == (there[0].id, there[0].image)
    with pytest.raises(
        EarthGPTError, match=r"expected the dataset in .*i/d \(no such folder\) or in .*i \(without a, i\)"
    ):
        read(native.root / "d" / "i", card("voc"))
    # A layout of "." alone fits any folder: there the name decides.
    flat = card("yolo", {"annotations": ".", "images": "."}, folder="sar/d")
    assert locate(native.root / "d", flat) == native.root / "d"
    with pytest.raises(EarthGPTError, match=r"not called d"):
        locate(native.root, flat)


def test_a_second_record_of_one_id_is_rejected(native: Native) -> None:
    native.put("i/x.png", png())
    native.put("a/x.xml", _voc())
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
def test_what_the_user_can_mend(native: Native, change: dict, message: str) -> None:
    native.put("bad.json", "{")
    native.put("list.json", "[]")
    native.put("other.json", "{}")
    native.put("row.json", {"images": [{}, "x"]})
    values = {"format": "voc", "parts": (), **change}
    with pytest.raises(EarthGPTError, match=message):
        native.read(card(values.pop("format"), *values.pop("parts"), **values))
