"""Validation while training: figures of a split that is not trained on, by task and by sensor.

The figures are the mean loss, the accuracy of tokens, and the share of questions whose greedy answer is exactly the
reference. The last one needs no decoding: the greedy answer is the reference if and only if each of its tokens has the
largest logit after those before it. With `validation.answers`, answers to some of the questions are also generated and
scored, by an `AnswerScorer` that the caller of the run passes.

All figures are quotients of sums over the whole split and all processes, of losses, tokens and answers. They therefore
depend neither on the packing nor on the number of hosts, beyond the order of floating-point sums. Validation reads the
parameters and nothing else of the run, so it changes no weight.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from earthgpt_jax import distributed
from earthgpt_jax.common import files
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.names import did_you_mean
from earthgpt_jax.config import Config
from earthgpt_jax.input.batch import Batch
from earthgpt_jax.input.validation_data import ValidationData
from earthgpt_jax.models import earthgpt
from earthgpt_jax.ops.losses import supervised_sums
from earthgpt_jax.params import Params, merge, merge_module
from earthgpt_jax.sharding.mesh import Placement, local_rows, use_mesh
from earthgpt_jax.training.checkpoints import Checkpoints
from earthgpt_jax.training.execution import ExecutionOptions, execution_options
from earthgpt_jax.training.metrics import MetricsLogger, read_validations
from earthgpt_jax.training.prefetch import prefetch_to_device
from earthgpt_jax.training.step import cast_kernels, hidden, make_encoder, split_batch

_log = logging.getLogger(__name__)

PREFIX = "validation"
ANSWERS = f"{PREFIX}/generated"  # prefix of the figures of generated answers
REPORT = "validation.json"
FIGURES = ("loss", "accuracy", "exact")
COUNTS = ("tokens", "correct", "answers", "exact")  # of `SupervisedSums`


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sums:
    """Sums over supervised tokens and answers.

    Attributes:
        loss_sum: cross-entropies in nats.
        supervised_tokens, correct_tokens: tokens, and those with the largest logit.
        answers, exact_answers: answers, and those of which all tokens are correct.
    """

    loss_sum: float = 0.0
    supervised_tokens: int = 0
    correct_tokens: int = 0
    answers: int = 0
    exact_answers: int = 0

    def __add__(self, other: Sums) -> Sums:
        names = [field.name for field in dataclasses.fields(self)]
        return Sums(**{name: getattr(self, name) + getattr(other, name) for name in names})

    def to_json(self) -> dict[str, Any]:
        """Return the sums and their quotients, `FIGURES`."""
        return {
            "loss": self.loss_sum / self.supervised_tokens,
            "accuracy": self.correct_tokens / self.supervised_tokens,
            "exact": self.exact_answers / self.answers,
            **dataclasses.asdict(self),
        }


def summarize(sums: Mapping[tuple[str, str], Sums]) -> dict[str, Any]:
    """Return the figures of all tokens, of each task and of each sensor as plain JSON.

    Args:
        sums: (task, sensor) -> sums; pairs without supervised tokens are left out.
    """
    total = Sums()
    tasks: dict[str, Sums] = {}
    sensors: dict[str, Sums] = {}
    for (task, sensor), part in sorted(sums.items()):
        if part.supervised_tokens:
            total += part
            tasks[task] = tasks.get(task, Sums()) + part
            sensors[sensor] = sensors.get(sensor, Sums()) + part
    return {
        **total.to_json(),
        "tasks": {name: part.to_json() for name, part in tasks.items()},
        "sensors": {name: part.to_json() for name, part in sorted(sensors.items())},
    }


def figures(validation: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures that have a name, for example `validation/loss` and `validation/caption/accuracy`."""
    named = {f"{PREFIX}/": validation}
    named |= {f"{PREFIX}/{name}/": part for key in ("tasks", "sensors") for name, part in validation[key].items()}
    # An earlier version, which may have started the run, logged fewer.
    own = {prefix + figure: part[figure] for prefix, part in named.items() for figure in FIGURES if figure in part}
    return own | {f"{ANSWERS}/{name}": value for name, value in validation.get("generated", {}).items()}


def check_figure(name: str, data: ValidationData, scorer: AnswerScorer | None) -> None:
    """Check that a run has the figure `name` of `checkpoint.keep_best`; "" is accepted.

    Raises:
        EarthGPTError: it has not; lists those that it has.
    """
    known = list(figures(summarize(dict.fromkeys(data.groups, Sums(supervised_tokens=1, answers=1)))))
    known += [f"{ANSWERS}/{figure}" for figure in scorer.figures] if scorer else []
    if name and name not in known:
        raise EarthGPTError(
            f"checkpoint.keep_best: the validation data has no figure {name!r}{did_you_mean(name, known)} "
            f"Figures: {', '.join(known)}"
        )


