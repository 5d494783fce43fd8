"""A model beside its baselines: the same questions to it, to it made blind, to a constant and to chance."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from earthgpt_jax.datasets.collection import ConcatSource
from earthgpt_jax.evaluation import baselines, chained, runner, scores
from earthgpt_jax.evaluation import predictions as answers_lib
from earthgpt_jax.evaluation.files import Process
from earthgpt_jax.evaluation.metrics.intervals import SAMPLES
from earthgpt_jax.evaluation.predictions import Chained, Prediction
from earthgpt_jax.evaluation.runner import Asked, LogProbs, View
from earthgpt_jax.inference.engine import Engine
from earthgpt_jax.input.prompts.derived import DerivedTask


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answered:
    """What a model was asked, and its answers by what it got to see; digests of all that they depend on."""

    asked: list[Asked]
    answers: dict[View, list[Prediction]]
    header: dict


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """`scores` as `scores.assemble` gives them; `predictions` of the model itself."""

    scores: dict
    predictions: list[Prediction]


def answer(
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
) -> Answered:
    """A model's answers to a dataset's questions, with and without the images; resumable, in `out`.

    With several processes all of them call this, see `runner.evaluate`.

    Args:
        per_image: at most so many questions an image of a task.
        label: of the progress bar.
        images: ask about so many images only, spread evenly over the records.
        derived: kinds of question beside the tasks'.
        chained_by: how detection is asked for by chained questions too; None: it is not.
        log_probs: which answers are kept with those of their tokens.
    """
    with Process.this().together("getting the questions ready"):
        count = len(test) if images is None else min(images, len(test))
        chosen = [test[index * len(test) // count] for index in range(count)]
        asked = runner.plan(
            chosen, decimals=engine.decimals, per_image=per_image, derived=derived, annotated=test.annotated
        )
        about = {**engine.describe(), "data": test.fingerprint, "log_probs": log_probs.value}
        if count < len(test):
            about["images"] = count
        header = {**about, "questions": len(asked)}
    answers = {}
    for view in runner.View:
        answers[view] = runner.evaluate(
            engine, asked, out=out / f"predictions_{view.value}.jsonl", header=header | {"view": view.value},
            view=view, label=f"{label} ({view.value})", log_probs=log_probs.tasks,
        )  # fmt: skip
        if chained_by:
            answers[view] += chained.detect(
                engine, chosen, kinds=tuple(Chained), protocol=chained_by, annotated=test.annotated, view=view,
                label=f"{label} ({view.value}), chained",
                out=out / f"predictions_chained_{view.value}.jsonl", header={**about, "view": view.value},
            )  # fmt: skip
    return Answered(asked=asked, answers=answers, header=header)


def beside_baselines(
    answered: Answered, train: ConcatSource, *, out: Path, decimals: int, extras: Collection[scores.Extra] = ()
) -> Comparison:
    """Scores of answers, with the baselines beside each figure.

    Args:
        train: where the constant answers are learnt from; never from the test records.
        extras: metrics that take more time.
    """
    constant = baselines.constant(train, answered.asked, decimals=decimals)
    answers_lib.write(out / "predictions_constant.jsonl", constant, header={"data": answered.header["data"]})
    seen = answered.answers[View.IMAGE]
    asked_in_chains = {prediction.task for prediction in seen}
    constant += chained.alike(constant, [kind for kind in Chained if kind in asked_in_chains])
    return Comparison(
        scores=scores.assemble(
            model=scores.score(seen, samples=SAMPLES, extras=extras),
            constant=scores.score(constant),
            random=scores.score(baselines.shuffled(seen)),
            blind=scores.score(answered.answers[View.GREY]),
        ),
        predictions=seen,
    )
