"""Averages over classes, several labels, and errors of counts: by hand, and by scikit-learn's definitions."""

import numpy as np
import pytest

from earthgpt_jax.boxes import BoxKind
from earthgpt_jax.evaluation.metrics.average_precision import average_precisions
from earthgpt_jax.evaluation.metrics.classification import classification
from earthgpt_jax.evaluation.metrics.detection import detection
from earthgpt_jax.evaluation.metrics.vqa import vqa
from earthgpt_jax.evaluation.scores import breakdown
from tests.support.answers import answer, truth


def _scenes(*pairs):
    return [answer(text, id=str(i), task="classification", answer=label) for i, (text, label) in enumerate(pairs)]


def test_averages_over_classes_by_hand():
    rows = _scenes(("port", "port"), ("port", "port"), ("beach", "port"), ("beach", "beach"), ("field", "lake"))
    found = classification(rows)
    assert found["top1"] == 3 / 5
    assert found["mean_recall"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert found["macro_f1"] == pytest.approx((4 / 5 + 2 / 3 + 0) / 3)
    expected = (3 * 2 + 1 * 2 + 1 * 0) / 25
    assert found["kappa"] == pytest.approx((3 / 5 - expected) / (1 - expected))


def test_kappa_of_chance_is_zero_and_of_the_truth_is_one():
    rng = np.random.default_rng(0)
    names = np.array(["port", "beach", "lake"])
    labels = names[rng.choice(3, 4000, p=(0.6, 0.3, 0.1))]
    assert classification(_scenes(*zip(rng.permutation(labels), labels, strict=True)))["kappa"] == pytest.approx(
        0, abs=0.05
    )
    assert classification(_scenes(*zip(labels, labels, strict=True)))["kappa"] == 1.0


def test_several_labels_by_hand():
    """The AP of a class is recall x precision + (1 - recall) x frequency, as scikit-learn computes it for 0 and 1."""
    rows = _scenes(("water, forest", "forest, water"), ("forest", "forest, urban"), ("urban and mine", "water, urban"))
    found = classification(rows)
    assert found["top1"] == 1 / 3
    assert (found["multilabel_precision"], found["multilabel_recall"]) == (4 / 5, 4 / 6)
    assert found["multilabel_f1"] == pytest.approx(8 / 11)
    assert found["multilabel_macro_f1"] == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)
    half = 0.5 * 1 + 0.5 * 2 / 3
    assert found["multilabel_map"] == pytest.approx((1 + half + half) / 3)


def test_errors_of_counts_by_hand():
    pairs = [("4", "3"), ("0", "2"), ("five", "5"), ("many", "7"), ("1", "0"), ("40", "50")]
    rows = [answer(text, id=str(i), task="vqa", answer=count) for i, (text, count) in enumerate(pairs)]
    found = vqa(rows)
    assert found["count_mae"] == pytest.approx((1 + 2 + 0 + 1 + 10) / 5)
    assert found["count_rmse"] == pytest.approx(np.sqrt((1 + 4 + 0 + 1 + 100) / 5))
    assert found["count_bias"] == pytest.approx((1 - 2 + 0 + 1 - 10) / 5)
    assert found["count_mape"] == pytest.approx((1 / 3 + 1 + 0 + 10 / 50) / 4)  # without the true count of 0
    groups = breakdown(rows)["vqa"]
    assert groups["count: 11-100"]["count_bias"] == -10 and groups["count: 0"]["count_mae"] == 1
    assert groups["count: 1-10"]["n"] == 4 and groups["count: 1-10"]["count_mape"] == pytest.approx((1 / 3 + 1) / 3)


def test_detection_averages_over_classes_and_needs_no_confidences():
    objects = (truth("ship", 10, 10, 30, 30), truth("ship", 50, 50, 70, 70), truth("car", 80, 80, 90, 90))
    text = (
        "<p>two ships</p>[0.1,0.1,0.3,0.3;0.3,0.7,0.4,0.8] <p>one car</p>[0.8,0.8,0.9,0.9] <p>one cat</p>[0,0,0.1,0.1]"
    )
    rows = [answer(text, objects=objects)]
    assert detection[BoxKind.HBB](rows)["macro_f1"] == pytest.approx((0.5 + 1) / 2)
    # Precision 1/2 at recall 1/2 gives 6 of 11 points; the car all of them.
    assert average_precisions(rows, BoxKind.HBB)["map_nc"] == pytest.approx((6 / 11 * 0.5 + 1) / 2)


def test_objects_are_grouped_by_orientation():
    def turned(degrees: float):
        a = np.radians(degrees)
        corners = np.array([[-20, -10], [20, -10], [20, 10], [-20, 10]]) @ [
            [np.cos(a), np.sin(a)],
            [-np.sin(a), np.cos(a)],
        ]
        return truth("ship", *(corners + 50).ravel())

    rows = [answer("", id=str(d), task="obb", objects=(turned(d),)) for d in (0, 14, 16, 45, 74, 76, 90, 135)]
    groups = breakdown(rows)["obb"]
    assert groups["orientation: axis-aligned"]["objects"] == 4
    assert groups["orientation: oblique"]["objects"] == 4
