"""Readers of boxes and of phrases for boxes.

No real sample of these formats is at hand: the files are written here from their documented formats, with the
traps that are known of them. Where a card of `data/sources` has the format, the card itself is read.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import shapely
from PIL import Image

from earthgpt_jax.boxes import canonical, polygon_to_rect, rotated_to_polygon
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.datasets.cards import Card, Images, SplitRule, load_cards
from earthgpt_jax.raster.decode import decode
from earthgpt_jax.records import Record, Task
from tests.support.native_datasets import Native, card, png, why

OBB = (Task.HBB, Task.OBB)


class Tree(Native):
    """The folder of a card, by hand."""

    def __init__(self, root: Path, found: Card):
        self.root, self.card, self.folder = root, found, found.folder

    def records(self) -> tuple[dict[str, Record], dict[str, list[str]], list[str]]:
        records, rejected, dropped = self.read(self.card)
        return records, why(rejected), [event.reason for event in dropped]


@pytest.fixture
def native(tmp_path: Path) -> Native:
    return Native(tmp_path)


# ------------------------------------------------------------------------------------------------ DIOR-RSVG
def _region(name: str, phrase: str, *box: object) -> str:
    """An object in the order of the release: name, pose, bndbox, description."""
    corners = "".join(f"<{t}>{v}</{t}>" for t, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    text = f"<description>{phrase}</description>" if phrase else ""
    return f"<object><name>{name}</name><pose>Unspecified</pose><bndbox>{corners}</bndbox>{text}</object>"


def _described(*objects: str) -> str:
    size = "<size><width>40</width><height>30</height><depth>3</depth></size>"
    return f"<annotation><filename>C:\\other\\name.jpg</filename>{size}{''.join(objects)}</annotation>"


BOX = (1, 2, 11, 12)


class Regions(Tree):
    """Four images with 2, 1, 3 and 1 objects; the lists number them 0 to 6."""

    COUNTS = (2, 1, 3, 1)

    def __init__(self, root: Path):
        super().__init__(root, load_cards()["dior_rsvg"])
        for image, count in enumerate(self.COUNTS, start=1):
            self.put(f"JPEGImages/{image:05d}.jpg", png())
            phrases = [f"phrase {image}.{i}" for i in range(count)]
            self.put(f"Annotations/{image:05d}.xml", _described(*(_region("golffield", p, *BOX) for p in phrases)))
        self.lists(train=(0, 2, 3), val=(4, 6), test=(1, 5))

    def lists(self, **indices: tuple[object, ...]) -> None:
        for split, numbers in indices.items():
            self.put(f"{split}.txt", "".join(f"{number}\n" for number in numbers))


@pytest.fixture
def regions(tmp_path: Path) -> Regions:
    return Regions(tmp_path)


def test_an_image_of_several_splits_goes_to_the_strictest(regions: Regions) -> None:
    records, rejected, dropped = regions.records()
    assert {name: record.split for name, record in records.items()} == {
        "00001": "test",  # objects 0 train, 1 test
        "00002": "train",  # 2 train
        "00003": "test",  # 3 train, 4 val, 5 test
        "00004": "val",  # 6 val
    }
    assert {item.phrase: name for name, record in records.items() for item in record.objects} == {
        "phrase 1.1": "00001",
        "phrase 2.0": "00002",
        "phrase 3.2": "00003",
        "phrase 4.0": "00004",
    }
    assert rejected == {}
    assert sorted(dropped) == [
        "of train, but its image is of test",
        "of train, but its image is of test",
        "of val, but its image is of test",
    ]
    record = records["00002"]
    assert record.tasks == (Task.GROUNDING, Task.REGION_CAPTION)
    assert record.objects[0].label == "golf field"
    np.testing.assert_array_equal(polygon_to_rect(record.objects[0].polygon), BOX)


def test_every_test_object_stays_and_no_image_is_in_two_splits(regions: Regions) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        order = rng.permutation(sum(regions.COUNTS))
        lists = dict(zip(("train", "val", "test"), np.split(order, [4, 5]), strict=True))
        regions.lists(**{split: tuple(numbers) for split, numbers in lists.items()})
        records, rejected, dropped = regions.read(regions.card)
        kept = [item for record in records.values() if record.split == "test" for item in record.objects]
        assert len(kept) == len(lists["test"])
        assert (len(records), rejected) == (len(regions.COUNTS), [])
        left_out = sum(event.count for event in dropped)
        assert sum(len(record.objects) for record in records.values()) + left_out == sum(regions.COUNTS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", "expected the 7 objects of the split lists, numbered 0 to 6; got 5 in 3 files"),
        ("extra", "expected the 7 objects of the split lists, numbered 0 to 6; got 8 in 5 files"),
        ("broken", r"Annotations/00002.xml: not XML: .*; the number of its objects is unknown"),
        ("empty", r"Annotations/00002.xml: not XML: no element found"),
        ("other", r"expected <annotation>, got <HRSC_Image>: another format"),
    ],
)
def test_one_file_more_or_less_never_shifts_the_splits(regions: Regions, change: str, message: str) -> None:
    if change == "missing":
        (regions.root / regions.folder / "Annotations" / "00001.xml").unlink()
    contents = {
        "extra": ("00000.xml", _described(_region("ship", "a ship", *BOX))),
        "broken": ("00002.xml", _described(_region("ship", "a ship", *BOX))[:-30]),
        "empty": ("00002.xml", ""),
        "other": ("00002.xml", "<HRSC_Image/>"),
    }
    if change in contents:
        name, text = contents[change]
        regions.put(f"Annotations/{name}", text)
    with pytest.raises(EarthGPTError, match=message):
        regions.records()


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"val": (4, 6, 0)}, "val.txt: 0 is also in train"),
        ({"val": (4, 6, 6)}, "val.txt: 6 is also in val"),
        ({"val": (4, "6.0")}, "expected one object index per line, got '6.0'"),
        ({"val": (4,)}, "expected the 6 objects of the split lists, numbered 0 to 5; got 7"),
        ({"train": (7, 2, 3)}, "expected the 7 objects of the split lists, numbered 0 to 7; got 7"),
        ({"train": (), "val": (), "test": ()}, "expected the 0 objects of the split lists; got 7"),
    ],
)
def test_lists_that_are_not_of_these_objects_are_refused(regions: Regions, lists: dict, message: str) -> None:
    regions.lists(**lists)
    with pytest.raises(EarthGPTError, match=message):
        regions.records()


def test_bad_objects_of_dior_rsvg_count_and_are_quarantined(regions: Regions) -> None:
    regions.put(
        "Annotations/00003.xml",
        _described(
            _region("ship", "", *BOX),
            _region("ship", "a ship", 1, 2, "nan", 12),
            _region("ship", " the  ship\n of the port ", *BOX),
        ),
    )
    regions.put("Annotations/00004.xml", _described(_region("balloon", "a balloon", *BOX)))
    regions.lists(train=(0, 1, 2, 3, 4, 5, 6), val=(), test=())
    (regions.root / regions.folder / "JPEGImages" / "00002.jpg").write_bytes(b"not an image")
    records, rejected, _ = regions.records()
    assert [item.phrase for item in records["00003"].objects] == ["the ship of the port"]
    assert rejected["00003"] == ["object: no <description>", "object: bad number 'nan'"]
    assert rejected["00004"][0] == "object: unknown class 'balloon'"
    assert "cannot be decoded" in rejected["00002"][0]


def test_a_description_in_another_encoding_is_quarantined(regions: Regions) -> None:
    text = _described(_region("ship", "a caf\xe9", *BOX), _region("ship", "a ship", *BOX))
    regions.put("Annotations/00001.xml", text.encode("latin-1"))
    records, rejected, _ = regions.records()
    assert [item.phrase for item in records["00001"].objects] == ["a ship"]
    regions.lists(train=(1, 2, 3), val=(4, 6), test=(0, 5))
    records, rejected, _ = regions.records()
    assert rejected["00001"][0] == "object: wrong encoding: expected UTF-8"


def test_an_image_without_objects_has_no_split(regions: Regions) -> None:
    regions.put("Annotations/00009.xml", _described())
    regions.put("JPEGImages/00009.jpg", png())
    records, rejected, _ = regions.records()
    assert len(records) == 4
    assert rejected == {"00009": ["annotation: no objects, so no split"]}


# ------------------------------------------------------------------------------------------ splits as lists
def _voc(*objects: str) -> str:
    return f"<annotation><size><width>40</width><height>30</height></size>{''.join(objects)}</annotation>"


def test_dior_splits_by_lists(tmp_path: Path) -> None:
    tree = Tree(tmp_path, load_cards()["dior"])
    annotations = "Annotations/Horizontal Bounding Boxes"
    for name, folder in (("00001", "trainval"), ("00002", "trainval"), ("11726", "test"), ("11727", "test")):
        tree.put(f"JPEGImages-{folder}/{name}.jpg", png())
        tree.put(f"{annotations}/{name}.xml", _voc(_region("Expressway-toll-station", "", *BOX)))
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


# --------------------------------------------------------------------------------------------- DIOR-R, MAR20
def _corners(name: str, *values: object) -> str:
    tags = [f"{axis}_{c}" for c in ("left_top", "right_top", "right_bottom", "left_bottom") for axis in "xy"]
    box = "".join(f"<{tag}>{value}</{tag}>" for tag, value in zip(tags, values, strict=True))
    return f"<object><name>{name}</name><angle>0.7</angle><robndbox>{box}</robndbox></object>"


DIAMOND = (10, 5, 14, 1, 18, 5, 14, 9)  # from its left corner on


@pytest.mark.parametrize(("name", "variant"), [("dior", "rotated"), ("mar20", "rotated")])
def test_four_corners_in_robndbox(tmp_path: Path, name: str, variant: str) -> None:
    tree = Tree(tmp_path, load_cards()[name].variant(variant))
    label = {"dior": "windmill", "mar20": "A13"}[name]
    images = {"dior": "JPEGImages-test", "mar20": "JPEGImages"}[name]
    tree.put(f"{images}/1.jpg", png())
    tree.put(
        "Annotations/Oriented Bounding Boxes/1.xml",
        _voc(
            _corners(label, *DIAMOND),
            _corners(label, 14, 9, 18, 5, 14, 1, 10, 5),  # counter-clockwise, from below
            _corners(label, 10, 5, 10, 5, 10, 5, 10, 5),
            _corners(label, 10, 5, 14, "inf", 18, 5, 14, 9),
            _corners(label, 90, 90, 99, 90, 99, 99, 90, 99),
            _corners("Zeppelin", *DIAMOND),
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


def test_types_of_mar20(tmp_path: Path) -> None:
    for found, label in ((load_cards()["mar20"], "aircraft"), (load_cards()["mar20"].variant("types"), "a13")):
        tree = Tree(tmp_path, found)
        tree.put("JPEGImages/1.jpg", png())
        tree.put("Annotations/Horizontal Bounding Boxes/1.xml", _voc(_region("A13", "", *BOX)))
        records, _, _ = tree.records()
        assert (records["1"].objects[0].label, records["1"].split) == (label, "test")


# ----------------------------------------------------------------------------------- FAIR1M, AIR-SARShip-2.0
def _ring(name: str, *points: tuple[object, object], comma: str = ",") -> str:
    listed = "".join(f"<point>{x}{comma}{y}</point>" for x, y in points)
    result = f"<possibleresult><name>{name}</name></possibleresult><possibleresult><name>Van</name></possibleresult>"
    return (
        "<object><coordinate>pixel</coordinate><type>rectangle</type><description>None</description>"
        f"{result}<points>{listed}</points></object>"
    )


def _gaofen(*objects: str) -> str:
    return (
        "<annotation><source><filename>7.tif</filename><origin>GF2/GF3</origin></source>"
        f"<size><width>40</width><height>30</height><depth>3</depth></size><objects>{''.join(objects)}</objects>"
        "</annotation>"
    )


RING = ((10, 5), (14, 1), (18, 5), (14, 9), (10, 5))


def test_fair1m(tmp_path: Path) -> None:
    tree = Tree(tmp_path, load_cards()["fair1m"])
    for part in ("train/part1", "train/part2", "validation"):
        tree.put(f"{part}/images/7.tif", png())  # the same number in every part
        tree.put(f"{part}/labelXml/7.xml", _gaofen(_ring("Boeing737", *RING)))
    tree.put(
        "train/part1/labelXml/7.xml",
        _gaofen(
            _ring("Liquid Cargo Ship", *RING),
            _ring("other-vehicle", *((f"{x}.5", y) for x, y in RING)),
            _ring("Bridge", *RING[:4]),  # not closed: still four corners
            _ring("Bridge", *RING[:3]),
            _ring("Bridge", *RING[:4], (3, 3)),
            _ring("Bridge", (1, "nan"), *RING[1:]),
            _ring("Bridge", (1, "2,3"), *RING[1:]),
            _ring("", *RING),
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
    """A band of 16 bits: dark sea of a few hundred, with one bright ship."""
    rng = np.random.default_rng(0)
    band = rng.integers(100, 400, (30, 40)).astype(np.uint16)
    band[5:9, 10:20] = 30000
    buffer = io.BytesIO()
    Image.fromarray(band).save(buffer, format="TIFF")
    return buffer.getvalue()


def test_air_sarship_keeps_sixteen_bits_and_one_stretch_shows_them(tmp_path: Path) -> None:
    tree = Tree(tmp_path, load_cards()["air_sarship"])
    tree.put("AIR-SARShip-2.0-data/7.tiff", _sixteen_bits())
    corners = ((10, 5), (20, 5), (20, 9), (10, 9), (10, 5))
    tree.put("AIR-SARShip-2.0-xml/7.xml", _gaofen(_ring("ship", *corners, comma=", ")))
    records, rejected, _ = tree.records()
    record = records["7"]
    assert rejected == {}
    np.testing.assert_array_equal(polygon_to_rect(record.objects[0].polygon), (10, 5, 20, 9))
    assert record.tasks[0] is Task.HBB and Task.OBB not in record.tasks
    assert record.image == _sixteen_bits()  # stored as it came
    pixels = decode(record.image)
    assert pixels.dtype == np.uint8 and (pixels[5:9, 10:20] == 255).all()
    sea = np.delete(pixels.reshape(-1, 3), np.ravel_multi_index(np.mgrid[5:9, 10:20], (30, 40)).ravel(), axis=0)
    assert sea.std() > 1 or np.unique(sea).size > 1  # not all black, as a division by 256 leaves it


# -------------------------------------------------------------------------------------------------- HRSC2016
def _ship(**values: object) -> str:
    given = {"Class_ID": 100000013, "difficult": 0, "box_xmin": 1, "box_ymin": 1, "box_xmax": 2, "box_ymax": 2,
             "mbox_cx": 20, "mbox_cy": 15, "mbox_w": 12, "mbox_h": 4, "mbox_ang": 0.5, **values}  # fmt: skip
    return "<HRSC_Object>" + "".join(f"<{tag}>{value}</{tag}>" for tag, value in given.items()) + "</HRSC_Object>"


def _scene(*ships: str) -> str:
    return (
        "<HRSC_Image><Img_FileName>x</Img_FileName><Img_SizeWidth>40</Img_SizeWidth>"
        f"<Img_SizeHeight>30</Img_SizeHeight><HRSC_Objects>{''.join(ships)}</HRSC_Objects></HRSC_Image>"
    )


def _bmp() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), "navy").save(buffer, format="BMP")
    return buffer.getvalue()


def test_hrsc(tmp_path: Path) -> None:
    tree = Tree(tmp_path, load_cards()["hrsc2016"])
    for name in ("100000001", "100000002"):
        tree.put(f"Test/AllImages/{name}.bmp", _bmp())
    tree.put("Train/AllImages/100000003.bmp", _bmp())
    tree.put("Train/Annotations/100000003.xml", _scene(_ship()))
    tree.put("Test/Annotations/100000002.xml", _scene())  # no ship is in it
    tree.put(
        "Test/Annotations/100000001.xml",
        _scene(
            _ship(difficult=1),
            _ship(mbox_ang=0.5 + np.pi),
            _ship(mbox_ang=0.5 - np.pi / 2, mbox_w=4, mbox_h=12),
            _ship(Class_ID=100000021),
            _ship(mbox_w=0),
            _ship(mbox_ang="nan"),
            _ship(mbox_cx=500),
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
    for other in ships[1:]:  # half a turn, and sides exchanged with a quarter turn, are the same ship
        np.testing.assert_allclose(other.polygon, ships[0].polygon, atol=1e-4)
    assert rejected["100000001"] == [
        "object: unknown class '100000021'",
        "object: degenerate box: expected sides above 0, got 0 x 4",
        "object: bad number 'nan'",
        "object: degenerate box: outside of the 40x30 image",
    ]
    official = Tree(tmp_path, tree.card.variant("official"))
    assert {name: record.split for name, record in official.records()[0].items()}["100000003"] == "train"


def test_the_angle_of_hrsc_turns_clockwise_on_screen(native: Native) -> None:
    """The release's first image, as published in documentation of readers; `header` is the bow."""
    buffer = io.BytesIO()
    Image.new("RGB", (1200, 800)).save(buffer, format="BMP")
    native.put("i/100000001.bmp", buffer.getvalue())
    ship = _ship(Class_ID="ship", mbox_cx=582.9349, mbox_cy=353.2006, mbox_w=778.1303, mbox_h=174.2541,
                 mbox_ang=-0.2144308, header_x=964, header_y=290)  # fmt: skip
    native.put("a/100000001.xml", _scene(ship).replace(">40<", ">1200<", 1).replace(">30<", ">800<", 1))
    records, _, _ = native.read(card("hrsc", tasks=OBB))
    (item,) = records["100000001"].objects
    bow = shapely.Point(964, 290)
    assert shapely.Polygon(item.polygon.reshape(4, 2)).contains(bow)
    turned = rotated_to_polygon(cx=582.9349, cy=353.2006, w=778.1303, h=174.2541, angle=0.2144308)
    assert not shapely.Polygon(turned.reshape(4, 2)).contains(bow)  # the other direction would miss it
    np.testing.assert_allclose(polygon_to_rect(item.polygon), (194, 243, 972, 507), atol=60)  # box_xmin to box_ymax


