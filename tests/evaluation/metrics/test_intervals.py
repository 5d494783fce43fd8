"""Bootstrap intervals: correct width, resampling of whole images, reproducible and fast."""

import time

import numpy as np
import pytest
import scipy.stats

from earthgpt_jax.boxes import BoxKind
from earthgpt_jax.evaluation import scores
from earthgpt_jax.evaluation.metrics.average_precision import (
    Interpolation,
    ap_intervals,
    average_precision,
    mean_average_precision,
    rank_boxes,
)
from earthgpt_jax.evaluation.metrics.intervals import bootstrap_weights, image_indices
from tests.support.answers import answer, truth


def _rows(hits, *, per_image: int = 1):
    return [
        answer("harbor" if hit else "river", id=f"{i:05d}", record_id=f"{i // per_image:05d}", task="classification",
               answer="harbor")
        for i, hit in enumerate(hits)
    ]  # fmt: skip


def _interval(rows, samples: int = 2000):
    return scores.score(rows, samples=samples)["classification"]["all"]["intervals"]["top1"]


def test_an_interval_is_as_wide_as_the_binomial_distribution():
    rows = _rows(np.arange(400) % 4 > 0)
    low, high = _interval(rows)
    expected = scipy.stats.binom.ppf([0.025, 0.975], 400, 0.75) / 400
    np.testing.assert_allclose([low, high], expected, atol=0.006)


def test_an_interval_equals_scipys():
    hits = np.random.default_rng(3).uniform(size=150) < 0.6
    reference = scipy.stats.bootstrap((hits.astype(float),), np.mean, n_resamples=4000, method="percentile",
                                      rng=np.random.default_rng(0)).confidence_interval  # fmt: skip
    np.testing.assert_allclose(_interval(_rows(hits), 4000), reference, atol=0.01)


def test_answers_about_the_same_image_are_resampled_together():
    """Ten answers per image, all correct or all wrong: the interval is as wide as with one answer per image."""
    hits = np.repeat(np.arange(40) % 4 > 0, 10)
    together, apart = (np.diff(_interval(_rows(hits, per_image=n)))[0] for n in (10, 1))
    assert together / apart == pytest.approx(np.sqrt(10), rel=0.15)


def test_intervals_are_reproducible_and_independent_of_order():
    rows = _rows(np.arange(50) % 3 > 0)
    assert _interval(rows, 100) == _interval(rows[::-1], 100)


def test_a_bootstrap_sample_draws_as_many_images_as_there_are():
    image = image_indices(["b", "a", "b", "c"])
    assert image.tolist() == [1, 0, 1, 2]
    assert all(drawn.sum() == 3 and len(drawn) == 3 for drawn in bootstrap_weights(image, samples=20))


def test_a_weight_acts_like_copies_of_the_image():
    """An image drawn twice counts as two images, with distinct and with equal confidences."""
    rows = [
        answer("<p>two ships</p>[0.1,0.1,0.3,0.3;0.6,0.6,0.8,0.8]", id=f"{i}", confidences=c,
               objects=(truth("ship", 10, 10, 30, 30), truth("ship", 60, 60, 90, 90))[: 1 + i % 2])
        for i, c in enumerate([(0.9, 0.3), (0.2, 0.8), (0.5, 0.7)])
    ]  # fmt: skip
    for changed in (rows, [answer(**vars(row) | {"confidences": ()}) for row in rows]):
        drawn = np.array([[1.0, 2.0, 0.0], [0.0, 0.0, 3.0]])
        copies = [
            [answer(**vars(row) | {"id": f"{k}-{row.id}"}) for row, w in zip(changed, ws, strict=True)
             for k in range(int(w))]
            for ws in drawn
        ]  # fmt: skip
        for rule in Interpolation:
            got = average_precision(rank_boxes(changed, BoxKind.HBB)["ship"], rule, drawn)
            expected = [average_precision(rank_boxes(c, BoxKind.HBB)["ship"], rule)[0] for c in copies]
            np.testing.assert_allclose(got, expected, atol=1e-9)


def test_average_precision_by_hand():
    # Correct, wrong, correct, of three objects: precision 1, 1/2, 2/3 at recall 1/3, 1/3, 2/3
    text = "<p>three ships</p>[0.1,0.1,0.3,0.3;0.4,0.1,0.5,0.2;0.6,0.6,0.8,0.8]"
    objects = tuple(truth("ship", *box) for box in ((10, 10, 30, 30), (60, 60, 80, 80), (0, 80, 10, 90)))
    ranked = rank_boxes([answer(text, objects=objects, confidences=(0.9, 0.8, 0.7))], BoxKind.HBB)
    assert mean_average_precision(ranked, Interpolation.VOC12)[0] == pytest.approx(1 / 3 + 2 / 9)
    assert mean_average_precision(ranked, Interpolation.VOC07)[0] == pytest.approx((4 * 1 + 3 * 2 / 3) / 11)


