"""`plan --inference`: the engine's own programs compiled for a slice; memory, and how fast they can be at best.

What lives on a chip all the while: the weights, the prefixes of the images in work, the caches of their questions. A
program's own needs come on top while it runs; the largest of the four decides what fits.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from earthgpt_jax.aot import hlo, program, slices
from earthgpt_jax.aot.collectives import by_kind, collectives
from earthgpt_jax.aot.costs import costs
from earthgpt_jax.aot.program import GIB
from earthgpt_jax.aot.report import COMPILER
from earthgpt_jax.aot.roofline import Roofline, roofline
from earthgpt_jax.aot.slices import Slice
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

_log = logging.getLogger(__name__)
_STOP = StopCondition(eos_id=2, separators=((2,),))  # any will do
_SYSTEM = 40  # tokens of text that stand between an image and its questions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """What questions are like.

    Attributes:
        rows: in work at a time in a group of devices that share weights.
        per_image: questions about an image.
    """

    rows: int = 64
    per_image: int = 16
    question_tokens: int = 64
    answer_tokens: int = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One of the programs; of one call, of decoding one step.

    Attributes:
        needs_gib: on a chip while it runs, besides what always lives there; None where it does not fit.
        units: what a call gets done on the whole slice, of `unit`.
    """

    name: str
    needs_gib: float | None
    units: int
    unit: str
    flops_per_chip: float | None = None
    collectives: dict[str, int] = dataclasses.field(default_factory=dict)
    roofline: Roofline | None = None
    compiler_message: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class InferencePlan:
    """Sizes of one chip, in GiB; all of it compiler estimates.

    Attributes:
        weights_gib, prefixes_gib, rows_gib: what lives on a chip all the while.
        parts: the programs.
        largest_rows: of a group; None unless searched for.
    """

    recipe: str
    stage: str
    topology: str
    chips: int
    mesh: dict[str, int]
    layout: StateShape
    prefix_tokens: int
    estimate: str
    weights_gib: float
    prefixes_gib: float
    rows_gib: float
    hbm_limit_gib: float
    parts: list[Part]
    hbm_gib_per_chip: float | None
    fits: bool
    largest_rows: int | None = None


