"""Formats with one text file per image and one object per line: YOLO, DOTA, UCAS-AOD, NWPU VHR-10, VisDrone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from earthgpt_jax.boxes import (
    canonical,
    polygon_to_rect,
)
from earthgpt_jax.datasets.cards import Images, load_cards
from earthgpt_jax.records import Task
from tests.support.native_datasets import OBB, CardFolder, Native, card, png, why


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
    np.testing.assert_array_equal(objects[1].polygon, [-2, 3, 8, 3, 8, 9, -2, 9])  # not clipped at the border
    assert [o.difficult for o in objects] == [False, False, True]
    assert all(np.array_equal(o.polygon, canonical(o.polygon)) for o in objects)
    assert len(rejected) == 3


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


# Published as an example: github.com/ming71/UCAS-AOD-benchmark. Corners, angle in degrees, left top, width, height.
CAR = (
    "2.763971e+02\t9.125021e+01\t2.911375e+02\t3.823406e+01\t3.308891e+02\t4.928647e+01\t3.161486e+02\t1.023026e+02\t"
    "1.055379e+02\t2.787673e+02\t3.876027e+01\t4.975157e+01\t6.301615e+01\t"
)


def test_ucas_aod(tmp_path: Path) -> None:
    tree = CardFolder(tmp_path, load_cards()["ucas_aod"])
    for folder in ("CAR", "PLANE"):  # same numbers
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
    # The file also gives the angle of the long side in degrees; it agrees with the corners.
    along = polygon[:2] - polygon[6:]
    assert np.degrees(np.arctan2(-along[1], -along[0])) == pytest.approx(105.5379, abs=1e-2)
    assert rejected["PLANE/P0002"] == [
        "object: expected 8 coordinates, an angle and x, y, w, h, got 8 fields",
        "object: bad number 'x'",
        "object: expected 8 coordinates, an angle and x, y, w, h, got 14 fields",
    ]


def test_vhr10(native: Native) -> None:
    native.put("a/001.txt", "( 1, 2),(11 ,12), 1 \n\n(1,2),(3,4),0\n(5,5),(5,9),1\nfog\n(1,2),(3,x),1\n(1,2),(3,4),3\n")
    records, rejected, _ = native.read(card("vhr10", {"annotations": "a"}, images=Images.NONE))
    np.testing.assert_array_equal(records["001"].objects[0].polygon, [1, 2, 11, 2, 11, 12, 1, 12])
    reasons = why(rejected)["001"]
    assert (len(reasons), reasons[0], reasons[-1]) == (5, "object: unknown class '0'", "object: unknown class '3'")


def test_vhr10_with_images(tmp_path: Path) -> None:
    """Classes start at 1; images without objects have no annotation file and are in another folder."""
    tree = CardFolder(tmp_path, load_cards()["nwpu_vhr10"].variant("images"))
    tree.put("positive image set/001.jpg", png())
    tree.put("negative image set/001.jpg", png())
    tree.put("ground truth/001.txt", "(1,2),(11,12),1\n( 2,2),(12 ,12), 10 \n(1,2),(3,4),0\n(1,2),(3,4),11\n\n")
    records, rejected, _ = tree.records()
    assert [item.label for item in records["001"].objects] == ["airplane", "vehicle"]
    assert rejected["001"] == ["object: unknown class '0'", "object: unknown class '11'"]


def test_visdrone(tmp_path: Path) -> None:
    tree = CardFolder(tmp_path, load_cards()["visdrone"])
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
    assert [item.phrase for item in objects] == ["", "", ""]  # the ignored region may contain more of each
    assert records["val/0000001"].objects[0].phrase == "the only car"
    np.testing.assert_array_equal(polygon_to_rect(objects[0].polygon), (1, 2, 11, 10))
    np.testing.assert_array_equal(polygon_to_rect(objects[2].polygon), (30, 20, 40, 25))  # clipped at the border
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
