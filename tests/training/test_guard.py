"""The guard: which updates are skipped, that skipped updates leave no trace, and when the run stops."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.config import OnNan, OnSpike, OptimConfig
from earthgpt_jax.training import guard

FACTOR = 8.0


def _optimizer(**settings) -> optax.GradientTransformationExtraArgs:
    return guard.guard_updates(optax.adam(0.1), OptimConfig(steps=1000, spike_factor=FACTOR, **settings))


def _run(optimizer, losses, norms, gradients, *, state=None, params=None):
    """Return the parameters after each step and the last state."""
    params = {"w": jnp.ones(3)} if params is None else params
    state = optimizer.init(params) if state is None else jax.tree.map(jnp.copy, state)

    @functools.partial(jax.jit, donate_argnums=(0, 1))  # as in training, no buffer may be shared
    def step(params, state, gradient, loss, norm):
        updates, state = optimizer.update({"w": gradient}, state, params, loss=loss, norm=norm)
        return optax.apply_updates(params, updates), state

    history = []
    for loss, norm, gradient in zip(losses, norms, gradients, strict=True):
        params, state = step(params, state, jnp.asarray(gradient, jnp.float32), jnp.float32(loss), jnp.float32(norm))
        history.append(np.asarray(params["w"]))
    return history, state


@pytest.mark.parametrize(("loss", "norm"), [(np.nan, 1.0), (1.0, np.inf), (np.inf, np.nan)])
def test_an_update_that_is_not_finite_leaves_no_trace(loss, norm):
    rng = np.random.default_rng(0)
    gradients = rng.standard_normal((5, 3))
    with_bad = [*gradients[:3], np.full(3, np.nan), *gradients[3:]]
    found, state = _run(_optimizer(), [1, 1, 1, loss, 1, 1], [1, 1, 1, norm, 1, 1], with_bad)
    expected, plain = _run(_optimizer(), [1] * 5, [1] * 5, gradients)
    np.testing.assert_array_equal(found[3], found[2])  # nothing moved
    np.testing.assert_array_equal(found[-1], expected[-1])
    jax.tree.map(np.testing.assert_array_equal, state.inner, plain.inner)  # the moments and the count too
    assert (int(state.applied), int(state.skipped), int(state.consecutive_skips)) == (5, 1, 0)


def test_without_bad_updates_the_guard_changes_nothing():
    rng = np.random.default_rng(1)
    gradients = rng.standard_normal((20, 3))
    found, _ = _run(_optimizer(on_spike=OnSpike.SKIP), [1] * 20, [1] * 20, gradients)
    adam = optax.adam(0.1)
    expected, _ = _run(optax.with_extra_args_support(adam), [1] * 20, [1] * 20, gradients)
    np.testing.assert_allclose(found, expected, rtol=1e-6)  # XLA fuses differently


def test_spikes_agree_with_scipy():
    rng = np.random.default_rng(2)
    losses = 2 + 0.3 * rng.standard_normal(400)
    losses[[150, 201, 202, 203, 390]] = 30, 9, 6, 5.5, 3.9
    norms = np.exp(0.2 * rng.standard_normal(400))
    norms[[170, 303]] = 5, 40
    losses[100] = 50  # before the window is full, nothing is a spike
    _, state = _run(_optimizer(on_spike=OnSpike.SKIP), losses, norms, rng.standard_normal((400, 3)))

    robust = functools.partial(stats.median_abs_deviation, scale="normal")
    kept, spikes = [], []
    for index, pair in enumerate(zip(losses, norms, strict=True)):
        window = np.asarray(kept[-guard.WINDOW :]).T
        if len(kept) >= guard.WINDOW and any(
            value - np.median(row) > FACTOR * max(robust(row), 0.05 * np.median(row))
            for value, row in zip(pair, window, strict=True)
        ):
            spikes.append(index)
        else:
            kept.append(pair)
    assert {150, 201, 202, 203, 170, 303} <= set(spikes) and 390 not in spikes
    assert int(state.skipped) == len(spikes)
    np.testing.assert_allclose(
        np.sort(np.asarray(state.losses)), np.sort([loss for loss, _ in kept[-guard.WINDOW :]]), rtol=1e-6
    )


def test_a_spike_is_reported_and_applied_unless_on_spike_is_skip():
    losses, norms, gradients = [1.0] * 130 + [50.0], [1.0] * 131, np.ones((131, 3))
    (*_, before, kept), state = _run(_optimizer(), losses, norms, gradients)
    assert guard.guard_metrics(state)["spike"] and int(state.skipped) == 0 and np.all(kept != before)
    (*_, before, skipped), state = _run(_optimizer(on_spike=OnSpike.SKIP), losses, norms, gradients)
    assert guard.guard_metrics(state)["spike"] and int(state.skipped) == 1 and np.all(skipped == before)


def test_a_resumed_run_skips_the_same_updates():
    rng = np.random.default_rng(3)
    losses, norms = 2 + 0.1 * rng.standard_normal(300), np.ones(300)
    losses[[140, 155, 156, 250]] = 9, np.nan, 9, 9
    gradients = rng.standard_normal((300, 3))
    optimizer = _optimizer(on_spike=OnSpike.SKIP)
    whole, state = _run(optimizer, losses, norms, gradients)
    first, saved = _run(optimizer, losses[:156], norms[:156], gradients[:156])
    assert int(saved.consecutive_skips) == 1
    rest, resumed = _run(
        optimizer, losses[156:], norms[156:], gradients[156:], state=saved, params={"w": jnp.asarray(first[-1])}
    )
    np.testing.assert_array_equal(rest[-1], whole[-1])
    jax.tree.map(np.testing.assert_array_equal, resumed, state)
    assert int(state.skipped) == 4


@pytest.mark.parametrize(
    ("on_nan", "metrics", "message"),
    [
        (OnNan.STOP, {}, None),
        (OnNan.STOP, {"consecutive_skips": 1, "spike": 1}, None),
        (
            OnNan.STOP,
            {"consecutive_skips": 1, "loss": np.nan},
            r"step 7: the loss is nan.*a/1, a/2, a/3, a/4 and 1 more",
        ),
        (OnNan.STOP, {"consecutive_skips": 1, "grad_norm": np.inf}, r"the gradient norm inf.*on_nan=skip"),
        (OnNan.SKIP, {"consecutive_skips": 2, "loss": np.nan}, None),
        (
            OnNan.SKIP,
            {"consecutive_skips": 3, "loss": np.nan},
            r"3 consecutive updates were skipped.*optim\.max_skips=3",
        ),
        (OnNan.STOP, {"consecutive_skips": 3, "spike": 1}, r"raise optim\.spike_factor"),
    ],
)
def test_check_step_stops_the_run_when_required(on_nan, metrics, message):
    config = OptimConfig(steps=1, on_nan=on_nan, max_skips=3)
    metrics = {"loss": 1.0, "grad_norm": 1.0, "spike": 0, "consecutive_skips": 0} | metrics
    samples = [f"a/{i}" for i in range(1, 6)]
    if message is None:
        guard.check_step(config, 7, metrics, samples)
    else:
        with pytest.raises(EarthGPTError, match=message):
            guard.check_step(config, 7, metrics, samples)
