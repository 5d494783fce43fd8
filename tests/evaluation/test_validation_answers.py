"""Generated answers in validation: the same questions every time, and the scores of the finished model."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.config import load
from earthgpt_jax.evaluation.predictions import Prediction
from earthgpt_jax.evaluation.questions import MAX_NEW_TOKENS
from earthgpt_jax.evaluation.scores import HEADLINE, score
from earthgpt_jax.evaluation.validation_answers import AnswerScorer, _mesh_of_process
from earthgpt_jax.inference.engine import Engine
from earthgpt_jax.input.images import load_square
from earthgpt_jax.sharding.mesh import AXES
from earthgpt_jax.training.loop import train
from tests.support import nano

ANSWERS = 10


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A step of `tiny:instruct` from `tiny` that changes nothing, and the scorer of its validation."""
    root = tmp_path_factory.mktemp("run")
    overrides = (
        "init=tiny", f"data.source={nano.dataset(root / 'data', val=8)}", "data.batch_size=8", "optim.microbatches=1",
        "optim.steps=1", "optim.warmup_steps=0", "optim.peak_lr=1e-30", "mesh.data=4", "mesh.fsdp=2", "data.workers=0",
        "validation.every_steps=1", f"validation.answers={ANSWERS}",
    )  # fmt: skip
    scorers = []

    def make(*args, **kwargs) -> AnswerScorer:
        scorers.append(AnswerScorer(*args, **kwargs))
        return scorers[-1]

    train(load("tiny:instruct", [f"--config.{word}" for word in overrides]), root / "run", make_scorer=make)
    return root / "run", scorers[0]


@pytest.mark.slow
def test_the_figures_are_those_of_the_finished_model(run):
    workdir, scorer = run
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    generated = next(line["validation"]["generated"] for line in lines if "validation" in line)
    engine = Engine.from_model_dir(workdir / "model")
    images = [load_square(item.record.image, engine.image_size, item.record.stretch) for item in scorer.questions]
    # Answers of `tiny` end early enough for one limit for all of them to give the same texts.
    asked = [(image, item.question.text) for image, item in zip(images, scorer.questions, strict=True)]
    texts = engine.answer(asked, max_new_tokens=max(MAX_NEW_TOKENS.values()))
    table = score(
        [
            Prediction.from_answer(item.record, item.question, text)
            for item, text in zip(scorer.questions, texts, strict=True)
        ]
    )
    expected = {f"{task}/{HEADLINE[task][0]}": groups["all"][HEADLINE[task][0]] for task, groups in table.items()}
    assert generated == {name: value for name, value in expected.items() if not np.isnan(value)}
    assert max(generated.values()) > 0.5
    assert set(generated) <= set(scorer.figures)


@pytest.mark.slow
def test_the_questions_are_of_every_task_in_turn(run):
    _, scorer = run
    tasks = [item.question.task for item in scorer.questions]
    assert len(tasks) == len({item.question.id for item in scorer.questions}) == ANSWERS
    assert len(set(tasks)) >= 4
    counts = [tasks.count(task) for task in set(tasks)]
    assert max(counts) - min(counts) <= 1


def test_a_mesh_that_spans_processes_along_fsdp_is_refused(monkeypatch):
    devices = np.array(jax.devices()).reshape(2, 4, 1)
    assert _mesh_of_process(Mesh(devices, AXES)).shape["fsdp"] == 4
    half = Mesh(devices[:1, :2], AXES)
    monkeypatch.setattr(Mesh, "local_mesh", property(lambda self: half))
    with pytest.raises(EarthGPTError, match=r"the fsdp axis of the mesh has 4 devices, 2 of them of this process"):
        _mesh_of_process(Mesh(devices, AXES))


@pytest.mark.slow
def test_int8_parameters_are_refused(run):
    _, scorer = run
    config = load("tiny:instruct", ["--config.frozen_dtype=int8"])
    with pytest.raises(EarthGPTError, match="frozen_dtype=int8"):
        AnswerScorer(config, None, tokenizer=scorer._model.tokenizer, mesh=scorer._mesh)  # type: ignore[arg-type]
