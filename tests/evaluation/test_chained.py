"""Detection by chained questions: which questions are asked, which boxes are kept, and resuming."""

import collections
import json
import math
import re

import numpy as np
import pytest

from earthgpt_jax.boxes import BoxKind, Square, format_detection, parse, plural
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.evaluation import chained, predictions, predictions_file, scores
from earthgpt_jax.evaluation.chained import Protocol
from earthgpt_jax.evaluation.predictions import ChainedTask
from earthgpt_jax.evaluation.questions import select_examples
from earthgpt_jax.evaluation.runner import View
from earthgpt_jax.inference.processes import Process
from earthgpt_jax.inference.requests import Answer
from earthgpt_jax.input.images import load_square
from earthgpt_jax.records import AnnotatedClasses
from earthgpt_jax.synthetic import SyntheticSource

CLASSES = ("airplane", "ship", "storage tank", "truck")
ANNOTATED = {"synthetic": AnnotatedClasses(shares=dict.fromkeys(CLASSES, 0.5))}


class Oracle:
    """A model that knows the truth, with one token per character of probability exp(-0.1); records its questions."""

    image_size = 64
    decimals = 3

    def __init__(self, records, *, die_after: int | None = None):
        self._records = {load_square(record.image, 64).tobytes(): record for record in records}
        self._die_after = die_after
        self.asked: list[str] = []

    def state_shape(self, scenes):
        return None

    def stream(self, scenes, *, state_shape):
        for scene in scenes:
            record = self._records[scene.image().tobytes()]
            for ask in scene.requests:
                if len(self.asked) == self._die_after:
                    raise KeyboardInterrupt
                self.asked.append(ask.id)
                text = self.text(record, ask.text)
                logprobs = np.full(len(text) + 1, -0.1, np.float32)
                yield Answer(
                    id=ask.id, text=text, tokens=np.zeros(1), logprobs=logprobs, token_lengths=(1,) * len(text)
                )

    def text(self, record, question) -> str:
        if found := re.match(r"Are there any (.*) in this image\?", question):
            return "yes" if any(plural(item.label) == found[1] for item in record.objects) else "no"
        if found := re.match(r"Please detect all (.*) in this image( with oriented bounding boxes)?\.", question):
            return self.boxes(record, found[1], BoxKind.OBB if found[2] else BoxKind.HBB)
        label = self.region(record, parse(question).boxes[0])
        return f"the only {label} in the centre" if "description" in question else label

    def boxes(self, record, name, kind) -> str:
        chosen = collections.defaultdict(list)
        for item in record.objects:
            if name in (plural(item.label), "objects"):
                chosen[item.label].append(item.polygon)
        return format_detection(chosen, square=Square(record.width, record.height), decimals=3, kind=kind)

    def region(self, record, box) -> str:
        x0, y0 = Square(record.width, record.height).to_pixels(np.asarray(box.coords))[:2]
        corner = np.array([x0, y0])
        return min(record.objects, key=lambda o: np.abs(o.polygon.reshape(4, 2).min(axis=0) - corner).max()).label


@pytest.fixture(scope="module")
def records():
    found = [record for record in SyntheticSource("test", 40) if record.objects]
    return [record for record in found if {item.label for item in record.objects} <= set(CLASSES)][:6]


def _detect(oracle, records, out, **changes):
    arguments = {
        "tasks": tuple(ChainedTask), "protocol": Protocol.CLASSES, "annotated": ANNOTATED, "out": out,
        "view": View.IMAGE,
        "header": {"model": "m"}, "label": "t",
    }  # fmt: skip
    return chained.detect(oracle, records, **(arguments | changes))


