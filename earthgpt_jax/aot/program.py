"""Compile the training step of a recipe for devices that need not be present."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from earthgpt_jax import params as params_lib
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.config import Config, ModelConfig
from earthgpt_jax.input.batch import ARRAY_FIELDS, Batch
from earthgpt_jax.models import earthgpt
from earthgpt_jax.models.quantized import cast_frozen
from earthgpt_jax.sharding import rules
from earthgpt_jax.sharding.mesh import Placement, build_mesh
from earthgpt_jax.training.execution import execution_options
from earthgpt_jax.training.optim import make_optimizer
from earthgpt_jax.training.stages import Trainable, trainable_paths
from earthgpt_jax.training.state import State
from earthgpt_jax.training.step import make_step

GIB = 2**30
Shape = jax.ShapeDtypeStruct


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepInputs:
    """The arguments of the step as shapes with shardings; no array is allocated."""

    placement: Placement
    state: State
    frozen: dict[str, Shape]
    batch: Batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Memory that a program needs on one device, in bytes, as reported by the compiler.

    Attributes:
        arguments: state, frozen parameters and batch.
        aliased: part of `output` that is written over donated arguments.
        host: host memory, for example for offloaded activations.
    """

    arguments: int
    output: int
    aliased: int
    temporaries: int
    host: int

    @property
    def total(self) -> int:
        """Device memory needed at the same time."""
        return self.arguments + self.output - self.aliased + self.temporaries


def abstract_model(config: ModelConfig) -> tuple[nnx.GraphDef, dict[str, Shape]]:
    """Return `earthgpt.abstract(config)`, computed once per model."""
    graphdef, shapes = _abstract_model(config)
    return graphdef, dict(shapes)


_abstract_model = functools.lru_cache(maxsize=16)(earthgpt.abstract)


def with_batch_size(config: Config, batch_size: int, *, microbatches: int = 1) -> Config:
    """Return `config` with `microbatches` microbatches of `batch_size` sequences each."""
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, batch_size=batch_size * microbatches),
        optim=dataclasses.replace(config.optim, microbatches=microbatches),
    )


def step_inputs(
    config: Config, mesh: Mesh | AbstractMesh, *, trainable: Mapping[str, Trainable] | None = None
) -> StepInputs:
    """Return the arguments of the step of `config` on a mesh.

    Args:
        trainable: overrides what the stage trains.

    Raises:
        EarthGPTError: the mesh does not fit the parameters.
    """
    _, shapes = abstract_model(config.model)
    placement = rules.placement(config.model, shapes, mesh=mesh)
    if trainable is None:
        trainable = trainable_paths(config, shapes)
    trainable_shapes, frozen_shapes = params_lib.split(shapes, trainable)
    frozen = jax.eval_shape(lambda params: cast_frozen(params, config.frozen_dtype), frozen_shapes)
    opt_state = jax.eval_shape(make_optimizer(config.optim, trainable).init, trainable_shapes)
    fields: Any = (Shape((), jnp.int32), trainable_shapes, opt_state)
    state = State(*fields)
    return StepInputs(
        placement=placement,
        state=_with_shardings(state, placement.shardings(state)),
        frozen=_with_shardings(frozen, placement.shardings(frozen)),
        batch=_with_shardings(batch_shapes(config), placement.batch),
    )


def batch_shapes(config: Config) -> Batch:
    """Return the shapes of a batch of `config`, with as many images as `data.max_images` and `seq_len` allow."""
    batch_size, length, side = config.data.batch_size, config.data.seq_len, config.model.image_size
    fitting = max(1, length // (config.model.visual_tokens + 4))  # BOS, start_img, end_img and one text token
    images = min(config.data.max_images or fitting, fitting)
    per_token = Shape((batch_size, length), np.int32)
    arrays: dict[str, Any] = dict.fromkeys(ARRAY_FIELDS, Shape((batch_size,), np.int32))
    arrays |= dict.fromkeys(("tokens", "positions", "segments", "question_index", "image_slots"), per_token)
    arrays |= {
        "loss_weights": Shape((batch_size, length), np.float32),
        "images": Shape((batch_size, images, side, side, 3), np.uint8),
    }
    return Batch(**arrays)


def compile_step(
    config: Config,
    devices: Sequence[jax.Device],
    *,
    trainable: Mapping[str, Trainable] | None = None,
    loss_chunk: int | None = None,
) -> jax.stages.Compiled:
    """Compile the step of `config` for the given devices.

    Args:
        trainable: overrides what the stage trains.
        loss_chunk: overrides `ExecutionOptions.loss_chunk`.

    Raises:
        OutOfMemory: the program does not fit the memory of the devices.
        EarthGPTError: the mesh does not fit the devices, the batch or the parameters.
    """
    mesh = build_mesh(config.mesh, rows=config.data.batch_size // config.optim.microbatches, devices=devices)
    inputs = step_inputs(config, mesh, trainable=trainable)
    graphdef, shapes = abstract_model(config.model)
    options = execution_options(config, platform=devices[0].platform)
    if loss_chunk is not None:
        options = dataclasses.replace(options, loss_chunk=loss_chunk)
    step = make_step(
        graphdef,
        make_optimizer(config.optim, trainable_paths(config, shapes) if trainable is None else trainable),
        microbatches=config.optim.microbatches,
        execution=options,
        mesh=mesh,
    )
    out = inputs.placement.shardings(inputs.state), inputs.placement.replicated
    lowered = jax.jit(step, donate_argnums=0, out_shardings=out).lower(inputs.state, inputs.frozen, inputs.batch)
    return _compile(lowered)


def compile_validation(config: Config, devices: Sequence[jax.Device], *, groups: int = 32) -> jax.stages.Compiled:
    """Compile the validation step of `config` for the given devices.

    Args:
        groups: number of groups of tokens that figures are computed for.

    Raises:
        OutOfMemory, EarthGPTError: see `compile_step`.
    """
    mesh = build_mesh(config.mesh, rows=config.data.batch_size // config.optim.microbatches, devices=devices)
    inputs = step_inputs(config, mesh)
    # Imported here: validation reads datasets, whose packages a machine that only measures steps does not have.
    from earthgpt_jax.training.validation import make_validation_step

    graphdef, _ = abstract_model(config.model)
    step = make_validation_step(
        graphdef,
        groups=groups,
        microbatches=config.optim.microbatches,
        execution=execution_options(config, platform=devices[0].platform),
        mesh=mesh,
    )
    token_groups = inputs.batch.tokens
    jitted = jax.jit(step, out_shardings=inputs.placement.replicated)
    return _compile(jitted.lower(inputs.state.trainable, inputs.frozen, inputs.batch, token_groups))


def _compile(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise OutOfMemory(str(error).split("\n")[0]) from error
        raise


class OutOfMemory(EarthGPTError):
    """The program does not fit the memory of the devices; the message is the compiler's."""


def memory(program: jax.stages.Compiled) -> Memory:
    """Return the memory that `program` needs on each device."""
    analysis: Any = program.memory_analysis()
    return Memory(
        arguments=analysis.argument_size_in_bytes,
        output=analysis.output_size_in_bytes,
        aliased=analysis.alias_size_in_bytes,
        temporaries=analysis.temp_size_in_bytes,
        host=analysis.host_temp_size_in_bytes,
    )


def bytes_per_device(tree: Any) -> int:
    """Return the bytes of one device's shards of a tree of shapes with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _with_shardings(tree: Any, shardings: Any) -> Any:
    if isinstance(shardings, NamedSharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(lambda x, sharding: Shape(x.shape, x.dtype, sharding=sharding), tree, shardings)
