"""Log-probabilities kept with answers, the confidences of boxes that follow, and what they are worth."""

import dataclasses
import json
import math

import numpy as np
import pytest

from earthgpt_jax.boxes import BoxKind
from earthgpt_jax.cli.main import main
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.evaluation import baselines, confidence, predictions, report, scores
from earthgpt_jax.evaluation.metrics import calibration
from earthgpt_jax.evaluation.metrics.average_precision import average_precisions
from earthgpt_jax.inference.engine import Engine
from tests.support.answers import answer, truth

BOX = "<p>one ship</p>[0.1,0.1,0.5,0.5]"
SHIP = (truth("ship", 10, 10, 50, 50),)


# ---- tokens and their text
@pytest.fixture(scope="module")
def engine():
    return Engine.from_model_dir("tiny", batch_size=1)


@pytest.mark.parametrize("text", [BOX, "", "é漢 in the image.", "two  spaces", "There are <p>13 ships</p>[0.10,0.2"])
def test_lengths_say_which_characters_a_token_is(engine, text):
    tokenizer = engine._tokenizer
    ids = [*tokenizer.encode(f" {text}\n###"), tokenizer.eos_id, 5, 7]
    got, lengths = engine.decode_tokens(np.array(ids))
    assert (got, sum(lengths)) == (text, len(text))
    # Token by token, what is decoded so far is what the lengths say, except within a character of several bytes.
    for count in range(1, len(lengths) + 1):
        so_far = tokenizer.decode(ids[:count]).lstrip()
        if "\ufffd" not in so_far and text.isascii():
            assert text[: sum(lengths[:count])] == so_far[: len(text)]


def test_any_tokens_at_all_add_up_to_their_text(engine):
    rng = np.random.default_rng(0)
    seen = 0
    for _ in range(300):
        ids = rng.integers(0, engine._tokenizer.vocab_size, rng.integers(0, 30))
        ids[rng.random(len(ids)) < 0.1] = 0  # padding
        text, lengths = engine.decode_tokens(ids)
        assert sum(lengths) == len(text) and len(lengths) <= len(ids) and min(lengths, default=0) >= 0
        seen += len(text)
    assert seen > 1000


# ---- predictions files
def _written(text: str, cuts: list[int], logprobs: list[float], **changes) -> predictions.Prediction:
    """An answer of tokens that end at `cuts` and at its end."""
    ends = [0, *cuts, len(text)]
    return answer(text, token_lengths=tuple(np.diff(ends).tolist()), logprobs=tuple(logprobs), **changes)


def _by_character(text: str, logprob, **changes) -> predictions.Prediction:
    """A token a character, whose log-probability is a function of its place."""
    return _written(text, list(range(1, len(text))), [logprob(i) for i in range(len(text))], **changes)


def test_a_file_keeps_what_is_known_of_tokens_and_nothing_where_there_is_nothing(tmp_path):
    rows = [_written(BOX, [3, 9], [-0.5, -1.25, 0.0], id="a"), answer("x", id="b", task="classification")]
    predictions.write(tmp_path / "p.jsonl", rows, header={})
    lines = (tmp_path / "p.jsonl").read_text().splitlines()
    assert '"logprobs": [-0.5, -1.25, 0.0]' in lines[1] and "logprobs" not in lines[2] and "steps" not in lines[2]
    assert predictions.read(tmp_path / "p.jsonl")[1] == rows


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logprobs": [-0.1]}, "a log-probability for each of 2 tokens, got 1"),
        ({"logprobs": []}, "a log-probability for each of 2 tokens, got 0"),
        ({"token_lengths": []}, "a log-probability for each of 0 tokens, got 2"),
        ({"token_lengths": [1, 2]}, "add up to the answer's 4 characters, got 3"),
        ({"token_lengths": [-1, 5]}, "add up to the answer's 4 characters"),
        ({"prediction": "longer"}, "was the answer changed behind its tokens?"),
        ({"logprobs": [-0.1, math.nan]}, "finite and not above 0, got nan"),
        ({"logprobs": [-0.1, -math.inf]}, "finite and not above 0, got -inf"),
        ({"logprobs": [-0.1, 0.5]}, "finite and not above 0, got 0.5"),
    ],
)
def test_tokens_that_are_not_the_answers_are_refused_with_their_line(tmp_path, change, message):
    row = dataclasses.asdict(_written("ship", [2], [-0.1, -0.2]))
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"header": {}}) + "\n" + json.dumps(row | change) + "\n")
    with pytest.raises(EarthGPTError, match=f"line 2: .*{message}".replace("?", r"\?")):
        predictions.read(path)