@pytest.mark.parametrize("protocol", Protocol)
def test_a_perfect_model_scores_one_and_every_question_is_asked_once(records, tmp_path, protocol):
    assert len(records) > 3
    oracle = Oracle(records)
    made = _detect(oracle, records, tmp_path / "p.jsonl", protocol=protocol)
    table = scores.score(made, extras=(scores.Extra.AP,))
    assert set(table) == {"chained_hbb", "chained_obb"}  # never the tasks of direct questions
    for task in table:
        assert table[task]["all"]["f1"] == table[task]["all"]["ap50"] == 1.0
        assert table[task]["all"]["n"] == len(records)
    assert len(oracle.asked) == len(set(oracle.asked))
    classes = sum(len({item.label for item in record.objects}) for record in records)
    located = classes if protocol is Protocol.CLASSES else len(records)
    boxes = sum(len(record.objects) for record in records)
    assert collections.Counter(re.search(r"/(what|where|verify)#", name)[1] for name in oracle.asked) == {
        "what": len(CLASSES) * len(records), "where": 2 * located, "verify": 2 * boxes,
    }  # fmt: skip
    assert {p.id for p in made} == {f"{r.id}#{task}#0" for r in records for task in ChainedTask}


@pytest.mark.parametrize("protocol", Protocol)
def test_the_file_holds_intermediate_answers_and_confidences(records, tmp_path, protocol):
    made = _detect(Oracle(records), records, tmp_path / "p.jsonl", tasks=(ChainedTask.HBB,), protocol=protocol)
    header, read = predictions_file.read_complete(tmp_path / "p.jsonl")
    assert read == made and (header["chained"], header["tasks"]) == (protocol, ["chained_hbb"])
    row = made[0]
    asked = [step.question for step in row.steps]
    assert sum(question.startswith("Are there any") for question in asked) == len(CLASSES)
    assert sum("[" in question for question in asked) == len(records[0].objects)
    assert {step.answer for step in row.steps} >= {"yes", "no"}
    # `yes`, the coordinates, the noun, and the class: each has the geometric mean probability exp(-0.1).
    assert row.confidences == pytest.approx([math.exp(-0.4)] * len(records[0].objects))


def test_each_step_drops_what_it_does_not_confirm(records, tmp_path):
    class Credulous(Oracle):
        """A model that says every class is present, and locates each class at all objects."""

        def text(self, record, question):
            return "yes" if question.startswith("Are there") else super().text(record, question)

        def boxes(self, record, name, kind):
            label = next(label for label in CLASSES if plural(label) == name)
            square = Square(record.width, record.height)
            return format_detection(
                {label: [item.polygon for item in record.objects]}, square=square, decimals=3, kind=kind
            )

    made = _detect(Credulous(records), records, tmp_path / "a.jsonl", tasks=(ChainedTask.HBB,))
    assert scores.score(made)["chained_hbb"]["all"]["f1"] == 1.0  # verification dropped all wrong boxes
    assert sum(len(p.steps) for p in made) > 2 * sum(len(r.objects) for r in records)

    class Blunt(Credulous):
        def region(self, record, box):
            return "ship"

    made = _detect(Blunt(records), records, tmp_path / "b.jsonl", tasks=(ChainedTask.HBB,))
    assert {box.label for p in made for box in parse(p.prediction).boxes} == {"ship"}

    class Other(Oracle):
        def boxes(self, record, name, kind):  # of another class than it is asked for
            return "There is <p>one zebra</p>[0.1,0.1,0.2,0.2] in the image."

    made = _detect(Other(records), records, tmp_path / "c.jsonl", tasks=(ChainedTask.HBB,))
    assert {p.prediction for p in made} == {"There are no objects in the image."}


def test_a_description_must_name_the_class_as_whole_words(records, tmp_path):
    class Describes(Oracle):
        def __init__(self, records, description):
            super().__init__(records)
            self._description = description

        def text(self, record, question):
            return self._description if "description" in question else super().text(record, question)

    present = {item.label for record in records for item in record.objects}
    cases = {
        "The only Storage-Tank.": {"storage tank"},
        "two airplanes or shipping": set(),
        "a truck by a ship": {"truck", "ship"},
        "": set(),
    }
    for number, (description, kept) in enumerate(cases.items()):
        made = _detect(
            Describes(records, description),
            records,
            tmp_path / f"{number}.jsonl",
            tasks=(ChainedTask.HBB,),
            protocol=Protocol.MMRS,
        )
        assert {box.label for p in made for box in parse(p.prediction).boxes} == kept & present


