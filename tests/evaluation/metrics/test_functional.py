"""The functions of plain texts and boxes give what `earthgpt score` reports."""

import numpy as np
import pytest

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.evaluation.metrics import functional as metrics
from earthgpt_jax.evaluation.metrics.functional import Boxes


def test_texts():
    assert metrics.classification(["Port.", "beach"], ["port", "lake"])["top1"] == 0.5
    found = metrics.vqa(["yes", "4"], ["yes", "3"], question_types=["presence", "count"])
    assert (found["accuracy_presence"], found["count_mae"]) == (1.0, 1.0)
    assert metrics.captions(["a ship", "a car"], [["a ship"], ["a car", "cars"]])["bleu1"] == pytest.approx(1)
    assert metrics.tokenize("It isn't (red).") == "it is n't -lrb- red -rrb-"
    assert metrics.normalize("Storage_tank.") == "storage tank"


def test_boxes():
    box = np.array([10.0, 10, 30, 30])
    assert metrics.iou(box[None], np.array([[20.0, 10, 40, 30]])) == pytest.approx(1 / 3)
    found = metrics.grounding([box, None, box + 10], [box, box, box])
    assert found["pr50"] == pytest.approx(1 / 3) and found["parse_rate"] == pytest.approx(2 / 3)
    assert found["mean_iou"] == pytest.approx((1 + 0 + 100 / 700) / 3, abs=1e-9)


@pytest.mark.parametrize("corners", [4, 8])
def test_detection(corners):
    def boxes(*rects):
        polygons = [[x0, y0, x1, y0, x1, y1, x0, y1] for x0, y0, x1, y1 in rects]
        return np.array(rects if corners == 4 else polygons, float).reshape(-1, corners)

    truth = Boxes(boxes=boxes((10, 10, 30, 30), (50, 50, 70, 70), (80, 80, 90, 90)), labels=["ship", "ship", "car"],
                  difficult=[False, False, True])  # fmt: skip
    found = Boxes(boxes=boxes((10, 10, 30, 30), (0, 70, 20, 90)), labels=["ship", "ship"], confidences=[0.9, 0.4])
    empty = Boxes(boxes=boxes(), labels=[])
    values = metrics.detection([found, empty], [truth, empty])
    assert (values["precision"], values["recall"], values["ap50"]) == (0.5, 0.5, 0.5)
    assert values["coco_ap50"] == pytest.approx(51 / 101)


def test_calibration_and_intervals():
    found = metrics.calibration([0.9, 0.9, 0.1], [True, False, False])
    assert found["ece"] == pytest.approx((0.8 + 0.1) / 3)
    assert found["ece_low"] <= found["ece_if_calibrated"] <= found["ece_high"]
    assert metrics.wilson_interval(1.0, 30) == pytest.approx((0.8865, 1.0), abs=1e-4)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (metrics.classification, (["a"], [])),
        (metrics.vqa, ([], [])),
        (metrics.captions, (["a"], [["a"], ["b"]])),
        (metrics.grounding, ([None], [])),
        (metrics.iou, (np.zeros((1, 5)), np.zeros((1, 5)))),
        (metrics.detection, ([Boxes(boxes=np.zeros((1, 4)), labels=[])], [Boxes(boxes=np.zeros((0, 4)), labels=[])])),
    ],
)
def test_wrong_arguments_are_named(function, arguments):
    with pytest.raises(EarthGPTError, match="expected"):
        function(*arguments)
