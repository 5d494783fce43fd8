"""Stored log-probabilities, the confidences of boxes that follow from them, and their calibration."""

import dataclasses
import json
import math

import numpy as np
import pytest

from earthgpt_jax.boxes import BoxKind
from earthgpt_jax.cli.main import main
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.evaluation import baselines, confidence, predictions, predictions_file, report, scores
from earthgpt_jax.evaluation.metrics import calibration
from earthgpt_jax.evaluation.metrics.average_precision import average_precisions
from earthgpt_jax.inference.engine import Engine
from tests.support.answers import answer, truth

BOX = "<p>one ship</p>[0.1,0.1,0.5,0.5]"
SHIP = (truth("ship", 10, 10, 50, 50),)


# ---- lengths of tokens
@pytest.fixture(scope="module")
def engine():
    return Engine.from_model_dir("tiny", batch_size=1)


@pytest.mark.parametrize("text", [BOX, "", "é漢 in the image.", "two  spaces", "There are <p>13 ships</p>[0.10,0.2"])
def test_lengths_give_the_characters_of_each_token(engine, text):
    tokenizer = engine.tokenizer
    ids = [*tokenizer.encode(f" {text}\n###"), tokenizer.eos_id, 5, 7]
    got, lengths = engine.decode_tokens(np.array(ids))
    assert (got, sum(lengths)) == (text, len(text))
    # Each prefix of the tokens decodes to the characters that the lengths give, except within a multi-byte character.
    for count in range(1, len(lengths) + 1):
        so_far = tokenizer.decode(ids[:count]).lstrip()
        if "\ufffd" not in so_far and text.isascii():
            assert text[: sum(lengths[:count])] == so_far[: len(text)]


def test_lengths_of_arbitrary_tokens_add_up_to_their_text(engine):
    rng = np.random.default_rng(0)
    seen = 0
    for _ in range(300):
        ids = rng.integers(0, engine.tokenizer.vocab_size, rng.integers(0, 30))
        ids[rng.random(len(ids)) < 0.1] = 0  # padding
        text, lengths = engine.decode_tokens(ids)
        assert sum(lengths) == len(text) and len(lengths) <= len(ids) and min(lengths, default=0) >= 0
        seen += len(text)
    assert seen > 1000


# ---- predictions files
def _written(text: str, cuts: list[int], logprobs: list[float], **changes) -> predictions.Prediction:
    """Return an answer whose tokens end at `cuts` and at its end."""
    ends = [0, *cuts, len(text)]
    return answer(text, token_lengths=tuple(np.diff(ends).tolist()), logprobs=tuple(logprobs), **changes)


def _by_character(text: str, logprob, **changes) -> predictions.Prediction:
    """Return an answer with one token per character, whose log-probability is a function of its position."""
    return _written(text, list(range(1, len(text))), [logprob(i) for i in range(len(text))], **changes)


def test_a_file_stores_tokens_where_they_are_known(tmp_path):
    rows = [_written(BOX, [3, 9], [-0.5, -1.25, 0.0], id="a"), answer("x", id="b", task="classification")]
    predictions_file.write(tmp_path / "p.jsonl", rows, header={})
    lines = (tmp_path / "p.jsonl").read_text().splitlines()
    assert '"logprobs": [-0.5, -1.25, 0.0]' in lines[1] and "logprobs" not in lines[2] and "steps" not in lines[2]
    assert predictions_file.read(tmp_path / "p.jsonl")[1] == rows


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logprobs": [-0.1]}, "a log-probability for each of 2 tokens, got 1"),
        ({"logprobs": []}, "a log-probability for each of 2 tokens, got 0"),
        ({"token_lengths": []}, "a log-probability for each of 0 tokens, got 2"),
        ({"token_lengths": [1, 2]}, "add up to the answer's 4 characters, got 3"),
        ({"token_lengths": [-1, 5]}, "add up to the answer's 4 characters"),
        ({"prediction": "longer"}, "was the answer edited after its tokens were stored?"),
        ({"logprobs": [-0.1, math.nan]}, "expected a finite number, got nan"),
        ({"logprobs": [-0.1, -math.inf]}, "expected a finite number, got -inf"),
        ({"logprobs": [-0.1, 0.5]}, "finite and not above 0, got 0.5"),
    ],
)
def test_tokens_that_do_not_fit_the_answer_are_refused_with_their_line(tmp_path, change, message):
    row = dataclasses.asdict(_written("ship", [2], [-0.1, -0.2]))
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"header": {"format_version": 2}}) + "\n" + json.dumps(row | change) + "\n")
    with pytest.raises(EarthGPTError, match=f"line 2: .*{message}".replace("?", r"\?")):
        predictions_file.read(path)


