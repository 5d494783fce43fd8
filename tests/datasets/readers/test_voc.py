"""PASCAL VOC XML and the formats derived from it.

Files are written by hand from the documented formats, with the irregularities known from the releases.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import shapely
from PIL import Image

from earthgpt_jax.boxes import (
    canonical,
    polygon_to_rect,
    rotated_to_polygon,
)
from earthgpt_jax.datasets.cards import load_cards
from earthgpt_jax.raster.decode import decode
from earthgpt_jax.records import Task
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


def test_voc_validates_each_object(native: Native) -> None:
    native.put("i/one.PNG", png())
    native.put(
        "a/one.xml",
        voc_file(
            voc_object("Ship", 1, 2, 11, 12, difficult=1),
            voc_object("small-vehicle", 30, 20, 60, 28),  # extends beyond the border
            voc_object("balloon", 1, 2, 3, 4),
            voc_object("small vehicle", 5, 5, 5, 9),
            voc_object("small vehicle", 5, "many", 6, 9),
            voc_object("small vehicle", 5, "nan", 6, 9),
            voc_object("small vehicle", 50, 5, 60, 9),
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
    assert all(o.phrase == "" for o in record.objects)  # rejected ships and vehicles count too


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
        voc_file(
            robnd.format(10, 0.0),
            robnd.format(10, np.pi / 2),
            f"<object><name>ship</name><rotated_bndbox>{corners}</rotated_bndbox></object>",
            robnd.format(0, 0.0),
        ),
    )
    records, rejected, _ = native.read(card("rotated_voc", tasks=(Task.HBB, Task.OBB)))
    wide, tall, diamond = (o.polygon for o in records["x"].objects)
    np.testing.assert_allclose(wide, [15, 8, 25, 8, 25, 12, 15, 12], atol=1e-5)
    np.testing.assert_allclose(tall, [18, 5, 22, 5, 22, 15, 18, 15], atol=1e-5)
    np.testing.assert_array_equal(diamond, [14, 1, 18, 5, 14, 9, 10, 5])
    assert why(rejected)["x"] == ["object: degenerate box: expected sides above 0, got 0 x 4"]


def test_polygon_voc(native: Native) -> None:
    def segment(*points: str) -> str:
        inner = "".join(f"<point>{point}</point>" for point in points)
        return f"<object><name>ship</name><segm>{inner}</segm></object>"

    native.put("i/x.png", png())
    native.put(
        "a/x.xml",
        voc_file(
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


@pytest.mark.parametrize(("name", "variant"), [("dior", "rotated"), ("mar20", "rotated")])
def test_four_corners_in_robndbox(tmp_path: Path, name: str, variant: str) -> None:
    tree = CardFolder(tmp_path, load_cards()[name].variant(variant))
    label = {"dior": "windmill", "mar20": "A13"}[name]
    images = {"dior": "JPEGImages-test", "mar20": "JPEGImages"}[name]
    tree.put(f"{images}/1.jpg", png())
    tree.put(
        "Annotations/Oriented Bounding Boxes/1.xml",
        voc_file(
            corner_object(label, *DIAMOND),
            corner_object(label, 14, 9, 18, 5, 14, 1, 10, 5),  # counter-clockwise, starting at the bottom
            corner_object(label, 10, 5, 10, 5, 10, 5, 10, 5),
            corner_object(label, 10, 5, 14, "inf", 18, 5, 14, 9),
            corner_object(label, 90, 90, 99, 90, 99, 99, 90, 99),
            corner_object("Zeppelin", *DIAMOND),
        ),
    )
    for split in ("train", "val", "test"):
        tree.put(f"ImageSets/Main/{split}.txt", "1" if split == "test" else "")
    records, rejected, _ = tree.records()
    record = records["1"]
    assert (record.split, record.tasks[:2]) == ("test", OBB)
    for item in record.objects:
        np.testing.assert_array_equal(item.polygon, [14, 1, 18, 5, 14, 9, 10, 5])
    assert len(record.objects) == 2
    assert rejected["1"] == [
        "object: degenerate box: its sides cross or coincide",
        "object: bad number 'inf'",
        "object: degenerate box: outside of the 40x30 image",
        "object: unknown class 'Zeppelin'",
    ]


def test_mar20_aircraft_types(tmp_path: Path) -> None:
    for found, label in ((load_cards()["mar20"], "aircraft"), (load_cards()["mar20"].variant("types"), "a13")):
        tree = CardFolder(tmp_path, found)
        tree.put("JPEGImages/1.jpg", png())
        tree.put("Annotations/Horizontal Bounding Boxes/1.xml", voc_file(region_object("A13", "", *BOX)))
        records, _, _ = tree.records()
        assert (records["1"].objects[0].label, records["1"].split) == (label, "test")


def test_fair1m(tmp_path: Path) -> None:
    tree = CardFolder(tmp_path, load_cards()["fair1m"])
    for part in ("train/part1", "train/part2", "validation"):
        tree.put(f"{part}/images/7.tif", png())  # same number in each part
        tree.put(f"{part}/labelXml/7.xml", fair1m_file(fair1m_object("Boeing737", *RING)))
    tree.put(
        "train/part1/labelXml/7.xml",
        fair1m_file(
            fair1m_object("Liquid Cargo Ship", *RING),
            fair1m_object("other-vehicle", *((f"{x}.5", y) for x, y in RING)),
            fair1m_object("Bridge", *RING[:4]),  # not closed, but four corners
            fair1m_object("Bridge", *RING[:3]),
            fair1m_object("Bridge", *RING[:4], (3, 3)),
            fair1m_object("Bridge", (1, "nan"), *RING[1:]),
            fair1m_object("Bridge", (1, "2,3"), *RING[1:]),
            fair1m_object("", *RING),
        ),
    )
    records, rejected, _ = tree.records()
    assert {name: record.split for name, record in records.items()} == {
        "part1/7": "train",
        "part2/7": "train",
        "validation/7": "val",
    }
    objects = records["part1/7"].objects
    assert [item.label for item in objects] == ["liquid cargo ship", "other vehicle", "bridge"]
    np.testing.assert_array_equal(objects[0].polygon, [14, 1, 18, 5, 14, 9, 10, 5])
    assert all(np.array_equal(item.polygon, canonical(item.polygon)) for item in objects)
    assert records["part2/7"].objects[0].label == "boeing 737"
    reasons = rejected["part1/7"]
    assert reasons[:2] == [
        "object: degenerate box: expected 4 points, the first repeated, got 3",
        "object: degenerate box: expected 4 points, the first repeated, got 5",
    ]
    assert [reason.split(":")[1] for reason in reasons[2:]] == [" bad number 'nan'", " bad number", " unknown class ''"]


def _sixteen_bits() -> bytes:
    """Return a TIFF with one 16-bit band: dark sea with values of a few hundred, and one bright ship."""
    rng = np.random.default_rng(0)
    band = rng.integers(100, 400, (30, 40)).astype(np.uint16)
    band[5:9, 10:20] = 30000
    buffer = io.BytesIO()
    Image.fromarray(band).save(buffer, format="TIFF")
    return buffer.getvalue()


def test_air_sarship_keeps_16_bits_and_decoding_stretches_them(tmp_path: Path) -> None:
    tree = CardFolder(tmp_path, load_cards()["air_sarship"])
    tree.put("AIR-SARShip-2.0-data/7.tiff", _sixteen_bits())
    corners = ((10, 5), (20, 5), (20, 9), (10, 9), (10, 5))
    tree.put("AIR-SARShip-2.0-xml/7.xml", fair1m_file(fair1m_object("ship", *corners, comma=", ")))
    records, rejected, _ = tree.records()
    record = records["7"]
    assert rejected == {}
    np.testing.assert_array_equal(polygon_to_rect(record.objects[0].polygon), (10, 5, 20, 9))
    assert record.tasks[0] is Task.HBB and Task.OBB not in record.tasks
    assert record.image == _sixteen_bits()  # stored unchanged
    pixels = decode(record.image)
    assert pixels.dtype == np.uint8 and (pixels[5:9, 10:20] == 255).all()
    sea = np.delete(pixels.reshape(-1, 3), np.ravel_multi_index(np.mgrid[5:9, 10:20], (30, 40)).ravel(), axis=0)
    assert sea.std() > 1 or np.unique(sea).size > 1  # not all black, as after a division by 256


def _bmp() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), "navy").save(buffer, format="BMP")
    return buffer.getvalue()


def test_hrsc(tmp_path: Path) -> None:
    tree = CardFolder(tmp_path, load_cards()["hrsc2016"])
    for name in ("100000001", "100000002"):
        tree.put(f"Test/AllImages/{name}.bmp", _bmp())
    tree.put("Train/AllImages/100000003.bmp", _bmp())
    tree.put("Train/Annotations/100000003.xml", hrsc_file(hrsc_object()))
    tree.put("Test/Annotations/100000002.xml", hrsc_file())  # an image without ships
    tree.put(
        "Test/Annotations/100000001.xml",
        hrsc_file(
            hrsc_object(difficult=1),
            hrsc_object(mbox_ang=0.5 + np.pi),
            hrsc_object(mbox_ang=0.5 - np.pi / 2, mbox_w=4, mbox_h=12),
            hrsc_object(Class_ID=100000021),
            hrsc_object(mbox_w=0),
            hrsc_object(mbox_ang="nan"),
            hrsc_object(mbox_cx=500),
        ),
    )
    records, rejected, _ = tree.records()
    assert set(records) == {"100000001", "100000002", "100000003"}
    assert {record.split for record in records.values()} == {"test"}  # a zero-shot benchmark
    assert records["100000002"].objects == ()
    ships = records["100000001"].objects
    assert [item.difficult for item in ships] == [True, False, False]
    # Clockwise on screen: the end towards +x lies below the centre.
    np.testing.assert_allclose(ships[0].polygon, rotated_to_polygon(cx=20, cy=15, w=12, h=4, angle=0.5), atol=1e-4)
    bow = np.array([20 + 6 * np.cos(0.5), 15 + 6 * np.sin(0.5)])
    middles = (ships[0].polygon.reshape(4, 2) + np.roll(ships[0].polygon.reshape(4, 2), -1, axis=0)) / 2
    assert np.linalg.norm(middles - bow, axis=1).min() < 1e-4
    for other in ships[1:]:  # half a turn, or a quarter turn with exchanged sides, gives the same ship
        np.testing.assert_allclose(other.polygon, ships[0].polygon, atol=1e-4)
    assert rejected["100000001"] == [
        "object: unknown class '100000021'",
        "object: degenerate box: expected sides above 0, got 0 x 4",
        "object: bad number 'nan'",
        "object: degenerate box: outside of the 40x30 image",
    ]
    official = CardFolder(tmp_path, tree.card.variant("official"))
    assert {name: record.split for name, record in official.records()[0].items()}["100000003"] == "train"


def test_hrsc_angles_are_clockwise_on_screen(native: Native) -> None:
    """The release's first image, as published in documentation of readers; `header` is the bow."""
    buffer = io.BytesIO()
    Image.new("RGB", (1200, 800)).save(buffer, format="BMP")
    native.put("i/100000001.bmp", buffer.getvalue())
    ship = hrsc_object(Class_ID="ship", mbox_cx=582.9349, mbox_cy=353.2006, mbox_w=778.1303, mbox_h=174.2541,
                 mbox_ang=-0.2144308, header_x=964, header_y=290)  # fmt: skip
    native.put("a/100000001.xml", hrsc_file(ship).replace(">40<", ">1200<", 1).replace(">30<", ">800<", 1))
    records, _, _ = native.read(card("hrsc", tasks=OBB))
    (item,) = records["100000001"].objects
    bow = shapely.Point(964, 290)
    assert shapely.Polygon(item.polygon.reshape(4, 2)).contains(bow)
    mirrored = rotated_to_polygon(cx=582.9349, cy=353.2006, w=778.1303, h=174.2541, angle=0.2144308)
    assert not shapely.Polygon(mirrored.reshape(4, 2)).contains(bow)  # a counter-clockwise angle would miss the bow
    np.testing.assert_allclose(polygon_to_rect(item.polygon), (194, 243, 972, 507), atol=60)  # box_xmin to box_ymax