def test_what_a_broken_model_says_of_itself_is_not_kept():
    row = answer()
    kept = {"token_lengths": (4,), "logprobs": np.array([math.nan])}
    for logprobs, stays in ((math.nan, False), (-math.inf, False), (-0.123456, True), (-1e-7, True)):
        made = predictions.Prediction.of(
            *_asked(row), "ship", **(kept | {"logprobs": np.array([logprobs])})
        )  # fmt: skip
        assert bool(made.logprobs) is bool(made.token_lengths) is stays
    assert predictions.Prediction.of(*_asked(row), "ship", token_lengths=(4,), logprobs=[-0.123456]).logprobs == (
        -0.1235,
    )


def _asked(row):
    from earthgpt_jax.input.prompts.questions import Question
    from earthgpt_jax.records import Record, Sensor

    record = Record(id="r", image=b"", height=9, width=9, sensor=Sensor.SAR, source="s", split="test", tasks=())
    question = Question(id=row.id, record_id="r", task="hbb", question_type="", text="?", answer="", references=("",))
    return record, question


def test_another_answer_has_none_of_it():
    row = _written(BOX, [3], [-0.5, -1.0], id="a", confidences=(0.5,), objects=SHIP)
    [other] = baselines.shuffled([row])
    assert other.logprobs == other.token_lengths == other.confidences == other.steps == ()


# ---- the confidence
def test_the_confidence_of_a_box_by_hand():
    """Two boxes of one phrase; the tokens that count are those with digits of the box, and those of the noun."""
    text = "<p>two ships</p>[0.1,0.2,0.3,0.4;0.5,0.5,0.9,0.9]"
    first, second = text.index("0.1"), text.index("0.5")

    def logprob(i: int) -> float:
        if text[i] in ",.;[]":
            return -50.0  # punctuation is no evidence of where a box is
        if first <= i < second:
            return -0.2
        if i >= second:
            return -0.4
        return -0.1 if text.index("ships") <= i < text.index("</p>") else -9.0

    got = confidence.of_tokens(_by_character(text, logprob))
    assert got == pytest.approx((math.exp(-0.2 - 0.1), math.exp(-0.4 - 0.1)))


def test_tokens_of_several_characters_count_to_every_box_that_they_hold_a_digit_of():
    text = "[0.1,0.2,0.3,0.4;0.5,0.5,0.9,0.9]"
    middle = text.index(";")
    row = _written(text, [4, middle - 1, middle + 2], [-1.0, -2.0, -4.0, -8.0])  # "4;0" is one token
    assert confidence.of_tokens(row) == pytest.approx((math.exp(-(1 + 2 + 4) / 3), math.exp(-(4 + 8) / 2)))


def test_an_unreadable_box_has_no_confidence_and_moves_no_other():
    text = "<p>two ships</p>[0.1,0.2,0.3;0.5,0.5,0.9,0.9]"
    row = _by_character(text, lambda i: -0.5 if i >= text.index("0.5") else 0.0)
    assert confidence.of_tokens(row) == pytest.approx((math.exp(-0.5),))


def test_a_task_has_confidences_for_all_boxes_or_for_none():
    known = [_by_character(BOX, lambda i, k=k: -0.1 * k, id=str(k), objects=SHIP) for k in (1, 2)]
    assert [len(p.confidences) for p in confidence.settled(known)] == [1, 1]
    assert confidence.remarks(known) == []
    empty = answer("There are no objects in the image.", id="3")
    assert [len(p.confidences) for p in confidence.settled([*known, empty])] == [1, 1, 0]
    missing = answer(BOX, id="4", objects=SHIP)
    mixed = [*known, missing]
    assert [p.confidences for p in confidence.settled(mixed)] == [(), (), ()]
    assert "1 of 3 answers with boxes have no log-probabilities" in confidence.remarks(mixed)[0]
    assert confidence.remarks([missing]) == ["hbb: no confidence in the file; all boxes count alike."]
    # Where some are missing, AP is the constant one, whatever the others say.
    table = scores.score(mixed, extras=(scores.Extra.AP,))["hbb"]["all"]
    assert "ece" not in table and "ap50_constant" not in table
    other = dataclasses.replace(missing, task="obb", id="5")
    assert [len(p.confidences) for p in confidence.settled([*known, other])] == [1, 1, 0]  # each task by itself
    given = dataclasses.replace(missing, confidences=(0.25,))
    assert confidence.settled([given])[0].confidences == (0.25,)


