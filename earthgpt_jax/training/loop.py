"""A stage from start to finish: `train(config, workdir)` resumes by itself and ends in a model directory."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorboardX
from jax.sharding import NamedSharding
from tqdm import tqdm

from earthgpt_jax import params as params_lib
from earthgpt_jax.config import Config, resolve, to_dict
from earthgpt_jax.errors import EarthGPTError
from earthgpt_jax.input.batch import Batch
from earthgpt_jax.input.derived import NEED_CLASSES
from earthgpt_jax.input.pipeline import InputSpec, train_iterator
from earthgpt_jax.input.questions import task_of
from earthgpt_jax.input.tokenizer import Tokenizer
from earthgpt_jax.mmrs.record import Annotated
from earthgpt_jax.mmrs.store import open_source
from earthgpt_jax.models import earthgpt, io
from earthgpt_jax.sharding import rules
from earthgpt_jax.sharding.mesh import build_mesh
from earthgpt_jax.training.checkpoints import Checkpoints
from earthgpt_jax.training.initial import initial
from earthgpt_jax.training.optim import optimizer as make_optimizer
from earthgpt_jax.training.optim import schedule
from earthgpt_jax.training.stages import trained_paths
from earthgpt_jax.training.step import DeviceBatch, State, execution, make_step

_log = logging.getLogger(__name__)


def train(config: Config, workdir: Path) -> Path:
    """Runs the stage of `config` in `workdir` and returns the finished model's directory.

    What is there already decides what happens, in this order:
      1. `model/` of the same config: nothing to do.
      2. a checkpoint of the same config: resume behind it, bit for bit as if never stopped.
      3. nothing: start from `config.init` or `config.init_from`.
    A work directory of another config is refused.
    """
    _refuse_other(config, workdir)
    finished = workdir / "model"
    if finished.exists():
        return finished

    start = initial(config)
    graphdef, _ = earthgpt.abstract(config.model)
    trained_rules = trained_paths(config, start.params)
    trained, frozen = params_lib.split(start.params, trained_rules)
    frozen = params_lib.cast(frozen, config.frozen_dtype)
    frozen_print = params_lib.fingerprint(frozen)
    mesh = build_mesh(config.mesh, rows=config.data.batch_size // config.optim.microbatches)
    place = rules.placement(config.model, start.params, mesh=mesh)
    trained, frozen = place.put(trained), place.put(frozen)
    optimizer = make_optimizer(config.optim, trained_rules)
    state = place.put(State(jnp.zeros((), jnp.int32), trained, optimizer.init(trained)))
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

    wanted = {task_of(kind) for kind, weight in config.data.task_weights.items() if weight > 0}
    source = open_source(Path(config.data.source), config.data.split, tasks=sorted(wanted))
    _warn_of_unknown_classes(config, source.annotated)
    tokenizer = Tokenizer(start.tokenizer)
    identity = {"data": source.fingerprint, "tokenizer": tokenizer.fingerprint, "frozen": frozen_print}
    # Only now, when model and data were found fit: a start that failed leaves no claim on the folder.
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(json.dumps(to_dict(config), indent=1) + "\n")
    checkpoints = Checkpoints(workdir, config.checkpoint)
    latest = checkpoints.latest()
    if latest is not None:
        state, extra = checkpoints.restore(latest, state)
        _same_identity(extra["identity"], identity, workdir)
    first = int(state.step)
    _truncate_metrics(workdir, first)

    batches = train_iterator(source, spec=InputSpec.of(config, source.annotated), tokenizer=tokenizer, start_step=first)
    with contextlib.ExitStack() as stack:
        stack.callback(checkpoints.close)
        log = stack.enter_context(_Log(config, workdir, first))
        for step, batch in batches:
            if step >= config.optim.steps:
                break
            state, metrics = step_fn(state, frozen, device_batch(batch, place.batch))
            log(step, batch, metrics)
            if (step + 1) % config.checkpoint.every_steps == 0 or step + 1 == config.optim.steps:
                checkpoints.save(step + 1, state, {"data_position": step + 1, "identity": identity})
    arrays = io.as_numpy(params_lib.merge(state.trained, frozen))
    io.write(
        finished,
        arrays,
        model=config.model,
        decimals=config.data.decimals,
        conversation=config.data.conversation,
        tokenizer=start.tokenizer,
        about={
            "recipe": config.recipe,
            "stage": config.stage.value,
            "steps": config.optim.steps,
            "source": source.name,
            "data": source.fingerprint,
            "parent": start.about,
        },
    )
    return finished


def device_batch(batch: Batch, sharding: NamedSharding) -> DeviceBatch:
    """The batch's arrays on the devices, split by rows."""
    return jax.device_put(DeviceBatch(*(getattr(batch, name) for name in DeviceBatch._fields)), sharding)


