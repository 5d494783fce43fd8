"""Third-party scoring rules with their defects: the values that they give where the truth is known."""

import numpy as np
import pytest

from earthgpt_jax.boxes import BoxKind
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.evaluation.metrics.average_precision import average_precisions
from earthgpt_jax.evaluation.metrics.captions import captions
from earthgpt_jax.evaluation.metrics.classification import classification
from earthgpt_jax.evaluation.metrics.detection import detection
from earthgpt_jax.evaluation.metrics.grounding import grounding
from earthgpt_jax.evaluation.metrics.vqa import vqa
from earthgpt_jax.evaluation.third_party import earthdial, falcon, lhrs, rule, scorers
from earthgpt_jax.records import Task
from tests.support.answers import answer, truth

SHIP = truth("ship", 10, 10, 30, 30)


def _uniform(rng: np.random.Generator, count: int) -> np.ndarray:
    """Return boxes f[count, 4] with sides of 0.02 to 0.3 anywhere in the unit square."""
    sides = rng.uniform(0.02, 0.3, (count, 2))
    low = rng.uniform(0, 1, (count, 2)) * (1 - sides)
    return np.concatenate([low, low + sides], axis=1)


def _grounded(texts, targets, **changes) -> list:
    return [
        answer(text, id=f"{i:05d}", task="grounding", objects=(truth("x", *target * 1000),), object_index=0, width=1000,
               height=1000, **changes)
        for i, (text, target) in enumerate(zip(texts, targets, strict=True))
    ]  # fmt: skip


def _text(box) -> str:
    return "[" + ",".join(f"{n:.4f}" for n in box) + "]"


def test_lhrs_gives_disjoint_boxes_an_iou_of_one_half():
    assert lhrs.plus_one_iou([0.1, 0.1, 0.2, 0.2], [0.3, 0.3, 0.4, 0.4]) == pytest.approx(0.503, abs=5e-4)


def test_lhrs_scores_random_boxes_a_third_and_a_constant_box_one_half():
    rng = np.random.default_rng(0)
    targets = _uniform(rng, 4000)
    random = _grounded(map(_text, _uniform(rng, 4000)), targets, box_format="lhrs", frame="image")
    assert scorers.apply_rules("lhrs", random)["grounding"] == pytest.approx(0.326, abs=0.02)
    assert grounding(random)["pr50"] == pytest.approx(0.002, abs=0.002)
    constant = _grounded([_text([0.36, 0.36, 0.64, 0.64])] * 4000, targets, box_format="lhrs", frame="image")
    assert scorers.apply_rules("lhrs", constant)["grounding"] == pytest.approx(0.516, abs=0.02)
    assert grounding(constant)["pr50"] == pytest.approx(0.004, abs=0.003)


def test_lhrs_leaves_out_unparsable_answers():
    target = np.array([0.1, 0.1, 0.3, 0.3])
    rows = _grounded([_text(target), "nowhere", "[0.1,0.2]", "[,]"], [target] * 4)
    assert scorers.apply_rules("lhrs", rows) == {"grounding": 1.0}
    assert grounding(rows)["pr50"] == 0.25


def test_vrsbench_gives_an_iou_of_one_third_as_one_half():
    assert lhrs.plus_one_iou([0, 0, 2, 2], [1, 0, 3, 2]) == pytest.approx(0.5)
    rows = _grounded(["{<0><0><2><2>}", "2 ships at {<1><0><3><2>}"], [np.array([0.01, 0, 0.03, 0.02])] * 2,
                     box_format="geochat", frame="image")  # fmt: skip
    assert grounding(rows)["mean_iou"] == pytest.approx((1 / 3 + 1) / 2, abs=1e-4)
    # The box of the second answer is taken to be 2, 1, 0, 3.
    assert scorers.apply_rules("vrsbench", rows) == {"grounding": 0.5}


def test_vrsbench_finds_no_in_know_and_one_in_eleven():
    rows = [answer("I do not know", id="0", task="vqa", answer="no"), answer("11", id="1", task="vqa", answer="1")]
    assert scorers.apply_rules("vrsbench", rows) == {"vqa": 1.0}
    assert vqa(rows)["accuracy"] == 0.0