def test_xml_of_another_format_is_no_empty_image(native: Native) -> None:
    native.put("i/x.png", png())
    native.put("a/x.xml", _scene(_ship()))
    _, rejected, _ = native.read(card("voc"))
    assert why(rejected) == {"x": ["annotation: expected <annotation>, got <HRSC_Image>: another format"]}
    native.put("a/x.xml", _voc())
    _, rejected, _ = native.read(card("hrsc", tasks=OBB))
    assert why(rejected) == {"x": ["annotation: expected <HRSC_Image>, got <annotation>: another format"]}


# -------------------------------------------------------------------------------------------------- UCAS-AOD
# Published as an example: github.com/ming71/UCAS-AOD-benchmark. Corners, angle in degrees, left top, width, height.
CAR = (
    "2.763971e+02\t9.125021e+01\t2.911375e+02\t3.823406e+01\t3.308891e+02\t4.928647e+01\t3.161486e+02\t1.023026e+02\t"
    "1.055379e+02\t2.787673e+02\t3.876027e+01\t4.975157e+01\t6.301615e+01\t"
)


def test_ucas_aod(tmp_path: Path) -> None:
    tree = Tree(tmp_path, load_cards()["ucas_aod"])
    for folder in ("CAR", "PLANE"):  # numbered alike
        tree.put(f"{folder}/P0001.png", png(400, 300))
        tree.put(f"{folder}/P0001.txt", f"{CAR}\n")
    tree.put("PLANE/P0002.png", png(400, 300))
    short = "\t".join(CAR.split()[:8])
    tree.put("PLANE/P0002.txt", f"{CAR}\n\n{short}\n{CAR.replace('2.763971e+02', 'x')}\nairplane {CAR}\n")
    tree.put("Neg/P0001.png", png())
    records, rejected, _ = tree.records()
    labels = {name: record.objects[0].label for name, record in records.items()}
    assert labels == {"CAR/P0001": "car", "PLANE/P0001": "airplane", "PLANE/P0002": "airplane"}
    polygon = records["CAR/P0001"].objects[0].polygon
    np.testing.assert_allclose(
        polygon, [291.1375, 38.23406, 330.8891, 49.28647, 316.1486, 102.3026, 276.3971, 91.25021], rtol=1e-6
    )
    # The angle is that of the long side, in degrees: here it only confirms the corners.
    along = polygon[:2] - polygon[6:]
    assert np.degrees(np.arctan2(-along[1], -along[0])) == pytest.approx(105.5379, abs=1e-2)
    assert rejected["PLANE/P0002"] == [
        "object: expected 8 coordinates, an angle and x, y, w, h, got 8 fields",
        "object: bad number 'x'",
        "object: expected 8 coordinates, an angle and x, y, w, h, got 14 fields",
    ]


