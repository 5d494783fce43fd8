"""Ways to fool a scorer, each with the score that it should get."""

import math
import sys

import numpy as np
import pytest

from earthgpt_jax.boxes import BoxKind
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.evaluation import baselines, scores
from earthgpt_jax.evaluation.metrics.average_precision import average_precisions
from earthgpt_jax.evaluation.metrics.captions import captions
from earthgpt_jax.evaluation.metrics.classification import OTHER, classification, confusion_matrix
from earthgpt_jax.evaluation.metrics.detection import detection
from earthgpt_jax.evaluation.metrics.false_premises import false_premises
from earthgpt_jax.evaluation.metrics.grounding import grounding
from earthgpt_jax.evaluation.metrics.vqa import parse_count, vqa
from tests.support.answers import answer, truth

SHIPS = (truth("ship", 10, 10, 30, 30), truth("ship", 50, 50, 70, 70))
BOX = "<p>one ship</p>[0.10,0.10,0.30,0.30]"
MALFORMED = (
    "", " ", "[", "[]", "[[0.1,0.1,0.3", "[0.1,0.1,0.3]", "[0.1,0.1,0.3,0.3,0.5]", "[a,b,c,d]", "<p>ship</p>",
    "[nan,nan,nan,nan]", "[0.1,0.1,inf,0.3]", "[1e9,1e9,2e9,2e9]", "[0.1,0.1,99999999999999999999,0.3]",
    "[0.3,0.3,0.1,0.1]", "[0.1,0.1,0.1,0.3]", "[-0.1,0.1,0.3,0.3]", "[0.1;0.1;0.3;0.3]", "\x00", "[" * 5000,
    "0.1" * 5000,
)  # fmt: skip
PRECISIONS = ("ap50", "ap40", "ap50_voc07", "ap40_any_class", "coco_ap", "coco_ap50")


def _grounded(text: str, i: int = 0, **changes):
    return answer(text, **{"id": f"{i}", "task": "grounding", "objects": SHIPS, "object_index": 0} | changes)


@pytest.mark.parametrize("text", MALFORMED)
def test_a_malformed_box_scores_zero(text):
    assert all(value == 0 for value in grounding([_grounded(text)]).values())
    got = detection[BoxKind.HBB]([answer(text, objects=SHIPS)])
    assert got["f1"] == got["parse_rate"] == 0
    precisions = average_precisions([answer(text, objects=SHIPS)], BoxKind.HBB)
    assert all(precisions[name] == 0 for name in PRECISIONS)


def test_boxes_with_swapped_corners_or_in_other_units_are_wrong():
    objects = (truth("ship", 10, 20, 30, 60),)
    right = _grounded("[0.10,0.20,0.30,0.60]", objects=objects)
    assert grounding([right])["pr90"] == 1.0
    for text in ("[0.20,0.10,0.60,0.30]", "[10,20,30,60]", "[100,200,300,600]", "[0.30,0.60,0.10,0.20]"):
        assert grounding([_grounded(text, objects=objects)])["pr50"] == 0.0, text


def test_answer_and_truth_are_not_interchangeable():
    rows = [answer("a", id=str(i), references=("a ship on the lake near a green field",)) for i in range(3)]
    swapped = [answer(row.references[0], id=row.id, references=(row.prediction,)) for row in rows]
    # BLEU's brevity penalty applies to the answer: one word of nine is not a caption.
    assert captions(rows)["bleu1"] < 0.01 < 0.1 < captions(swapped)["bleu1"]


def test_duplicate_boxes_lower_precision_and_do_not_raise_recall():
    once, ten = ([answer(" ".join([BOX] * count), objects=SHIPS)] for count in (1, 10))
    for task in (detection[BoxKind.HBB], lambda rows: average_precisions(rows, BoxKind.HBB)):
        one, many = task(once), task(ten)
        for name in one.keys() & {"precision", "f1", "ap50", "ap40"}:
            assert many[name] < one[name], name
    assert detection[BoxKind.HBB](ten)["recall"] == detection[BoxKind.HBB](once)["recall"] == 0.5
    both = _grounded("[0.10,0.10,0.30,0.30][0.10,0.10,0.30,0.30]")
    assert grounding([both])["pr50"] == 0.0


def test_a_correct_box_of_the_wrong_class_is_wrong_unless_classes_are_ignored():
    rows = [answer(BOX.replace("ship", "truck"), objects=SHIPS)]
    assert detection[BoxKind.HBB](rows)["f1"] == 0
    got = average_precisions(rows, BoxKind.HBB)
    assert got["ap50"] == got["ap40"] == got["coco_ap"] == 0
    assert got["ap40_any_class"] == 0.5


def test_constant_and_random_boxes_score_near_zero():
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 0.8, (500, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.05, 0.2, (500, 2))], axis=1)
    rows = [
        _grounded("[0.4,0.4,0.6,0.6]", i, record_id=str(i), objects=(truth("ship", *box * 100),))
        for i, box in enumerate(boxes)
    ]
    assert grounding(rows)["pr50"] < 0.02
    assert grounding(baselines.shuffled(rows))["pr50"] < 0.02
    constant = [answer("<p>one ship</p>[0.4,0.4,0.6,0.6]", id=row.id, objects=row.objects) for row in rows]
    assert average_precisions(constant, BoxKind.HBB)["ap50"] < 0.001


def test_a_grid_of_boxes_has_low_precision():
    grid = [f"{x / 10:.1f},{y / 10:.1f},{x / 10 + 0.2:.1f},{y / 10 + 0.2:.1f}" for x in range(8) for y in range(8)]
    rows = [answer(f"<p>64 ships</p>[{';'.join(grid)}]", objects=SHIPS)]
    got = detection[BoxKind.HBB](rows)
    assert (got["recall"], got["precision"]) == (1.0, pytest.approx(2 / 64))
    assert average_precisions(rows, BoxKind.HBB)["ap50"] == pytest.approx(2 / 64)


