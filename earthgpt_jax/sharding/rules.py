"""How every parameter is sharded: one table from parameter paths to mesh axes, total and tight."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh
from jax.sharding import PartitionSpec as P

from earthgpt_jax import params as params_lib
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.config import AdapterKind, Fuse, Mlp, ModelConfig
from earthgpt_jax.sharding.mesh import Placement

LARGE = 4 * 2**20  # bytes; smaller parameters may be replicated
_INTO = "attn/[qkv]|mlp/(gate|up)"  # linear layers that read the residual stream
_BACK = "attn/o|mlp/down"  # linear layers that write to it


def table(config: ModelConfig) -> list[tuple[str, P]]:
    """Return the `(regex, axes)` rules of the parameters of `config`. Stacked parameters begin with L."""
    rules = [
        (r"llm/embed", P(None, "fsdp")),
        (rf"llm/blocks/({_INTO})/kernel", P(None, "fsdp", "tensor")),
        (rf"llm/blocks/({_BACK})/kernel", P(None, "tensor", "fsdp")),
        (r"llm/(blocks/(attn|mlp)_norm|norm)/scale", P()),
        (r"projector/linear/kernel", P(None, "fsdp")),
        (r"projector/(linear/bias|norm/(scale|bias))", P()),
        (r"image_tokens/(start|end)", P()),
        # The vision towers are small: sharded over `fsdp` and gathered, never over `tensor`.
        (r"vit/patch/kernel", P(None, "fsdp")),
        (r"vit/blocks/attn/[qkvo]/kernel", P(None, None, "fsdp")),
        (r"vit/(cls|position|norm/(scale|bias)|patch/bias)", P()),
        (r"vit/blocks/(norm[12]/(scale|bias)|ls[12]|(attn|mlp)/.*/bias)", P()),
        (r"convnext/stages/[0-3]/blocks/fc1/kernel", P(None, None, "fsdp")),
        (r"convnext/stages/[0-3]/blocks/fc2/kernel", P(None, "fsdp", None)),
        (r"convnext/stages/[0-3]/blocks/(dw_kernel|dw_bias|gamma|norm/(scale|bias)|fc[12]/bias)", P()),
        (r"convnext/stages/[1-3]/down/linear/kernel", P("fsdp", None)),
        (r"convnext/(stages/[1-3]/down_norm|stem_norm|norm)/(scale|bias)", P()),
        (r"convnext/(stages/[1-3]/down/linear/bias|stem/linear/(kernel|bias))", P()),
    ]
    wide, narrow = {Mlp.GELU: ("fc1", "fc2"), Mlp.SWIGLU: ("fc12", "fc3")}[config.vit.mlp]
    rules += [
        (rf"vit/blocks/mlp/{wide}/kernel", P(None, None, "fsdp")),
        (rf"vit/blocks/mlp/{narrow}/kernel", P(None, "fsdp", None)),
    ]
    if not config.llm.tied_head:
        rules.append((r"llm/head/kernel", P("fsdp", "tensor")))
    if config.perception.cnn_fuse is Fuse.SUM:
        rules += [(r"perception/lateral/\d+/kernel", P(None, "fsdp")), (r"perception/lateral/\d+/bias", P())]
    biased = {"attn/[qkv]": ("q", P(None, "tensor")), "attn/o": ("o", P()),
              "mlp/(gate|up)": ("up", P(None, "tensor")), "mlp/down": ("down", P())}  # fmt: skip
    rules += [
        (rf"llm/blocks/{linears}/bias", spec) for linears, (one, spec) in biased.items() if config.llm.has_bias(one)
    ]
    return rules + _adapters(config)


def _adapters(config: ModelConfig) -> list[tuple[str, P]]:
    """Return the rules of the adapters, whose vectors are sharded like the outputs of their linear layer."""
    kind, targets = config.adapter.kind, set(config.adapter.targets)
    if kind is AdapterKind.NONE:
        return []
    rules = []
    for side, linears, inputs, outputs in (
        (_INTO, {"q", "k", "v", "gate", "up"}, "fsdp", "tensor"),
        (_BACK, {"o", "down"}, "tensor", "fsdp"),
    ):
        if not targets & linears:
            continue
        if kind is AdapterKind.LORA:
            rules.append((rf"llm/blocks/({side})/adapter/a", P(None, inputs, None)))
            rules.append((rf"llm/blocks/({side})/adapter/b", P(None, None, outputs)))
        else:
            vectors = P(None, "tensor") if outputs == "tensor" else P()
            rules.append((rf"llm/blocks/({side})/adapter/(scale|bias)", vectors))
    return rules


def specs(config: ModelConfig, shapes: Mapping[str, jax.ShapeDtypeStruct], *, sizes: Mapping[str, int]) -> dict[str, P]:
    """Return the PartitionSpec of every parameter, checked against the mesh.

    Args:
        shapes: path -> shape and dtype.
        sizes: mesh axis -> number of devices along it.

    Raises:
        EarthGPTError: lists every dimension that its axes do not divide, every axis that is unknown or used twice,
            every spec that is longer than its array's shape, and heads that `tensor` does not divide.
    """
    chosen = params_lib.match(table(config), shapes, table="sharding.rules")
    errors = [error for path, spec in chosen.items() for error in _errors(path, spec, shapes[path].shape, sizes)]
    tensor = sizes.get("tensor", 1)
    for name, heads in (("heads", config.llm.heads), ("kv_heads", config.llm.kv_heads)):
        if heads % tensor:
            errors.append(f"llm.{name}: {heads} heads do not divide over tensor={tensor}")
    if errors:
        raise EarthGPTError(
            f"sharding.rules: {len(errors)} problem(s) on a mesh of {dict(sizes)}\n"
            + "\n".join(f"  - {error}" for error in errors)
            + "\nChoose other sizes under mesh, or change the rule."
        )
    return chosen


def placement(config: ModelConfig, shapes: Mapping[str, Any], *, mesh: Mesh | AbstractMesh) -> Placement:
    """Return the placement on `mesh` of the parameters of `config` and of their optimizer moments; see `specs`."""
    return Placement(mesh=mesh, specs=specs(config, shapes, sizes=dict(mesh.shape)))


def _errors(path: str, spec: P, shape: tuple[int, ...], sizes: Mapping[str, int]) -> list[str]:
    named = [axes if isinstance(axes, tuple) else (axes,) for axes in spec if axes is not None]
    flat = [axis for axes in named for axis in axes]
    errors = [f"{path}: axis {axis!r} is not an axis of the mesh" for axis in flat if axis not in sizes]
    errors += [f"{path}: axis {axis!r} is used twice" for axis in sorted({a for a in flat if flat.count(a) > 1})]
    if len(spec) > len(shape):
        return [*errors, f"{path}: {len(spec)} axes for an array of shape {shape}"]
    for dimension, axes in zip(shape, spec, strict=False):
        parts = math.prod(sizes.get(axis, 1) for axis in (axes if isinstance(axes, tuple) else (axes,)) if axis)
        if dimension % parts:
            errors.append(f"{path}: {dimension} of {shape} does not divide over {axes}={parts}")
    return errors


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replicated:
    """A large parameter that is replicated.

    Attributes:
        path: path of the parameter.
        bytes: its size.
    """

    path: str
    bytes: int


def replicated(
    shapes: Mapping[str, jax.ShapeDtypeStruct], chosen: Mapping[str, P], *, sizes: Mapping[str, int], above: int = LARGE
) -> list[Replicated]:
    """Return the parameters of more than `above` bytes that are not sharded on a mesh of `sizes`, largest first."""
    found = []
    for path, shape in shapes.items():
        axes = [axis for entry in chosen[path] if entry for axis in (entry if isinstance(entry, tuple) else (entry,))]
        size = math.prod(shape.shape) * np.dtype(shape.dtype).itemsize
        if size > above and math.prod(sizes.get(axis, 1) for axis in axes) == 1:
            found.append(Replicated(path=path, bytes=size))
    return sorted(found, key=lambda entry: -entry.bytes)
