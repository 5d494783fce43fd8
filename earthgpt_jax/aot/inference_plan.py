"""Plan inference: compile the programs of the inference engine for a slice, and bound their memory and speed.

A chip permanently holds the parameters, the prefixes of the images in progress, and the caches of their questions. A
program needs temporary memory while it runs; the largest of the four programs decides whether the batch fits.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from earthgpt_jax.aot import hlo, program, slices
from earthgpt_jax.aot.collectives import by_kind, collectives
from earthgpt_jax.aot.costs import costs
from earthgpt_jax.aot.program import GIB
from earthgpt_jax.aot.roofline import Roofline, roofline
from earthgpt_jax.aot.slices import Slice
from earthgpt_jax.aot.step_plan import COMPILER
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.config import Config, MeshConfig
from earthgpt_jax.inference.decode import (
    ImagePrefix,
    NewRequests,
    RefillThreshold,
    StateShape,
    StopCondition,
    bucket,
)
from earthgpt_jax.inference.mesh import build_mesh, smallest_tensor_axis
from earthgpt_jax.inference.programs import Programs, build_programs
from earthgpt_jax.inference.sampling import GREEDY
from earthgpt_jax.input.batch import END_SLOT, START_SLOT, TEXT_SLOT
from earthgpt_jax.sharding.mesh import AXES
from earthgpt_jax.training.stages import trainable_paths

_STOP = StopCondition(eos_id=2, separators=((2,),))  # the tokens do not matter for compilation
_TEXT_TOKENS = 40  # text tokens of a prefix, between the image and its questions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """The questions to plan for.

    Attributes:
        batch_size: questions in progress at a time, per group of devices that share the parameters.
    """

    batch_size: int = 64
    questions_per_image: int = 16
    question_tokens: int = 64
    answer_tokens: int = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProgramPlan:
    """What one call of a program needs; one step in the case of decoding.

    Attributes:
        temporary_gib: memory of a chip while the program runs, in addition to what it permanently holds; None if the
            program does not fit.
        units: number of `unit` (images, questions, tokens) that a call processes on the full slice.
        roofline: lower bound on the time of a call.
        compiler_message: why the program does not fit.
    """

    name: str
    temporary_gib: float | None
    units: int
    unit: str
    flops_per_chip: float | None = None
    collectives: dict[str, int] = dataclasses.field(default_factory=dict)
    roofline: Roofline | None = None
    compiler_message: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class InferencePlan:
    """What inference needs on a slice. Sizes are compiler estimates per chip in GiB.

    Attributes:
        state_shape: sizes of the decoding state of one group.
        prefix_tokens: tokens of an image's prefix.
        parameters_gib, prefixes_gib, caches_gib: what a chip permanently holds.
        hbm_gib_per_chip: the permanent memory and the largest temporary memory of a program; None if one does not fit.
        largest_batch: questions per group; None unless searched for.
    """

    recipe: str
    stage: str
    topology: str
    chips: int
    mesh: dict[str, int]
    state_shape: StateShape
    prefix_tokens: int
    estimate: str
    parameters_gib: float
    prefixes_gib: float
    caches_gib: float
    hbm_limit_gib: float
    programs: list[ProgramPlan]
    hbm_gib_per_chip: float | None
    fits: bool
    largest_batch: int | None = None


def plan_inference(
    config: Config, slice_: Slice, *, workload: Workload, mesh: MeshConfig | None = None
) -> InferencePlan:
    """Compile the programs that answer questions with the model of `config`.

    Args:
        mesh: by default, the parameters are sharded over the smallest number of chips that holds them, and the
            questions over all.

    Raises:
        EarthGPTError: libtpu is not installed, or the mesh does not fit the slice or the model.
    """
    if not slices.compiler_is_available():
        raise EarthGPTError("plan --inference: needs the TPU compiler (pip install 'earthgpt-jax[plan]')")
    _, shapes = program.abstract_model(config.model)
    dtypes = _dtypes(config, shapes)
    if mesh is None:
        weights = sum(math.prod(shape.shape) * dtypes[path].itemsize for path, shape in shapes.items())
        limit = int(slice_.chip.hbm_gib * GIB)
        tensor = smallest_tensor_axis(config.model, weights=weights, limit=limit, devices=slice_.devices)
        mesh = MeshConfig(tensor=tensor)
    device_mesh = build_mesh(mesh, batch_size=workload.batch_size * slice_.devices, devices=slices.devices(slice_))
    state_shape = _state_shape(workload, device_mesh.shape)
    prefix_tokens, programs = _build_programs(config, state_shape, device_mesh)
    shardings = programs.placement.shardings(dict(shapes))
    params = {
        path: jax.ShapeDtypeStruct(shape.shape, dtypes[path], sharding=shardings[path])
        for path, shape in shapes.items()
    }
    prefixes, caches = _abstract_state(programs)
    calls = _calls(config, programs, state_shape, params, prefixes, caches)
    plans = [_plan_program(name, *call, slice_) for name, call in calls.items()]
    permanent = [program.bytes_per_device(tree) / GIB for tree in (params, prefixes, caches)]
    temporary = [plan.temporary_gib for plan in plans if plan.temporary_gib is not None]
    total = sum(permanent) + max(temporary) if len(temporary) == len(plans) else None
    return InferencePlan(
        recipe=config.recipe,
        stage=config.stage,
        topology=slice_.name,
        chips=slice_.devices,
        mesh={axis: device_mesh.shape[axis] for axis in AXES},
        state_shape=state_shape,
        prefix_tokens=prefix_tokens,
        estimate=COMPILER,
        parameters_gib=permanent[0],
        prefixes_gib=permanent[1],
        caches_gib=permanent[2],
        hbm_limit_gib=slice_.chip.hbm_gib,
        programs=plans,
        hbm_gib_per_chip=total,
        fits=total is not None and total <= slice_.chip.hbm_gib,
    )


def _dtypes(config: Config, shapes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the dtype of every parameter of the finished model."""
    trainable = trainable_paths(config, shapes)
    return {path: jnp.dtype(jnp.float32 if path in trainable else config.frozen_dtype) for path in shapes}


