"""Train a stage from start to finish: `train(config, workdir)` resumes automatically and ends in a model directory."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from earthgpt_jax import distributed
from earthgpt_jax import params as params_lib
from earthgpt_jax.common import files
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.config import Config, ModelContents, Remat, Stage, from_dict, to_dict
from earthgpt_jax.datasets.build.writer import write_dataset
from earthgpt_jax.input.packing.efficiency import format_report
from earthgpt_jax.input.packing.schedule import identity_differences
from earthgpt_jax.input.packing.training_data import TrainingData, load_training_data
from earthgpt_jax.input.pipeline import InputSpec, PackedSequences, train_batches
from earthgpt_jax.input.prompts.derived import NEEDS_ANNOTATED_CLASSES
from earthgpt_jax.input.tokenizer import Tokenizer
from earthgpt_jax.input.validation_data import ValidationData, load_validation_data
from earthgpt_jax.models import earthgpt, loading, model_writer
from earthgpt_jax.params import Params
from earthgpt_jax.sharding import rules
from earthgpt_jax.sharding.mesh import Placement, build_mesh, local_rows
from earthgpt_jax.synthetic import SyntheticSource
from earthgpt_jax.training import guard, remat_choice
from earthgpt_jax.training.checkpoints import Checkpoints, fingerprint
from earthgpt_jax.training.execution import execution_options
from earthgpt_jax.training.initial import InitialModel, initial_model
from earthgpt_jax.training.lifecycle import CheckpointScheduler, PreemptionSignal, Watchdog
from earthgpt_jax.training.metrics import FinishedStep, MetricsFetcher, MetricsLogger
from earthgpt_jax.training.optim import make_optimizer
from earthgpt_jax.training.prefetch import prefetch_to_device
from earthgpt_jax.training.profile import Profile, Profiler
from earthgpt_jax.training.stages import Trainable, trainable_paths
from earthgpt_jax.training.state import State
from earthgpt_jax.training.step import make_step
from earthgpt_jax.training.throughput import COMPILE, INPUT, SAVE, VALIDATION, FlopsReference, StepTimer
from earthgpt_jax.training.validation import ValidationScheduler, check_figure

_log = logging.getLogger(__name__)

SYNTHETIC = "synthetic"  # value of `data.source` for a few generated records, as in debug mode
SYNTHETIC_RECORDS = {"train": 48, "val": 8, "test": 8}

# Settings that may change when a run is resumed. They change neither the batches nor the updates, except how damaged
# data and bad updates are handled.
_CHANGEABLE = (
    "init_parent ", "data.workers ", "data.on_damaged ", "checkpoint.", "log_every ", "mesh.", "remat ",
    "attention_impl ", "watchdog.", "validation.every_steps ", "validation.split ", "optim.on_nan ", "optim.on_spike ",
    "optim.spike_factor ", "optim.max_skips ",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Run:
    """What the phases of `train` share.

    Attributes:
        data: packing schedule and record sources.
        validation: data that the run is validated on; None if it is not validated.
        identity: fingerprints of everything that the batches and frozen parameters depend on.
        frozen: frozen parameters on their devices.
        state: where this start continues from; donated to the first step.
        step: the jitted training step.
        initial: the model that the run started from.
    """

    config: Config
    workdir: Path
    data: TrainingData
    validation: ValidationData | None
    identity: dict[str, Any]
    placement: Placement
    frozen: Params
    state: State
    step: Callable[..., tuple[State, dict[str, jax.Array]]]
    initial: InitialModel


def train(
    config: Config,
    workdir: Path,
    *,
    profile: Profile | None = None,
    flops_reference: FlopsReference | None = None,
    choose_remat: Callable[[Config], str] | None = None,
) -> Path:
    """Run the stage of `config` in `workdir` and return the directory of the finished model.

    The contents of `workdir` decide where the run starts, in this order:
      1. `model/` exists: the run is finished, and nothing is done.
      2. A checkpoint exists: resume from the newest one; the result is bit-identical to an uninterrupted run.
      3. Otherwise: start from `config.init` or `config.init_from`.

    With several processes (`jax.distributed`), every process calls this with the same config and a work directory on
    shared storage. The batches are the same as with a single process.

    Args:
        profile: steps to trace into `workdir/profile`.
        flops_reference: enables MFU in throughput.jsonl.
        choose_remat: chooses the policy of `remat=auto`, see `remat_choice`.

    Raises:
        EarthGPTError: the work directory belongs to another config; the data or the initial model changed since the
            checkpoint; the processes differ in config, code, data or weights; or an update was bad (see `guard`).
        RunStopped: stopped by SIGTERM or Ctrl-C; the current step is saved.
    """
    timer = StepTimer()
    run = _prepare(config, workdir, choose_remat=choose_remat)
    if run is not None:
        with contextlib.closing(Checkpoints(workdir, config.checkpoint)) as checkpoints:
            run = _restore(run, checkpoints)
            state = _run_steps(run, checkpoints, timer=timer, profile=profile, flops_reference=flops_reference)
        _finish(run, state)
    return workdir / "model"


# ------------------------------------------------------------------------------------------------------------- prepare


def _prepare(config: Config, workdir: Path, *, choose_remat: Callable[[Config], str] | None) -> _Run | None:
    """Load the model and the data, and place the initial state on the mesh; return None if the run is finished."""
    distributed.check_consistent({"config": to_dict(config), "code": distributed.code_version()})
    finished = (workdir / "model" / "config.json").exists()
    with distributed.fail_together("the start"):
        _check_config_unchanged(config, workdir)
        initial = None if finished else initial_model(config)
    distributed.check_consistent({"model is finished": finished})
    if initial is None:
        return None
    data, validation = _load_data(config, workdir, tokenizer=initial.tokenizer)

    graphdef, shapes = earthgpt.abstract(config.model)
    trainable_rules = trainable_paths(config, shapes)
    mesh = build_mesh(config.mesh, rows=config.data.batch_size // config.optim.microbatches)
    placement = rules.placement(config.model, shapes, mesh=mesh)
    chosen = config.remat == Remat.AUTO
    config = remat_choice.resolve(config, workdir, mesh=mesh, choose=choose_remat)
    with distributed.fail_together("reading the weights"):
        samples = initial.sample_digest()
    # Together the processes read each value once, so compare samples of their files before.
    distributed.check_consistent(
        {
            "data": data.schedule.identity() | {"frozen weights": samples},
            "validation data": validation and validation.digest(),
        }
    )
    trainable, frozen = loading.load(
        initial.source, config.model, seed=config.seed, placement=placement, trainable=trainable_rules,
        frozen_dtype=config.frozen_dtype,
    )  # fmt: skip
    identity = data.schedule.identity() | {"frozen weights": fingerprint(frozen, replicated=placement.replicated)}
    state, step = _initial_state(config, graphdef, trainable, trainable_rules, placement)

    _warn_about_unknown_classes(config, data)
    # Claim the folder only now that model and data are known to be valid: a failed start leaves no trace.
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        files.write_json(workdir / "config.json", to_dict(config))
        if chosen:
            remat_choice.save(config, workdir, mesh=mesh)
        report = format_report(data.schedule, batch_size=config.data.batch_size)
        files.write_text(workdir / "schedule.txt", report + "\n")
    return _Run(
        config=config, workdir=workdir, data=data, validation=validation, identity=identity, placement=placement,
        frozen=frozen, state=state, step=step, initial=initial,
    )  # fmt: skip


def _load_data(config: Config, workdir: Path, *, tokenizer: Path) -> tuple[TrainingData, ValidationData | None]:
    """Build the packing schedules of training and validation; `data.source=synthetic` writes records to `workdir`."""
    if config.data.source == SYNTHETIC:
        folder = workdir / SYNTHETIC
        with distributed.fail_together("writing synthetic data"):
            if jax.process_index() == 0:
                _write_synthetic_data(folder)
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, source=str(folder)))
    with distributed.fail_together("reading the data"):
        read = Tokenizer(tokenizer)
        data = load_training_data(config, tokenizer=read)
        if not config.validation.every_steps:
            return data, None
        validation = load_validation_data(config, data, tokenizer=read)
        check_figure(config.checkpoint.keep_best, validation)
    return data, validation


def _write_synthetic_data(folder: Path) -> None:
    """Write a few synthetic records, unless an earlier start did."""
    if not folder.exists():
        splits = {split: SyntheticSource(split, count) for split, count in SYNTHETIC_RECORDS.items()}
        write_dataset(splits, out=folder, name=SYNTHETIC)


def _initial_state(
    config: Config,
    graphdef: nnx.GraphDef,
    trainable: Params,
    trainable_rules: Mapping[str, Trainable],
    placement: Placement,
) -> tuple[State, Callable[..., tuple[State, dict[str, jax.Array]]]]:
    """Return the state of step 0 on its devices, and the jitted step that updates it."""
    optimizer = make_optimizer(config.optim, trainable_rules)
    trainable = placement.put(trainable)
    state = placement.put(State(jnp.zeros((), jnp.int32), trainable, optimizer.init(trainable)))
    step = make_step(
        graphdef,
        optimizer,
        microbatches=config.optim.microbatches,
        execution=execution_options(config, platform=placement.mesh.devices.flat[0].platform),
        mesh=placement.mesh,
    )
    return state, jax.jit(step, donate_argnums=0, out_shardings=(placement.shardings(state), placement.replicated))


# ------------------------------------------------------------------------------------------------------------- restore


def _restore(run: _Run, checkpoints: Checkpoints) -> _Run:
    """Continue from the newest checkpoint if there is one; refuse to resume on changed data."""
    latest = checkpoints.latest()
    distributed.check_consistent({"newest checkpoint": latest})  # fails if not all processes see the same workdir
    if latest is None:
        return run
    state, metadata = checkpoints.restore(latest, run.state)
    _check_data_unchanged(metadata["identity"], run.identity, run.workdir)
    return dataclasses.replace(run, state=state)


# ----------------------------------------------------------------------------------------------------------------- run


def _run_steps(
    run: _Run,
    checkpoints: Checkpoints,
    *,
    timer: StepTimer,
    profile: Profile | None,
    flops_reference: FlopsReference | None,
) -> State:
    """Run the remaining steps and return the state of the finished model: the last, or the best by `keep_best`."""
    config, workdir, state = run.config, run.workdir, run.state
    start_step, last = int(state.step), config.optim.steps
    hang_report = workdir / "hang" / f"process-{jax.process_index()}.txt"
    with contextlib.ExitStack() as stack:
        batches = stack.enter_context(contextlib.closing(_batches(run, start_step)))
        profiler = stack.enter_context(Profiler(profile, workdir / "profile", start_step=start_step, last=last))
        logger = None
        if jax.process_index() == 0:
            logger = stack.enter_context(
                MetricsLogger(
                    config, workdir, packing=run.data.schedule, start_step=start_step, timer=timer,
                    flops_reference=flops_reference,
                )
            )  # fmt: skip
        fetcher = stack.enter_context(MetricsFetcher())
        watchdog = stack.enter_context(Watchdog(seconds=60 * config.watchdog.minutes, report=hang_report))
        preemption = stack.enter_context(PreemptionSignal())
        scheduler = CheckpointScheduler(
            checkpoints, every=config.checkpoint.every_steps, last=last, preemption=preemption, metadata=_metadata(run)
        )
        validation = ValidationScheduler(
            config, workdir, run.validation, placement=run.placement, frozen=run.frozen, checkpoints=checkpoints,
            start_step=start_step, logger=logger, heartbeat=watchdog.postpone,
        )  # fmt: skip

        timer.end_startup()
        if validation.should_validate(start_step):  # the run stopped after it saved this step, before validating it
            with timer.measure(VALIDATION):
                validation.validate(start_step, state.trainable)
        prefetched = prefetch_to_device(itertools.islice(batches, last - start_step), run.placement.batch)
        for step, batch, arrays in timer.measure_waits(INPUT, prefetched):
            compiles = step == start_step
            with profiler.annotate(step), timer.measure(COMPILE) if compiles else contextlib.nullcontext():
                dispatched = time.monotonic()
                state, metrics = run.step(state, run.frozen, arrays)
            fetcher.put(step, batch, metrics, dispatched=time.monotonic() if compiles else dispatched)
            profiler.after_dispatch(step, metrics)
            save, validate = scheduler.should_save(step + 1), validation.should_validate(step + 1)
            # Look at the previous step while this one runs. Before a save look at this one too: a bad update stops the
            # run before it is saved.
            for done in fetcher.finished(include_newest=save or validate):
                watchdog.heartbeat()
                _handle_finished(done, config, timer, logger)
            if save:
                with timer.measure(SAVE):
                    if logger:
                        logger.flush()  # a resumed run does not log the steps of a checkpoint again
                    scheduler.save(step + 1, state)
            if validate:  # after the save, so that a run that is killed meanwhile loses no step
                with timer.measure(VALIDATION):
                    validation.validate(step + 1, state.trainable)
    validation.report()
    best = validation.best_saved()
    return state if best in (None, last) else _restore_best(checkpoints, best, state)


def _restore_best(checkpoints: Checkpoints, step: int, state: State) -> State:
    """Return the state of an earlier step; delete `state` first, because both may not fit into memory."""
    checkpoints.wait()
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    for leaf in jax.tree.leaves(state):
        leaf.delete()
    return checkpoints.restore(step, like)[0]


def _handle_finished(done: FinishedStep, config: Config, timer: StepTimer, logger: MetricsLogger | None) -> None:
    """Time a finished step, stop the run if its update was bad, and log its metrics."""
    timer.record_step(dispatched=done.dispatched, finished=done.finished)
    guard.check_step(config.optim, done.step, done.metrics, [sample for ids in done.batch.ids for sample in ids])
    if logger:
        logger.log(done.step, done.metrics)


def _batches(run: _Run, start_step: int) -> Any:
    """Return the iterator over `(step, this process's part of the batch)` from `start_step` on."""
    return train_batches(
        PackedSequences.of(run.data, InputSpec.of(run.config)),
        start_step=start_step,
        local=local_rows(run.placement.batch, run.config.data.batch_size),
        workers=run.config.data.workers,
    )


def _metadata(run: _Run) -> dict[str, Any]:
    """Return what every checkpoint records about the run, as plain JSON."""
    devices = run.placement.mesh.devices
    return {
        "config": to_dict(run.config),
        "identity": run.identity,
        "frozen": {
            "fingerprint": run.identity["frozen weights"],
            "dtype": run.config.frozen_dtype.value,
            "parent": run.initial.about,
        },
        "mesh": dict(run.placement.mesh.shape),
        "devices": f"{devices.size} {devices.flat[0].device_kind}, {jax.process_count()} process(es)",
    }


# -------------------------------------------------------------------------------------------------------------- finish


def _finish(run: _Run, state: State) -> None:
    """Write the model directory; every process writes its part."""
    config, parent = run.config, run.initial.directory
    wants_adapters = config.stage is Stage.INSTRUCT and config.checkpoint.model is ModelContents.ADAPTERS
    if wants_adapters and config.init_from:
        _log.warning(
            "model: written with all parameters, because the run started from init_from, not a model directory"
        )
    if (step := int(state.step)) != config.optim.steps:
        _log.warning("model: written from step %d, the best by %s", step, config.checkpoint.keep_best)
    adapters = wants_adapters and parent is not None
    model_writer.write(
        run.workdir / "model",
        state.trainable if adapters else params_lib.merge(state.trainable, run.frozen),
        compute_dtype=config.model.compute_dtype,
        model=config.model,
        decimals=config.data.decimals,
        chat_template=config.data.chat_template,
        tokenizer=run.initial.tokenizer,
        parent=parent if adapters else None,
        frozen_dtype=config.frozen_dtype,
        provenance={
            "recipe": config.recipe,
            "stage": config.stage.value,
            "steps": step,
            "source": ", ".join(dict.fromkeys(source.name for source in run.data.sources)),
            "data": {part.name: part.identity.get("dataset", "") for part in run.data.schedule.sources},
            "parent": run.initial.about,
        },
    )


# -------------------------------------------------------------------------------------------------------------- checks


def _check_config_unchanged(config: Config, workdir: Path) -> None:
    """Refuse a work directory that belongs to another config."""
    path = workdir / "config.json"
    if not path.exists():
        return
    # Fields that the file lacks get their defaults, which are the behaviour of the version that wrote it.
    before = to_dict(from_dict(json.loads(path.read_text()), where=str(path)))
    changed = [line for line in _differences(before, to_dict(config)) if not line.startswith(_CHANGEABLE)]
    if changed:
        raise EarthGPTError(
            f"workdir {workdir} belongs to another config: {'; '.join(changed[:6])}. "
            "Use the same settings to resume, or another --workdir."
        )


def _differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif old != new:
        yield f"{path} was {old!r}, is {new!r}"


def _check_data_unchanged(saved: dict[str, Any], now: dict[str, Any], workdir: Path) -> None:
    """Refuse to resume on other data: a data position identifies the same sequences only in the same schedule."""
    changed = identity_differences(saved, now)
    if changed:
        more = f"; and {len(changed) - 6} more" if len(changed) > 6 else ""
        raise EarthGPTError(
            f"cannot resume {workdir}: the data or the initial model has changed ({'; '.join(changed[:6])}{more}). "
            "Restore the original data and model, or start in another --workdir."
        )


def _warn_about_unknown_classes(config: Config, data: TrainingData) -> None:
    tasks = sorted(task for task in NEEDS_ANNOTATED_CLASSES if config.data.task_weights.get(task, 0) > 0)
    sources = sorted({source.name for source in data.sources if not source.annotated.shares})
    if tasks and sources:
        _log.warning(
            "data %s: no %s questions for %s, because the set of annotated classes is unknown (no horizontal boxes, a "
            "card with open_classes, or a dataset built by an earlier version)",
            *(config.data.source, ", ".join(tasks), ", ".join(sources)),
        )
