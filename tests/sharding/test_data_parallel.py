"""A batch over several devices trains what it trains on one."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from earthgpt_jax import params as params_lib
from earthgpt_jax.input.pipeline import InputSpec, Rows, train_batches
from earthgpt_jax.input.tokenizer import Tokenizer
from earthgpt_jax.mmrs.planning import planned
from earthgpt_jax.models import earthgpt, io
from earthgpt_jax.sharding.mesh import data_parallel
from earthgpt_jax.training.feed import device_batch
from earthgpt_jax.training.stages import trained_paths
from earthgpt_jax.training.step import State, make_step
from tests import nano


@pytest.mark.parametrize(("batch_size", "devices"), [(16, 8), (4, 4), (6, 2), (3, 1)])
def test_as_many_devices_as_divide_the_batch(batch_size, devices):
    assert jax.local_device_count() == 8
    assert data_parallel(batch_size).batch.mesh.size == devices


def test_two_steps_on_four_devices_and_on_one(tmp_path):
    data, base = nano.dataset(tmp_path / "data"), nano.model_dir(tmp_path / "base", nano.config("align").model)
    config = nano.config("align", f"data.source={data}", f"init={base}")
    parent, initial = io.initial_params(base, config.model, seed=0)
    rules = trained_paths(config, initial)
    optimizer = optax.sgd(0.1)  # Adam's first steps are as long for a gradient of rounding errors as for any

    made = Rows.of(planned(config, tokenizer=Tokenizer(parent.tokenizer)), InputSpec.of(config))

    def run(batch_size: int) -> dict[str, np.ndarray]:
        """Placed as a batch of that size would be: 4 gives four devices, 1 gives one."""
        place = data_parallel(batch_size)
        step = jax.jit(make_step(earthgpt.abstract(config.model)[0], optimizer, microbatches=1, mesh=place.mesh))
        trained, frozen = jax.device_put(params_lib.split(initial, rules), place.whole)
        state = jax.device_put(State(jnp.zeros((), jnp.int32), trained, optimizer.init(trained)), place.whole)
        for _, batch in itertools.islice(train_batches(made), 2):
            state, _ = step(state, frozen, device_batch(batch, place.batch))
        return {path: np.asarray(value) for path, value in state.trained.items()}

    several, one = run(4), run(1)
    for path, value in one.items():
        assert np.any(value != np.asarray(initial[path])), path
        np.testing.assert_allclose(several[path], value, atol=1e-5, err_msg=path)