# -------------------------------------------------------------------------------------------------- VisDrone
def test_visdrone(tmp_path: Path) -> None:
    tree = Tree(tmp_path, load_cards()["visdrone"])
    for split in ("train", "val", "test-dev"):
        tree.put(f"VisDrone2019-DET-{split}/images/0000001.jpg", png())
        tree.put(f"VisDrone2019-DET-{split}/annotations/0000001.txt", "1,2,10,8,1,4,0,0\n")
    tree.put("VisDrone2019-DET-val/images/0000002.JPG", png())
    tree.put(
        "VisDrone2019-DET-val/annotations/0000002.txt",
        "1,2,10,8,1,1,0,0\n2,3,4,5,0,4,1,2,\n0,0,40,10,0,0,0,0\n5,5,3,3,1,11,0,0\n30,20,20,5,1,10,1,1\n"
        "5,5,0,3,1,4,0,0\n5,5,3,3,1,12,0,0\n5,5,3,3,1\n5,5,3,nan,1,4,0,0\n90,90,3,3,1,4,0,0\n5,5,3,3,1,\xb2,0,0\n",
    )
    records, rejected, dropped = tree.records()
    assert {name: record.split for name, record in records.items()} == {
        "train/0000001": "train",
        "val/0000001": "val",
        "val/0000002": "val",
        "test-dev/0000001": "test",
    }
    objects = records["val/0000002"].objects
    assert [(item.label, item.difficult) for item in objects] == [
        ("pedestrian", False),
        ("car", True),  # score 0
        ("motor", False),
    ]
    assert [item.phrase for item in objects] == ["", "", ""]  # the ignored region may hold more of each
    assert records["val/0000001"].objects[0].phrase == "the only car"
    np.testing.assert_array_equal(polygon_to_rect(objects[0].polygon), (1, 2, 11, 10))
    np.testing.assert_array_equal(polygon_to_rect(objects[2].polygon), (30, 20, 40, 25))  # cut at the border
    assert sorted(dropped) == [
        "class ignored regions: marks a region without annotations",
        "class others: not one of the ten classes",
    ]
    assert [reason.removeprefix("object: ").split(":")[0] for reason in rejected["val/0000002"]] == [
        "degenerate box",
        "unknown class '12'",
        "expected 8 fields, got '5,5,3,3,1'",
        "bad number 'nan'",
        "degenerate box",
        "unknown class '\xb2'",
    ]


