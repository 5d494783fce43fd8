"""Metrics against values computed by hand and against reference implementations."""

import contextlib
import io

import numpy as np
import pytest
import shapely
from pycocoevalcap.cider.cider import Cider

from earthgpt_jax.boxes import BoxKind, rotated_to_polygon
from earthgpt_jax.evaluation.metrics.captions import captions, tokenize
from earthgpt_jax.evaluation.metrics.classification import classification, normalize
from earthgpt_jax.evaluation.metrics.detection import detection, match_boxes
from earthgpt_jax.evaluation.metrics.grounding import grounding, grounding_iou
from earthgpt_jax.evaluation.metrics.iou import hbb_ious, obb_ious
from earthgpt_jax.evaluation.metrics.vqa import vqa
from tests.support.answers import answer, truth

SHIPS = (truth("ship", 10, 10, 30, 30), truth("ship", 50, 50, 70, 70))


def test_top1_is_exact_after_normalization():
    assert normalize("Storage_tank.") == normalize("storage-tank") == "storage tank"
    rows = [answer(text, answer="harbor") for text in ("Harbor.", "a harbor", "", "river harbor")]
    assert classification(rows)["top1"] == 0.25


def test_vqa_by_type():
    rows = [
        answer("yes", answer="yes", question_type="presence"),
        answer("no, yes, maybe", answer="yes", question_type="presence"),  # a list of guesses is wrong
        answer("11", answer="1", question_type="count"),
    ]
    expected = {"accuracy": 1 / 3, "accuracy_count": 0.0, "accuracy_presence": 0.5, "accuracy_macro": 0.25}
    assert vqa(rows).items() >= expected.items()


def test_iou_by_hand_and_of_disjoint_small_boxes():
    boxes = np.array([[0, 0, 2, 2], [1, 0, 3, 2]], float)
    np.testing.assert_allclose(hbb_ious(boxes, boxes), [[1, 1 / 3], [1 / 3, 1]])
    # With +1 in the formula, these fractions would score 0.5.
    assert hbb_ious(np.array([[0.1, 0.1, 0.2, 0.2]]), np.array([[0.3, 0.3, 0.4, 0.4]]))[0, 0] == 0


def test_obb_iou_equals_shapely_and_a_self_intersecting_polygon_has_iou_zero():
    rng = np.random.default_rng(0)
    polygons = np.stack([
        rotated_to_polygon(cx=rng.uniform(0, 9), cy=rng.uniform(0, 9), w=8, h=4, angle=rng.uniform(0, 3))
        for _ in range(6)
    ]).astype(float)  # fmt: skip
    got = obb_ious(polygons[:3], polygons[3:])
    for i, j in np.ndindex(3, 3):
        a, b = (shapely.Polygon(p.reshape(4, 2)) for p in (polygons[i], polygons[3 + j]))
        assert got[i, j] == pytest.approx(a.intersection(b).area / a.union(b).area, abs=1e-9)
    crossed = np.array([[0, 0, 5, 5, 5, 0, 0, 5.0]])
    assert obb_ious(crossed, polygons).max() == 0


def test_grounding_counts_unparsable_answers_as_wrong():
    question = {"task": "grounding", "objects": SHIPS, "object_index": 1}
    right = answer("[0.50,0.50,0.70,0.70]", **question)
    half = answer("[0.50,0.50,0.70,0.60]", **question)  # IoU exactly 0.5
    several = answer("[0.50,0.50,0.70,0.70;0.10,0.10,0.30,0.30]", **question)
    swapped, empty = answer("[0.70,0.70,0.50,0.50]", **question), answer("", **question)
    assert grounding_iou(right) == pytest.approx(1, abs=1e-6)
    assert grounding_iou(half) == pytest.approx(0.5, abs=1e-6)
    assert grounding_iou(several) is grounding_iou(swapped) is grounding_iou(empty) is None
    result = grounding([right, half, several, swapped])
    assert result["mean_iou"] == pytest.approx(1.5 / 4, abs=1e-6)
    assert result["parse_rate"] == 0.5