class AnswerScorer(Protocol):
    """Generates answers to questions of the validation data and scores them.

    Attributes:
        figures: names of its figures, for example `vqa/accuracy`.
    """

    @property
    def figures(self) -> Sequence[str]: ...

    def __call__(self, params: Params, *, heartbeat: Callable[[], None]) -> dict[str, float]:
        """Return the value of every figure that is defined, the same on all processes, which all call it."""
        ...


class MakeScorer(Protocol):
    """Returns the `AnswerScorer` of a run."""

    def __call__(self, config: Config, data: ValidationData, *, tokenizer: Path, mesh: Mesh) -> AnswerScorer: ...


def make_validation_step(
    graphdef: nnx.GraphDef, *, groups: int, microbatches: int, execution: ExecutionOptions, mesh: Mesh | None
) -> Callable[[Params, Params, Batch, jax.Array], dict[str, jax.Array]]:
    """Return `step(trainable, frozen, batch, token_groups) -> sums`, to be jitted.

    The forward pass is that of the train step, without gradients, on one microbatch at a time.

    Args:
        graphdef: structure of the model.
        groups: G, number of groups; `token_groups` i32[B, T] has the group of each supervised token.
        microbatches, execution, mesh: as in `step.make_step`.

    Returns:
        Sums over the global batch: those of `SupervisedSums`, [G] each, and `samples` i32[], `damaged` i32[].
    """
    encode = make_encoder(graphdef, mesh=mesh)

    @use_mesh(mesh)
    def step(trainable: Params, frozen: Params, batch: Batch, token_groups: jax.Array) -> dict[str, jax.Array]:
        params = merge(cast_kernels(trainable, execution), frozen)
        model = merge_module(graphdef, params)

        def accumulate(sums: dict, parts: tuple[Batch, jax.Array]) -> tuple[dict, None]:
            part, part_groups = parts
            x = hidden(model, encode(merge(trainable, frozen), part), part, execution=execution)
            sums_by_group = supervised_sums(
                x, model.llm.unembedding(), part.tokens, part.loss_weights, part_groups, num_groups=groups,
                chunk=execution.loss_chunk,
            )  # fmt: skip
            new = {
                **sums_by_group._asdict(),
                "samples": jnp.sum(jnp.max(part.segments, axis=1)),
                "damaged": jnp.sum(part.damaged),
            }
            return jax.tree.map(jnp.add, sums, new), None

        zero = {
            "loss": jnp.zeros(groups, jnp.float32),
            **{name: jnp.zeros(groups, jnp.int32) for name in COUNTS},
            "samples": jnp.zeros((), jnp.int32),
            "damaged": jnp.zeros((), jnp.int32),
        }
        return jax.lax.scan(accumulate, zero, split_batch((batch, token_groups), microbatches))[0]

    return step


class Validator:
    """Compute the figures of the validation split for given parameters; the step is compiled once.

    Args:
        placement: mesh of the run.
    """

    def __init__(self, config: Config, data: ValidationData, placement: Placement) -> None:
        assert isinstance(placement.mesh, Mesh)
        graphdef, _ = earthgpt.abstract(config.model)
        self._data, self._sharding, self._workers = data, placement.batch, config.data.workers
        self._local = local_rows(placement.batch, config.data.batch_size)
        step = make_validation_step(
            graphdef,
            groups=len(data.groups),
            microbatches=config.optim.microbatches,
            execution=execution_options(config, platform=placement.mesh.devices.flat[0].platform),
            mesh=placement.mesh,
        )
        self._step = jax.jit(step, out_shardings=placement.replicated)

    def __call__(self, trainable: Params, frozen: Params, *, heartbeat: Callable[[], None]) -> dict[str, Any]:
        """Return the figures as plain JSON; see `summarize`. All processes call it and get the same result.

        Args:
            heartbeat: called after every batch.

        Raises:
            EarthGPTError: no sample could be read.
        """
        groups = len(self._data.groups)
        totals: dict[str, np.ndarray] = {
            "loss": np.zeros(groups), **{name: np.zeros(groups, np.int64) for name in COUNTS},
            "samples": np.zeros((), np.int64), "damaged": np.zeros((), np.int64),
        }  # fmt: skip

        def add(sums: dict[str, jax.Array]) -> None:
            for name, value in jax.device_get(sums).items():
                totals[name] = totals[name] + value
            heartbeat()

        running = None
        with contextlib.closing(self._data.load(local=self._local, workers=self._workers)) as batches:
            for number, batch, arrays in prefetch_to_device(batches, self._sharding):
                first = number * self._data.spec.batch_size
                token_groups = self._data.token_groups(batch, [first + row for row in self._local])
                sums = self._step(
                    trainable, frozen, arrays, jax.make_array_from_process_local_data(self._sharding, token_groups)
                )
                if running is not None:  # read the sums of the previous batch while the devices compute this one
                    add(running)
                running = sums
            if running is not None:
                add(running)
        if not totals["tokens"].any():
            raise EarthGPTError(
                f"validation: none of the {int(totals['damaged'])} samples of split {self._data.split!r} can be read; "
                "`earthgpt data check` names the damaged records"
            )
        columns = zip(*(totals[name] for name in ("loss", *COUNTS)), strict=True)
        by_group = {
            pair: Sums(
                loss_sum=float(loss), supervised_tokens=int(tokens), correct_tokens=int(correct), answers=int(answers),
                exact_answers=int(exact),
            )
            for pair, (loss, tokens, correct, answers, exact) in zip(self._data.groups, columns, strict=True)
        }  # fmt: skip
        return {
            "split": self._data.split,
            "data": self._data.digest(),
            "samples": int(totals["samples"]),
            "damaged": int(totals["damaged"]),
            **summarize(by_group),
        }


