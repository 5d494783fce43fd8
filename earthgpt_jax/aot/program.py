"""The recipe's real train step, compiled for devices that need not be there."""

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
    """Everything a step takes, as shapes with their shardings; no array exists."""

    placement: Placement
    state: State
    frozen: dict[str, Shape]
    batch: Batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one device's memory that a program needs, by the compiler's own account.

    Attributes:
        arguments: state, frozen weights and batch.
        aliased: of `output`, what is written over the arguments (donated state).
        host: in the host's memory, not the chip's.
    """

    arguments: int
    output: int
    aliased: int
    temporaries: int
    host: int

    @property
    def total(self) -> int:
        return self.arguments + self.output - self.aliased + self.temporaries


def abstract_model(config: ModelConfig) -> tuple[nnx.GraphDef, dict[str, Shape]]:
    """`earthgpt.abstract`, found once a model."""
    graphdef, shapes = _structure(config)
    return graphdef, dict(shapes)


_structure = functools.lru_cache(maxsize=16)(earthgpt.abstract)


def with_rows(config: Config, rows: int, *, microbatches: int = 1) -> Config:
    """`config` with so many rows at a time, `microbatches` times a step."""
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, batch_size=rows * microbatches),
        optim=dataclasses.replace(config.optim, microbatches=microbatches),
    )


def step_inputs(
    config: Config, mesh: Mesh | AbstractMesh, *, trainable: Mapping[str, Trainable] | None = None
) -> StepInputs:
    """The arguments of the step of `config` on a mesh.

    Args:
        trained: instead of what the stage trains.

    Raises:
        EarthGPTError: the mesh does not fit the parameters.
    """
    _, shapes = abstract_model(config.model)
    placement = rules.placement(config.model, shapes, mesh=mesh)
    chosen = trainable_paths(config, shapes) if trainable is None else trainable
    changing, fixed = params_lib.split(shapes, chosen)
    frozen = jax.eval_shape(lambda fixed: cast_frozen(fixed, config.frozen_dtype), fixed)
    moments = jax.eval_shape(make_optimizer(config.optim, chosen).init, changing)
    shapes_of_state: Any = (Shape((), jnp.int32), changing, moments)
    state = State(*shapes_of_state)
    return StepInputs(
        placement=placement,
        state=_placed(state, placement.shardings(state)),
        frozen=_placed(frozen, placement.shardings(frozen)),
        batch=_placed(batch_shapes(config), placement.batch),
    )


def batch_shapes(config: Config) -> Batch:
    """The arrays of a batch of `config`; where it names no number of images a row, as many as there is room for."""
    rows, length, side = config.data.batch_size, config.data.seq_len, config.model.image_size
    room = max(1, length // (config.model.visual_tokens + 4))  # BOS, the two marks and a token of text
    images = min(config.data.max_images or room, room)
    whole = Shape((rows, length), np.int32)
    arrays: dict[str, Any] = dict.fromkeys(ARRAY_FIELDS, Shape((rows,), np.int32))
    arrays |= dict.fromkeys(("tokens", "positions", "segments", "question_index", "image_slots"), whole)
    arrays |= {
        "loss_weights": Shape((rows, length), np.float32),
        "images": Shape((rows, images, side, side, 3), np.uint8),
    }
    return Batch(**arrays)


def compile_step(
    config: Config,
    devices: Sequence[jax.Device],
    *,
    trainable: Mapping[str, Trainable] | None = None,
    loss_chunk: int | None = None,
) -> jax.stages.Compiled:
    """The step of `config`, compiled for these devices.

    Args:
        trained: instead of what the stage trains.
        loss_chunk: instead of `ExecutionOptions.loss_chunk`.

    Raises:
        OutOfMemory: it does not fit their memory.
        EarthGPTError: the mesh does not fit the devices, the batch or the parameters.
    """
    mesh = build_mesh(config.mesh, rows=config.data.batch_size // config.optim.microbatches, devices=devices)
    given = step_inputs(config, mesh, trainable=trainable)
    graphdef, shapes = abstract_model(config.model)
    how = execution_options(config, platform=devices[0].platform)
    if loss_chunk is not None:
        how = dataclasses.replace(how, loss_chunk=loss_chunk)
    step = make_step(
        graphdef,
        make_optimizer(config.optim, trainable_paths(config, shapes) if trainable is None else trainable),
        microbatches=config.optim.microbatches,
        execution=how,
        mesh=mesh,
    )
    out = given.placement.shardings(given.state), given.placement.whole
    lowered = jax.jit(step, donate_argnums=0, out_shardings=out).lower(given.state, given.frozen, given.batch)
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise OutOfMemory(str(error).split("\n")[0]) from error
        raise


class OutOfMemory(EarthGPTError):
    """The compiler found that the program does not fit; the message is the compiler's."""


def memory(program: jax.stages.Compiled) -> Memory:
    """What the compiler says that `program` needs of each device."""
    analysis: Any = program.memory_analysis()
    return Memory(
        arguments=analysis.argument_size_in_bytes,
        output=analysis.output_size_in_bytes,
        aliased=analysis.alias_size_in_bytes,
        temporaries=analysis.temp_size_in_bytes,
        host=analysis.host_temp_size_in_bytes,
    )


def bytes_per_device(tree: Any) -> int:
    """Of the leaves' shapes, as their shardings split them."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _placed(tree: Any, shardings: Any) -> Any:
    if isinstance(shardings, NamedSharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(lambda x, where: Shape(x.shape, x.dtype, sharding=where), tree, shardings)