def test_other_grammars_have_none():
    row = _by_character("{<10><10><50><50>}", lambda i: -0.1, box_format="geochat", frame="whole")
    assert confidence.of_tokens(row) is None


def test_ap_by_tokens_is_ap_by_the_same_numbers_given_and_pycocotools_agrees():
    """Four images, a right box in every other one, surer of the right ones: by hand AP is 0.5, and 0.25 without."""
    rows = []
    for i in range(4):
        text = BOX if i % 2 else BOX.replace("0.5,0.5]", "0.15,0.15]")
        rows.append(_by_character(text, lambda _, i=i: -0.1 if i % 2 else -0.5 - i, id=str(i), objects=SHIP))
    by_tokens = scores.score(rows, extras=(scores.Extra.AP,))["hbb"]["all"]
    given = [dataclasses.replace(p, logprobs=(), token_lengths=()) for p in confidence.settled(rows)]
    assert average_precisions(given, BoxKind.HBB).items() <= by_tokens.items()
    assert by_tokens["ap50"] == by_tokens["recall"] == 0.5  # half of the ships are found, each before any wrong box
    assert by_tokens["ap50_constant"] == pytest.approx(0.5 * 0.5)
    assert by_tokens["coco_ap50"] == pytest.approx(51 / 101)  # pycocotools takes precision at 101 recalls
    turned = [dataclasses.replace(p, logprobs=tuple(-5 - v for v in p.logprobs)) for p in rows]
    worse = scores.score(turned, extras=(scores.Extra.AP,))["hbb"]["all"]
    assert worse["ap50"] == pytest.approx(
        0.5 * 0.5
    )  # all wrong ones first: half are right when the last right one is in


# ---- calibration
def _boxes(right: list[bool], sure: list[float], **changes) -> list[predictions.Prediction]:
    """An image a box, right or wrong."""
    return [
        answer(BOX if hit else BOX.replace("0.5,0.5]", "0.15,0.15]"), id=f"{changes.get('source', 's')}{i}",
               confidences=(c,), objects=SHIP, **changes)
        for i, (hit, c) in enumerate(zip(right, sure, strict=True))
    ]  # fmt: skip


def test_the_calibration_error_by_hand():
    """Bins of 1/15: 0.95 and 0.97 in one, one of two right; 0.1 alone and wrong; 0.3 alone and right."""
    rows = _boxes([True, False, False, True], [0.95, 0.97, 0.1, 0.3])
    cell = scores.score(rows, extras=(scores.Extra.AP,), samples=50)["hbb"]["all"]
    assert cell["ece"] == pytest.approx((2 * abs(0.96 - 0.5) + 0.1 + 0.7) / 4)
    assert cell["confidence"] == pytest.approx((0.95 + 0.97 + 0.1 + 0.3) / 4) and cell["boxes_right"] == 0.5
    low, high = cell["intervals"]["ece"]
    assert low <= cell["ece"] <= high
    assert [b.boxes for b in calibration.bins(rows)] == [1, 1, 2]


def test_constant_boxes_of_confidence_one_are_off_by_what_is_wrong_of_them():
    rows = _boxes([True] + [False] * 9, [1.0] * 10)
    cell = scores.score(rows, extras=(scores.Extra.AP,))["hbb"]["all"]
    assert cell["ece"] == pytest.approx(0.9)
    assert cell["ap50"] == cell["ap50_constant"] == pytest.approx(0.1 * 0.1)
    assert len({c for p in rows for c in p.confidences}) == 1


def test_edges_of_bins():
    assert calibration.bins_of(np.array([0.0, 1e-9, 1 / 15, 1 / 15 + 1e-9, 1.0])).tolist() == [0, 0, 0, 1, 14]


def test_isotonic_regression_by_hand():
    """Levels 0.1 .. 0.5 with shares 0, 1, 0.5, 0.5, 1: those in the middle are pooled to 2 / 3 by their numbers."""
    sure = np.array([0.1, 0.2, 0.3, 0.3, 0.4, 0.4, 0.5])
    right = np.array([0, 1, 1, 0, 0, 1, 1])
    fitted = confidence.fit(sure, right)
    assert fitted(np.array([0.1, 0.2, 0.3, 0.4, 0.5])) == pytest.approx([0, 0.6, 0.6, 0.6, 1])
    assert fitted(np.array([0.15, 0.0, 0.9])) == pytest.approx([0.3, 0, 1])
    assert fitted.confidences == (0.1, 0.2, 0.4, 0.5) and fitted.boxes == 7
    assert confidence.fit(np.array([0.5]), np.array([1]))(np.array([0.0, 1.0])).tolist() == [1, 1]
    with pytest.raises(EarthGPTError, match="boxes to learn from"):
        confidence.fit(np.zeros(0), np.zeros(0))