# -------------------------------------------------------------------------------------- official splits of folders
def test_hit_uav_as_released(tmp_path: Path) -> None:
    """The tree of the repository, which the card's own layout, that of the samples, is a part of."""
    tree = Tree(tmp_path, load_cards()["hit_uav"].variant("official"))
    for split in ("train", "val", "test"):
        tree.put(f"rotate_json/images/{split}/{split}.jpg", png())
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


def test_mar20_official_split(tmp_path: Path) -> None:
    tree = Tree(tmp_path, load_cards()["mar20"].variant("official"))
    for name in ("1", "2"):
        tree.put(f"JPEGImages/{name}.jpg", png())
        tree.put(f"Annotations/Horizontal Bounding Boxes/{name}.xml", _voc(_region("A2", "", *BOX)))
    tree.put("ImageSets/Main/train.txt", "2\n")
    tree.put("ImageSets/Main/test.txt", "1\n")
    assert {name: record.split for name, record in tree.records()[0].items()} == {"1": "test", "2": "train"}


# ------------------------------------------------------------------------------------- RSOD, HRSID, HRRSD, IR
def test_rsod(tmp_path: Path) -> None:
    tree = Tree(tmp_path, load_cards()["rsod"])
    for folder in ("aircraft", "oiltank", "overpass", "playground"):
        tree.put(f"{folder}/JPEGImages/{folder}_1.jpg", png())
        wrong = "<filename>overpass_99</filename>"  # names inside files are wrong in places
        tree.put(
            f"{folder}/Annotation/xml/{folder}_1.xml", _voc(wrong, _region(folder, "", *BOX), _region("x", "", *BOX))
        )
    records, rejected, _ = tree.records()
    assert {name: [item.label for item in record.objects] for name, record in records.items()} == {
        "aircraft_1": ["aircraft"],
        "oiltank_1": ["oil tank"],
        "overpass_1": ["overpass"],
        "playground_1": ["playground"],
    }
    assert all(reasons == ["object: unknown class 'x'"] for reasons in rejected.values())


