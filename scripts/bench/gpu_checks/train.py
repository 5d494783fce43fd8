"""Run the repository's training step with random weights: speed, MFU and memory."""

from __future__ import annotations

import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from earthgpt_jax import params as params_lib
from earthgpt_jax.aot import flops, gpus, program
from earthgpt_jax.aot.program import GIB
from earthgpt_jax.config import AttentionImpl, Config
from earthgpt_jax.models import earthgpt
from earthgpt_jax.models.quantized import cast_frozen
from earthgpt_jax.training.execution import execution_options
from earthgpt_jax.training.optim import make_optimizer
from earthgpt_jax.training.stages import trainable_paths
from earthgpt_jax.training.state import State
from earthgpt_jax.training.step import make_step
from gpu_checks import batches
from gpu_checks.cases import TrainCase
from gpu_checks.results import Recorder, first_line
from gpu_checks.timing import peak_bytes
from gpu_checks.weights import random_params, size_in_bytes

_MEMORY_SHARE = 0.7  # of the device's memory that the prediction may take; the rest is for what it leaves out


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """Memory of a step, in bytes, from the shapes alone.

    Attributes:
        state: trainable parameters and optimizer state.
        gradients: one copy of the gradients.
        frozen: frozen parameters.
        kept: what `remat=minimal` keeps for the backward pass.
    """

    state: int
    gradients: int
    frozen: int
    kept: int

    @property
    def total(self) -> int:
        return self.state + self.gradients + self.frozen + self.kept


def run(case: TrainCase, recorder: Recorder) -> None:
    """Record one case; if it fails with the attention that is chosen for the device, also with XLA's.

    Raises:
        RuntimeError: the loss or the gradient is not finite, an update was skipped, nothing was trained, or only XLA's
            attention worked.
        jax.errors.JaxRuntimeError: the device has too little memory even for one sequence.
    """
    try:
        _largest_batch(case, recorder)
        return
    except Exception as error:
        if jax.devices()[0].platform != "gpu":
            raise
        reason = first_line(error)
    recorder.say(f"{case.name} failed: {reason}; trying attention_impl=xla")
    config = dataclasses.replace(case.config, attention_impl=AttentionImpl.XLA)
    _largest_batch(dataclasses.replace(case, name=f"{case.name}, attention xla", config=config), recorder)
    raise RuntimeError(f"Error with cuDNN's attention; measured with XLA's: {reason}")


def _largest_batch(case: TrainCase, recorder: Recorder) -> None:
    """Measure with the largest batch that fits: the predicted one, or half of it after running out of memory."""
    limit = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    batch_size = case.config.data.batch_size
    while limit and batch_size > 1 and predict(with_batch_size(case.config, batch_size)).total > _MEMORY_SHARE * limit:
        batch_size //= 2
    while True:
        try:
            _measure(case, with_batch_size(case.config, batch_size), recorder)
            return
        except (jax.errors.JaxRuntimeError, ValueError) as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or batch_size == 1:
                raise
            recorder.say(f"{batch_size} sequences do not fit: {first_line(error)}")
        batch_size //= 2  # after the except block, which would keep the arrays of the failed attempt alive


def with_batch_size(config: Config, batch_size: int) -> Config:
    """Return `config` with another number of packed sequences per step."""
    return program.with_batch_size(config, batch_size)


def predict(config: Config) -> Prediction:
    """Return the memory that the shapes of a step predict."""
    _, shapes = earthgpt.abstract(config.model)
    trainable = trainable_paths(config, shapes)
    trained, frozen = _shapes(config)
    opt_state = jax.eval_shape(make_optimizer(config.optim, trainable).init, trained)
    llm, tokens = config.model.llm, config.data.batch_size * config.data.seq_len
    heads = llm.heads + 2 * llm.kv_heads  # q, k and v
    # bfloat16: the block's input, q, k, v, the attention output, and the outputs of o, gate, up and down.
    per_token = 2 * llm.depth * (llm.dim + heads * llm.head_dim + 3 * llm.dim + 2 * llm.ffn_dim)
    return Prediction(
        state=size_in_bytes((trained, opt_state)),
        gradients=size_in_bytes(trained),
        frozen=size_in_bytes(frozen),
        kept=tokens * per_token,
    )


