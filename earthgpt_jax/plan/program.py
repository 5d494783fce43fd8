"""The recipe's real train step, compiled for devices that need not be there."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from earthgpt_jax import params as params_lib
from earthgpt_jax.config import Config
from earthgpt_jax.errors import EarthGPTError
from earthgpt_jax.models import earthgpt
from earthgpt_jax.sharding import rules
from earthgpt_jax.sharding.mesh import Placement, build_mesh
from earthgpt_jax.training.optim import optimizer as make_optimizer
from earthgpt_jax.training.stages import trained_paths
from earthgpt_jax.training.step import DeviceBatch, State, execution, make_step

GIB = 2**30
Shape = jax.ShapeDtypeStruct


@dataclasses.dataclass(frozen=True, kw_only=True)
class Abstract:
    """Everything a step takes, as shapes with their shardings; no array exists."""

    placement: Placement
    state: State
    frozen: dict[str, Shape]
    batch: DeviceBatch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one device's memory that a program needs, by the compiler's own account.

    Attributes:
        arguments: state, frozen weights and batch.
        aliased: of `output`, what is written over the arguments (donated state).
    """

    arguments: int
    output: int
    aliased: int
    temporaries: int

    @property
    def total(self) -> int:
        return self.arguments + self.output - self.aliased + self.temporaries


def with_rows(config: Config, rows: int) -> Config:
    """`config` with batches of so many rows, in one microbatch each."""
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, batch_size=rows),
        optim=dataclasses.replace(config.optim, microbatches=1),
    )


def abstract(config: Config, devices: Sequence[jax.Device]) -> Abstract:
    """The arguments of the step of `config` on these devices.

    Raises:
        EarthGPTError: the mesh does not fit the devices, the batch or the parameters.
    """
    _, shapes = earthgpt.abstract(config.model)
    mesh = build_mesh(config.mesh, rows=config.data.batch_size // config.optim.microbatches, devices=devices)
    placement = Placement(mesh=mesh, specs=rules.specs(config.model, shapes, sizes=dict(mesh.shape)))
    trained_rules = trained_paths(config, shapes)
    trained, frozen = params_lib.split(shapes, trained_rules)
    frozen = {path: Shape(shape.shape, jnp.dtype(config.frozen_dtype)) for path, shape in frozen.items()}
    optimizer = make_optimizer(config.optim, trained_rules)
    state = State(Shape((), jnp.int32), trained, jax.eval_shape(optimizer.init, trained))  # type: ignore[arg-type]
    return Abstract(
        placement=placement,
        state=_placed(state, placement.shardings(state)),
        frozen=_placed(frozen, placement.shardings(frozen)),
        batch=_placed(batch_shapes(config), placement.batch),
    )


def batch_shapes(config: Config) -> DeviceBatch:
    """The arrays of a batch of `config`."""
    rows, length, side = config.data.batch_size, config.data.tokens_per_row, config.model.image_size
    whole, real = Shape((rows, length), np.int32), Shape((rows, length), np.float32)
    return DeviceBatch(
        tokens=whole,
        positions=whole,
        segments=whole,
        branches=whole,
        loss_weights=real,
        images=Shape((rows, 1, side, side, 3), np.uint8),
        image_slots=whole,
    )  # type: ignore[arg-type]


def compiled(config: Config, devices: Sequence[jax.Device]) -> jax.stages.Compiled:
    """The step of `config`, compiled for these devices.

    Raises:
        OutOfMemory: it does not fit their memory.
        EarthGPTError: see `abstract`.
    """
    given = abstract(config, devices)
    graphdef, shapes = earthgpt.abstract(config.model)
    step = make_step(
        graphdef,
        make_optimizer(config.optim, trained_paths(config, shapes)),
        microbatches=config.optim.microbatches,
        execution=execution(config, platform=devices[0].platform),
        mesh=given.placement.mesh,
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