def test_a_difficult_object_neither_raises_nor_lowers_ap():
    objects = (truth("ship", 10, 10, 30, 30), truth("ship", 60, 60, 80, 80, difficult=True))
    text = "<p>three ships</p>[0.1,0.1,0.3,0.3;0.6,0.6,0.8,0.8;0.6,0.6,0.8,0.8]"
    ranked = rank_boxes([answer(text, objects=objects)], BoxKind.HBB)
    assert mean_average_precision(ranked, Interpolation.VOC12)[0] == 1.0
    low, high = ap_intervals([answer(text, objects=objects)], BoxKind.HBB, samples=10)["ap50"]
    assert low < 0.1 and high == 1.0  # one image says little


def test_an_interval_has_a_width_where_all_answers_agree():
    """30 of 30 correct: the bootstrap does not vary, but an accuracy of 0.9 is compatible with them."""
    low, high = _interval(_rows([True] * 30), 100)
    assert 0.87 < low < 0.9 and high == 1.0
    low, high = _interval(_rows([False] * 30), 100)
    assert low == 0.0 and 0.1 < high < 0.13
    low, _ = _interval(_rows([True] * 300, per_image=10), 100)
    assert 0.87 < low < 0.9  # ten answers about the same image count as one


def test_an_interval_of_a_class_counts_its_own_images():
    """A class in 3 of 300 images, always found: its interval is that of 3 images."""
    ship, car = "<p>one ship</p>[0.1,0.1,0.3,0.3]", "<p>one car</p>[0.1,0.1,0.3,0.3]"
    rows = [answer(ship if i < 3 else car, id=f"{i:03d}", objects=(truth("ship" if i < 3 else "car", 10, 10, 30, 30),))
            for i in range(300)]  # fmt: skip
    groups = scores.breakdown(rows, samples=50)["hbb"]
    assert groups["class: ship"]["intervals"]["recall"][0] < 0.3
    assert groups["class: car"]["intervals"]["recall"][0] > 0.98


def test_the_weighted_coco_ap_is_that_of_pycocotools():
    """With every image once, the AP of the intervals is pycocotools'; an image drawn twice acts like two images."""
    from earthgpt_jax.evaluation.metrics import coco_ap

    rng = np.random.default_rng(0)
    rows = []
    for i in range(12):
        boxes = rng.uniform(0, 0.6, (3, 2))
        text = "<p>three ships</p>[" + ";".join(f"{x:.3f},{y:.3f},{x + 0.3:.3f},{y + 0.3:.3f}" for x, y in boxes) + "]"
        objects = tuple(truth("ship", *(100 * np.r_[xy, xy + 0.3] + rng.uniform(-4, 4, 4)).clip(0, 100))
                        for xy in boxes[: 1 + i % 3])  # fmt: skip
        rows.append(answer(text, id=f"{i:02d}", objects=objects, confidences=tuple(rng.uniform(size=3))))
    evaluation = coco_ap._evaluation(rows, BoxKind.HBB)
    table = coco_ap._weighted_precisions(evaluation, np.ones((1, 12)))
    expected = coco_ap.coco_ap(rows, BoxKind.HBB)
    assert table[0, 0].mean() == pytest.approx(expected["coco_ap"], abs=1e-12)
    assert table[0, 0, 0] == pytest.approx(expected["coco_ap50"], abs=1e-12)
    assert table[0, 2].mean() == pytest.approx(expected["coco_ap_medium"], abs=1e-12)
    twice = coco_ap._weighted_precisions(evaluation, np.full((1, 12), 2.0))
    np.testing.assert_allclose(twice, table, atol=1e-12)


def test_the_error_of_few_calibrated_boxes_is_not_zero_but_expected():
    from earthgpt_jax.evaluation.metrics.calibration import BINS, bin_indices, ece_if_calibrated

    rng = np.random.default_rng(1)
    inside = []
    for _ in range(200):
        confidences = rng.uniform(0.2, 1, 60)
        gaps = np.bincount(bin_indices(confidences), confidences - (rng.uniform(size=60) < confidences), minlength=BINS)
        _, (low, high) = ece_if_calibrated(confidences)
        inside.append(low <= np.abs(gaps).sum() / 60 <= high)
    assert 0.92 <= np.mean(inside) <= 0.98
    mean, _ = ece_if_calibrated(np.full(100, 0.5))
    assert mean == pytest.approx(np.sqrt(0.25 / 100) * np.sqrt(2 / np.pi), rel=0.1)


def test_a_hundred_thousand_answers_take_seconds():
    rows = _rows(np.arange(100_000) % 3 > 0, per_image=2)
    started = time.monotonic()
    low, high = _interval(rows, 1000)
    assert time.monotonic() - started < 30
    assert high - low < 0.01