def test_hrsid_takes_oriented_boxes_from_polygons(tmp_path: Path) -> None:
    found = load_cards()["hrsid"]
    tree = Tree(tmp_path, found)
    box = {"category_id": 1, "bbox": [10, 1, 8, 8], "iscrowd": 0}
    ring = [10, 5, 14, 1, 16, 3, 18, 5, 14, 9]  # a turned ship, with one more point on a side
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
    records, rejected, _ = Tree(tmp_path, found.variant("axis_aligned")).records()
    assert rejected == {}
    for record in records.values():
        np.testing.assert_array_equal(polygon_to_rect(record.objects[1].polygon), (10, 1, 18, 9))
        assert Task.OBB not in record.tasks


def test_hrrsd_and_the_class_t_junction(tmp_path: Path) -> None:
    tree = Tree(tmp_path, load_cards()["hrrsd"].variant("images"))
    tree.put("OPT2017/JPEGImages/00001.jpg", png())
    owner = "<owner><name>unknown</name></owner>"
    boxes = [_region(name, "", *BOX) for name in ("T junction", "t junction", "T_junction", "crossroad")]
    tree.put("OPT2017/Annotations/00001.xml", _voc(owner, *boxes))
    for split in ("train", "val", "test"):
        tree.put(f"OPT2017/ImageSets/Main/{split}.txt", "00001" if split == "val" else "")
    records, rejected, _ = tree.records()
    assert [item.label for item in records["00001"].objects] == ["t junction"] * 3 + ["crossroad"]
    assert (records["00001"].split, rejected) == ("val", {})


