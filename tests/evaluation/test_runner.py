"""Asking, resuming, and the constant baseline."""

import dataclasses

import numpy as np
import pytest

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.evaluation import baselines, predictions, runner, scores
from earthgpt_jax.evaluation.files import Process
from earthgpt_jax.evaluation.runner import View
from earthgpt_jax.inference.engine import Answer
from earthgpt_jax.input.images import load_square
from earthgpt_jax.records import AnnotatedClasses
from earthgpt_jax.synthetic import SyntheticSource

HEADER = {"model": "m", "data": "d"}
PER_IMAGE = {"vqa": 2, "grounding": 1, "region_caption": 1}


class Oracle:
    """Knows every answer; remembers what it was shown."""

    image_size = 128
    decimals = 3

    def __init__(self, asked, *, die_after: int | None = None):
        self._answers = {
            (load_square(item.record.image, 128).tobytes(), item.question.text): item.question.answer for item in asked
        }
        self._die_after = die_after
        self.seen = 0
        self.images: list[np.ndarray] = []

    def state_shape(self, scenes):
        return sorted(ask.id for scene in scenes for ask in scene.requests)

    def stream(self, scenes, *, state_shape):
        for scene in scenes:
            image = scene.image()
            self.images.append(image)
            for ask in scene.requests:
                if self.seen == self._die_after:
                    raise KeyboardInterrupt
                assert ask.id in state_shape  # sizes are chosen by all that is asked
                self.seen += 1
                yield Answer(id=ask.id, text=self.text(image, ask), tokens=np.zeros(1), logprobs=np.zeros(1))

    def text(self, image, ask):
        return self._answers.get((image.tobytes(), ask.text), "")


@pytest.fixture(scope="module")
def records():
    source = SyntheticSource("test", 12)
    return [source[i] for i in range(12)]


@pytest.fixture(scope="module")
def asked(records):
    return runner.plan(records, decimals=3, per_image=PER_IMAGE)


def test_the_plan_asks_at_most_so_many_and_does_not_depend_on_the_others(records, asked):
    again = runner.plan(records[:3], decimals=3, per_image=PER_IMAGE)
    assert [i.question.id for i in again] == [
        i.question.id for i in asked if i.record.id in {r.id for r in records[:3]}
    ]
    for record in records:
        tasks = [i.question.task for i in asked if i.record.id == record.id]
        assert tasks.count("vqa") == 2
        assert tasks.count("hbb") == tasks.count("obb") == tasks.count("caption") == 1


def test_the_truth_scores_full_marks(asked, tmp_path):
    answered = runner.evaluate(
        Oracle(asked), asked, out=tmp_path / "p.jsonl", header=HEADER, view=View.IMAGE, label="t"
    )
    table = scores.score(answered)
    for task, metric in (("classification", "top1"), ("vqa", "accuracy"), ("grounding", "pr50"), ("hbb", "f1"),
                         ("obb", "f1"), ("hbb", "parse_rate")):  # fmt: skip
        assert table[task]["all"][metric] == 1.0, task
    header, read = predictions.read(tmp_path / "p.jsonl")
    assert header == HEADER | {"asked": header["asked"], "limits": header["limits"]}
    assert header["limits"]["hbb"] == runner.MAX_NEW_TOKENS["hbb"]
    assert {p.id: p for p in read} == {p.id: p for p in answered}


def test_the_blind_view_shows_grey_and_nothing_else(asked, tmp_path):
    oracle = Oracle(asked)
    runner.evaluate(oracle, asked[:5], out=tmp_path / "b.jsonl", header=HEADER, view=View.GREY, label="t")
    assert len({image.tobytes() for image in oracle.images}) == 1
    assert oracle.images[0][0, 0].tolist() == [122, 116, 104]


