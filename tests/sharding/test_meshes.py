"""Training on eight devices gives the same model as on one, for every mesh."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from earthgpt_jax import params as params_lib
from earthgpt_jax.aot.program import batch_shapes
from earthgpt_jax.config import Config, MeshConfig, Stage
from earthgpt_jax.input.batch import ARRAY_FIELDS, Batch
from earthgpt_jax.models import earthgpt
from earthgpt_jax.sharding import rules
from earthgpt_jax.sharding.mesh import build_mesh, data_parallel
from earthgpt_jax.training.execution import execution_options
from earthgpt_jax.training.stages import trainable_paths
from earthgpt_jax.training.state import State
from earthgpt_jax.training.step import make_step
from tests.support import nano

MESHES = ((8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 1, 8))
WIDTHS = ("model.llm.heads=8", "model.llm.kv_heads=8", "data.batch_size=16", "optim.microbatches=2")
DIVIDING = (*WIDTHS, "frozen_dtype=float32")


def _batch(config: Config) -> Batch:
    """Return packed sequences of two segments and padding; the first has an image and two questions."""
    shapes, rng = batch_shapes(config), np.random.default_rng(0)
    rows, length = shapes.tokens.shape
    visual = config.model.visual_tokens
    segments, question_index, positions, slots = np.zeros((4, rows, length), np.int32)
    slots -= 1
    slots[:, : visual + 2] = [-2, *range(visual), -3]
    for row, (first, second) in enumerate(zip(rng.integers(40, 60, rows), rng.integers(65, length, rows), strict=True)):
        segments[row, :first], segments[row, first:second] = 1, 2
        question_index[row, visual + 2 : first] = 1 + (np.arange(first - visual - 2) > 9)
        positions[row, :first], positions[row, first:second] = np.arange(first), np.arange(second - first)
    weights = (segments > 0) * (slots == -1) * rng.integers(0, 3, segments.shape)
    arrays = {
        name: np.zeros(shape.shape, shape.dtype) for name, shape in vars(shapes).items() if name in ARRAY_FIELDS
    } | {
        "tokens": rng.integers(3, config.model.llm.vocab_size, segments.shape, np.int32),
        "positions": positions,
        "segments": segments,
        "question_index": question_index,
        "loss_weights": weights.astype(np.float32),
        "images": rng.integers(0, 256, shapes.images.shape, np.uint8),
        "image_slots": slots,
    }
    return Batch(**arrays)


@functools.cache
def _train(stage: Stage, mesh: tuple[int, int, int] | None) -> tuple[list[float], dict[str, np.ndarray]]:
    """Return the losses of two steps and the parameters after them; None: one device, without a mesh."""
    config = nano.config(stage, *DIVIDING)
    graphdef, initial = earthgpt.init(config.model, seed=0)
    # No adapter at its starting point, where scales and biases hide errors.
    rng = np.random.default_rng(1)
    initial = {k: v + 0.05 * rng.standard_normal(v.shape).astype(np.float32) for k, v in initial.items()}
    trainable, frozen = params_lib.split(initial, trainable_paths(config, initial))
    optimizer = optax.sgd(0.1)  # Adam's first steps are as long for a gradient of rounding errors as for any
    make = functools.partial(
        make_step, graphdef, optimizer, microbatches=2, execution=execution_options(config, platform="cpu")
    )
    state, batch = State(jnp.zeros((), jnp.int32), trainable, optimizer.init(trainable)), _batch(config)
    if mesh is None:
        step = jax.jit(make())
    else:
        devices = build_mesh(MeshConfig(data=mesh[0], fsdp=mesh[1], tensor=mesh[2]), rows=8)
        place = rules.placement(config.model, initial, mesh=devices)
        state, frozen, batch = place.put(state), place.put(frozen), jax.device_put(batch, place.batch)
        step = jax.jit(make(mesh=devices), out_shardings=(place.shardings(state), place.replicated))
    losses = []
    for _ in range(2):
        state, metrics = step(state, frozen, batch)
        losses.append(float(metrics["loss"]))
    return losses, {path: np.asarray(value) for path, value in state.trainable.items()}


# Each is a compilation of half a minute: by default the one that has all axes.
@pytest.mark.parametrize(
    "mesh", [mesh if min(mesh) > 1 else pytest.param(mesh, marks=pytest.mark.slow) for mesh in MESHES], ids=str
)
@pytest.mark.parametrize("stage", [Stage.ALIGN, Stage.INSTRUCT, pytest.param(Stage.FINETUNE, marks=pytest.mark.slow)])
def test_a_mesh_trains_the_same_model_as_one_device(stage, mesh):
    losses, params = _train(stage, mesh)
    expected_losses, expected = _train(stage, None)
    np.testing.assert_allclose(losses, expected_losses, atol=1e-5)
    assert expected_losses[1] < expected_losses[0]
    for path, value in expected.items():
        np.testing.assert_allclose(params[path], value, atol=1e-5, err_msg=path)


def test_large_parameters_are_sharded():
    config = nano.config(Stage.INSTRUCT, *DIVIDING)
    _, params = earthgpt.init(config.model, seed=0)
    mesh = build_mesh(MeshConfig(data=1, fsdp=4, tensor=2), rows=4)
    place = rules.placement(config.model, params, mesh=mesh)
    put = place.put(params)
    for path, share in (("llm/blocks/mlp/down/kernel", 8), ("llm/head/kernel", 8), ("projector/linear/kernel", 4)):
        assert put[path].addressable_shards[0].data.size * share == params[path].size, path
    # Optimizer moments live with their parameters; counters are whole.
    state = jax.eval_shape(optax.adam(1.0).init, params)
    shardings = place.shardings(state)
    assert shardings[0].mu["llm/head/kernel"] == put["llm/head/kernel"].sharding
    assert shardings[0].count == place.replicated


@pytest.mark.parametrize(("batch_size", "devices"), [(16, 8), (4, 4), (6, 2), (3, 1)])
def test_the_default_mesh_has_as_many_devices_as_divide_the_batch(batch_size, devices):
    assert jax.local_device_count() == 8
    assert data_parallel(batch_size).batch.mesh.size == devices