def test_grounding_is_scored_in_pixels_of_an_image_that_is_not_square():
    # 100 x 50, padded to 100 x 100 with 25 rows above: the truth is at y = 10..30 of the image, 35..55 of the square.
    row = answer(
        "[0.40,0.35,0.60,0.55]", task="grounding", objects=(truth("ship", 40, 10, 60, 30),), object_index=0, height=50
    )
    assert grounding_iou(row) == pytest.approx(1, abs=1e-5)


def test_detection_by_hand():
    both = "There are <p>two ships</p>[0.10,0.10,0.30,0.30;0.50,0.50,0.70,0.70] in the image."
    assert detection[BoxKind.HBB]([answer(both, objects=SHIPS)]) == {
        "precision": 1.0, "recall": 1.0, "f1": 1.0, "macro_f1": 1.0, "boxes": 2, "objects": 2, "parse_rate": 1.0,
        "hallucinated_boxes": 0.0,
    }  # fmt: skip
    one = "There is <p>one ship</p>[0.10,0.10,0.30,0.30] in the image."
    result = detection[BoxKind.HBB]([answer(one, objects=SHIPS)])
    assert (result["precision"], result["recall"]) == (1.0, 0.5)


def test_of_ten_copies_of_a_correct_box_nine_are_wrong():
    copies = "<p>10 ships</p>[" + ";".join(["0.10,0.10,0.30,0.30"] * 10) + "]"
    result = detection[BoxKind.HBB]([answer(copies, objects=SHIPS)])
    assert result["precision"] == pytest.approx(0.1)
    assert result["recall"] == 0.5


def test_a_correct_box_with_the_wrong_label_or_of_the_wrong_kind_is_wrong():
    wrong = match_boxes(answer("<p>one truck</p>[0.10,0.10,0.30,0.30]", objects=SHIPS), BoxKind.HBB)
    assert (wrong.true_positives, wrong.false_positives, wrong.false_negatives) == (0, 1, 2)
    oriented = "<p>one ship</p>[0.10,0.10,0.30,0.10,0.30,0.30,0.10,0.30]"
    assert match_boxes(answer(oriented, objects=SHIPS), BoxKind.HBB).true_positives == 0
    assert match_boxes(answer(oriented, objects=SHIPS), BoxKind.OBB).true_positives == 1


def test_matching_assigns_each_object_its_best_box():
    # The first box overlaps both objects a little; matching in the order of the text would waste an object on it.
    text = "<p>two ships</p>[0.12,0.10,0.32,0.30;0.10,0.10,0.30,0.30]"
    result = match_boxes(answer(text, objects=SHIPS[:1]), BoxKind.HBB)
    assert (result.true_positives, result.false_positives, result.false_negatives) == (1, 1, 0)


def test_difficult_objects_are_neither_required_nor_penalized():
    objects = (SHIPS[0], truth("ship", 50, 50, 70, 70, difficult=True))
    for text, expected in (
        ("<p>one ship</p>[0.10,0.10,0.30,0.30]", (1, 0, 0)),
        ("<p>two ships</p>[0.10,0.10,0.30,0.30;0.50,0.50,0.70,0.70]", (1, 0, 0)),
        ("<p>one ship</p>[0.50,0.50,0.70,0.70]", (0, 0, 1)),
    ):
        matched = match_boxes(answer(text, objects=objects), BoxKind.HBB)
        assert (matched.true_positives, matched.false_positives, matched.false_negatives) == expected


def test_boxes_in_an_empty_image_are_false_positives_and_only_one_sentence_means_none():
    none = answer("There are no objects in the image.")
    one_box = answer("<p>one ship</p>[0.10,0.10,0.30,0.30]")
    empty = answer("")
    assert match_boxes(none, BoxKind.HBB).parsed
    assert not match_boxes(empty, BoxKind.HBB).parsed
    assert match_boxes(one_box, BoxKind.HBB).false_positives == 1


