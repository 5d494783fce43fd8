"""Updates that are not applied: of a loss or gradient that is not finite, and of spikes.

Decided inside the step, from numbers that every process has alike, and kept in the optimizer's state: all processes
decide the same, a run that was resumed decides as one that was not, and no state is ever poisoned by the time that
the host reads the loss. What the host does about it (stop, go on) is `refuse`.

A spike stands far above the last updates that were applied, in loss or in gradient norm: by more than `factor` times
1.4826 * the median of absolute deviations from the median, the robust estimate of a normal distribution's deviation
(Rousseeuw and Croux, JASA 1993), and no less than 5 % of the median, where all were nearly alike. Medians, because
the mean and the deviation that a spike would be measured by are what an earlier spike has spoilt.
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
_SIGMA = 1.4826  # deviation of a normal distribution / its median absolute deviation
_LEAST = 0.05  # of the median, see above


class GuardState(NamedTuple):
    """What the guard remembers, and the state of the optimizer that it guards.

    Attributes:
        losses, norms: f32[WINDOW], of the last updates that were applied, in a ring.
        applied, skipped, in_a_row: i32[], updates since the start; those left out; those since the last applied.
        spike: i32[], 1 if the last step was one.
    """

    inner: optax.OptState
    losses: jax.Array
    norms: jax.Array
    applied: jax.Array
    skipped: jax.Array
    in_a_row: jax.Array
    spike: jax.Array


def guard_updates(inner: optax.GradientTransformation, config: OptimConfig) -> optax.GradientTransformationExtraArgs:
    """`inner`, where its update is fit to be applied; zero, and `inner`'s state as it was, otherwise.

    `update` takes the keyword arguments `loss` and `norm` (of the gradients), f32[] each.
    """
    inner = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> GuardState:
        def count() -> jax.Array:  # one array each: the state will be donated
            return jnp.zeros((), jnp.int32)

        return GuardState(
            inner=inner.init(params), losses=jnp.zeros(WINDOW), norms=jnp.zeros(WINDOW),
            applied=count(), skipped=count(), in_a_row=count(), spike=count(),
        )  # fmt: skip

    def update(gradients: optax.Updates, state: Any, params: optax.Params | None = None, *, loss, norm, **extra: Any):
        fit = jnp.isfinite(loss) & jnp.isfinite(norm)
        spike = (fit & (state.applied >= WINDOW)) & (
            is_spike(loss, state.losses, factor=config.spike_factor)
            | is_spike(norm, state.norms, factor=config.spike_factor)
        )
        if config.on_spike is OnSpike.SKIP:
            fit &= ~spike

        def if_fit(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda new, old: jnp.where(fit, new, old), new, old)

        updates, after = inner.update(gradients, state.inner, params, **extra)
        place = state.applied % WINDOW
        return if_fit(updates, jax.tree.map(jnp.zeros_like, updates)), GuardState(
            inner=if_fit(after, state.inner),
            losses=if_fit(state.losses.at[place].set(loss), state.losses),
            norms=if_fit(state.norms.at[place].set(norm), state.norms),
            applied=state.applied + fit,
            skipped=state.skipped + ~fit,
            in_a_row=jnp.where(fit, 0, state.in_a_row + 1),
            spike=spike.astype(jnp.int32),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def is_spike(value: jax.Array, ring: jax.Array, *, factor: float) -> jax.Array:
    """bool[], whether `value` stands far above those of `ring`, all of which are filled."""
    median = jnp.median(ring)
    deviation = _SIGMA * jnp.median(jnp.abs(ring - median))
    return value - median > factor * jnp.maximum(deviation, _LEAST * jnp.abs(median))


def guard_metrics(state: optax.OptState) -> dict[str, jax.Array]:
    """For the metrics of a step: its `spike` (0 or 1), and updates left out so far, all and in a row."""
    if not isinstance(state, GuardState):
        return {}
    return {"spike": state.spike, "skipped": state.skipped, "skipped_in_a_row": state.in_a_row}


def check_step(config: OptimConfig, step: int, metrics: Mapping[str, float], samples: Sequence[str]) -> None:
    """Ends the run where the metrics of a step call for it.

    Args:
        samples: ids of what the batch holds (here), for the message.

    Raises:
        EarthGPTError: a batch was left out where the config says stop, or too many in a row.
    """
    in_a_row = int(metrics["skipped_in_a_row"])
    if not in_a_row:
        return
    batch = ", ".join(samples[:4]) + (f" and {len(samples) - 4} more" if len(samples) > 4 else "")
    found = f"step {step}: the loss is {metrics['loss']:.4g}, the gradient's norm {metrics['grad_norm']:.4g}"
    if not metrics["spike"] and config.on_nan is OnNan.STOP:
        raise EarthGPTError(
            f"{found}; the update was not applied. Lower optim.peak_lr, look at the batch ({batch}), or start the "
            "same command with --config.optim.on_nan=skip, which leaves such batches out"
        )
    if in_a_row >= config.max_skips:
        raise EarthGPTError(
            f"{found}; this is the {in_a_row}th update in a row that is not finite or a spike "
            f"(optim.max_skips={config.max_skips}), and none was applied. Lower optim.peak_lr, raise "
            f"optim.spike_factor, or look at the batch ({batch}), and start again from a checkpoint before it"
        )