def test_log_probabilities_that_are_not_finite_are_not_stored():
    row = answer()
    tokens = {"token_lengths": (4,), "logprobs": np.array([math.nan])}
    for logprobs, stored in ((math.nan, False), (-math.inf, False), (-0.123456, True), (-1e-7, True)):
        made = predictions.Prediction.from_answer(
            *_record_and_question(row), "ship", **(tokens | {"logprobs": np.array([logprobs])})
        )  # fmt: skip
        assert bool(made.logprobs) is bool(made.token_lengths) is stored
    assert predictions.Prediction.from_answer(
        *_record_and_question(row), "ship", token_lengths=(4,), logprobs=[-0.123456]
    ).logprobs == (-0.1235,)


def _record_and_question(row):
    from earthgpt_jax.input.prompts.questions import Question
    from earthgpt_jax.records import Record, Sensor

    record = Record(id="r", image=b"", height=9, width=9, sensor=Sensor.SAR, source="s", split="test", tasks=())
    question = Question(id=row.id, record_id="r", task="hbb", question_type="", text="?", answer="", references=("",))
    return record, question


def test_a_different_answer_has_no_tokens_or_confidences():
    row = _written(BOX, [3], [-0.5, -1.0], id="a", confidences=(0.5,), objects=SHIP)
    [other] = baselines.shuffled([row])
    assert other.logprobs == other.token_lengths == other.confidences == other.steps == ()


# ---- the confidence
def test_the_confidence_of_a_box_by_hand():
    """Two boxes of one phrase: only tokens with digits of the box, and tokens of the noun, count."""
    text = "<p>two ships</p>[0.1,0.2,0.3,0.4;0.5,0.5,0.9,0.9]"
    first, second = text.index("0.1"), text.index("0.5")

    def logprob(i: int) -> float:
        if text[i] in ",.;[]":
            return -50.0  # punctuation says nothing about where a box is
        if first <= i < second:
            return -0.2
        if i >= second:
            return -0.4
        return -0.1 if text.index("ships") <= i < text.index("</p>") else -9.0

    got = confidence.token_confidences(_by_character(text, logprob))
    assert got == pytest.approx((math.exp(-0.2 - 0.1), math.exp(-0.4 - 0.1)))


def test_a_token_counts_for_every_box_that_it_holds_a_digit_of():
    text = "[0.1,0.2,0.3,0.4;0.5,0.5,0.9,0.9]"
    middle = text.index(";")
    row = _written(text, [4, middle - 1, middle + 2], [-1.0, -2.0, -4.0, -8.0])  # "4;0" is one token
    assert confidence.token_confidences(row) == pytest.approx((math.exp(-(1 + 2 + 4) / 3), math.exp(-(4 + 8) / 2)))


def test_an_unparsable_box_has_no_confidence_and_does_not_shift_the_others():
    text = "<p>two ships</p>[0.1,0.2,0.3;0.5,0.5,0.9,0.9]"
    row = _by_character(text, lambda i: -0.5 if i >= text.index("0.5") else 0.0)
    assert confidence.token_confidences(row) == pytest.approx((math.exp(-0.5),))


def test_a_task_has_confidences_for_all_boxes_or_for_none():
    known = [_by_character(BOX, lambda i, k=k: -0.1 * k, id=str(k), objects=SHIP) for k in (1, 2)]
    assert [len(p.confidences) for p in confidence.assign_confidences(known)] == [1, 1]
    assert confidence.notes(known) == []
    empty = answer("There are no objects in the image.", id="3")
    assert [len(p.confidences) for p in confidence.assign_confidences([*known, empty])] == [1, 1, 0]
    missing = answer(BOX, id="4", objects=SHIP)
    mixed = [*known, missing]
    assert [p.confidences for p in confidence.assign_confidences(mixed)] == [(), (), ()]
    assert "1 of 3 answers with boxes have no log-probabilities" in confidence.notes(mixed)[0]
    assert confidence.notes([missing]) == ["hbb: the file has no confidences; all boxes rank equally."]
    # Where some confidences are missing, none is used.
    table = scores.score(mixed, extras=(scores.Extra.AP,))["hbb"]["all"]
    assert "ece" not in table and "ap50_constant" not in table
    other = dataclasses.replace(missing, task="obb", id="5")
    assert [len(p.confidences) for p in confidence.assign_confidences([*known, other])] == [
        1,
        1,
        0,
    ]  # each task separately
    given = dataclasses.replace(missing, confidences=(0.25,))
    assert confidence.assign_confidences([given])[0].confidences == (0.25,)