def test_xml_of_another_format_is_not_an_empty_image(native: Native) -> None:
    native.put("i/x.png", png())
    native.put("a/x.xml", hrsc_file(hrsc_object()))
    _, rejected, _ = native.read(card("voc"))
    assert why(rejected) == {"x": ["annotation: expected <annotation>, got <HRSC_Image>: another format"]}
    native.put("a/x.xml", voc_file())
    _, rejected, _ = native.read(card("hrsc", tasks=OBB))
    assert why(rejected) == {"x": ["annotation: expected <HRSC_Image>, got <annotation>: another format"]}


def test_rsod(tmp_path: Path) -> None:
    tree = CardFolder(tmp_path, load_cards()["rsod"])
    for folder in ("aircraft", "oiltank", "overpass", "playground"):
        tree.put(f"{folder}/JPEGImages/{folder}_1.jpg", png())
        wrong = "<filename>overpass_99</filename>"  # some releases have wrong names in the files
        tree.put(
            f"{folder}/Annotation/xml/{folder}_1.xml",
            voc_file(wrong, region_object(folder, "", *BOX), region_object("x", "", *BOX)),
        )
    records, rejected, _ = tree.records()
    assert {name: [item.label for item in record.objects] for name, record in records.items()} == {
        "aircraft_1": ["aircraft"],
        "oiltank_1": ["oil tank"],
        "overpass_1": ["overpass"],
        "playground_1": ["playground"],
    }
    assert all(reasons == ["object: unknown class 'x'"] for reasons in rejected.values())