def plan_inference(config: Config, wanted: Slice, *, asked: Workload, mesh: MeshConfig | None = None) -> InferencePlan:
    """Compiles the programs that answer questions with the model of `config`.

    Args:
        mesh: default: weights over as few chips as hold them, rows over all.

    Raises:
        EarthGPTError: no compiler; the mesh does not fit the slice or the model.
    """
    if not slices.compiler_is_there():
        raise EarthGPTError("plan --inference: needs the TPU compiler (pip install 'earthgpt-jax[plan]')")
    graphdef, shapes = program.abstract_model(config.model)
    trainable = trainable_paths(config, shapes)
    dtypes = {path: jnp.float32 if path in trainable else jnp.dtype(config.frozen_dtype) for path in shapes}
    weights = sum(math.prod(shape.shape) * jnp.dtype(dtypes[path]).itemsize for path, shape in shapes.items())
    if mesh is None:
        limit = int(wanted.chip.hbm_gib * GIB)
        mesh = MeshConfig(
            tensor=smallest_tensor_axis(config.model, weights=weights, limit=limit, devices=wanted.devices)
        )
    chosen = build_mesh(mesh, batch_size=asked.rows * wanted.devices, devices=slices.devices(wanted))
    groups, tensor = chosen.shape["data"] * chosen.shape["fsdp"], chosen.shape["tensor"]
    images = max(1, -(-asked.rows // asked.per_image))
    layout = StateShape.of(
        [asked.per_image] * images * groups,
        longest_question=asked.question_tokens,
        longest_answer=asked.answer_tokens,
        batch_size=asked.rows * groups,
        groups=groups,
        tensor=tensor,
    )
    visual = config.model.visual_tokens
    slots = (TEXT_SLOT, START_SLOT, *range(visual), END_SLOT, *([TEXT_SLOT] * _SYSTEM))
    made = build_programs(
        graphdef, config=config.model, prefix=ImagePrefix((0,) * len(slots), slots), shape=layout, stop=_STOP,
        sampling=GREEDY, mesh=chosen,
    )  # fmt: skip
    places = made.placement.shardings(dict(shapes))
    params = {p: jax.ShapeDtypeStruct(shape.shape, dtypes[p], sharding=places[p]) for p, shape in shapes.items()}
    calls, (prefixes, rows) = _calls(config, made, layout, params, chips=wanted.devices)
    living = [program.bytes_per_device(tree) / GIB for tree in (params, prefixes, rows)]
    parts = [_part(name, *call, wanted) for name, call in calls.items()]
    needs = [part.needs_gib for part in parts]
    total = None if None in needs else sum(living) + max(need for need in needs if need is not None)
    return InferencePlan(
        recipe=config.recipe,
        stage=config.stage,
        topology=wanted.name,
        chips=wanted.devices,
        mesh={axis: chosen.shape[axis] for axis in AXES},
        layout=layout,
        prefix_tokens=len(slots),
        estimate=COMPILER,
        weights_gib=living[0],
        prefixes_gib=living[1],
        rows_gib=living[2],
        hbm_limit_gib=wanted.chip.hbm_gib,
        parts=parts,
        hbm_gib_per_chip=total,
        fits=total is not None and total <= wanted.chip.hbm_gib,
    )


def largest_rows(config: Config, wanted: Slice, *, asked: Workload, start: InferencePlan) -> int:
    """Most rows of a group that fit, in whole images; guessed along the line through what is needed, then tried.

    Every image's rows are counted with its prefix.
    """
    mesh = MeshConfig(**start.mesh)
    tried = {start.layout.images: start}
    each = start.layout.slots_per_image
    fitting, failing = 0, 0
    images = start.layout.images
    while fitting + 1 != failing:
        if images not in tried:
            _log.info("plan: trying %d rows", images * each)
            more = dataclasses.replace(asked, rows=images * each)
            tried[images] = plan_inference(config, wanted, asked=more, mesh=mesh)
        found = tried[images]
        if found.fits:
            fitting = max(fitting, images)
            assert found.hbm_gib_per_chip is not None
            growing = (found.hbm_gib_per_chip - found.weights_gib) / images
            images = max(int((found.hbm_limit_gib - found.weights_gib) / growing), fitting + 1)
        else:
            failing = min(failing or images, images)
            images = failing - 1
        if failing:
            images = min(max(images, fitting + 1), failing - 1)
    return fitting * each


def text(result: InferencePlan) -> str:
    """For people."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in result.mesh.items())
    layout = result.layout
    lines = [
        f"{result.recipe}:{result.stage} answers on {result.topology} ({result.chips} chips; {mesh})",
        f"a group of {result.mesh['tensor']} chips: {layout.images} images of {result.prefix_tokens} tokens x "
        f"{layout.slots_per_image} questions of {layout.question_tokens} + {layout.answer_tokens} tokens",
        f"figures: {result.estimate}",
        "",
        f"{'HBM a chip':<31}{'GiB':>8}",
    ]
    sizes = [
        ("weights", result.weights_gib),
        ("prefixes of images", result.prefixes_gib),
        ("caches of questions", result.rows_gib),
        *((f"while it runs: {part.name}", part.needs_gib) for part in result.parts),
        ("together, at most", result.hbm_gib_per_chip),
        ("there is", result.hbm_limit_gib),
    ]
    lines += [f"  {name:<29}{'?' if size is None else f'{size:.2f}':>8}" for name, size in sizes]
    lines.append("fits" if result.fits else "does NOT fit")
    lines += [part.compiler_message for part in result.parts if part.compiler_message]
    if result.largest_rows is not None:
        lines.append(f"largest batch that fits: {result.largest_rows} questions in a group")
    lines += ["", f"{'on the slice, at best':<16}{'calls of':>9}{'ms':>9}{'a second':>11}  bound by"]
    for part in result.parts:
        if part.roofline:
            bound = part.roofline
            lines.append(
                f"  {part.name:<14}{part.units:>9}{bound.seconds * 1e3:>9.2f}{bound.tokens_per_second:>11,.0f} "
                f"{part.unit}  {bound.bound_by}"
            )
    return "\n".join(lines)


Call = tuple[Callable[..., Any], tuple, int, str]


def _calls(
    config: Config, made: Programs, layout: StateShape, params: dict[str, Any], *, chips: int
) -> tuple[dict[str, Call], Any]:
    """`name -> (program, its arguments' shapes, units of work in a call, their name)`, and the shapes that live on."""
    groups, place = made.groups, made.placement

    def given(shape: tuple[int, ...], dtype: Any, sharding: Any = None) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding or place.batch)

    lowered = made.init.lower()  # type: ignore[attr-defined]  # all of them are jitted
    shardings = lowered.compile().output_shardings
    prefixes, rows = jax.tree.map(lambda x, where: given(x.shape, x.dtype, where), lowered.out_info, shardings)
    side = config.model.image_size
    images = groups * layout.encode_batch
    spread = jax.sharding.NamedSharding(place.mesh, jax.sharding.PartitionSpec(AXES))
    visual = (images, config.model.visual_tokens, config.model.llm.dim)
    width = bucket(layout.question_tokens)
    inserts = groups * layout.insert_batch
    new = NewRequests(
        slot=given((inserts,), jnp.int32),
        image=given((inserts,), jnp.int32),
        tokens=given((inserts, width), jnp.int32),
        length=given((inserts,), jnp.int32),
        max_tokens=given((inserts,), jnp.int32),
        seed=given((inserts,), jnp.uint32),
    )
    until = RefillThreshold(given((groups,), jnp.bool_), given((), jnp.int32, place.whole))
    calls: dict[str, Call] = {
        "encode": (made.encode, (params, given((images, side, side, 3), jnp.uint8, spread)), images, "images"),
        "prefill": (
            made.prefill,
            (params, prefixes, given(visual, jnp.dtype(config.model.compute_dtype)), given((images,), jnp.int32)),
            images,
            "images",
        ),
        "insert": (made.insert, (params, prefixes, rows, new), inserts, "questions"),
        "generate": (made.generate, (params, prefixes, rows, until), groups * layout.slots, "tokens"),
    }
    return calls, (prefixes, rows)


def _part(name: str, function: Any, arguments: tuple, units: int, unit: str, wanted: Slice) -> Part:
    try:
        compiled = function.lower(*arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Part(name=name, needs_gib=None, units=units, unit=unit, compiler_message=f"{name}: {_first_line(error)}")
    memory = program.memory(compiled)
    parsed = hlo.parse(compiled.as_text() or "")
    work, sent = costs(parsed), collectives(parsed, slices=wanted.count)
    return Part(
        name=name,
        needs_gib=(memory.temporaries + memory.output - memory.aliased) / GIB,
        units=units,
        unit=unit,
        flops_per_chip=work.flops,
        collectives=by_kind(sent),
        roofline=roofline(work, sent, wanted, tokens=units, minimum_flops=work.flops),
    )


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0]