def test_captions_through_pycocoevalcap():
    references = [("a ship on a lake", "one ship on water"), ("two trucks on a road",), ("a forest",)]
    texts = ["A ship on a lake.", "two trucks on a road", "a desert"]
    rows = [answer(t, id=str(i), references=r) for i, (t, r) in enumerate(zip(texts, references, strict=True))]
    result = captions(rows)
    with contextlib.redirect_stdout(io.StringIO()):
        expected, _ = Cider().compute_score(
            {i: list(r) for i, r in enumerate(references)}, {i: [tokenize(t)] for i, t in enumerate(texts)}
        )
    assert result["cider"] == pytest.approx(float(expected))
    # By hand: 11 of 12 words match, and the lengths equal those of the closest references.
    assert result["bleu1"] == pytest.approx(11 / 12, abs=0.01)
    assert tokenize("A ship's hull isn't 3.5 m!") == "a ship 's hull is n't 3.5 m"


def test_a_number_keeps_its_decimal_point_and_an_empty_answer_is_never_correct():
    assert normalize("1.5 m.") == "1.5 m" != normalize("15 m")
    assert normalize("-5") == "-5" != normalize("5")
    assert normalize("storage-tank, 1,000") == "storage tank 1000"
    assert classification([answer("", answer="?"), answer("!", answer="?")])["top1"] == 0.0


def test_unparsable_boxes_are_false_positives():
    text = "<p>three ships</p>[0.10,0.10,0.30,0.30;0.70,0.70,0.50,0.50;0.1,0.2]"
    matched = match_boxes(answer(text, objects=SHIPS), BoxKind.HBB)
    assert (matched.true_positives, matched.false_positives, matched.false_negatives, matched.parsed) == (
        1,
        2,
        1,
        False,
    )
    cut = match_boxes(answer("<p>one ship</p>[0.10,0.10,0.30,0.30] <p>one ship</p>[0.5,0.", objects=SHIPS), BoxKind.HBB)
    assert (cut.true_positives, cut.false_positives, cut.false_negatives, cut.parsed) == (1, 1, 1, False)


def test_required_objects_are_matched_before_difficult_ones():
    # The box fits the difficult object exactly and the required one with IoU 2/3: COCO and VOC call it correct.
    objects = (truth("ship", 10, 10, 30, 30, difficult=True), truth("ship", 10, 14, 30, 34))
    once = match_boxes(answer("<p>one ship</p>[0.10,0.10,0.30,0.30]", objects=objects), BoxKind.HBB)
    assert (once.true_positives, once.false_positives, once.false_negatives) == (1, 0, 0)
    # Unmatched boxes on a difficult object are ignored, however many there are.
    text = "<p>three ships</p>[0.10,0.10,0.30,0.30;0.10,0.10,0.30,0.30;0.10,0.14,0.30,0.34]"
    several = match_boxes(answer(text, objects=objects), BoxKind.HBB)
    assert (several.true_positives, several.false_positives, several.false_negatives) == (1, 0, 0)


def test_a_constant_box_finds_only_objects_that_happen_to_be_there():
    text = "There is <p>one ship</p>[0.10,0.10,0.30,0.30] in the image."
    images = [SHIPS[:1], SHIPS[1:], (), (truth("truck", 10, 10, 30, 30),)]
    result = detection[BoxKind.HBB]([answer(text, objects=objects) for objects in images])
    assert (result["precision"], result["recall"], result["parse_rate"]) == (0.25, pytest.approx(1 / 3), 1.0)


def test_boxes_of_one_image_do_not_match_objects_of_another():
    text = "<p>one ship</p>[0.50,0.50,0.70,0.70]"
    result = detection[BoxKind.HBB]([answer(text, objects=SHIPS[:1]), answer(text, objects=SHIPS[1:])])
    assert (result["precision"], result["recall"]) == (0.5, 0.5)


def test_empty_and_identical_captions():
    rows = [answer("", id="0", references=("a ship",)), answer("", id="1", references=("a truck",))]
    assert all(value == pytest.approx(0, abs=1e-6) for value in captions(rows).values())
    references = ("four trucks on a road", "six ships in a harbor")
    perfect = captions([answer(text.upper() + "!", references=(text,)) for text in references])
    assert perfect["bleu4"] == pytest.approx(1, abs=1e-6)
    assert perfect["rouge_l"] == pytest.approx(1)
    assert perfect["cider"] == pytest.approx(10)