IR = ("sea_shipping", "infrared_security", "aerial_mancar", "double_light_vehicle", "oceanic_ship")


@pytest.mark.parametrize("name", IR)
def test_infrared_sets_whose_layout_nobody_has_seen(tmp_path: Path, name: str) -> None:
    found = load_cards()[name]
    assert {"layout", "classes", "format"} <= set(found.unverified)
    tree = Tree(tmp_path, found)
    buffer = io.BytesIO()
    Image.new("L", (40, 30), 90).save(buffer, format="PNG")  # one band of 8 bits
    tree.put("JPEGImages/1.png", buffer.getvalue())
    tree.put("Annotations/1.xml", _voc(_region("Bulk_Carrier", "", *BOX), _region("caf\xe9", "", *BOX)))
    records, _, _ = tree.records()
    assert [item.label for item in records["1"].objects] == ["bulk carrier", "caf\xe9"]
    path = tmp_path / found.folder / "Annotations" / "1.xml"
    path.write_bytes(path.read_text(encoding="utf-8").encode("latin-1"))
    records, rejected, _ = tree.records()
    assert [item.label for item in records["1"].objects] == ["bulk carrier"]  # an unreadable name is no class
    assert rejected["1"] == ["object: wrong encoding: expected UTF-8"]


# ------------------------------------------------------------------------------------------- DOTA, VHR-10, suffixes
def test_dota_without_headers_and_flags(native: Native) -> None:
    for name in ("tile", "null", "short"):
        native.put(f"i/{name}.png", png())
    native.put("a/tile.txt", "2 3 12 3 12 9 2 9 ship\n")  # neither header nor difficult
    native.put("a/null.txt", "imagesource:null\ngsd:null\n2.0 3.0 12.0 3.0 12.0 9.0 2.0 9.0 small-vehicle 1\n")
    native.put("a/short.txt", "imagesource:GoogleEarth\ngsd:0.1\n2 3 12 3 12 9 2 9\n2 3 12 3 12 9 2 9 ship x\n")
    records, rejected, _ = native.read(card("dota", tasks=OBB))
    assert {name: [(o.label, o.difficult) for o in record.objects] for name, record in records.items()} == {
        "tile": [("ship", False)],
        "null": [("small vehicle", True)],
    }
    assert why(rejected)["short"] == [
        "object: expected 8 coordinates and a class, got 8 fields",
        "object: bad number 'x'",
        "image: every object of it was rejected",
    ]