def test_there_must_be_one_finite_confidence_per_box():
    for confidences in ((0.5, 0.5), (math.nan,), (math.inf,)):
        with pytest.raises(EarthGPTError, match="one finite confidence for each of 1 boxes"):
            average_precisions([answer(BOX, objects=SHIPS, confidences=confidences)], BoxKind.HBB)


def test_confidences_change_ap_but_not_the_ap_with_equal_confidences():
    text = f"{BOX} <p>one ship</p>[0.80,0.80,0.90,0.90]"
    good, bad = (
        average_precisions([answer(text, objects=SHIPS, confidences=c)], BoxKind.HBB) for c in ((0.9, 0.1), (0.1, 0.9))
    )
    assert (good["ap50"], bad["ap50"]) == (0.5, 0.25)
    assert good["ap50_constant"] == bad["ap50_constant"] == 0.25
    assert (good["ap50_voc07"], bad["ap50_voc07"]) == (pytest.approx(6 / 11), pytest.approx(3 / 11))


@pytest.mark.parametrize("text", ["I do not know", "know", "no, yes", "yes no", "nope", "No way", ""])
def test_no_is_not_found_inside_other_words(text):
    rows = [answer(text, task="vqa", question_type="presence", answer="no")]
    assert vqa(rows)["accuracy"] == 0.0


def test_counts_are_scored_exactly_in_bins_and_by_absolute_error():
    pairs = [("3", "3"), ("three", "3"), ("12", "11"), ("0", "1"), ("many", "5"), ("1e9", "1"), ("-3", "3")]
    rows = [answer(a, id=str(i), task="vqa", question_type="count", answer=t) for i, (a, t) in enumerate(pairs)]
    got = vqa(rows)
    assert got["count_exact"] == 2 / 7
    assert got["count_binned"] == 3 / 7  # 12 and 11 share a bin, 0 and 1 do not
    assert got["count_parse_rate"] == 4 / 7
    assert got["count_mae"] == 2 / 4
    assert got["accuracy"] == 1 / 7  # exact match does not convert number words
    assert parse_count("1,000") == 1000 and parse_count("9" * 400) is None


def test_answering_yes_to_everything_is_exposed():
    rows = [
        answer("Yes", id=str(i), task="vqa", question_type="presence", answer=a)
        for i, a in enumerate(["yes", "no", "no"])
    ]
    assert vqa(rows)["false_yes_rate"] == 1.0
    parts = scores.breakdown(rows)["vqa"]
    assert (parts["answer: yes"]["accuracy"], parts["answer: no"]["accuracy"]) == (1.0, 0.0)


def test_hallucinated_boxes_are_counted():
    correct, absent = answer(BOX, id="0", objects=SHIPS), answer(f"{BOX} {BOX}", id="1")
    trucks = answer(BOX.replace("ship", "truck"), id="2", objects=SHIPS)
    assert detection[BoxKind.HBB]([correct, absent, trucks])["hallucinated_boxes"] == 1.0
    question = {"task": "absent_hbb", "answer": "There are no ships in the image."}
    rows = [answer("there are no ships in the image", id="0", **question), answer(f"{BOX} {BOX}", id="1", **question),
            answer("[0.1,0.", id="2", **question), answer("", id="3", **question)]  # fmt: skip
    assert false_premises(rows) == {"refusal_rate": 0.25, "hallucination_rate": 0.5, "hallucinated_boxes": 0.75}


def test_confusions_add_up_and_other_answers_have_their_own_column():
    pairs = [("harbor", "harbor"), ("River!", "harbor"), ("harbor river", "river"), ("", "river"), (OTHER, "river")]
    rows = [answer(a, id=str(i), task="classification", answer=t) for i, (a, t) in enumerate(pairs)]
    classes, columns, cells = confusion_matrix(rows)
    assert (classes, columns) == (["harbor", "river"], ["harbor", "river", OTHER])
    assert cells.tolist() == [[1, 1, 0], [0, 0, 3]]


def test_only_declared_synonyms_are_correct():
    rows = [answer("golf course", task="classification", answer="golf field", synonyms=("golf course",))]
    assert classification(rows)["top1"] == 1.0
    wrong = [answer("golf", task="classification", answer="golf field", synonyms=("golf course",))]
    assert classification(wrong)["top1"] == 0.0


def test_a_very_long_answer_is_scored():
    boxes = ";".join(f"0.{i % 9}1,0.{i % 7}1,0.{i % 9}5,0.{i % 7}5" for i in range(2000))
    rows = [answer(f"<p>2000 ships</p>[{boxes}]", objects=SHIPS * 200)]
    assert detection[BoxKind.HBB](rows)["boxes"] == 2000
    assert 0 <= average_precisions(rows, BoxKind.HBB)["ap50"] < 0.1


@pytest.mark.parametrize("task", [str(task) for task in scores.METRICS])
def test_garbage_scores_zero_without_raising(task):
    texts = [*MALFORMED, "\U0001f6f3", "no" * 1000, str(sys.maxsize) * 50, '{"bbox_2d": [1,2,3,4]}', "<box>"]
    rows = [
        answer(t, id=f"{i:02d}", task=task, question_type="count", answer="7 ships",
               references=("seven ships", "7 ships"), objects=SHIPS, object_index=0)
        for i, t in enumerate(texts)
    ]  # fmt: skip
    metric = scores.HEADLINE[task][0]
    cell = scores.score(rows, samples=20)[task]["all"]
    assert cell[metric] == pytest.approx(0, abs=1e-6)
    assert all(np.isfinite(value) for value in cell.values() if isinstance(value, float))
