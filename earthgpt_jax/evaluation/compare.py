"""A model beside its baselines: the same questions to it, to it made blind, to a constant and to chance."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from earthgpt_jax.evaluation import baselines, chained, runner, scores
from earthgpt_jax.evaluation import predictions as answers_lib
from earthgpt_jax.evaluation.metrics.intervals import SAMPLES
from earthgpt_jax.evaluation.predictions import Chained, Prediction
from earthgpt_jax.evaluation.runner import LogProbs
from earthgpt_jax.inference.engine import Engine
from earthgpt_jax.input.derived import Derived
from earthgpt_jax.mmrs.store import Together


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """`scores` as `scores.assemble` gives them; `predictions` of the model itself."""

    scores: dict
    predictions: list[Prediction]


def compare(
    model: str,
    test: Together,
    train: Together,
    *,
    out: Path,
    per_image: Mapping[str, int],
    batch_size: int,
    images: int | None = None,
    extras: Collection[scores.Extra] = (),
    derived: Sequence[Derived] = (),
    chained_by: chained.Protocol | None = None,
    log_probs: LogProbs = LogProbs.BOXES,
) -> Comparison:
    """Predictions (resumable, in `out`) and scores of a model, with the baselines beside each figure.

    Args:
        train: where the constant answers are learnt from; never from the test records.
        per_image: at most so many questions an image of a task.
        images: ask about so many images only, spread evenly over the records.
        extras: metrics that take more time.
        derived: kinds of question beside the tasks'.
        chained_by: how detection is asked for by chained questions too; None: it is not.
        log_probs: which answers are kept with those of their tokens.
    """
    engine = Engine.from_model_dir(model, batch_size=batch_size)
    count = len(test) if images is None else min(images, len(test))
    chosen = [test[index * len(test) // count] for index in range(count)]
    asked = runner.plan(
        chosen, decimals=engine.decimals, per_image=per_image, derived=derived, annotated=test.annotated
    )
    about = {**engine.describe(), "data": test.fingerprint, "log_probs": log_probs.value}
    if count < len(test):
        about["images"] = count
    header = {**about, "questions": len(asked)}
    answered = {}
    for view in runner.View:
        label = f"{'/'.join(Path(model).parts[-2:])} ({view.value})"
        answered[view] = runner.evaluate(
            engine, asked, out=out / f"predictions_{view.value}.jsonl", header=header | {"view": view.value},
            view=view, label=label, log_probs=log_probs.tasks,
        )  # fmt: skip
        if chained_by:
            answered[view] += chained.detect(
                engine, chosen, kinds=tuple(Chained), protocol=chained_by, annotated=test.annotated, view=view,
                label=f"{label}, chained",
                out=out / f"predictions_chained_{view.value}.jsonl", header={**about, "view": view.value},
            )  # fmt: skip
    constant = baselines.constant(train, asked, decimals=engine.decimals)
    answers_lib.write(out / "predictions_constant.jsonl", constant, header={"data": test.fingerprint})
    constant += chained.alike(constant, tuple(Chained)) if chained_by else []
    return Comparison(
        scores=scores.assemble(
            model=scores.score(answered[runner.View.IMAGE], samples=SAMPLES, extras=extras),
            constant=scores.score(constant),
            random=scores.score(baselines.shuffled(answered[runner.View.IMAGE])),
            blind=scores.score(answered[runner.View.GREY]),
        ),
        predictions=answered[runner.View.IMAGE],
    )