def test_an_unparsable_box_stays_in_the_answer(records, tmp_path):
    class Stutters(Oracle):
        def boxes(self, record, name, kind):
            return super().boxes(record, name, kind).replace("] in the image.", ";0.1,0.2] in the image. [0.3")

    made = _detect(Stutters(records), records, tmp_path / "p.jsonl", tasks=(ChainedTask.HBB,))
    cell = scores.score(made)["chained_hbb"]["all"]
    answers = sum(len({item.label for item in record.objects}) for record in records)
    assert (cell["recall"], cell["parse_rate"]) == (1.0, 0.0)
    assert cell["boxes"] == cell["objects"] + 2 * answers


def test_a_chain_killed_anywhere_resumes_to_the_same_bytes_and_asks_nothing_twice(records, tmp_path):
    uninterrupted = Oracle(records)
    straight = _detect(uninterrupted, records, tmp_path / "straight" / "p.jsonl")
    content = (tmp_path / "straight" / "p.jsonl").read_bytes()
    steps = len(CLASSES) * len(records)
    for number, after in enumerate((0, 5, steps, steps + 3, len(uninterrupted.asked) - 1)):
        out = tmp_path / str(number) / "p.jsonl"
        first, second = Oracle(records, die_after=after), Oracle(records)
        with pytest.raises(KeyboardInterrupt):
            _detect(first, records, out)
        assert not out.exists()
        assert _detect(second, records, out) == straight
        assert out.read_bytes() == content
        assert sorted(first.asked + second.asked) == sorted(uninterrupted.asked)
    idle = Oracle(records, die_after=0)
    assert _detect(idle, records, tmp_path / "straight" / "p.jsonl") == straight
    with pytest.raises(EarthGPTError, match="model was 'm', is 'other'"):
        _detect(Oracle(records), records, tmp_path / "straight" / "p.jsonl", header={"model": "other"})


def test_part_files_of_several_processes_form_one_chain(records, tmp_path):
    """Parts of the first step come from one of two processes and one of three; a single process continues."""
    straight = _detect(Oracle(records), records, tmp_path / "a" / "p.jsonl")
    asked = []
    for index, count in ((1, 2), (2, 3)):
        oracle = Oracle(records, die_after=4)
        with pytest.raises(KeyboardInterrupt):
            _detect(oracle, records, tmp_path / "b" / "p.jsonl", process=Process(index=index, count=count))
        asked += oracle.asked
    last = Oracle(records)
    assert _detect(last, records, tmp_path / "b" / "p.jsonl") == straight
    assert len(asked + last.asked) == len(set(asked + last.asked))


def test_an_error_explains_why_nothing_can_be_asked(records, tmp_path):
    with pytest.raises(
        EarthGPTError, match="each class that a dataset annotates, but synthetic does not record its classes"
    ):
        _detect(Oracle(records), records, tmp_path / "p.jsonl", annotated={})
    with pytest.raises(EarthGPTError, match="no record has boxes"):
        _detect(Oracle(records), [], tmp_path / "p.jsonl")

    class Silent(Oracle):
        def text(self, record, question):
            return ""

    made = _detect(Silent(records), records, tmp_path / "q.jsonl")
    assert {p.prediction for p in made} == {"There are no objects in the image."}


def test_the_answers_of_a_baseline_also_count_for_chained_tasks(records, tmp_path):
    examples = select_examples(records, decimals=3)
    direct = [predictions.Prediction.from_answer(item.record, item.question, item.question.answer) for item in examples]
    as_chained = chained.as_chained(direct, tuple(ChainedTask))
    made = _detect(Oracle(records), records, tmp_path / "p.jsonl", protocol=Protocol.MMRS)
    assert {p.id for p in as_chained} == {p.id for p in made}
    assert scores.score(as_chained)["chained_obb"]["all"]["f1"] == 1.0
    lines = (tmp_path / "p.jsonl").read_text().splitlines()
    assert len({json.loads(line)["id"] for line in lines[1:]}) == len(made)
