"""Selecting questions, asking them, resuming, and the constant baseline."""

import dataclasses

import numpy as np
import pytest

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.evaluation import baselines, part_files, predictions_file, runner, scores
from earthgpt_jax.evaluation.questions import FALSE_PREMISES, MAX_NEW_TOKENS, select_examples
from earthgpt_jax.evaluation.runner import View
from earthgpt_jax.inference.processes import Process
from earthgpt_jax.inference.requests import Answer
from earthgpt_jax.input.images import load_square
from earthgpt_jax.records import AnnotatedClasses
from earthgpt_jax.synthetic import SyntheticSource

HEADER = {"model": "m", "data": "d"}
PER_IMAGE = {"vqa": 2, "grounding": 1, "region_caption": 1}


class Oracle:
    """A model that knows every answer; records the images it sees."""

    image_size = 128
    decimals = 3

    def __init__(self, examples, *, die_after: int | None = None):
        self._answers = {
            (load_square(item.record.image, 128).tobytes(), item.question.text): item.question.answer
            for item in examples
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
                assert ask.id in state_shape  # the layout is chosen from all questions
                self.seen += 1
                yield Answer(id=ask.id, text=self.text(image, ask), tokens=np.zeros(1), logprobs=np.zeros(1))

    def text(self, image, ask):
        return self._answers.get((image.tobytes(), ask.text), "")


@pytest.fixture(scope="module")
def records():
    source = SyntheticSource("test", 12)
    return [source[i] for i in range(12)]


@pytest.fixture(scope="module")
def examples(records):
    return select_examples(records, decimals=3, per_image=PER_IMAGE)


def test_questions_per_image_are_limited_independently_of_other_images(records, examples):
    again = select_examples(records[:3], decimals=3, per_image=PER_IMAGE)
    assert [i.question.id for i in again] == [
        i.question.id for i in examples if i.record.id in {r.id for r in records[:3]}
    ]
    for record in records:
        tasks = [i.question.task for i in examples if i.record.id == record.id]
        assert tasks.count("vqa") == 2
        assert tasks.count("hbb") == tasks.count("obb") == tasks.count("caption") == 1


def test_the_truth_scores_one(examples, tmp_path):
    answered = runner.evaluate(
        Oracle(examples), examples, out=tmp_path / "p.jsonl", header=HEADER, view=View.IMAGE, label="t"
    )
    table = scores.score(answered)
    for task, metric in (("classification", "top1"), ("vqa", "accuracy"), ("grounding", "pr50"), ("hbb", "f1"),
                         ("obb", "f1"), ("hbb", "parse_rate")):  # fmt: skip
        assert table[task]["all"][metric] == 1.0, task
    header, read = predictions_file.read(tmp_path / "p.jsonl")
    assert header == HEADER | {name: header[name] for name in ("questions_digest", "truth_digest", "max_new_tokens")}
    assert header["max_new_tokens"]["hbb"] == MAX_NEW_TOKENS["hbb"]
    assert {p.id: p for p in read} == {p.id: p for p in answered}


def test_the_blind_view_shows_only_grey(examples, tmp_path):
    oracle = Oracle(examples)
    runner.evaluate(oracle, examples[:5], out=tmp_path / "b.jsonl", header=HEADER, view=View.BLIND, label="t")
    assert len({image.tobytes() for image in oracle.images}) == 1
    assert oracle.images[0][0, 0].tolist() == [122, 116, 104]


def test_a_killed_evaluation_resumes_to_the_same_answers(examples, tmp_path):
    arguments = {"header": HEADER, "view": View.IMAGE, "label": "t"}
    straight = runner.evaluate(Oracle(examples), examples, out=tmp_path / "s.jsonl", **arguments)
    with pytest.raises(KeyboardInterrupt):
        runner.evaluate(Oracle(examples, die_after=20), examples, out=tmp_path / "k.jsonl", **arguments)
    part = tmp_path / "k-0-of-1.jsonl"
    with part.open("a") as file:
        file.write('{"id": "cut off by a k')
    with part.open("ab") as file:
        file.write("é".encode()[:1])  # the first byte of a two-byte character
    second = Oracle(examples)
    assert runner.evaluate(second, examples, out=tmp_path / "k.jsonl", **arguments) == straight
    assert second.seen == len(examples) - 20
    assert not part.exists()
    idle = Oracle(examples)
    assert runner.evaluate(idle, examples, out=tmp_path / "k.jsonl", **arguments) == straight
    assert idle.seen == 0


def test_answers_of_another_model_are_refused(examples, tmp_path):
    out = tmp_path / "p.jsonl"
    runner.evaluate(Oracle(examples), examples[:3], out=out, header=HEADER, view=View.IMAGE, label="t")
    with pytest.raises(EarthGPTError, match="model was 'm', is 'other'"):
        runner.evaluate(
            Oracle(examples), examples[:3], out=out, header=HEADER | {"model": "other"}, view=View.IMAGE, label="t"
        )


def test_the_constant_baseline_gives_one_answer_per_task_from_training_records(records, examples):
    train = [SyntheticSource("train", 30)[i] for i in range(30)]
    answered = baselines.constant(train, examples, decimals=3)
    for task in ("classification", "caption", "region_caption", "grounding", "hbb", "obb"):
        assert len({p.prediction for p in answered if p.task == task}) == 1, task
    labels = [record.label for record in train]
    label = next(p.prediction for p in answered if p.task == "classification")
    assert labels.count(label) == max(map(labels.count, labels))
    table = scores.score(answered)
    assert table["hbb"]["all"]["parse_rate"] == table["obb"]["all"]["parse_rate"] == 1.0
    assert table["classification"]["all"]["top1"] < 0.5


def test_an_evaluation_killed_anywhere_in_its_file_resumes_to_the_same_answers(examples, tmp_path):
    arguments = {"header": HEADER | {"stage": ("a", 1)}, "view": View.IMAGE, "label": "t"}
    out = tmp_path / "p.jsonl"
    straight = runner.evaluate(Oracle(examples), examples[:12], out=out, **arguments)
    complete = out.read_bytes()
    for end in (0, 5, len(complete) // 3, len(complete) // 2, len(complete) - 1):
        out.write_bytes(complete[:end])
        assert runner.evaluate(Oracle(examples), examples[:12], out=out, **arguments) == straight
        assert out.read_bytes() == complete


def test_every_question_is_asked_about_its_own_image_with_its_own_limit(examples, tmp_path):
    class Echo(Oracle):
        def text(self, image, ask):
            return f"{ask.max_new_tokens} {image.sum(dtype=int)}"

    out = tmp_path / "p.jsonl"
    answered = runner.evaluate(Echo(examples), examples, out=out, header=HEADER, view=View.IMAGE, label="t")
    assert [p.id for p in answered] == [item.question.id for item in examples]
    for item, got in zip(examples, answered, strict=True):
        limit = MAX_NEW_TOKENS[item.question.task]
        assert got.prediction == f"{limit} {load_square(item.record.image, 128).sum(dtype=int)}"


def test_two_records_with_the_same_id_are_refused(examples, tmp_path):
    arguments = {"out": tmp_path / "p.jsonl", "header": HEADER, "view": View.IMAGE, "label": "t"}
    with pytest.raises(EarthGPTError, match="1 question ids are not unique"):
        runner.evaluate(Oracle(examples), [*examples[:3], examples[0]], **arguments)
    with pytest.raises(EarthGPTError, match="nothing to ask"):
        runner.evaluate(Oracle(examples), [], **arguments)


def test_without_limits_all_questions_are_asked(records):
    assert len(select_examples(records[:1], decimals=3)) > len(
        select_examples(records[:1], decimals=3, per_image={"vqa": 1})
    )


def test_the_constant_baseline_does_not_use_the_test_truth(examples):
    train = [SyntheticSource("train", 10)[i] for i in range(10)]
    answers = {p.prediction for p in baselines.constant(train, examples, decimals=3) if p.task == "classification"}
    assert answers <= {record.label for record in train}
    reversed_order = baselines.constant(train[::-1], examples, decimals=3)
    assert reversed_order == baselines.constant(train, examples, decimals=3)


def test_answers_do_not_depend_on_the_order_of_questions_and_other_questions_are_refused(examples, tmp_path):
    arguments = {"header": HEADER, "view": View.IMAGE, "label": "t"}
    straight = runner.evaluate(Oracle(examples), examples[:12], out=tmp_path / "a.jsonl", **arguments)
    backwards = runner.evaluate(Oracle(examples), examples[:12][::-1], out=tmp_path / "b.jsonl", **arguments)
    assert backwards == straight[::-1]
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    with pytest.raises(EarthGPTError, match="questions_digest was"):
        runner.evaluate(Oracle(examples), examples[:13], out=tmp_path / "a.jsonl", **arguments)


def test_false_premises_are_asked_where_the_annotated_classes_are_known(records, tmp_path):
    annotated = {"synthetic": AnnotatedClasses(shares={"ship": 0.5, "airplane": 0.5, "truck": 0.5})}
    arguments = {"decimals": 3, "tasks": (), "derived": FALSE_PREMISES}
    assert select_examples(records, **arguments) == []
    examples = select_examples(records, annotated=annotated, per_image={"absent_hbb": 1}, **arguments)
    assert {item.question.task for item in examples} == {"absent_hbb", "absent_obb", "absent_grounding"}
    assert all(not {o.label for o in item.record.objects} & set(item.question.text.split()) for item in examples)
    predictions = runner.evaluate(
        Oracle(examples), examples, out=tmp_path / "p.jsonl", header=HEADER, view=View.IMAGE, label="t"
    )
    table, constant = scores.score(predictions), scores.score(baselines.constant(records, examples, decimals=3))
    for task in table:
        assert (table[task]["all"]["refusal_rate"], table[task]["all"]["hallucinated_boxes"]) == (1.0, 0.0)
        assert (constant[task]["all"]["refusal_rate"], constant[task]["all"]["hallucinated_boxes"]) == (0.0, 1.0)


def test_part_files_of_any_number_of_processes_are_joined(examples, tmp_path):
    """One of two processes and one of three are killed; a single process then answers the missing questions."""
    arguments = {"header": HEADER, "view": View.IMAGE, "label": "t"}
    runner.evaluate(Oracle(examples), examples, out=tmp_path / "straight.jsonl", **arguments)
    seen = 0
    for index, count in ((1, 2), (2, 3)):
        oracle = Oracle(examples, die_after=7)
        with pytest.raises(KeyboardInterrupt):
            runner.evaluate(
                oracle, examples, out=tmp_path / "p.jsonl", process=Process(index=index, count=count), **arguments
            )
        seen += oracle.seen
        assert (tmp_path / f"p-{index}-of-{count}.jsonl").exists() and not (tmp_path / "p.jsonl").exists()
    last = Oracle(examples)
    runner.evaluate(last, examples, out=tmp_path / "p.jsonl", **arguments)
    assert seen + last.seen == len(examples)
    assert (tmp_path / "p.jsonl").read_bytes() == (tmp_path / "straight.jsonl").read_bytes()
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["p.jsonl", "straight.jsonl"]


@pytest.mark.parametrize("seconds", [0, 1000])
def test_part_files_in_a_bucket_are_series_that_lose_nothing_uploaded(examples, tmp_path, bucket, monkeypatch, seconds):
    arguments = {"header": HEADER, "view": View.IMAGE, "label": "t"}
    runner.evaluate(Oracle(examples), examples, out=tmp_path / "straight.jsonl", **arguments)
    monkeypatch.setattr(part_files, "UPLOAD_SECONDS", seconds)
    seen = 0
    for index in (0, 1, 0):
        oracle = Oracle(examples, die_after=5)
        with pytest.raises(KeyboardInterrupt):
            runner.evaluate(
                oracle, examples, out=bucket / "p.jsonl", process=Process(index=index, count=2), **arguments
            )
        seen += oracle.seen
    names = [path.name for path in bucket.iterdir()]
    assert (
        "p-0-of-2-00000.jsonl" in names and "p-1-of-2-00000.jsonl" in names and len(names) == (15 if not seconds else 3)
    )
    last = Oracle(examples)
    runner.evaluate(last, examples, out=bucket / "p.jsonl", **arguments)
    assert seen + last.seen == len(examples)
    assert (bucket / "p.jsonl").read_bytes() == (tmp_path / "straight.jsonl").read_bytes()
    assert [path.name for path in bucket.iterdir()] == ["p.jsonl"]


def test_part_files_that_contradict_or_belong_to_another_evaluation_are_refused(examples, tmp_path):
    arguments = {"header": HEADER, "view": View.IMAGE, "label": "t"}
    complete = tmp_path / "p.jsonl"
    runner.evaluate(Oracle(examples), examples, out=complete, **arguments)
    header, *lines = complete.read_text().splitlines(keepends=True)
    part = tmp_path / "p-0-of-2.jsonl"
    part.write_text(header + lines[0])  # the same answer again
    runner.evaluate(Oracle(examples, die_after=0), examples, out=complete, **arguments)
    part.write_text(header + lines[0].replace('"prediction": "', '"prediction": "not '))
    with pytest.raises(EarthGPTError, match="another answer"):
        runner.evaluate(Oracle(examples), examples, out=complete, **arguments)
    part.write_text(header.replace('"d"', '"other"') + lines[0])
    with pytest.raises(EarthGPTError, match="data was 'other', is 'd'"):
        runner.evaluate(Oracle(examples), examples, out=complete, **arguments)


def test_an_image_that_cannot_be_decoded_is_named_and_other_answers_are_kept(records, tmp_path):
    arguments = {"out": tmp_path / "p.jsonl", "header": HEADER, "view": View.IMAGE, "label": "t"}
    intact = select_examples(records, decimals=3, per_image=PER_IMAGE)
    truncated = dataclasses.replace(records[7], image=records[7].image[:200])
    examples = select_examples([*records[:7], truncated, *records[8:]], decimals=3, per_image=PER_IMAGE)
    with pytest.raises(EarthGPTError, match=rf"record {truncated.id}: image of 200 bytes cannot be decoded"):
        runner.evaluate(Oracle(intact), examples, **arguments)
    answered = predictions_file.read(tmp_path / "p-0-of-1.jsonl")[1]
    assert answered and truncated.id not in {p.record_id for p in answered}
    oracle = Oracle(intact)
    assert len(runner.evaluate(oracle, intact, **arguments)) == len(intact)
    assert oracle.seen == len(intact) - len(answered)


@pytest.mark.parametrize("changed", [{"decode": "temperature 1"}, {"prompt": "v1 0"}, {"tokenizer": "t"}])
def test_an_evaluation_does_not_continue_with_another_prompt_or_decoding(examples, tmp_path, changed):
    header = HEADER | {"decode": "greedy", "prompt": "plain 0"}
    arguments = {"out": tmp_path / "p.jsonl", "view": View.IMAGE, "label": "t"}
    with pytest.raises(KeyboardInterrupt):
        runner.evaluate(Oracle(examples, die_after=3), examples, header=header, **arguments)
    (name,) = changed
    with pytest.raises(EarthGPTError, match=f"{name} was .*, is '{changed[name]}'"):
        runner.evaluate(Oracle(examples), examples, header=header | changed, **arguments)
    assert len(predictions_file.read(tmp_path / "p-0-of-1.jsonl")[1]) == 3


def test_an_evaluation_does_not_continue_with_other_length_limits(examples, tmp_path, monkeypatch):
    arguments = {"out": tmp_path / "p.jsonl", "header": HEADER, "view": View.IMAGE, "label": "t"}
    runner.evaluate(Oracle(examples), examples, **arguments)
    monkeypatch.setattr(runner, "MAX_NEW_TOKENS", {**MAX_NEW_TOKENS, "hbb": 257})
    with pytest.raises(EarthGPTError, match=r"max_new_tokens was .*'hbb': 256"):
        runner.evaluate(Oracle(examples), examples, **arguments)
