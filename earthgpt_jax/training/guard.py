"""Skip updates whose loss or gradient is not finite, and optionally spikes.

The decision is made inside the step, from values that are identical on every process, and its history is part of the
optimizer state. All processes therefore decide the same, a resumed run decides like an uninterrupted one, and a bad
update never reaches the state. `check_step` decides on the host whether to stop the run.

A spike is a loss or gradient norm far above the recently applied updates: more than `factor` robust standard
deviations above their median. The robust standard deviation is 1.4826 * MAD, the median absolute deviation from the
median (Rousseeuw and Croux, JASA 1993), and at least 5 % of the median, so that nearly constant values cause no false
alarms. Medians are used because a single earlier spike would distort a mean and a standard deviation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.config import OnNan, OnSpike, OptimConfig

WINDOW = 128
_MAD_TO_SIGMA = 1.4826  # standard deviation of a normal distribution / its median absolute deviation
_MIN_DEVIATION = 0.05  # relative to the median


class GuardState(NamedTuple):
    """History of the guard, and the state of the optimizer it wraps.

    Attributes:
        inner: state of the wrapped optimizer.
        losses, norms: f32[WINDOW], loss and gradient norm of the last applied updates, in a ring buffer.
        applied: i32[], number of applied updates.
        skipped: i32[], number of skipped updates.
        consecutive_skips: i32[], number of updates skipped since the last applied one.
        spike: i32[], 1 if the last step was a spike.
    """

    inner: optax.OptState
    losses: jax.Array
    norms: jax.Array
    applied: jax.Array
    skipped: jax.Array
    consecutive_skips: jax.Array
    spike: jax.Array


def guard_updates(inner: optax.GradientTransformation, config: OptimConfig) -> optax.GradientTransformationExtraArgs:
    """Wrap an optimizer so that a bad update becomes zero and leaves the optimizer state unchanged.

    The returned `update` takes two more keyword arguments: `loss` and `norm` (global norm of the gradients), both
    f32[].
    """
    inner = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> GuardState:
        def zero() -> jax.Array:  # a separate array per field, because the state is donated
            return jnp.zeros((), jnp.int32)

        return GuardState(
            inner=inner.init(params), losses=jnp.zeros(WINDOW), norms=jnp.zeros(WINDOW),
            applied=zero(), skipped=zero(), consecutive_skips=zero(), spike=zero(),
        )  # fmt: skip

    def update(
        gradients: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        *,
        loss: jax.Array,
        norm: jax.Array,
        **extra: Any,
    ) -> tuple[optax.Updates, GuardState]:
        accept = jnp.isfinite(loss) & jnp.isfinite(norm)
        spike = (accept & (state.applied >= WINDOW)) & (
            is_spike(loss, state.losses, factor=config.spike_factor)
            | is_spike(norm, state.norms, factor=config.spike_factor)
        )
        if config.on_spike is OnSpike.SKIP:
            accept &= ~spike

        def if_accepted(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda new, old: jnp.where(accept, new, old), new, old)

        updates, inner_state = inner.update(gradients, state.inner, params, **extra)
        slot = state.applied % WINDOW
        return if_accepted(updates, jax.tree.map(jnp.zeros_like, updates)), GuardState(
            inner=if_accepted(inner_state, state.inner),
            losses=if_accepted(state.losses.at[slot].set(loss), state.losses),
            norms=if_accepted(state.norms.at[slot].set(norm), state.norms),
            applied=state.applied + accept,
            skipped=state.skipped + ~accept,
            consecutive_skips=jnp.where(accept, 0, state.consecutive_skips + 1),
            spike=spike.astype(jnp.int32),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def is_spike(value: jax.Array, ring: jax.Array, *, factor: float) -> jax.Array:
    """Return bool[], whether `value` is more than `factor` robust standard deviations above the median of `ring`.

    Args:
        value: f32[].
        ring: f32[WINDOW], completely filled.
    """
    median = jnp.median(ring)
    deviation = _MAD_TO_SIGMA * jnp.median(jnp.abs(ring - median))
    return value - median > factor * jnp.maximum(deviation, _MIN_DEVIATION * jnp.abs(median))


def guard_metrics(state: optax.OptState) -> dict[str, jax.Array]:
    """Return the step metrics `spike` (0 or 1), `skipped` and `consecutive_skips`; none for an unguarded optimizer."""
    if not isinstance(state, GuardState):
        return {}
    return {"spike": state.spike, "skipped": state.skipped, "consecutive_skips": state.consecutive_skips}


def check_step(config: OptimConfig, step: int, metrics: Mapping[str, float], samples: Sequence[str]) -> None:
    """Stop the run if the metrics of a step require it.

    Args:
        step: index of the step, from 0.
        samples: ids of this process's samples in the batch, for the message.

    Raises:
        EarthGPTError: an update was skipped and `optim.on_nan` is `stop`, or `optim.max_skips` consecutive updates
            were skipped.
    """
    consecutive = int(metrics["consecutive_skips"])
    if not consecutive:
        return
    batch = ", ".join(samples[:4]) + (f" and {len(samples) - 4} more" if len(samples) > 4 else "")
    values = f"step {step}: the loss is {metrics['loss']:.4g} and the gradient norm {metrics['grad_norm']:.4g}"
    if not metrics["spike"] and config.on_nan is OnNan.STOP:
        raise EarthGPTError(
            f"{values}; the update was not applied. Lower optim.peak_lr, inspect the batch ({batch}), or rerun the "
            "same command with --config.optim.on_nan=skip to skip such batches"
        )
    if consecutive >= config.max_skips:
        raise EarthGPTError(
            f"{values}; {consecutive} consecutive updates were skipped because they were not finite or spikes "
            f"(optim.max_skips={config.max_skips}). Lower optim.peak_lr, raise optim.spike_factor, or inspect the "
            f"batch ({batch}), and resume from an earlier checkpoint"
        )