def test_a_killed_evaluation_resumes_to_the_same_answers(asked, tmp_path):
    arguments = {"header": HEADER, "view": View.IMAGE, "label": "t"}
    straight = runner.evaluate(Oracle(asked), asked, out=tmp_path / "s.jsonl", **arguments)
    with pytest.raises(KeyboardInterrupt):
        runner.evaluate(Oracle(asked, die_after=20), asked, out=tmp_path / "k.jsonl", **arguments)
    part = tmp_path / "k-0-of-1.jsonl"
    with part.open("a") as file:
        file.write('{"id": "cut off by a k')
    with part.open("ab") as file:
        file.write("é".encode()[:1])  # within a character
    second = Oracle(asked)
    assert runner.evaluate(second, asked, out=tmp_path / "k.jsonl", **arguments) == straight
    assert second.seen == len(asked) - 20
    assert not part.exists()
    idle = Oracle(asked)
    assert runner.evaluate(idle, asked, out=tmp_path / "k.jsonl", **arguments) == straight
    assert idle.seen == 0


def test_answers_of_another_model_are_not_mixed_in(asked, tmp_path):
    out = tmp_path / "p.jsonl"
    runner.evaluate(Oracle(asked), asked[:3], out=out, header=HEADER, view=View.IMAGE, label="t")
    with pytest.raises(EarthGPTError, match="model was 'm', is 'other'"):
        runner.evaluate(
            Oracle(asked), asked[:3], out=out, header=HEADER | {"model": "other"}, view=View.IMAGE, label="t"
        )


def test_a_broken_predictions_file_names_its_line(tmp_path):
    path = tmp_path / "p.jsonl"
    with pytest.raises(EarthGPTError, match="cannot be read"):
        predictions.read(path)
    path.write_text('{"header": {}}\n{"id": \n')
    with pytest.raises(EarthGPTError, match="line 2: expected JSON"):
        predictions.read(path)
    path.write_text("[1]\n")
    with pytest.raises(EarthGPTError, match="expected a predictions file"):
        predictions.read(path)
    path.write_text('{"header": {}}\n{"id": "x"}\n')
    with pytest.raises(EarthGPTError, match="line 2: a field is missing"):
        predictions.read(path)


def test_the_constant_baseline_is_one_answer_a_task_learnt_from_training_records(records, asked):
    train = [SyntheticSource("train", 30)[i] for i in range(30)]
    answered = baselines.constant(train, asked, decimals=3)
    for task in ("classification", "caption", "region_caption", "grounding", "hbb", "obb"):
        assert len({p.prediction for p in answered if p.task == task}) == 1, task
    labels = [record.label for record in train]
    said = next(p.prediction for p in answered if p.task == "classification")
    assert labels.count(said) == max(map(labels.count, labels))
    table = scores.score(answered)
    assert table["hbb"]["all"]["parse_rate"] == table["obb"]["all"]["parse_rate"] == 1.0
    assert table["classification"]["all"]["top1"] < 0.5


