"""Answer a dataset's questions with a model, and compare it with its baselines.

The baselines are the same model without the image (blind), constant answers, and random answers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from earthgpt_jax.datasets.collection import ConcatSource
from earthgpt_jax.evaluation import baselines, chained, predictions_file, runner, scores
from earthgpt_jax.evaluation.metrics.intervals import SAMPLES
from earthgpt_jax.evaluation.predictions import ChainedTask, Prediction
from earthgpt_jax.evaluation.questions import Example, select_examples
from earthgpt_jax.evaluation.runner import LogProbs, View
from earthgpt_jax.inference.engine import Engine
from earthgpt_jax.inference.processes import Process
from earthgpt_jax.input.prompts.derived import DerivedTask


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelAnswers:
    """A model's answers to a dataset's questions, with and without the image.

    Attributes:
        examples: the questions.
        answers: view -> predictions.
        header: digests of everything that the answers depend on.
    """

    examples: list[Example]
    answers: dict[View, list[Prediction]]
    header: dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """The scores of a model with its baselines (`scores.with_baselines`), and its predictions."""

    scores: scores.Scores
    predictions: list[Prediction]


def answer_questions(
    engine: Engine,
    test: ConcatSource,
    *,
    out: Path,
    per_image: Mapping[str, int],
    label: str,
    images: int | None = None,
    derived: Sequence[DerivedTask] = (),
    chained_by: chained.Protocol | None = None,
    log_probs: LogProbs = LogProbs.BOXES,
) -> ModelAnswers:
    """Answer a dataset's questions with and without the images.

    A stopped evaluation continues from the files in `out`. With several processes, all of them call this function (see
    `runner.evaluate`).

    Args:
        engine: the model.
        test: the dataset.
        out: folder of the predictions files.
        per_image: task -> maximum number of questions per image.
        label: description of the progress bar.
        images: number of images to ask about, spread evenly over the records; default: all.
        derived: derived tasks to ask as well.
        chained_by: protocol of chained detection; None to leave it out.
        log_probs: which answers are stored with the log-probabilities of their tokens.
    """
    with Process.current().synchronized("preparing the questions"):
        count = len(test) if images is None else min(images, len(test))
        records = [test[index * len(test) // count] for index in range(count)]
        examples = select_examples(
            records, decimals=engine.decimals, per_image=per_image, derived=derived, annotated=test.annotated
        )
        common = {**engine.describe(), "data": test.fingerprint, "log_probs": log_probs.value}
        if count < len(test):
            common["images"] = count
        header = {**common, "questions": len(examples)}
    answers = {}
    for view in View:
        answers[view] = runner.evaluate(
            engine, examples, out=out / f"predictions_{view.value}.jsonl", header=header | {"view": view.value},
            view=view, label=f"{label} ({view.value})", log_probs=log_probs.tasks,
        )  # fmt: skip
        if chained_by:
            answers[view] += chained.detect(
                engine, records, tasks=tuple(ChainedTask), protocol=chained_by, annotated=test.annotated, view=view,
                label=f"{label} ({view.value}), chained",
                out=out / f"predictions_chained_{view.value}.jsonl", header={**common, "view": view.value},
            )  # fmt: skip
    return ModelAnswers(examples=examples, answers=answers, header=header)


def compare_with_baselines(
    model: ModelAnswers, train: ConcatSource, *, out: Path, decimals: int, extras: Collection[scores.Extra] = ()
) -> Comparison:
    """Score a model's answers together with its baselines.

    Args:
        model: the answers.
        train: training records, from which the constant answers are chosen; never the test records.
        out: folder for the constant baseline's predictions file.
        decimals: number of decimals of box coordinates.
        extras: slower metrics to compute as well.
    """
    constant = baselines.constant(train, model.examples, decimals=decimals)
    predictions_file.write(
        out / "predictions_constant.jsonl", constant, header={"data": model.header["data"]}
    )  # fmt: skip
    predictions = model.answers[View.IMAGE]
    tasks = {prediction.task for prediction in predictions}
    constant += chained.as_chained(constant, [task for task in ChainedTask if task in tasks])
    return Comparison(
        scores=scores.with_baselines(
            scores.score(predictions, samples=SAMPLES, extras=extras),
            constant=scores.score(constant),
            random=scores.score(baselines.shuffled(predictions)),
            blind=scores.score(model.answers[View.BLIND]),
        ),
        predictions=predictions,
    )