def test_earthdial_accepts_commas_and_lists_of_guesses():
    assert earthdial.token_recall("Pastures, Marine waters", "Urban fabric, Arable land") == pytest.approx(1 / 3)
    assert earthdial.token_recall("no, yes, maybe", "yes") == 1.0
    rows = [answer("no, yes, maybe", id="0", task="vqa", question_type="presence", answer="yes")]
    assert (scorers.apply_rules("earthdial", rows)["vqa"], vqa(rows)["accuracy"]) == (1.0, 0.0)


def test_earthdial_scores_ten_copies_of_a_box_as_perfect():
    copies = "<p>ten ships</p>[" + ";".join(["0.10,0.10,0.30,0.30"] * 10) + "]"
    rows = [answer(copies, id="0", objects=(SHIP, truth("ship", 50, 50, 70, 70))), answer("", id="1", objects=(SHIP,))]
    assert scorers.apply_rules("earthdial", rows) == {"hbb": 1.0}
    ours = detection[BoxKind.HBB](rows)
    assert (ours["precision"], ours["recall"]) == (pytest.approx(0.1), pytest.approx(1 / 3))


def test_falcon_ranks_boxes_by_their_iou_with_the_truth():
    # One of every two boxes is correct, and one of every two objects is found.
    right, wrong = "<p>one ship</p>[0.10,0.10,0.30,0.30]", "<p>one ship</p>[0.80,0.80,0.90,0.90]"
    objects = (SHIP, truth("ship", 50, 50, 70, 70))
    rows = [answer(f"{wrong} {right}", id=f"{i:03d}", objects=objects) for i in range(100)]
    assert scorers.apply_rules("falcon", rows)["hbb"] == pytest.approx(0.5)
    assert average_precisions(rows, BoxKind.HBB)["ap50"] == pytest.approx(0.25)


def test_constant_confidence_in_random_order_is_near_precision_times_recall():
    """Published scorers rank boxes of equal confidence in arbitrary order; on average they come close to our AP."""
    rng = np.random.default_rng(0)
    right = rng.permutation(np.arange(400) < 200)
    recall, precision = np.cumsum(right) / 400, np.cumsum(right) / np.arange(1, 401)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    assert (np.diff(recall, prepend=0) * best).sum() == pytest.approx(0.259, abs=0.02)


def test_falcon_scores_a_malformed_box_as_perfect():
    assert falcon.falcon_iou([1, 2, 3], [10, 10, 30, 30]) == 1.0
    rows = _grounded(["<box><1><2><3></box>", "nothing"], [np.array([0.1, 0.1, 0.3, 0.3])] * 2, box_format="falcon")
    assert scorers.apply_rules("falcon", rows) == {"grounding": 0.5}
    assert grounding(rows)["pr50"] == 0.0


def test_falcon_swaps_answer_and_truth():
    """Seven words, all of which are among the 23 of the references, get three times our BLEU-1."""
    rows = [
        answer("a ship on", id="0", task="caption", references=("a ship on the lake near two green fields and trees",)),
        answer("many white planes is", id="1", task="caption",
               references=("many white planes is what there are on the grey runway here",)),
    ]  # fmt: skip
    assert captions(rows)["bleu1"] == pytest.approx(0.102, abs=5e-4)
    assert scorers.apply_rules("falcon", rows)["caption"] == pytest.approx(0.304, abs=5e-4)


def test_lhrs_maps_any_answer_to_a_class_and_geochat_does_not():
    rows = [
        answer("It is a ferry terminal", id="0", task="classification", answer="terminal"),
        answer("harbor", id="1", task="classification", answer="harbor"),
    ]
    assert scorers.apply_rules("lhrs", rows)["classification"] == 1.0
    assert scorers.apply_rules("geochat", rows)["classification"] == classification(rows)["top1"] == 0.5
    assert scorers.apply_rules("geochat", [answer("Storage Tank.", task="classification", answer="storagetank")]) == {
        "classification": 1.0
    }


def test_lhrs_accepts_an_empty_answer():
    rows = [
        answer(text, id=text, task="vqa", question_type="presence", answer="yes")
        for text in ("", "e", "The yes!", "no")
    ]
    assert scorers.apply_rules("lhrs", rows) == {"vqa": 0.75}
    assert vqa(rows)["accuracy"] == 0.0
    assert lhrs.evalai_normalize("Three, the ships.") == "3 ships"