def test_vhr10_with_images(tmp_path: Path) -> None:
    """Classes begin at 1; the images without objects have no file and lie elsewhere."""
    tree = Tree(tmp_path, load_cards()["nwpu_vhr10"].variant("images"))
    tree.put("positive image set/001.jpg", png())
    tree.put("negative image set/001.jpg", png())
    tree.put("ground truth/001.txt", "(1,2),(11,12),1\n( 2,2),(12 ,12), 10 \n(1,2),(3,4),0\n(1,2),(3,4),11\n\n")
    records, rejected, _ = tree.records()
    assert [item.label for item in records["001"].objects] == ["airplane", "vehicle"]
    assert rejected["001"] == ["object: unknown class '0'", "object: unknown class '11'"]


def test_upper_case_suffixes(native: Native) -> None:
    native.put("i/6651.JPG", png())
    native.put("i/6652.jpg", png())
    row = {"Question": "How many?", "Ground_Truth": 3, "Question_Type": "Simple_Counting"}
    native.put("a.json", {"0": {"Image_ID": "6651.JPG", **row}, "1": {"Image_ID": "6652.JPG", **row}})
    part = {"annotations": "a.json", "images": "i"}
    records, rejected, _ = native.read(card("floodnet", part, tasks=(Task.VQA,)))
    assert (set(records), rejected) == ({"6651", "6652"}, [])


