"""The few layers that every part shares: Linear (with its adapter), norms, stacking over depth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from earthgpt_jax.config import AdapterConfig, AdapterKind, DType
from earthgpt_jax.models.adapters import make_adapter

M = TypeVar("M", bound=nnx.Module)


class Linear(nnx.Module):
    """y = x @ kernel (+ bias), then the adapter if there is one. Kernel [in, out]."""

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        rngs: nnx.Rngs,
        dtype: DType,
        use_bias: bool = True,
        std: float | None = None,
        adapter: AdapterConfig | None = None,
    ):
        std = in_dim**-0.5 if std is None else std
        self.kernel = nnx.Param(std * jax.random.truncated_normal(rngs.params(), -2, 2, (in_dim, out_dim)))
        if use_bias:
            self.bias = nnx.Param(jnp.zeros(out_dim))
        if adapter is not None and adapter.kind is not AdapterKind.NONE:
            self.adapter = make_adapter(in_dim, out_dim, config=adapter, rngs=rngs)
        self.dtype = jnp.dtype(dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.astype(self.dtype)
        y = x @ self.kernel[...].astype(self.dtype)
        if hasattr(self, "bias"):
            y = y + self.bias[...].astype(self.dtype)
        return self.adapter(x, y) if hasattr(self, "adapter") else y


class LayerNorm(nnx.Module):
    """Over the last axis, in fp32, cast back."""

    def __init__(self, dim: int, *, eps: float):
        self.scale = nnx.Param(jnp.ones(dim))
        self.bias = nnx.Param(jnp.zeros(dim))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + self.eps)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


class RMSNorm(nnx.Module):
    """Over the last axis, in fp32; cast back before the weight, as LLaMA does."""

    def __init__(self, dim: int, *, eps: float):
        self.scale = nnx.Param(jnp.ones(dim))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + self.eps)
        return y.astype(x.dtype) * self.scale[...].astype(x.dtype)


def stack(make: Callable[[nnx.Rngs], M], *, depth: int, rngs: nnx.Rngs) -> M:
    """`depth` modules as one, every parameter with a leading L axis."""

    @nnx.split_rngs(splits=depth)
    @nnx.vmap
    def build(rngs: nnx.Rngs) -> M:
        return make(rngs)

    return build(rngs)


def scan(blocks: nnx.Module, step: Callable[[Any, Any, Any], tuple[Any, Any]], carry: Any, xs: Any = None) -> Any:
    """`lax.scan` of `step(block, carry, x) -> (carry, y)` over a stacked module's L axis."""
    graphdef, state = nnx.split(blocks)

    def body(carry: Any, inputs: Any) -> tuple[Any, Any]:
        layer, x = inputs
        return step(nnx.merge(graphdef, layer), carry, x)

    return jax.lax.scan(body, carry, (state, xs))
