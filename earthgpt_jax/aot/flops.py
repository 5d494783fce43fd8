"""What a step must multiply, and what the compiled one does.

The minimum is a count by hand: a product forward for every linear; one for the gradient of its input, where
anything before it is trained; one for its kernel's gradient, where the kernel is trained. Attention's own
products are left out on both sides, because the compiler cannot look into its kernel (at 13B and rows of
2048 tokens they are below 4 % of a step).

What is executed is counted in the compiled program (`costs`). `executed` counts a second way, by the compiler's own
total, which takes the body of a loop once and products that are spread over a sharded weight's slices wrongly: the
same step is compiled replicated, with the LLM's layers unrolled, at depths 1 and 2. The difference is a layer,
forward and backward, with whatever is computed again. Encoders are left tiny there; their forward pass is counted on
its own.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from earthgpt_jax.aot import program, slices
from earthgpt_jax.config import Config, MeshConfig, ModelConfig
from earthgpt_jax.models.layers import unrolled
from earthgpt_jax.params import merge_module
from earthgpt_jax.training.stages import Trainable, trainable_paths

# The encoders' smallest relatives: what they add to a count is noise.
_TINY: dict[str, dict[str, Any]] = {
    "vit": {"dim": 64, "depth": 1, "heads": 1, "ffn_dim": 64},
    "convnext": {"depths": (1, 1, 1, 1), "dims": (16, 16, 16, 16)},
    "perception": {"vit_layers": (0,), "cnn_stages": (3,)},
}


def minimum(config: Config, *, rows: int, trainable: Mapping[str, Trainable] | None = None) -> float:
    """FLOPs that a step on `rows` rows cannot do without, every position supervised."""
    _, shapes = program.abstract_model(config.model)
    trainable = trainable_paths(config, shapes) if trainable is None else trainable
    tokens = rows * config.data.seq_len
    total = 0
    for path, shape in shapes.items():
        linear = 2 * math.prod(shape.shape)
        if path == "llm/head/kernel" or (path == "llm/embed" and config.model.llm.tied_head):
            total += linear * tokens * (2 + (path in trainable))
        elif path.startswith("llm/blocks/") and path.endswith("/kernel"):
            total += linear * tokens * (2 + (path in trainable))
            first_to_train = not any(p.startswith(("projector/", "image_tokens/", "llm/embed")) for p in trainable)
            if first_to_train and path.split("/")[3] in ("q", "k", "v"):
                total -= linear // config.model.llm.depth * tokens  # nothing before layer 0 wants a gradient
    return total + _before(config, rows=rows, trainable=trainable)


def executed(config: Config, *, rows: int, trainable: Mapping[str, Trainable] | None = None) -> float:
    """FLOPs of the compiled step on `rows` rows a chip, every position supervised. Needs libtpu."""
    one, two = (_counted(config, rows=rows, depth=depth, trainable=trainable) for depth in (1, 2))
    _, shapes = program.abstract_model(config.model)
    trainable = trainable_paths(config, shapes) if trainable is None else trainable
    tiny = reduced(config, rows=rows, depth=1)
    outside = _before(config, rows=rows, trainable=trainable) - _before(tiny, rows=rows, trainable=trainable)
    return one + (config.model.llm.depth - 1) * (two - one) + outside


def _counted(config: Config, *, rows: int, depth: int, trainable: Mapping[str, Trainable] | None) -> float:
    devices = slices.devices(slices.parse("v5p-8"))
    smaller = reduced(config, rows=rows * len(devices), depth=depth)
    whole = None
    if trainable is not None:
        whole = {path: rule for path, rule in trainable.items() if path in program.abstract_model(smaller.model)[1]}
    with unrolled():
        compiled = program.compile_step(smaller, devices, trainable=whole, loss_chunk=smaller.data.seq_len)
    analysis: Any = compiled.cost_analysis()
    return analysis["flops"]


def reduced(config: Config, *, rows: int, depth: int) -> Config:
    """`config` with so many layers of its LLM, the smallest encoders and the default mesh."""
    model = config.model
    parts = {name: dataclasses.replace(getattr(model, name), **values) for name, values in _TINY.items()}
    parts["llm"] = dataclasses.replace(model.llm, depth=depth)
    smaller = dataclasses.replace(config, model=dataclasses.replace(model, **parts), mesh=MeshConfig())
    return program.with_rows(smaller, rows)


def _before(config: Config, *, rows: int, trainable: Mapping[str, Trainable]) -> float:
    """Of everything before the LLM: encoders forward, projector forward and its kernel's gradient."""
    images = rows * program.batch_shapes(program.with_rows(config, rows)).images.shape[1]
    path = "projector/linear/kernel"
    kernel = program.abstract_model(config.model)[1][path]
    projector = 2 * math.prod(kernel.shape) * config.model.visual_tokens
    return images * (_encoders(config.model) + projector * (1 + (path in trainable)))


@functools.lru_cache(maxsize=16)
def _encoders(config: ModelConfig) -> float:
    """Of both on one image."""
    graphdef, shapes = program.abstract_model(config)
    pixels = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.uint8)
    return products(lambda params, pixels: merge_module(graphdef, params).encode(pixels), shapes, pixels)


def products(function: Any, *arguments: Any) -> float:
    """FLOPs of the matrix products and convolutions that `function` does, loops included."""
    return _products(jax.make_jaxpr(function)(*arguments).jaxpr)


def _products(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
        elif equation.primitive.name == "conv_general_dilated":
            kernel, numbers = equation.invars[1].aval.shape, equation.params["dimension_numbers"]
            each = math.prod(kernel) // kernel[numbers.rhs_spec[0]]
            total += 2 * math.prod(equation.outvars[0].aval.shape) * each
        elif equation.primitive.name == "cond":  # one branch runs; `platform_dependent` is one as well
            total += max(_products(branch.jaxpr) for branch in equation.params["branches"])
        else:
            inner = sum(_products(getattr(p, "jaxpr", p)) for p in _jaxprs(equation.params))
            total += inner * int(equation.params.get("length", 1) if equation.primitive.name == "scan" else 1)
    return total


def _jaxprs(params: Mapping[str, Any]) -> list[Any]:
    values = [each for value in params.values() for each in (value if isinstance(value, (list, tuple)) else [value])]
    return [value for value in values if hasattr(value, "eqns") or hasattr(value, "jaxpr")]