def test_other_box_formats_have_no_token_confidences():
    row = _by_character("{<10><10><50><50>}", lambda i: -0.1, box_format="geochat", frame="image")
    assert confidence.token_confidences(row) is None


def test_ap_by_token_confidences_equals_ap_by_the_same_given_confidences():
    """Four images, where every other box is correct and more confident: AP is 0.5, or 0.25 without confidences."""
    rows = []
    for i in range(4):
        text = BOX if i % 2 else BOX.replace("0.5,0.5]", "0.15,0.15]")
        rows.append(_by_character(text, lambda _, i=i: -0.1 if i % 2 else -0.5 - i, id=str(i), objects=SHIP))
    by_tokens = scores.score(rows, extras=(scores.Extra.AP,))["hbb"]["all"]
    given = [dataclasses.replace(p, logprobs=(), token_lengths=()) for p in confidence.assign_confidences(rows)]
    assert average_precisions(given, BoxKind.HBB).items() <= by_tokens.items()
    assert (
        by_tokens["ap50"] == by_tokens["recall"] == 0.5
    )  # half of the ships are found, all before the first wrong box
    assert by_tokens["ap50_constant"] == pytest.approx(0.5 * 0.5)
    assert by_tokens["coco_ap50"] == pytest.approx(51 / 101)  # pycocotools averages precision at 101 recalls
    reversed_order = [dataclasses.replace(p, logprobs=tuple(-5 - v for v in p.logprobs)) for p in rows]
    worse = scores.score(reversed_order, extras=(scores.Extra.AP,))["hbb"]["all"]
    assert worse["ap50"] == pytest.approx(
        0.5 * 0.5
    )  # all wrong boxes come first: precision is 0.5 at the last correct one


# ---- calibration
def _boxes(correct: list[bool], confidences: list[float], **changes) -> list[predictions.Prediction]:
    """Return one image per box, which is correct or wrong."""
    return [
        answer(BOX if hit else BOX.replace("0.5,0.5]", "0.15,0.15]"), id=f"{changes.get('source', 's')}{i}",
               confidences=(c,), objects=SHIP, **changes)
        for i, (hit, c) in enumerate(zip(correct, confidences, strict=True))
    ]  # fmt: skip


def test_the_calibration_error_by_hand():
    """Bins of 1/15: 0.95 and 0.97 share one, with one of two correct; 0.1 is alone and wrong; 0.3 alone and correct."""
    rows = _boxes([True, False, False, True], [0.95, 0.97, 0.1, 0.3])
    cell = scores.score(rows, extras=(scores.Extra.AP,), samples=50)["hbb"]["all"]
    assert cell["ece"] == pytest.approx((2 * abs(0.96 - 0.5) + 0.1 + 0.7) / 4)
    assert cell["mean_confidence"] == pytest.approx((0.95 + 0.97 + 0.1 + 0.3) / 4) and cell["boxes_correct"] == 0.5
    assert "ece" not in cell["intervals"]  # it is biased upwards, so an interval around it would miss the truth
    low, high = cell["intervals"]["ece_if_calibrated"]
    assert 0 <= low < cell["ece_if_calibrated"] < high
    assert [b.boxes for b in calibration.reliability_bins(rows)] == [1, 1, 2]


def test_boxes_of_confidence_one_have_an_error_equal_to_the_fraction_that_is_wrong():
    rows = _boxes([True] + [False] * 9, [1.0] * 10)
    cell = scores.score(rows, extras=(scores.Extra.AP,))["hbb"]["all"]
    assert cell["ece"] == pytest.approx(0.9)
    assert cell["ap50"] == cell["ap50_constant"] == pytest.approx(0.1 * 0.1)
    assert len({c for p in rows for c in p.confidences}) == 1


def test_bins_include_their_upper_edge():
    assert calibration.bin_indices(np.array([0.0, 1e-9, 1 / 15, 1 / 15 + 1e-9, 1.0])).tolist() == [0, 0, 0, 1, 14]


def test_isotonic_regression_by_hand():
    """Confidences 0.1 to 0.5 with fractions 0, 1, 0.5, 0.5, 1: the three in the middle are pooled to 3 / 5."""
    confidences = np.array([0.1, 0.2, 0.3, 0.3, 0.4, 0.4, 0.5])
    correct = np.array([0, 1, 1, 0, 0, 1, 1])
    fitted = confidence.fit_calibration(confidences, correct)
    assert fitted(np.array([0.1, 0.2, 0.3, 0.4, 0.5])) == pytest.approx([0, 0.6, 0.6, 0.6, 1])
    assert fitted(np.array([0.15, 0.0, 0.9])) == pytest.approx([0.3, 0, 1])
    assert fitted.confidences == (0.1, 0.2, 0.4, 0.5) and fitted.boxes == 7
    assert confidence.fit_calibration(np.array([0.5]), np.array([1]))(np.array([0.0, 1.0])).tolist() == [1, 1]
    with pytest.raises(EarthGPTError, match="at least one box to fit to"):
        confidence.fit_calibration(np.zeros(0), np.zeros(0))


