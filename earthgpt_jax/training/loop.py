"""A stage from start to finish: `train(config, workdir)` resumes by itself and ends in a model directory."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from earthgpt_jax import distributed
from earthgpt_jax import params as params_lib
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.config import Config, from_dict, to_dict
from earthgpt_jax.input.packing.efficiency import format_report
from earthgpt_jax.input.packing.schedule import identity_differences
from earthgpt_jax.input.packing.training_data import TrainingData, load_training_data
from earthgpt_jax.input.pipeline import InputSpec, PackedSequences, train_batches
from earthgpt_jax.input.prompts.derived import NEEDS_ANNOTATED_CLASSES
from earthgpt_jax.input.tokenizer import Tokenizer
from earthgpt_jax.models import earthgpt, model_dir
from earthgpt_jax.models.quantized import cast_frozen, dequantize
from earthgpt_jax.sharding import rules
from earthgpt_jax.sharding.mesh import build_mesh, local_rows
from earthgpt_jax.training import guard
from earthgpt_jax.training.checkpoints import Checkpoints
from earthgpt_jax.training.initialization import initial_model
from earthgpt_jax.training.log import MetricsLogger
from earthgpt_jax.training.metrics_fetcher import MetricsFetcher
from earthgpt_jax.training.optim import make_optimizer
from earthgpt_jax.training.preemption import PreemptionSignal
from earthgpt_jax.training.prefetch import prefetch_to_device
from earthgpt_jax.training.profile import Profile, Profiler
from earthgpt_jax.training.saving import CheckpointScheduler
from earthgpt_jax.training.stages import trainable_paths
from earthgpt_jax.training.step import State, execution, make_step
from earthgpt_jax.training.step_timer import COMPILE, INPUT, SAVE, StepTimer
from earthgpt_jax.training.throughput import FlopsReference
from earthgpt_jax.training.watchdog import Watchdog

_log = logging.getLogger(__name__)
# Settings that may differ when a run is resumed: they change no batch, and no update but of damaged data and of
# steps that went wrong.
_FREE = (
    "data.workers ", "data.on_damaged ", "checkpoint.", "log_every ", "mesh.", "remat ", "attention_impl ", "watchdog.",
    "optim.on_nan ", "optim.on_spike ", "optim.spike_factor ", "optim.max_skips ",
)  # fmt: skip


def train(
    config: Config, workdir: Path, *, profile: Profile | None = None, flops_reference: FlopsReference | None = None
) -> Path:
    """Runs the stage of `config` in `workdir` and returns the finished model's directory.

    What is there already decides what happens, in this order:
      1. `model/` of the same config: nothing to do.
      2. a checkpoint of the same config: resume behind it, bit for bit as if never stopped.
      3. nothing: start from `config.init` or `config.init_from`.
    A work directory of another config is refused. With several processes (`jax.distributed`) each calls this with
    the same config and a work directory that all of them see; the batches are those of a single one. Where they
    differ in config, code, data or weights, all of them refuse.

    Args:
        profile: steps to trace into `workdir/profile`.
        yardstick: for MFU in throughput.jsonl.

    Raises:
        RunStopped: by SIGTERM or Ctrl-C, with the running step saved.
    """
    clock = StepTimer()
    distributed.check_consistent({"config": to_dict(config), "code": distributed.code_version()})
    finished = workdir / "model"
    with distributed.fail_together("the start"):
        _refuse_other(config, workdir)
        if not finished.exists():
            start = initial_model(config)
            data = load_training_data(config, tokenizer=Tokenizer(start.tokenizer))
    distributed.check_consistent({"model is finished": finished.exists()})
    if finished.exists():
        return finished

    graphdef, _ = earthgpt.abstract(config.model)
    trained_rules = trainable_paths(config, start.params)
    trainable, frozen = params_lib.split(start.params, trained_rules)
    frozen = cast_frozen(frozen, config.frozen_dtype)
    frozen_print = params_lib.fingerprint(frozen)
    identity = data.schedule.identity() | {"frozen weights": frozen_print}
    distributed.check_consistent({"data": identity})
    mesh = build_mesh(config.mesh, rows=config.data.batch_size // config.optim.microbatches)
    place = rules.placement(config.model, start.params, mesh=mesh)
    trainable, frozen = place.put(trainable), place.put(frozen)
    optimizer = make_optimizer(config.optim, trained_rules)
    state = place.put(State(jnp.zeros((), jnp.int32), trainable, optimizer.init(trainable)))
    step_fn = jax.jit(
        make_step(
            graphdef,
            optimizer,
            microbatches=config.optim.microbatches,
            execution=execution(config, platform=mesh.devices.flat[0].platform),
            mesh=mesh,
        ),
        donate_argnums=0,
        out_shardings=(place.shardings(state), place.whole),
    )

    _warn_of_unknown_classes(config, data)
    # Only now, when model and data were found fit: a start that failed leaves no claim on the folder.
    leads = jax.process_index() == 0
    if leads:
        workdir.mkdir(parents=True, exist_ok=True)
        _put(workdir / "config.json", json.dumps(to_dict(config), indent=1) + "\n")
        _put(workdir / "schedule.txt", format_report(data.schedule, batch_size=config.data.batch_size) + "\n")
    checkpoints = Checkpoints(workdir, config.checkpoint)
    latest = checkpoints.latest()
    distributed.check_consistent(
        {"newest checkpoint": latest}
    )  # a work directory that not all of them see would show here
    if latest is not None:
        state, extra = checkpoints.restore(latest, state)
        _refuse_other_data(extra["identity"], identity, workdir)
    first = int(state.step)
    about = {
        "config": to_dict(config),
        "identity": identity,
        "frozen": {"fingerprint": frozen_print, "dtype": config.frozen_dtype.value, "parent": start.about},
        "mesh": dict(mesh.shape),
        "devices": f"{mesh.devices.size} {mesh.devices.flat[0].device_kind}, {jax.process_count()} process(es)",
    }

    batches = train_batches(
        PackedSequences.of(data, InputSpec.of(config)),
        start_step=first,
        local=local_rows(place.batch, config.data.batch_size),
        workers=config.data.workers,
    )
    with contextlib.ExitStack() as stack:
        stack.callback(checkpoints.close)
        stack.callback(batches.close)
        profiler = stack.enter_context(Profiler(profile, workdir / "profile", first=first, last=config.optim.steps))
        log = (
            stack.enter_context(
                MetricsLogger(
                    config, workdir, packing=data.schedule, first=first, clock=clock, flops_reference=flops_reference
                )
            )
            if leads
            else None
        )
        behind = stack.enter_context(MetricsFetcher())
        watchdog = stack.enter_context(
            Watchdog(
                seconds=60 * config.watchdog.minutes, report=workdir / "hang" / f"process-{jax.process_index()}.txt"
            )
        )
        notice = stack.enter_context(PreemptionSignal())
        every, last = config.checkpoint.every_steps, config.optim.steps
        save = CheckpointScheduler(checkpoints, every=every, last=last, notice=notice, about=about)
        clock.started()
        fed = prefetch_to_device(itertools.islice(batches, last - first), place.batch)
        for step, batch, arrays in clock.waiting(INPUT, fed):
            with profiler.step(step), clock.during(COMPILE) if step == first else contextlib.nullcontext():
                called = time.monotonic()
                state, metrics = step_fn(state, frozen, arrays)
            behind.put(step, batch, metrics, called=time.monotonic() if step == first else called)
            profiler.called(step, metrics)
            saves = save.due(step + 1)
            # The step before, while this one runs; this one too where it is saved: nothing unseen is kept.
            for done in behind.take(all_of_them=saves):
                watchdog.beat()
                clock.done(called=done.called, finished=done.finished)
                guard.check_step(config.optim, done.step, done.metrics, [s for row in done.batch.ids for s in row])
                if log:
                    log(done.step, done.metrics)
            if saves:
                with clock.during(SAVE):
                    save(step + 1, state)
    if leads:
        model_dir.write(
            finished,
            model_dir.to_host(params_lib.merge(state.trainable, dequantize(frozen, config.model.compute_dtype))),
            model=config.model,
            decimals=config.data.decimals,
            chat_template=config.data.chat_template,
            tokenizer=start.tokenizer,
            about={
                "recipe": config.recipe,
                "stage": config.stage.value,
                "steps": config.optim.steps,
                "source": ", ".join(dict.fromkeys(source.name for source in data.sources)),
                "data": {part.name: part.identity.get("dataset", "") for part in data.schedule.sources},
                "parent": start.about,
            },
        )
    distributed.gather_texts("")  # until the model is written
    return finished


def _put(path: Path, text: str) -> None:
    """The file with its whole text, or what it was, whenever the process is killed."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.replace(path)