def _state_shape(workload: Workload, mesh: Mapping[str, int]) -> StateShape:
    groups = mesh["data"] * mesh["fsdp"]
    images = max(1, -(-workload.batch_size // workload.questions_per_image))
    return StateShape.of(
        [workload.questions_per_image] * images * groups,
        longest_question=workload.question_tokens,
        longest_answer=workload.answer_tokens,
        batch_size=workload.batch_size * groups,
        groups=groups,
        tensor=mesh["tensor"],
    )


def _build_programs(config: Config, state_shape: StateShape, mesh: jax.sharding.Mesh) -> tuple[int, Programs]:
    """Return the number of prefix tokens and the engine's programs."""
    graphdef, _ = program.abstract_model(config.model)
    slots = (TEXT_SLOT, START_SLOT, *range(config.model.visual_tokens), END_SLOT, *([TEXT_SLOT] * _TEXT_TOKENS))
    programs = build_programs(
        graphdef, config=config.model, prefix=ImagePrefix((0,) * len(slots), slots), shape=state_shape,
        stop=_STOP, sampling=GREEDY, mesh=mesh,
    )  # fmt: skip
    return len(slots), programs


def _abstract_state(programs: Programs) -> tuple[Any, Any]:
    """Return the shapes of the prefixes and of the question caches."""
    lowered = programs.init.lower()  # type: ignore[attr-defined]  # it is jitted
    shardings = lowered.compile().output_shardings
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), lowered.out_info, shardings
    )


# A program, the shapes of its arguments, and how many units of work one call does.
Call = tuple[Callable[..., Any], tuple, int, str]


def _calls(
    config: Config, programs: Programs, state_shape: StateShape, params: dict[str, Any], prefixes: Any, caches: Any
) -> dict[str, Call]:
    groups, placement = programs.groups, programs.placement

    def array(shape: tuple[int, ...], dtype: Any, sharding: Any = placement.batch) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    side = config.model.image_size
    images, inserts = groups * state_shape.encode_batch, groups * state_shape.insert_batch
    pixels = array((images, side, side, 3), jnp.uint8, NamedSharding(placement.mesh, PartitionSpec(AXES)))
    visual = array(
        (images, config.model.visual_tokens, config.model.llm.dim), jnp.dtype(config.model.compute_dtype)
    )  # fmt: skip
    requests = NewRequests(
        slot=array((inserts,), jnp.int32),
        image=array((inserts,), jnp.int32),
        tokens=array((inserts, bucket(state_shape.question_tokens)), jnp.int32),
        length=array((inserts,), jnp.int32),
        max_tokens=array((inserts,), jnp.int32),
        seed=array((inserts,), jnp.uint32),
    )
    refill = RefillThreshold(array((groups,), jnp.bool_), array((), jnp.int32, placement.replicated))
    return {
        "encode": (programs.encode, (params, pixels), images, "images"),
        "prefill": (programs.prefill, (params, prefixes, visual, array((images,), jnp.int32)), images, "images"),
        "insert": (programs.insert, (params, prefixes, caches, requests), inserts, "questions"),
        "generate": (programs.generate, (params, prefixes, caches, refill), groups * state_shape.slots, "tokens"),
    }


def _plan_program(name: str, function: Any, arguments: tuple, units: int, unit: str, slice_: Slice) -> ProgramPlan:
    """Compile a program and return its plan."""
    try:
        compiled = function.lower(*arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        message = f"{name}: {str(error).splitlines()[0]}"
        return ProgramPlan(name=name, temporary_gib=None, units=units, unit=unit, compiler_message=message)
    memory = program.memory(compiled)
    parsed = hlo.parse(compiled.as_text() or "")
    work, communication = costs(parsed), collectives(parsed, slices=slice_.count)
    return ProgramPlan(
        name=name,
        temporary_gib=(memory.temporaries + memory.output - memory.aliased) / GIB,
        units=units,
        unit=unit,
        flops_per_chip=work.flops,
        collectives=by_kind(communication),
        roofline=roofline(work, communication, slice_, tokens=units, minimum_flops=work.flops),
    )