def _warn_of_unknown_classes(config: Config, annotated: Mapping[str, Annotated]) -> None:
    kinds = sorted(kind for kind in NEED_CLASSES if config.data.task_weights.get(kind, 0) > 0)
    silent = sorted(name for name, classes in annotated.items() if not classes.shares)
    if kinds and silent:
        _log.warning(
            "data %s: no questions of %s about %s: which classes these annotate is not known for certain "
            "(no horizontal boxes, a card with open_classes, or built by an earlier version)",
            *(config.data.source, ", ".join(kinds), ", ".join(silent)),
        )


def read_losses(workdir: Path) -> list[tuple[int, float]]:
    """`(step, loss)` of every step of a run so far."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [(values["step"], values["loss"]) for values in map(json.loads, lines)]


def _refuse_other(config: Config, workdir: Path) -> None:
    """The work directory belongs to one config, from its first run on."""
    path = workdir / "config.json"
    if not path.exists():
        return
    # Fields that the file is older than have their default, which is what that version did.
    before = to_dict(resolve(json.loads(path.read_text()), where=str(path)))
    now = to_dict(config)
    for where_it_ran in ("mesh", "remat", "attention"):  # no part of what is trained
        before.pop(where_it_ran), now.pop(where_it_ran)
    differing = list(_differences(before, now))
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


def _same_identity(saved: dict[str, str], now: dict[str, str], workdir: Path) -> None:
    differing = [f"{name} was {saved[name]}, is {now[name]}" for name in now if saved.get(name) != now[name]]
    if differing:
        raise EarthGPTError(
            f"cannot resume {workdir}: fingerprints differ ({'; '.join(differing)}). "
            "Put the original data and model back, or start in another --workdir."
        )


def _truncate_metrics(workdir: Path, step: int) -> None:
    """Drops the lines of steps that a resumed run will do again."""
    path = workdir / "metrics.jsonl"
    if path.exists():
        kept = []
        for line in path.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # a line cut off by a kill
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
        partial = path.with_suffix(".partial")
        partial.write_text("".join(kept))
        partial.replace(path)


class _Log:
    """metrics.jsonl, TensorBoard and the progress bar."""

    def __init__(self, config: Config, workdir: Path, first: int):
        self._config = config
        self._schedule = schedule(config.optim)
        self._file = (workdir / "metrics.jsonl").open("a")
        self._board = tensorboardX.SummaryWriter(str(workdir / "tb"), purge_step=first)
        self._bar = tqdm(total=config.optim.steps, initial=first, desc=config.stage.value, unit="step")
        self._tokens, self._since = 0, time.monotonic()

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        self._board.close()
        self._file.close()

    def __call__(self, step: int, batch: Batch, metrics: dict[str, jax.Array]) -> None:
        """Every step is a line: a run that was killed can be compared with one that was not."""
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not np.isfinite(values["loss"]):
            raise EarthGPTError(
                f"step {step}: the loss is {values['loss']}; lower optim.peak_lr, or look at the batch: "
                + ", ".join(batch.ids[:4])
            )
        line = {
            "step": step + 1,
            **values,
            "lr": float(self._schedule(jnp.asarray(step))),
            "left_out": batch.left_out,
            "unlisted": batch.unlisted,
            "ids": list(batch.ids),
        }
        self._file.write(json.dumps(line) + "\n")
        self._tokens += int(values["tokens"])
        self._bar.update()
        if (step + 1) % self._config.log_every == 0 or step + 1 == self._config.optim.steps:
            self._file.flush()
            seconds = max(time.monotonic() - self._since, 1e-9)
            self._bar.set_postfix(loss=f"{values['loss']:.3f}", tok_s=f"{self._tokens / seconds:,.0f}")
            for name in ("loss", "grad_norm", "lr"):
                self._board.add_scalar(name, line[name], step + 1)
            self._tokens, self._since = 0, time.monotonic()