def _warn_of_unknown_classes(config: Config, data: TrainingData) -> None:
    kinds = sorted(kind for kind in NEEDS_ANNOTATED_CLASSES if config.data.task_weights.get(kind, 0) > 0)
    silent = sorted({source.name for source in data.sources if not source.annotated.shares})
    if kinds and silent:
        _log.warning(
            "data %s: no questions of %s about %s: which classes these annotate is not known for certain "
            "(no horizontal boxes, a card with open_classes, or built by an earlier version)",
            *(config.data.source, ", ".join(kinds), ", ".join(silent)),
        )


def _refuse_other(config: Config, workdir: Path) -> None:
    """The work directory belongs to one config, from its first run on."""
    path = workdir / "config.json"
    if not path.exists():
        return
    # Fields that the file is older than have their default, which is what that version did.
    before = to_dict(from_dict(json.loads(path.read_text()), where=str(path)))
    differing = [line for line in _differences(before, to_dict(config)) if not line.startswith(_FREE)]
    if differing:
        raise EarthGPTError(
            f"workdir {workdir} was made with another config: {'; '.join(differing[:6])}. "
            "Give the same settings again to resume, or another --workdir."
        )


def _differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif old != new:
        yield f"{path} was {old!r}, is {new!r}"


def _refuse_other_data(saved: dict[str, Any], now: dict[str, Any], workdir: Path) -> None:
    """A data position means the same rows only in the same plan."""
    changed = identity_differences(saved, now)
    if changed:
        raise EarthGPTError(
            f"cannot resume {workdir}: what its rows depend on has changed ({'; '.join(changed[:6])}"
            + (f"; and {len(changed) - 6} more" if len(changed) > 6 else "")
            + "). Put the original data and model back, or start in another --workdir."
        )