def test_calibration_learns_on_one_set_what_holds_on_another_and_leaves_the_order():
    """A model that is right in sure^3 of all cases: too sure of itself, until that is known."""
    rng = np.random.default_rng(0)
    sets = []
    for name in ("val", "test"):
        sure = rng.uniform(0.05, 1, 800)
        sets.append(_boxes((rng.random(800) < sure**3).tolist(), sure.tolist(), source=name))
    learnt = calibration.learn(sets[0])
    cell = scores.score(sets[1], extras=(scores.Extra.AP,), calibrations=learnt)["hbb"]["all"]
    assert cell["ece"] > 0.2 > 0.07 > cell["ece_calibrated"]
    grid = learnt["hbb"](np.linspace(0, 1, 101))
    assert (np.diff(grid) >= 0).all() and grid[50] == pytest.approx(0.125, abs=0.08)
    plain = scores.score(sets[1], extras=(scores.Extra.AP,))["hbb"]["all"]
    assert cell["ap50"] == plain["ap50"]


def test_a_calibration_is_never_judged_on_what_it_was_learnt_from(tmp_path, capsys):
    test, val = (_boxes([True, False, True], [0.9, 0.3, 0.6], source=name) for name in ("test", "val"))
    same_image = [dataclasses.replace(val[0], record_id=test[0].record_id)]
    files = {"test": test, "val": val, "same": test, "image": same_image}
    for name, rows in files.items():
        predictions.write(tmp_path / f"{name}.jsonl", rows, header={})
    command = ["score", str(tmp_path / "test.jsonl"), "--samples", "5", "--calibrate"]
    for name, said in (("same", "3 questions of it, as test0"), ("image", "1 images of it, as test0")):
        assert main([*command, str(tmp_path / f"{name}.jsonl")]) == 2
        assert said in capsys.readouterr().err
    assert main([*command, str(tmp_path / "val.jsonl"), "--report", str(tmp_path / "r")]) == 0
    out = capsys.readouterr().out
    assert "hbb: confidences calibrated on 3 boxes of val.jsonl" in out and "## Box confidence" in out
    page, text = ((tmp_path / "r" / name).read_text() for name in ("report.html", "report.md"))
    assert page.count("<figcaption><b>hbb") == 2 and "hbb, calibrated" in page and "<script" not in page
    assert "| hbb, calibrated |" in text and "| hbb, as written |" in text


def test_grounding_has_a_calibration_error_too():
    rows = [
        _by_character("[0.1,0.1,0.5,0.5]", lambda i: math.log(0.8), id=str(k), task="grounding", object_index=0,
                      objects=SHIP if k else (truth("ship", 60, 60, 90, 90),))
        for k in range(4)
    ]  # fmt: skip
    cell = scores.score([*rows, answer("none", id="x", task="grounding", object_index=0, objects=SHIP)],
                        extras=(scores.Extra.AP,))["grounding"]["all"]  # fmt: skip
    assert (cell["ece"], cell["boxes_right"]) == (pytest.approx(0.05), 0.75)


def test_files_without_confidences_say_so(tmp_path, capsys):
    truths = [answer("", id="1", objects=SHIP)]
    predictions.write(tmp_path / "q.jsonl", truths, header={})
    peers = tmp_path / "peer.jsonl"
    peers.write_text(json.dumps({"question_id": "1", "answer": "<p>ship</p>{<10><10><50><50>}"}) + "\n")
    command = ["score", str(peers), "--from", "geochat", "--questions", str(tmp_path / "q.jsonl"), "--samples", "0"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "no confidence in the file; all boxes count alike" in out and "## Box confidence" not in out


def test_confidences_that_are_no_probabilities_rank_and_have_no_calibration_error():
    rows = _boxes([True, False], [12.5, -3.0])
    cell = scores.score(rows, extras=(scores.Extra.AP,))["hbb"]["all"]
    assert cell["ap50"] == 0.5 and "ece" not in cell
    assert "no probabilities" in confidence.remarks(rows)[0]
    assert report.confidences({"hbb": {"all": cell}}) is None
