"""Train a stage from start to finish: `train(config, workdir)` resumes automatically and ends in a model directory."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from earthgpt_jax import compilation, distributed
from earthgpt_jax import params as params_lib
from earthgpt_jax.common import files, memory
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.parsing import parse_json
from earthgpt_jax.config import Config, ModelContents, Remat, Stage, from_dict, to_dict
from earthgpt_jax.datasets.build.writer import write_dataset
from earthgpt_jax.datasets.store import RecordSource
from earthgpt_jax.input.features import FeatureStore
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
from earthgpt_jax.training import guard, remat_choice, workdir_lock
from earthgpt_jax.training.checkpoints import Checkpoints, fingerprint
from earthgpt_jax.training.execution import execution_options
from earthgpt_jax.training.features import compute_missing, feature_store
from earthgpt_jax.training.initial import InitialModel, initial_model
from earthgpt_jax.training.lifecycle import CheckpointScheduler, PreemptionSignal, Watchdog
from earthgpt_jax.training.metrics import FinishedStep, MetricsFetcher, MetricsLogger
from earthgpt_jax.training.optim import make_optimizer
from earthgpt_jax.training.prefetch import prefetch_to_device
from earthgpt_jax.training.profile import Profile, Profiler
from earthgpt_jax.training.stages import Trainable, trainable_paths
from earthgpt_jax.training.state import State
from earthgpt_jax.training.step import make_step
from earthgpt_jax.training.throughput import (
    COMPILE,
    INPUT,
    SAVE,
    VALIDATION,
    FlopsReference,
    Startup,
    StepTimer,
    seconds_before_run,
)
from earthgpt_jax.training.validation import AnswerScorer, MakeScorer, ValidationScheduler, check_figure

_log = logging.getLogger(__name__)

SYNTHETIC = "synthetic"  # value of `data.source` for a few generated records, as in debug mode
SYNTHETIC_RECORDS = {"train": 48, "val": 8, "test": 8}

# Settings that may change when a run is resumed. They change neither the batches nor the updates, except how damaged
# data and bad updates are handled.
_CHANGEABLE = (
    "init_parent ", "data.workers ", "data.on_damaged ", "checkpoint.", "log_every ", "mesh.", "remat ",
    "attention_impl ", "watchdog.", "validation.every_steps ", "validation.split ",
    "validation.answers ", "optim.on_nan ", "optim.on_spike ", "optim.spike_factor ", "optim.max_skips ",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Run:
    """What the phases of `train` share.

    Attributes:
        data: packing schedule and record sources.
        validation: data that the run is validated on; None if it is not validated.
        scorer: scores generated answers to validation questions; None if none are generated.
        features: features of the images; None: the step encodes them.
        identity: fingerprints of everything that the batches and frozen parameters depend on.
        frozen: frozen parameters on their devices.
        trainable: how each trainable parameter is optimised.
        state: shapes and shardings of the state.
        step: the jitted training step; the state is donated to it.
        initial: the model that the run started from.
        chose_remat: whether this start replaced `remat=auto` by a policy.
    """

    config: Config
    workdir: Path
    data: TrainingData
    validation: ValidationData | None
    scorer: AnswerScorer | None
    features: FeatureStore | None
    identity: dict[str, Any]
    placement: Placement
    frozen: Params
    trainable: Mapping[str, Trainable]
    state: State
    step: jax.stages.Wrapped
    initial: InitialModel
    chose_remat: bool


def train(
    config: Config,
    workdir: Path,
    *,
    profile: Profile | None = None,
    flops_reference: FlopsReference | None = None,
    choose_remat: Callable[[Config], str] | None = None,
    make_scorer: MakeScorer | None = None,
) -> Path:
    """Run the stage of `config` in `workdir` and return the directory of the finished model.

    The contents of `workdir` decide where the run starts, in this order:
      1. `model/config.json` exists: the run is finished, and nothing is done.
      2. A checkpoint exists: resume from the newest one; the result is bit-identical to an uninterrupted run.
      3. Otherwise: start from `config.init` or `config.init_from`.

    With several processes (`jax.distributed`), every process calls this with the same config and a work directory on
    shared storage. The batches are the same as with a single process.

    Args:
        profile: steps to trace into `workdir/profile`.
        flops_reference: enables MFU in throughput.jsonl.
        choose_remat: chooses the policy of `remat=auto`, see `remat_choice`.
        make_scorer: returns what scores the answers of `validation.answers`.

    Raises:
        EarthGPTError: the work directory belongs to another config; the data or the initial model changed since the
            checkpoint; the processes differ in config, code, data or weights; another run uses the directory; or an
            update was bad (see `guard`).
        RunStopped: stopped by SIGTERM or Ctrl-C; the current step is saved.
    """
    memory.return_large_blocks()
    timer, startup = StepTimer(), Startup(seconds={"imports": seconds_before_run()})
    run = _prepare(config, workdir, startup, choose_remat=choose_remat, make_scorer=make_scorer)
    if run is not None:
        with workdir_lock.hold(workdir):
            with contextlib.closing(Checkpoints(workdir, config.checkpoint)) as checkpoints:
                with startup.measure("state"):
                    state = jax.block_until_ready(_start_state(run, checkpoints))
                _claim(run)
                state = _run_steps(
                    run, state, checkpoints, timer=timer, startup=startup, profile=profile,
                    flops_reference=flops_reference,
                )  # fmt: skip
            trainable, step = state.trainable, int(state.step)
            del state  # the optimizer's moments
            memory.return_freed_blocks()
            _finish(run, trainable, step=step)
    return workdir / "model"


# ------------------------------------------------------------------------------------------------------------- prepare


def _prepare(
    config: Config, workdir: Path, startup: Startup, *, choose_remat: Callable[[Config], str] | None,
    make_scorer: MakeScorer | None,
) -> _Run | None:  # fmt: skip
    """Load the data and the frozen parameters; return None if the run is finished."""
    distributed.check_consistent({"config": to_dict(config), "code": distributed.code_version()})
    finished = (workdir / "model" / "config.json").exists()
    with distributed.fail_together("the start"):
        _check_config_unchanged(config, workdir)
        initial = None if finished else initial_model(config)
    distributed.check_consistent({"model is finished": finished})
    if initial is None:
        return None
    with startup.measure("data"):
        data, validation = _load_data(config, workdir, tokenizer=initial.tokenizer)

    graphdef, shapes = earthgpt.abstract(config.model)
    trainable_rules = trainable_paths(config, shapes)
    mesh = build_mesh(config.mesh, rows=config.data.batch_size // config.optim.microbatches)
    placement = rules.placement(config.model, shapes, mesh=mesh)
    scorer = _answer_scorer(config, validation, tokenizer=initial.tokenizer, mesh=mesh, make=make_scorer)
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
    with startup.measure("weights"):
        _, frozen = loading.load(
            initial.source, config.model, paths=shapes.keys() - trainable_rules.keys(), seed=config.seed,
            placement=placement, trainable=trainable_rules, frozen_dtype=config.frozen_dtype,
        )  # fmt: skip
        identity = data.schedule.identity() | {"frozen weights": fingerprint(frozen, replicated=placement.replicated)}
    state = _abstract_state(config, shapes, trainable_rules, placement)
    step = make_step(
        graphdef,
        make_optimizer(config.optim, trainable_rules),
        microbatches=config.optim.microbatches,
        execution=execution_options(config, platform=mesh.devices.flat[0].platform),
        mesh=mesh,
    )
    step = jax.jit(
        step,
        donate_argnums=0,
        # Without these, the program of a resumed run would not be that of the first start: a restored array may be
        # placed equally by another sharding.
        in_shardings=(placement.shardings(state), placement.shardings(frozen), placement.batch),
        out_shardings=(placement.shardings(state), placement.replicated),
    )

    _warn_about_unknown_classes(config, data)
    features = None
    if config.data.features:
        with startup.measure("features"), distributed.fail_together("encoding the images"):
            features = _prepare_features(config, frozen, data, validation, placement)
        if validation is not None:
            spec = dataclasses.replace(validation.spec, features=features)
            validation = dataclasses.replace(validation, spec=spec)
    return _Run(
        config=config, workdir=workdir, data=data, validation=validation, scorer=scorer, features=features,
        identity=identity, placement=placement, frozen=frozen, trainable=trainable_rules, state=state, step=step,
        initial=initial, chose_remat=chosen,
    )  # fmt: skip


def _prepare_features(
    config: Config, frozen: Params, data: TrainingData, validation: ValidationData | None, placement: Placement
) -> FeatureStore:
    """Return the features of all images that the run reads; compute those that are missing."""
    folder = files.path(config.data.features)
    store = feature_store(folder, config.model, frozen, replicated=placement.replicated)
    sources = [*data.sources, *(validation.data.sources if validation else ())]
    datasets = [source for source in sources if isinstance(source, RecordSource)]
    compute_missing(store.towers, config.model, frozen, sources=datasets)
    return store


def _claim(run: _Run) -> None:
    """Write what identifies the run to its work directory, once model and data are known to be valid."""
    if jax.process_index() == 0:
        run.workdir.mkdir(parents=True, exist_ok=True)
        files.write_json(run.workdir / "config.json", to_dict(run.config))
        if run.chose_remat:
            remat_choice.save(run.config, run.workdir, mesh=run.placement.mesh)  # type: ignore[arg-type]
        report = format_report(run.data.schedule, batch_size=run.config.data.batch_size)
        files.write_text(run.workdir / "schedule.txt", report + "\n")


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
    return data, validation


def _answer_scorer(
    config: Config, validation: ValidationData | None, *, tokenizer: Path, mesh: Mesh, make: MakeScorer | None
) -> AnswerScorer | None:
    """Return what scores generated answers, if the run generates any, and check that `keep_best` is a known figure."""
    if validation is None:
        return None
    with distributed.fail_together("choosing validation questions"):
        scorer = None
        if config.validation.answers and make is not None:
            scorer = make(config, validation, tokenizer=tokenizer, mesh=mesh)
        check_figure(config.checkpoint.keep_best, validation, scorer)
    return scorer


def _write_synthetic_data(folder: Path) -> None:
    """Write a few synthetic records, unless an earlier start did."""
    if not folder.exists():
        splits = {split: SyntheticSource(split, count) for split, count in SYNTHETIC_RECORDS.items()}
        write_dataset(splits, out=folder, name=SYNTHETIC)


def _abstract_state(
    config: Config, shapes: Mapping[str, jax.ShapeDtypeStruct], trainable: Mapping[str, Trainable], placement: Placement
) -> State:
    """Return the shapes and shardings of the state."""
    params = {path: jax.ShapeDtypeStruct(shapes[path].shape, jnp.float32) for path in sorted(trainable)}
    opt_state = jax.eval_shape(make_optimizer(config.optim, trainable).init, params)
    state = State(jax.ShapeDtypeStruct((), jnp.int32), params, opt_state)  # type: ignore[arg-type]
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state, placement.shardings(state)
    )


# --------------------------------------------------------------------------------------------------------------- state


def _start_state(run: _Run, checkpoints: Checkpoints) -> State:
    """Return the state of the newest checkpoint, or of step 0 if there is none; refuse to resume on changed data."""
    latest = checkpoints.latest()
    distributed.check_consistent({"newest checkpoint": latest})  # fails if not all processes see the same workdir
    if latest is None:
        return _initial_state(run)
    state, metadata = checkpoints.restore(latest, run.state)
    _check_data_unchanged(metadata["identity"], run.identity, run.workdir)
    return state


def _initial_state(run: _Run) -> State:
    """Return the state of step 0. Only now are the trainable parameters read: a restored state has its own."""
    config, shardings = run.config, run.placement.shardings(run.state)
    trainable, _ = loading.load(
        run.initial.source, config.model, paths=run.trainable, seed=config.seed, placement=run.placement,
        trainable=run.trainable, frozen_dtype=config.frozen_dtype,
    )  # fmt: skip
    optimizer = make_optimizer(config.optim, run.trainable)

    def initialize(trainable: Params) -> tuple[jax.Array, Any]:
        return jnp.zeros((), jnp.int32), optimizer.init(trainable)

    step, opt_state = jax.jit(initialize, out_shardings=(shardings.step, shardings.opt_state))(trainable)
    return State(step, trainable, opt_state)


# ----------------------------------------------------------------------------------------------------------------- run


def _run_steps(
    run: _Run,
    state: State,
    checkpoints: Checkpoints,
    *,
    timer: StepTimer,
    startup: Startup,
    profile: Profile | None,
    flops_reference: FlopsReference | None,
) -> State:
    """Run the remaining steps from `state`, which is donated; return the state of the finished model.

    It is that of the last step, or the best by `keep_best`.
    """
    config, workdir = run.config, run.workdir
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
            config, workdir, run.validation, scorer=run.scorer, placement=run.placement, frozen=run.frozen,
            checkpoints=checkpoints, start_step=start_step, logger=logger, heartbeat=watchdog.postpone,
        )  # fmt: skip

        timer.end_startup()
        if validation.should_validate(start_step):  # the run stopped after it saved this step, before validating it
            with timer.measure(VALIDATION):
                validation.validate(start_step, state.trainable)
        prefetched = prefetch_to_device(itertools.islice(batches, last - start_step), run.placement.batch)
        for step, batch, arrays in timer.measure_waits(INPUT, prefetched):
            with profiler.annotate(step):
                if step == start_step:
                    train_step = _compile(run, state, arrays, timer=timer, startup=startup)
                dispatched = time.monotonic()
                state, metrics = train_step(state, run.frozen, arrays)
            fetcher.put(step, batch, metrics, dispatched=dispatched)
            profiler.after_dispatch(step, metrics)
            save, validate = scheduler.should_save(step + 1), validation.should_validate(step + 1)
            # Look at the previous step while this one runs. Before a save look at this one too: a bad update stops the
            # run before it is saved.
            for done in fetcher.finished(include_newest=save or validate):
                watchdog.heartbeat()
                if done.step == start_step:
                    _record_startup(startup, done, timer, logger)
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
    if logger:
        logger.report()
    best = validation.best_saved()
    return state if best in (None, last) else _restore_best(checkpoints, best, state)


def _compile(run: _Run, state: State, arrays: Any, *, timer: StepTimer, startup: Startup) -> Callable[..., Any]:
    """Compile the training step, and return to the operating system what the compiler has freed."""
    with timer.measure(COMPILE):
        start = time.monotonic()
        compiled = run.step.lower(state, run.frozen, arrays).compile()
        startup.add("compile", time.monotonic() - start)
    memory.return_freed_blocks()
    return compiled


def _restore_best(checkpoints: Checkpoints, step: int, state: State) -> State:
    """Return the state of an earlier step; delete `state` first, because both may not fit into memory."""
    checkpoints.wait()
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    for leaf in jax.tree.leaves(state):
        leaf.delete()
    return checkpoints.restore(step, like)[0]


def _record_startup(startup: Startup, done: FinishedStep, timer: StepTimer, logger: MetricsLogger | None) -> None:
    """Log what this start cost, once its first step has finished."""
    usage = compilation.usage()
    startup.end(first_step=done.finished - done.dispatched, total=done.finished - timer.created)
    startup.programs, startup.cached = usage.programs, usage.cached
    if logger:
        logger.log_startup(startup)


def _handle_finished(done: FinishedStep, config: Config, timer: StepTimer, logger: MetricsLogger | None) -> None:
    """Time a finished step, stop the run if its update was bad, and log its metrics."""
    timer.record_step(dispatched=done.dispatched, finished=done.finished)
    guard.check_step(config.optim, done.step, done.metrics, [sample for ids in done.batch.ids for sample in ids])
    if logger:
        logger.log(done.step, done.metrics)


def _batches(run: _Run, start_step: int) -> Any:
    """Return the iterator over `(step, this process's part of the batch)` from `start_step` on."""
    return train_batches(
        PackedSequences.of(run.data, dataclasses.replace(InputSpec.of(run.config), features=run.features)),
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


def _finish(run: _Run, trainable: Params, *, step: int) -> None:
    """Write the model directory; every process writes its part."""
    config, parent = run.config, run.initial.directory
    wants_adapters = config.stage is Stage.INSTRUCT and config.checkpoint.model is ModelContents.ADAPTERS
    if wants_adapters and config.init_from:
        _log.warning(
            "model: written with all parameters, because the run started from init_from, not a model directory"
        )
    if step != config.optim.steps:
        _log.warning("model: written from step %d, the best by %s", step, config.checkpoint.keep_best)
    adapters = wants_adapters and parent is not None
    model_writer.write(
        run.workdir / "model",
        trainable if adapters else params_lib.merge(trainable, run.frozen),
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
    before = to_dict(from_dict(parse_json(path.read_bytes(), where=str(path)), where=str(path)))
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