def test_a_calibration_fitted_on_one_set_holds_on_another_and_leaves_ap_unchanged():
    """Boxes of confidence c are correct with probability c^3, so the model is overconfident before calibration."""
    rng = np.random.default_rng(0)
    sets = []
    for name in ("val", "test"):
        confidences = rng.uniform(0.05, 1, 800)
        correct = rng.random(800) < confidences**3
        sets.append(_boxes(correct.tolist(), confidences.tolist(), source=name))
    calibrations = calibration.fit_calibrations(sets[0])
    cell = scores.score(sets[1], extras=(scores.Extra.AP,), calibrations=calibrations)["hbb"]["all"]
    assert cell["ece"] > 0.2 > 0.07 > cell["ece_calibrated"]
    grid = calibrations["hbb"](np.linspace(0, 1, 101))
    assert (np.diff(grid) >= 0).all() and grid[50] == pytest.approx(0.125, abs=0.08)
    plain = scores.score(sets[1], extras=(scores.Extra.AP,))["hbb"]["all"]
    assert cell["ap50"] == plain["ap50"]


def test_a_calibration_is_not_evaluated_on_the_data_that_it_was_fitted_to(tmp_path, capsys):
    test, val = (_boxes([True, False, True], [0.9, 0.3, 0.6], source=name) for name in ("test", "val"))
    same_image = [dataclasses.replace(val[0], record_id=test[0].record_id)]
    files = {"test": test, "val": val, "same": test, "image": same_image}
    for name, rows in files.items():
        predictions_file.write(tmp_path / f"{name}.jsonl", rows, header={})
    command = ["score", str(tmp_path / "test.jsonl"), "--samples", "5", "--calibrate"]
    for name, message in (
        ("same", "3 questions in common, for example test0"),
        ("image", "1 images in common, for example"),
    ):
        assert main([*command, str(tmp_path / f"{name}.jsonl")]) == 2
        assert message in capsys.readouterr().err
    assert main([*command, str(tmp_path / "val.jsonl"), "--report", str(tmp_path / "r")]) == 0
    out = capsys.readouterr().out
    assert "hbb: confidences calibrated on 3 boxes of val.jsonl" in out and "## Box confidence" in out
    page, text = ((tmp_path / "r" / name).read_text() for name in ("report.html", "report.md"))
    assert page.count("<figcaption><b>hbb") == 2 and "hbb, calibrated" in page and "<script" not in page
    assert "| hbb, calibrated |" in text and "| hbb, uncalibrated |" in text


def test_grounding_has_a_calibration_error_too():
    rows = [
        _by_character("[0.1,0.1,0.5,0.5]", lambda i: math.log(0.8), id=str(k), task="grounding", object_index=0,
                      objects=SHIP if k else (truth("ship", 60, 60, 90, 90),))
        for k in range(4)
    ]  # fmt: skip
    cell = scores.score([*rows, answer("none", id="x", task="grounding", object_index=0, objects=SHIP)],
                        extras=(scores.Extra.AP,))["grounding"]["all"]  # fmt: skip
    assert (cell["ece"], cell["boxes_correct"]) == (pytest.approx(0.05), 0.75)


def test_the_report_says_that_a_file_has_no_confidences(tmp_path, capsys):
    truths = [answer("", id="1", objects=SHIP)]
    predictions_file.write(tmp_path / "q.jsonl", truths, header={})
    third_party = tmp_path / "geochat.jsonl"
    third_party.write_text(json.dumps({"question_id": "1", "answer": "<p>ship</p>{<10><10><50><50>}"}) + "\n")
    command = [
        "score",
        str(third_party),
        "--from",
        "geochat",
        "--questions",
        str(tmp_path / "q.jsonl"),
        "--samples",
        "0",
    ]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "the file has no confidences; all boxes rank equally" in out and "## Box confidence" not in out


def test_confidences_outside_0_to_1_rank_boxes_but_have_no_calibration_error():
    rows = _boxes([True, False], [12.5, -3.0])
    cell = scores.score(rows, extras=(scores.Extra.AP,))["hbb"]["all"]
    assert cell["ap50"] == 0.5 and "ece" not in cell
    assert "not in [0, 1]" in confidence.notes(rows)[0]
    assert report.confidence_table({"hbb": {"all": cell}}) is None