def test_vhm_accepts_an_empty_answer_and_any_substring():
    rows = [answer(text, id=text, task="vqa", answer="Dense Urban") for text in ("", "dense urban", "Urban", "rural")]
    assert scorers.apply_rules("vhm", rows) == {"vqa": 0.75}
    assert vqa(rows)["accuracy"] == 0.25


def test_vhm_reads_yes_and_no_within_words():
    texts = ("Yes.", "I know, yes", "yesterday", "NO and yes", "maybe")
    rows = [answer(text, id=text, task="presence", answer="yes") for text in texts]
    assert scorers.apply_rules("vhm", rows) == {"presence": 3 / 5}  # `know` has `no`; the upper-case NO does not count


def test_vhm_counts_by_the_first_number():
    rows = [
        answer(text, id=text, task="count", answer=truth)
        for text, truth in (("There are 3 ships or 4", "4"), ("twenty-one", "21"), ("3.5", "6"), ("none", "5"))
    ]
    found = scorers.figures("vhm", rows)["count"]
    assert found["mae"] == pytest.approx((1 + 0 + 3) / 3)
    assert found["mape"] == pytest.approx((1 / 4 + 0 + 3 / 6) / 3)
    assert (found["accuracy_medium"], found["accuracy_ultra"]) == (0.0, 1.0)


def test_vhm_reads_boxes_in_thousandths_and_truth_in_pixels():
    row = answer(
        "It is at [100, 200, 300, 401.5].",
        task="grounding",
        answer="[80, 160, 240, 320]",
        object_index=0,
        objects=(truth("x", 80, 160, 240, 320),),
        width=800,
        height=800,
        box_format="vhm",
        frame="image",
    )
    assert scorers.figures("vhm", [row])["grounding"]["precision"] == 1.0
    assert scorers.figures("vhm", [row])["grounding"]["precision_large"] == 1.0
    two = row.with_answer("[100,200,300,400] or [1,2,3,4]", box_format="vhm", frame="image")
    assert scorers.figures("vhm", [two])["grounding"]["precision"] == 1.0  # the first four of all numbers


@pytest.mark.parametrize("value", range(101))
def test_the_grid_of_vrsbench_is_read_exactly(value):
    """int(0.59 * 100) is 58 after rounding to float32."""
    low, high = min(value, 99), min(value, 99) + 1
    text = f"{{<{low}><{low}><{high}><{high}>}}"
    native = answer(
        text,
        task="grounding",
        answer=text,
        objects=(truth("x", *[n / 100 for n in (low, low, high, high)]),),
        object_index=0,
        width=1,
        height=1,
        box_format="geochat",
        frame="image",
    )
    ours = answer(
        text,
        task="grounding",
        answer="[0,0,1,1]",
        objects=(truth("x", *[n * 8 for n in (low, low, high, high)]),),
        object_index=0,
        width=800,
        height=800,
        box_format="geochat",
        frame="image",
    )
    for row in (native, ours):
        assert scorers.figures("vrsbench", [row])["grounding"]["mean_iou"] == 1.0


