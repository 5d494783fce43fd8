"""The training step: gradients of kernels are kept in the compute dtype."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from earthgpt_jax import params as params_lib
from earthgpt_jax.aot.program import batch_shapes
from earthgpt_jax.config import DType
from earthgpt_jax.input.batch import END_SLOT, START_SLOT, TEXT_SLOT
from earthgpt_jax.models import earthgpt
from earthgpt_jax.training.execution import ExecutionOptions
from earthgpt_jax.training.stages import trainable_paths
from earthgpt_jax.training.state import State
from earthgpt_jax.training.step import make_step
from tests.support import nano


@pytest.mark.slow
def test_gradients_of_bfloat16_kernels_equal_those_of_fp32_copies_up_to_rounding():
    config = nano.config("align", "model.compute_dtype=bfloat16", "data.max_images=1")
    graphdef, initial = earthgpt.init(config.model)
    trainable, frozen = params_lib.split(initial, trainable_paths(config, initial))
    optimizer = optax.sgd(1.0)  # the update is the negative gradient
    rng = np.random.default_rng(0)
    batch = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), batch_shapes(config))
    slots = jnp.full_like(batch.image_slots, TEXT_SLOT).at[:, 2:19].set(jnp.arange(17))
    slots = slots.at[:, 1].set(START_SLOT).at[:, 19].set(END_SLOT)
    batch = dataclasses.replace(
        batch,
        tokens=jnp.asarray(rng.integers(3, 600, batch.tokens.shape), jnp.int32),
        positions=jnp.broadcast_to(jnp.arange(batch.tokens.shape[1]), batch.tokens.shape),
        segments=jnp.ones_like(batch.segments),
        loss_weights=jnp.ones_like(batch.loss_weights),
        images=jnp.asarray(rng.integers(0, 255, batch.images.shape), jnp.uint8),
        image_slots=slots,
    )

    def gradients(kernels: DType) -> dict[str, np.ndarray]:
        step = make_step(graphdef, optimizer, microbatches=2, execution=ExecutionOptions(kernel_dtype=kernels))
        state = State(jnp.zeros((), jnp.int32), trainable, optimizer.init(trainable))
        after, _ = jax.jit(step)(state, frozen, batch)
        return {path: np.asarray(trainable[path] - value) for path, value in after.trainable.items()}

    wide, narrow = gradients(DType.FLOAT32), gradients(DType.BFLOAT16)
    for path, value in wide.items():
        assert narrow[path].dtype == np.float32 and np.any(value != 0), path
        np.testing.assert_allclose(narrow[path], value, atol=2**-7 * np.abs(value).max(), err_msg=path)
