"""Theoretical minimum of a step's FLOPs, and a second way to count the executed FLOPs.

The minimum is counted by hand. Each linear layer costs one product forward, one for the gradient of its input if
anything before it is trainable, and one for the gradient of its kernel if the kernel is trainable. Attention's own
products are left out of both counts, because the compiler cannot look into the attention kernel (at 13B and 2048 tokens
per sequence they are below 4 % of a step).

`costs` counts the executed FLOPs in the compiled program. `executed` counts them from the compiler's own total, which
takes the body of a loop once and miscounts products with sharded weights. It therefore compiles the step replicated and
with the LLM's layers unrolled, at depths 1 and 2. The difference is one layer, forward and backward, recomputation
included. The encoders are tiny in these compilations; their forward pass is counted separately.
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
from earthgpt_jax.config import Config, Kept, MeshConfig, ModelConfig, kept
from earthgpt_jax.models.layers import unrolled
from earthgpt_jax.models.remat import is_uniform
from earthgpt_jax.params import merge_module
from earthgpt_jax.training.stages import Trainable, trainable_paths

# Encoders whose FLOPs are negligible.
_TINY_ENCODERS: dict[str, dict[str, Any]] = {
    "vit": {"dim": 64, "depth": 1, "heads": 1, "ffn_dim": 64},
    "convnext": {"depths": (1, 1, 1, 1), "dims": (16, 16, 16, 16)},
    "perception": {"vit_layers": (0,), "cnn_stages": (3,)},
}


def minimum(config: Config, *, batch_size: int, trainable: Mapping[str, Trainable] | None = None) -> float:
    """Return the theoretical minimum of FLOPs of a step on `batch_size` sequences, with every position supervised.

    Args:
        trainable: overrides what the stage trains.
    """
    _, shapes = program.abstract_model(config.model)
    trainable = trainable_paths(config, shapes) if trainable is None else trainable
    tokens = batch_size * config.data.seq_len
    total = 0
    for path, shape in shapes.items():
        linear = 2 * math.prod(shape.shape)
        if path == "llm/head/kernel" or (path == "llm/embed" and config.model.llm.tied_head):
            total += linear * tokens * (2 + (path in trainable))
        elif path.startswith("llm/blocks/") and path.endswith("/kernel"):
            total += linear * tokens * (2 + (path in trainable))
            first_to_train = not any(p.startswith(("projector/", "image_tokens/", "llm/embed")) for p in trainable)
            if first_to_train and path.split("/")[3] in ("q", "k", "v"):
                total -= linear // config.model.llm.depth * tokens  # nothing before layer 0 needs a gradient
    return total + _before_llm(config, batch_size=batch_size, trainable=trainable)


def executed(config: Config, *, batch_size: int, trainable: Mapping[str, Trainable] | None = None) -> float:
    """Return the FLOPs of the compiled step on `batch_size` sequences per chip, with every position supervised.

    Needs libtpu.

    Args:
        trainable: overrides what the stage trains.
    """
    runs = {config.remat: config.model.llm.depth}
    if not is_uniform(config.remat):  # each run is compiled for itself
        runs = {
            str(Kept(layers=dict.fromkeys(run.names), offloaded=run.offloaded)): run.layers
            for run in kept(config.remat).runs(config.model.llm.depth)
        }
    total = outside_layers = 0.0
    for remat, layers in runs.items():
        uniform = dataclasses.replace(config, remat=remat)
        one, two = (
            _compiler_total(uniform, batch_size=batch_size, depth=depth, trainable=trainable) for depth in (1, 2)
        )
        outside_layers = 2 * one - two
        total += layers * (two - one)
    _, shapes = program.abstract_model(config.model)
    trainable = trainable_paths(config, shapes) if trainable is None else trainable
    tiny = reduced(config, batch_size=batch_size, depth=1)
    outside = _before_llm(config, batch_size=batch_size, trainable=trainable) - _before_llm(
        tiny, batch_size=batch_size, trainable=trainable
    )
    return total + outside_layers + outside


def _compiler_total(config: Config, *, batch_size: int, depth: int, trainable: Mapping[str, Trainable] | None) -> float:
    devices = slices.devices(slices.parse("v5p-8"))
    smaller = reduced(config, batch_size=batch_size * len(devices), depth=depth)
    if trainable is not None:
        trainable = {path: rule for path, rule in trainable.items() if path in program.abstract_model(smaller.model)[1]}
    with unrolled():
        compiled = program.compile_step(smaller, devices, trainable=trainable, loss_chunk=smaller.data.seq_len)
    analysis: Any = compiled.cost_analysis()
    return analysis["flops"]


def reduced(config: Config, *, batch_size: int, depth: int) -> Config:
    """Return `config` with an LLM of `depth` layers, tiny encoders and the default mesh."""
    model = config.model
    parts = {name: dataclasses.replace(getattr(model, name), **values) for name, values in _TINY_ENCODERS.items()}
    parts["llm"] = dataclasses.replace(model.llm, depth=depth)
    smaller = dataclasses.replace(config, model=dataclasses.replace(model, **parts), mesh=MeshConfig())
    return program.with_batch_size(smaller, batch_size)


def _before_llm(config: Config, *, batch_size: int, trainable: Mapping[str, Trainable]) -> float:
    """Return the FLOPs before the LLM: encoders forward, projector forward, and the gradient of its kernel."""
    images = math.prod(program.batch_shapes(program.with_batch_size(config, batch_size)).images.shape[:2])
    path = "projector/linear/kernel"
    kernel = program.abstract_model(config.model)[1][path]
    projector = 2 * math.prod(kernel.shape) * config.model.visual_tokens
    return images * (_encoders(config.model) + projector * (1 + (path in trainable)))


@functools.lru_cache(maxsize=16)
def _encoders(config: ModelConfig) -> float:
    """Return the FLOPs of both encoders on one image."""
    graphdef, shapes = program.abstract_model(config)
    pixels = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.uint8)
    return products(lambda params, pixels: merge_module(graphdef, params).encode(pixels), shapes, pixels)


def products(function: Any, *arguments: Any) -> float:
    """Return the FLOPs of the matrix products and convolutions of `function`, loops included."""
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
            per_output = math.prod(kernel) // kernel[numbers.rhs_spec[0]]
            total += 2 * math.prod(equation.outvars[0].aval.shape) * per_output
        elif equation.primitive.name == "cond":  # one branch runs; `platform_dependent` is a cond too
            total += max(_products(branch.jaxpr) for branch in equation.params["branches"])
        else:
            inner = sum(_products(getattr(p, "jaxpr", p)) for p in _jaxprs(equation.params))
            total += inner * int(equation.params.get("length", 1) if equation.primitive.name == "scan" else 1)
    return total


def _jaxprs(params: Mapping[str, Any]) -> list[Any]:
    """Return the jaxprs among the parameters of an equation."""
    values = [item for value in params.values() for item in (value if isinstance(value, (list, tuple)) else [value])]
    return [value for value in values if hasattr(value, "eqns") or hasattr(value, "jaxpr")]