# ------------------------------------------------------------------------------------------------- bad input
FORMATS = {  # format -> (suffix of the annotations, tasks, a good annotation, one whose file is damaged)
    "fair1m": (".xml", OBB, _gaofen(_ring("ship", *RING)), ""),
    "hrsc": (".xml", OBB, _scene(_ship(Class_ID="ship")), "<HRSC_Image><HRSC_Objects>"),
    "rotated_voc": (".xml", OBB, _voc(_corners("ship", *DIAMOND)), "\x00"),
    "ucas_aod": (".txt", OBB, "10 5 14 1 18 5 14 9 45 10 1 8 8", ""),
    "visdrone": (".txt", (Task.HBB,), "10,1,8,8,1,1,0,0", ""),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_bad_file_does_not_stop_the_others(native: Native, name: str) -> None:
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
    assert set(records) == ({"good"} if suffix == ".xml" else {"good", "damaged"})  # an empty text file has no objects
    assert [item.label for item in records["good"].objects] == ["ship"]
    assert "annotation: the id good occurs twice" in reasons["good"]  # both parts hold it
    assert "cannot be decoded" in reasons["cut"][0]
    assert reasons["absent"][0] == "image: missing image 'absent'"
    assert reasons["lonely"] == ["image: no annotation names it"]
    if suffix == ".xml":
        assert reasons["damaged"][0].startswith("annotation: not XML")