def test_hrrsd_spellings_of_t_junction(tmp_path: Path) -> None:
    tree = CardFolder(tmp_path, load_cards()["hrrsd"].variant("images"))
    tree.put("OPT2017/JPEGImages/00001.jpg", png())
    owner = "<owner><name>unknown</name></owner>"
    boxes = [region_object(name, "", *BOX) for name in ("T junction", "t junction", "T_junction", "crossroad")]
    tree.put("OPT2017/Annotations/00001.xml", voc_file(owner, *boxes))
    for split in ("train", "val", "test"):
        tree.put(f"OPT2017/ImageSets/Main/{split}.txt", "00001" if split == "val" else "")
    records, rejected, _ = tree.records()
    assert [item.label for item in records["00001"].objects] == ["t junction"] * 3 + ["crossroad"]
    assert (records["00001"].split, rejected) == ("val", {})


IR = ("sea_shipping", "infrared_security", "aerial_mancar", "double_light_vehicle", "oceanic_ship")


@pytest.mark.parametrize("name", IR)
def test_infrared_datasets_with_an_unverified_layout(tmp_path: Path, name: str) -> None:
    found = load_cards()[name]
    assert {"layout", "classes", "format"} <= set(found.unverified)
    tree = CardFolder(tmp_path, found)
    buffer = io.BytesIO()
    Image.new("L", (40, 30), 90).save(buffer, format="PNG")  # one 8-bit band
    tree.put("JPEGImages/1.png", buffer.getvalue())
    tree.put("Annotations/1.xml", voc_file(region_object("Bulk_Carrier", "", *BOX), region_object("caf\xe9", "", *BOX)))
    records, _, _ = tree.records()
    assert [item.label for item in records["1"].objects] == ["bulk carrier", "caf\xe9"]
    path = tmp_path / found.folder / "Annotations" / "1.xml"
    path.write_bytes(path.read_text(encoding="utf-8").encode("latin-1"))
    records, rejected, _ = tree.records()
    assert [item.label for item in records["1"].objects] == ["bulk carrier"]  # an undecodable name is not a class
    assert rejected["1"] == ["object: wrong encoding: expected UTF-8"]


def test_sirst_frames_without_a_target_are_empty(tmp_path: Path) -> None:
    tree = CardFolder(tmp_path, load_cards()["sirst_v2"])
    for name in ("full", "empty"):
        tree.put(f"mixed/{name}.png", png())
    tree.put("annotations/bboxes/full.xml", voc_file(voc_object("Target", 1, 2, 11, 12)))
    nothing = "<object><name>Target</name><difficult>0</difficult><pixels><id>0</id></pixels></object>"
    tree.put("annotations/bboxes/empty.xml", voc_file(nothing))
    for split, name in {"train": "full", "val": "empty", "test": ""}.items():
        tree.put(f"splits/{split}_full.txt", f"{name}\n")
    records = {name.rsplit("/", 1)[-1]: record for name, record in tree.records()[0].items()}
    assert [len(records[name].objects) for name in ("full", "empty")] == [1, 0]
    assert all(record.complete and Task.HBB in record.tasks for record in records.values())
    assert records["empty"].split == "val"