def test_an_evaluation_killed_anywhere_in_its_file_resumes_to_the_same_answers(asked, tmp_path):
    arguments = {"header": HEADER | {"stage": ("a", 1)}, "view": View.IMAGE, "label": "t"}
    out = tmp_path / "p.jsonl"
    straight = runner.evaluate(Oracle(asked), asked[:12], out=out, **arguments)
    whole = out.read_bytes()
    for end in (0, 5, len(whole) // 3, len(whole) // 2, len(whole) - 1):
        out.write_bytes(whole[:end])
        assert runner.evaluate(Oracle(asked), asked[:12], out=out, **arguments) == straight
        assert out.read_bytes() == whole


def test_every_question_is_asked_of_its_own_image_within_its_limit(asked, tmp_path):
    class Echo(Oracle):
        def text(self, image, ask):
            return f"{ask.max_new_tokens} {image.sum(dtype=int)}"

    out = tmp_path / "p.jsonl"
    answered = runner.evaluate(Echo(asked), asked, out=out, header=HEADER, view=View.IMAGE, label="t")
    assert [p.id for p in answered] == [item.question.id for item in asked]
    for item, got in zip(asked, answered, strict=True):
        limit = runner.MAX_NEW_TOKENS[item.question.task]
        assert got.prediction == f"{limit} {load_square(item.record.image, 128).sum(dtype=int)}"


def test_two_records_of_one_id_are_refused(asked, tmp_path):
    arguments = {"out": tmp_path / "p.jsonl", "header": HEADER, "view": View.IMAGE, "label": "t"}
    with pytest.raises(EarthGPTError, match="1 question ids come more than once"):
        runner.evaluate(Oracle(asked), [*asked[:3], asked[0]], **arguments)
    with pytest.raises(EarthGPTError, match="nothing to ask"):
        runner.evaluate(Oracle(asked), [], **arguments)


def test_without_limits_everything_is_asked(records):
    assert len(runner.plan(records[:1], decimals=3)) > len(runner.plan(records[:1], decimals=3, per_image={"vqa": 1}))


def test_the_constant_baseline_does_not_see_the_test_truth(asked):
    train = [SyntheticSource("train", 10)[i] for i in range(10)]
    answers = {p.prediction for p in baselines.constant(train, asked, decimals=3) if p.task == "classification"}
    assert answers <= {record.label for record in train}
    reversed_order = baselines.constant(train[::-1], asked, decimals=3)
    assert reversed_order == baselines.constant(train, asked, decimals=3)


def test_answers_do_not_depend_on_the_order_of_questions_and_other_questions_are_refused(asked, tmp_path):
    arguments = {"header": HEADER, "view": View.IMAGE, "label": "t"}
    straight = runner.evaluate(Oracle(asked), asked[:12], out=tmp_path / "a.jsonl", **arguments)
    turned = runner.evaluate(Oracle(asked), asked[:12][::-1], out=tmp_path / "b.jsonl", **arguments)
    assert turned == straight[::-1]
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    with pytest.raises(EarthGPTError, match="asked was"):
        runner.evaluate(Oracle(asked), asked[:13], out=tmp_path / "a.jsonl", **arguments)


def test_false_premises_are_asked_where_it_is_known_what_is_not_there(records, tmp_path):
    annotated = {"synthetic": AnnotatedClasses(shares={"ship": 0.5, "airplane": 0.5, "truck": 0.5})}
    arguments = {"decimals": 3, "tasks": (), "derived": runner.FALSE_PREMISES}
    assert runner.plan(records, **arguments) == []
    asked = runner.plan(records, annotated=annotated, per_image={"absent_hbb": 1}, **arguments)
    assert {item.question.task for item in asked} == {"absent_hbb", "absent_obb", "absent_grounding"}
    assert all(not {o.label for o in item.record.objects} & set(item.question.text.split()) for item in asked)
    right = runner.evaluate(Oracle(asked), asked, out=tmp_path / "p.jsonl", header=HEADER, view=View.IMAGE, label="t")
    table, constant = scores.score(right), scores.score(baselines.constant(records, asked, decimals=3))
    for task in table:
        assert (table[task]["all"]["refused"], table[task]["all"]["hallucinated"]) == (1.0, 0.0)
        assert (constant[task]["all"]["refused"], constant[task]["all"]["hallucinated"]) == (0.0, 1.0)


def test_parts_of_any_number_of_processes_are_joined(asked, tmp_path):
    """One of two processes, then one of three, each killed; then one alone answers what is missing."""
    arguments = {"header": HEADER, "view": View.IMAGE, "label": "t"}
    runner.evaluate(Oracle(asked), asked, out=tmp_path / "straight.jsonl", **arguments)
    seen = 0
    for index, count in ((1, 2), (2, 3)):
        oracle = Oracle(asked, die_after=7)
        with pytest.raises(KeyboardInterrupt):
            runner.evaluate(
                oracle, asked, out=tmp_path / "p.jsonl", process=Process(index=index, count=count), **arguments
            )
        seen += oracle.seen
        assert (tmp_path / f"p-{index}-of-{count}.jsonl").exists() and not (tmp_path / "p.jsonl").exists()
    last = Oracle(asked)
    runner.evaluate(last, asked, out=tmp_path / "p.jsonl", **arguments)
    assert seen + last.seen == len(asked)
    assert (tmp_path / "p.jsonl").read_bytes() == (tmp_path / "straight.jsonl").read_bytes()
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["p.jsonl", "straight.jsonl"]


def test_parts_that_contradict_or_are_of_another_evaluation_are_refused(asked, tmp_path):
    arguments = {"header": HEADER, "view": View.IMAGE, "label": "t"}
    whole = tmp_path / "p.jsonl"
    runner.evaluate(Oracle(asked), asked, out=whole, **arguments)
    header, *lines = whole.read_text().splitlines(keepends=True)
    part = tmp_path / "p-0-of-2.jsonl"
    part.write_text(header + lines[0])  # the same again
    runner.evaluate(Oracle(asked, die_after=0), asked, out=whole, **arguments)
    part.write_text(header + lines[0].replace('"prediction": "', '"prediction": "not '))
    with pytest.raises(EarthGPTError, match="another answer"):
        runner.evaluate(Oracle(asked), asked, out=whole, **arguments)
    part.write_text(header.replace('"d"', '"other"') + lines[0])
    with pytest.raises(EarthGPTError, match="data was 'other', is 'd'"):
        runner.evaluate(Oracle(asked), asked, out=whole, **arguments)


def test_an_image_that_cannot_be_read_is_named_and_costs_no_other_answer(records, tmp_path):
    arguments = {"out": tmp_path / "p.jsonl", "header": HEADER, "view": View.IMAGE, "label": "t"}
    whole = runner.plan(records, decimals=3, per_image=PER_IMAGE)
    torn = dataclasses.replace(records[7], image=records[7].image[:200])
    asked = runner.plan([*records[:7], torn, *records[8:]], decimals=3, per_image=PER_IMAGE)
    with pytest.raises(EarthGPTError, match=rf"record {torn.id}: image of 200 bytes cannot be decoded"):
        runner.evaluate(Oracle(whole), asked, **arguments)
    answered = predictions.read(tmp_path / "p-0-of-1.jsonl")[1]
    assert answered and torn.id not in {p.record_id for p in answered}
    oracle = Oracle(whole)
    assert len(runner.evaluate(oracle, whole, **arguments)) == len(whole)
    assert oracle.seen == len(whole) - len(answered)


@pytest.mark.parametrize("changed", [{"decode": "temperature 1"}, {"prompt": "v1 0"}, {"tokenizer": "t"}])
def test_an_evaluation_does_not_go_on_with_another_prompt_or_decoding(asked, tmp_path, changed):
    header = HEADER | {"decode": "greedy", "prompt": "plain 0"}
    arguments = {"out": tmp_path / "p.jsonl", "view": View.IMAGE, "label": "t"}
    with pytest.raises(KeyboardInterrupt):
        runner.evaluate(Oracle(asked, die_after=3), asked, header=header, **arguments)
    (name,) = changed
    with pytest.raises(EarthGPTError, match=f"{name} was .*, is '{changed[name]}'"):
        runner.evaluate(Oracle(asked), asked, header=header | changed, **arguments)
    assert len(predictions.read(tmp_path / "p-0-of-1.jsonl")[1]) == 3


def test_an_evaluation_does_not_go_on_with_other_limits(asked, tmp_path, monkeypatch):
    arguments = {"out": tmp_path / "p.jsonl", "header": HEADER, "view": View.IMAGE, "label": "t"}
    runner.evaluate(Oracle(asked), asked, **arguments)
    monkeypatch.setattr(runner, "MAX_NEW_TOKENS", {**runner.MAX_NEW_TOKENS, "hbb": 257})
    with pytest.raises(EarthGPTError, match=r"limits was .*'hbb': 256"):
        runner.evaluate(Oracle(asked), asked, **arguments)