def _shapes(config: Config) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the shapes of trainable (fp32) and frozen parameters, both in their final dtype."""
    _, shapes = earthgpt.abstract(config.model)
    trained, frozen = params_lib.split(shapes, trainable_paths(config, shapes))
    return trained, jax.eval_shape(functools.partial(cast_frozen, dtype=config.frozen_dtype), frozen)


def _measure(case: TrainCase, config: Config, recorder: Recorder) -> None:
    graphdef, shapes = earthgpt.abstract(config.model)
    device = jax.devices()[0]
    batch_size, length = config.data.batch_size, config.data.seq_len
    name = f"{case.name}, {batch_size} x {length}"
    trained_shapes, frozen_shapes = _shapes(config)
    optimizer = make_optimizer(config.optim, trainable_paths(config, shapes))

    started = time.perf_counter()
    trained, frozen = random_params(trained_shapes), random_params(frozen_shapes)
    state = State(jnp.zeros((), jnp.int32), trained, jax.jit(optimizer.init)(trained))
    batch = jax.device_put(batches.random_batch(config, batch_size=batch_size))
    jax.block_until_ready((state, frozen, batch))
    before = _sum_of_absolute_values(trained)
    del trained  # the state is donated
    recorder.say(f"{name}: {_gib(size_in_bytes((state, frozen))):.1f} GiB in {time.perf_counter() - started:.0f} s")

    execution = execution_options(config, platform=device.platform)
    recorder.say(f"{name}: {type(execution.attention).__name__}, remat {execution.remat}")
    step = make_step(graphdef, optimizer, microbatches=config.optim.microbatches, execution=execution)
    started = time.perf_counter()
    compiled = jax.jit(step, donate_argnums=0).lower(state, frozen, batch).compile()
    recorder.add(name, "time to compile the step", time.perf_counter() - started, "s")

    state, metrics = compiled(state, frozen, batch)
    losses = [float(metrics["loss"])]  # also waits for the first step
    _check_update(state, metrics, before)
    started = time.perf_counter()
    for _ in range(case.steps):
        state, metrics = compiled(state, frozen, batch)
    losses.append(float(metrics["loss"]))
    seconds = (time.perf_counter() - started) / case.steps
    if not np.all(np.isfinite(losses)) or int(metrics["skipped"]):
        raise RuntimeError(f"{name}: losses {losses}, {int(metrics['skipped'])} updates skipped; expected finite, 0")

    gpu = gpus.find(device.device_kind)
    minimum = flops.minimum(config, batch_size=batch_size)
    tokens = batch_size * length
    # The peak rate spent on the minimum of FLOPs; the ratio is the MFU. Attention's own products are not counted.
    recorder.add(
        name, "training", tokens / seconds, "tokens/s", compared_with="minimum FLOPs at the peak rate (ratio: MFU)",
        reference=tokens * gpu.bf16_tflops * 1e12 / minimum if gpu else None,
    )  # fmt: skip
    recorder.add(name, "time per step", 1e3 * seconds, "ms")
    recorder.add(
        name, f"loss after {case.steps + 1} steps on one batch", losses[-1], compared_with="after one step",
        reference=losses[0],
    )  # fmt: skip
    _record_memory(name, config, program.memory(compiled), device, recorder)


def _check_update(state: State, metrics: dict[str, jax.Array], before: float) -> None:
    """Raise if the first update was not applied."""
    after = _sum_of_absolute_values(state.trainable)
    norm = float(metrics["grad_norm"])
    if not np.isfinite(norm) or norm <= 0 or int(metrics["skipped"]) or after == before:
        raise RuntimeError(
            f"first step: expected an update, got loss {float(metrics['loss']):.4g}, gradient norm {norm:.4g}, "
            f"{int(metrics['skipped'])} skipped updates and a parameter sum of {after} (before: {before})"
        )


def _sum_of_absolute_values(params: dict[str, jax.Array]) -> float:
    sums = jax.jit(lambda params: [jnp.sum(jnp.abs(x)) for x in params.values()])(params)
    return sum(map(float, sums))  # in double precision


def _record_memory(name: str, config: Config, compiled: program.Memory, device: jax.Device, recorder: Recorder) -> None:
    predicted = predict(config)
    for part in dataclasses.fields(predicted):
        recorder.add(name, f"predicted from shapes: {part.name}", _gib(getattr(predicted, part.name)), "GiB")
    recorder.add(
        name, "memory of the compiled step", _gib(compiled.total), "GiB", compared_with="predicted from shapes",
        reference=_gib(predicted.total),
    )  # fmt: skip
    used = peak_bytes(device)
    if used is None:
        recorder.say(f"{name}: this device does not count the memory in use")
    else:
        recorder.add(
            name, "HBM in use, peak", _gib(used), "GiB", compared_with="predicted from shapes",
            reference=_gib(predicted.total),
        )  # fmt: skip


def _gib(size: float) -> float:
    return size / GIB