class ValidationScheduler:
    """Validate every N steps and after the last one, and keep track of the best step.

    Args:
        data: None turns validation off.
        scorer: scores generated answers; None: no answers are generated.
        start_step: number of steps completed before this start; validations up to it are read from metrics.jsonl.
        logger: where process 0 logs the figures.
        heartbeat: called after every batch.
    """

    def __init__(
        self,
        config: Config,
        workdir: Path,
        data: ValidationData | None,
        *,
        scorer: AnswerScorer | None,
        placement: Placement,
        frozen: Params,
        checkpoints: Checkpoints,
        start_step: int,
        logger: MetricsLogger | None,
        heartbeat: Callable[[], None],
    ) -> None:
        self._workdir, self._checkpoints, self._frozen = workdir, checkpoints, frozen
        self._logger, self._heartbeat, self._last = logger, heartbeat, config.optim.steps
        self._every = config.validation.every_steps
        self._figure = config.checkpoint.keep_best or f"{PREFIX}/loss"
        self._keeps_best = bool(config.checkpoint.keep_best)
        self._history: list[tuple[int, dict[str, Any]]] = []
        self._validator, self._scorer = None, scorer
        if data is not None:
            self._validator = Validator(config, data, placement)
            digest = data.digest()
            self._history = [
                (step, validation)
                for step, validation in _shared_history(workdir, start_step)
                if validation["data"] == digest and self._figure in figures(validation)
            ]
            self._protect_best()

    def should_validate(self, step: int) -> bool:
        """Return whether to validate after `step` steps."""
        done = bool(self._history) and self._history[-1][0] == step
        due = step > 0 and (step == self._last or step % max(self._every, 1) == 0)
        return self._validator is not None and due and not done

    def validate(self, step: int, trainable: Params) -> None:
        """Validate the parameters after `step` steps, and log the figures."""
        assert self._validator is not None
        validation = self._validator(trainable, self._frozen, heartbeat=self._heartbeat)
        if self._scorer is not None:
            validation["generated"] = self._scorer(merge(trainable, self._frozen), heartbeat=self._heartbeat)
        self._history.append((step, validation))
        if self._logger is not None:
            self._logger.log_validation(step, validation, figures=figures(validation))
        self._protect_best()

    def report(self) -> None:
        """Log the best and the last figures and write them to `validation.json`."""
        if not self._history:
            return
        best, last = best_step(self._history, self._figure), self._history[-1][0]
        by_step = dict(self._history)
        saved = self._checkpoints.steps()
        values = {
            name: {
                "step": step,
                "value": figures(by_step[step])[self._figure],
                "checkpoint": f"checkpoints/{step}" if step in saved else None,
                "validation": by_step[step],
            }
            for name, step in (("best", best), ("last", last))
        }
        if jax.process_index() == 0:
            files.write_json(self._workdir / REPORT, {"figure": self._figure, **values})
            kept = values["best"]["checkpoint"] or "its checkpoint was not kept"
            _log.warning(
                "%s: best %.4f at step %d (%s), last %.4f at step %d",
                *(self._figure, values["best"]["value"], best, kept, values["last"]["value"], last),
            )

    def best_saved(self) -> int | None:
        """Return the best step by `checkpoint.keep_best` among those with a checkpoint; None if there is none."""
        saved = self._checkpoints.steps()
        candidates = [entry for entry in self._history if entry[0] in saved]
        return best_step(candidates, self._figure) if self._keeps_best and candidates else None

    def _protect_best(self) -> None:
        if (best := self.best_saved()) is not None:
            self._checkpoints.protect(best)


def best_step(history: Sequence[tuple[int, Mapping[str, Any]]], figure: str) -> int:
    """Return the step with the lowest loss, or the highest other figure; the earliest of equal ones.

    Args:
        history: `(step, validation)` of at least one step.
        figure: one of `figures`.
    """
    sign = 1 if figure.endswith("/loss") else -1
    return min(history, key=lambda entry: (sign * figures(entry[1])[figure], entry[0]))[0]


def _shared_history(workdir: Path, start_step: int) -> list[tuple[int, dict[str, Any]]]:
    """Return the validations up to `start_step` that process 0 finds in metrics.jsonl, on every process."""
    own = read_validations(workdir, up_to=start_step) if jax.process_index() == 0 else []
    return [(step, validation) for step, validation in json.loads(distributed.gather_texts(json.dumps(own))[0])]