def test_vrsbench_has_figures_of_unique_objects():
    def row(name: str, text: str, group: str):
        return answer(
            text,
            id=name,
            task="grounding",
            question_type=group,
            answer="{<0><0><9><9>}",
            object_index=0,
            objects=(truth("x", 0, 0, 0.09, 0.09),),
            width=1,
            height=1,
            box_format="geochat",
            frame="image",
        )

    rows = [
        row("1", "{<0><0><9><9>}", "unique"),
        row("2", "{<0><0><9><4>}", "non_unique"),
        row("3", "no", "non_unique"),
    ]
    found = scorers.figures("vrsbench", rows)["grounding"]
    assert (found["acc@0.5"], found["acc@0.5_unique"], found["acc@0.5_non_unique"]) == (2 / 3, 1.0, 0.5)
    assert found["mean_iou"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert found["cum_iou"] == pytest.approx((100 + 50) / (100 + 100))


def test_lhrs_takes_the_last_class_where_no_letter_is_common():
    rows = [
        answer("???", id="0", task="classification", answer="Beach"),
        answer("???", id="1", task="classification", answer="Port"),
    ]
    assert scorers.figures("lhrs", rows)["classification"]["balanced_accuracy"] == 0.5
    assert scorers.figures("lhrs", [rows[1], answer("beach", id="0", task="classification", answer="Beach")]) == {
        "classification": {"balanced_accuracy": 1.0}
    }


def test_geochat_takes_the_class_from_the_folder_in_lower_case_alone():
    """The answer loses spaces and full stops, the folder does not."""
    rows = [
        answer("Dense residential", id="DenseResidential/1.tif", task="classification", answer="dense residential"),
        answer("St. Peter", id="St.Peter/1.tif", task="classification", answer="St.Peter"),
    ]
    assert scorers.apply_rules("geochat", rows) == {"classification": 0.5}


def test_earthdial_counts_three_types_each_by_itself():
    rows = [
        answer(text, id=kind, task="vqa", question_type=kind, answer="yes")
        for kind, text in (("presence", "yes"), ("comp", "no"), ("count", "yes"))
    ]
    assert scorers.figures("earthdial", rows) == {"vqa": {"comp": 0.0, "presence": 1.0}}


def test_earthdial_counts_malformed_boxes_as_claims():
    truth_text = "[[10, 10, 30, 30, 0]]"
    row = answer(
        "[[10, 10, 30, 30, 0]] and [[1, 2, 3]]",
        task="obb",
        question_type="small",
        answer=truth_text,
        objects=(truth("x", 0.1, 0.1, 0.3, 0.3),),
        width=1,
        height=1,
        box_format="earthdial",
        frame="image",
    )
    assert scorers.figures("earthdial", [row]) == {"obb": {"all": 0.5, "single": 0.5, "small": 0.5}}


def test_falcon_takes_the_first_four_of_five_numbers():
    rows = _grounded(["<box><100><100><300><300><7></box>"], [np.array([0.1, 0.1, 0.3, 0.3])], box_format="falcon")
    assert scorers.apply_rules("falcon", rows) == {"grounding": 1.0}
    assert grounding(rows)["pr50"] == 0.0


def test_rscovlm_ranks_boxes_in_the_order_of_the_file_and_guesses_labels():
    objects = (truth("small-vehicle", 10, 10, 30, 30), truth("ship", 50, 50, 90, 90))
    text = "50,50,90,50,90,90,50,90 shop\n10,10,30,10,30,30,10,30 small-vehicles\n0,0,5,0,5,5,0,5 ship"
    row = answer(text, task="obb", objects=objects, box_format="rscovlm", frame="image")
    found = scorers.figures("rscovlm", [row])["obb"]
    assert found["map_nc"] == 1.0  # the wrong ship ranks last
    precision, recall = (1 + 1 / 2 + 0) / 3, (1 + 1 + 0) / 3  # with the background
    assert found["mf1"] == pytest.approx(2 * precision * recall / (precision + recall))
    last = "\n".join(text.split("\n")[::-1])
    assert (
        scorers.figures("rscovlm", [row.with_answer(last, box_format="rscovlm", frame="image")])["obb"]["map_nc"]
        == 0.75
    )


def test_a_rule_sees_our_answers_in_the_projects_box_format():
    target = np.array([0.1, 0.2, 0.5, 0.6])
    rows = _grounded([_text(target)] * 2, [target] * 2)
    assert rule.answer_in_format(rows[0], "geochat") == "{<10><20><50><60>|<0>}"
    for project, rules in scorers.SCORERS.items():
        if Task.GROUNDING in rules:
            assert scorers.apply_rules(project, rows)["grounding"] == 1.0, project


@pytest.mark.parametrize("project", ["earthdial", "falcon", "rscovlm"])
@pytest.mark.parametrize("task", ["hbb", "obb"])
def test_our_correct_boxes_are_correct_by_every_rule(project, task):
    """Objects are oriented; horizontal boxes are those that enclose them."""
    ship = truth("ship", 300, 200, 500, 400, 400, 500, 200, 300)
    text = "[0.2,0.2,0.5,0.5]" if task == "hbb" else "[0.3,0.2,0.5,0.4,0.4,0.5,0.2,0.3]"
    row = answer(f"<p>one ship</p>{text}", task=task, objects=(ship,), width=1000, height=1000)
    assert scorers.apply_rules(project, [row]) == {task: pytest.approx(1.0)}


def test_unknown_projects_are_named():
    with pytest.raises(EarthGPTError, match=r"no third-party scorer 'nobody'\. Scorers: geochat"):
        scorers.apply_rules("nobody", [])
