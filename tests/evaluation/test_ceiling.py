"""The ceiling of box formats, compared with values that were computed independently of this code."""

import dataclasses

import numpy as np
import pytest

from earthgpt_jax.boxes import BoxKind, rect_to_polygon, rotated_to_polygon
from earthgpt_jax.evaluation.ceiling import ENCODINGS, ceiling, table
from earthgpt_jax.records import Object, Record, Sensor, Task

BY_NAME = {(encoding.kind, encoding.name): encoding for encoding in ENCODINGS}


def _record(polygons, *, size: int, source: str = "synthetic", tasks=(Task.HBB, Task.OBB)) -> Record:
    return Record(
        id=f"{source}/test/1", image=b"", height=size, width=size, sensor=Sensor.SAR, source=source, split="test",
        tasks=tasks, objects=tuple(Object(label="ship", polygon=polygon) for polygon in polygons),
    )  # fmt: skip


def _squares(side: int, image: int) -> Record:
    corners = np.random.default_rng(0).uniform(0, image - side, (1500, 2))
    return _record([rect_to_polygon(x, y, x + side, y + side) for x, y in corners], size=image)


@pytest.mark.parametrize(
    ("side", "image", "name", "iou", "missed"),
    [
        (16, 800, "2 decimals", 0.63, 0.15),
        (8, 800, "2 decimals", 0.41, 0.75),
        (16, 1024, "2 decimals", 0.53, None),
        (16, 800, "3 decimals", 0.95, 0),
        (8, 800, "0-1000", 0.91, 0),
        (16, 1024, "3 decimals", 0.94, 0),
    ],
)
def test_rounding_costs_small_objects_of_large_images(side, image, name, iou, missed):
    found = ceiling([_squares(side, image)], BY_NAME[BoxKind.HBB, name])["all", "all"]
    assert found.objects == 1500 and found.iou == pytest.approx(iou, abs=0.015)
    if missed is not None:
        assert found.missed == pytest.approx(missed, abs=0.03)


def test_a_box_on_the_grid_is_written_without_loss():
    boxes = [rect_to_polygon(10, 20, 40, 60), rotated_to_polygon(cx=50, cy=50, w=40, h=20, angle=0)]
    for encoding in ENCODINGS:
        if encoding.name != "1000 bins, corners":  # where a bin stands for its middle
            found = ceiling([_record(boxes, size=100)], encoding)
            assert found["all", "all"].iou == pytest.approx(1, abs=1e-5)
            assert {key for key in found if key[0] == "synthetic"} == {
                ("synthetic", "16-32"),
                ("synthetic", "32-96"),
                ("synthetic", "all"),
            }


def test_the_table_has_one_row_per_source_and_size_that_has_such_boxes():
    hbb_only = _record([rect_to_polygon(10, 20, 13, 23)], size=100, source="flat", tasks=(Task.HBB,))
    oriented = _record([rotated_to_polygon(cx=50, cy=50, w=40, h=10, angle=0.3)], size=100)
    rows = table([hbb_only, oriented], BoxKind.OBB).splitlines()
    assert rows[0].startswith("| source | side, px | objects | 2 decimals | 3 decimals | 4 decimals | 0-100 and ")
    assert [row.split(" | ")[:3] for row in rows[2:]] == [
        ["| synthetic", "16-32", "1"], ["| synthetic", "all", "1"], ["| all", "16-32", "1"], ["| all", "all", "1"]
    ]  # fmt: skip
    assert len(table([hbb_only, oriented], BoxKind.HBB).splitlines()) == 9


def test_an_image_of_unknown_size_is_assumed_as_small_as_its_boxes_allow():
    box = rect_to_polygon(10.2, 20, 40, 60)
    known = dataclasses.replace(_record([box], size=0), width=40, height=60)
    exact, unknown = (ceiling([r], BY_NAME[BoxKind.HBB, "2 decimals"]) for r in (known, _record([box], size=0)))
    assert unknown == exact and 0.9 < exact["all", "all"].iou < 1
