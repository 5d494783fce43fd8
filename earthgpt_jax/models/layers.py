"""The few layers that every part shares: Linear (with its adapter), norms, stacking over depth."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from earthgpt_jax.config import AdapterConfig, AdapterKind, DType, Remat
from earthgpt_jax.models.adapters import make_adapter
from earthgpt_jax.models.quantized import int8_matmul
from earthgpt_jax.models.remat import apply_remat

M = TypeVar("M", bound=nnx.Module)


class Linear(nnx.Module):
    """y = x @ kernel (+ bias), then the adapter if there is one. Kernel [in, out].

    `name` is what `models.remat` knows the output by. It is given before the adapter: the gradient of a scale
    reads W x, so keeping what comes after the scale would spare no product.
    """

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
        name: str | None = None,
    ):
        std = in_dim**-0.5 if std is None else std
        self.kernel = nnx.Param(std * jax.random.truncated_normal(rngs.params(), -2, 2, (in_dim, out_dim)))
        if use_bias:
            self.bias = nnx.Param(jnp.zeros(out_dim))
        if adapter is not None and adapter.kind is not AdapterKind.NONE:
            self.adapter = make_adapter(in_dim, out_dim, config=adapter, rngs=rngs)
        self.dtype = jnp.dtype(dtype)
        self.name = name

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.astype(self.dtype)
        y = int8_matmul(x, self.kernel.get_value())
        if hasattr(self, "bias"):
            y = y + self.bias[...].astype(self.dtype)
        if self.name is not None:
            y = checkpoint_name(y, self.name)
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


_unroll: ContextVar[bool] = ContextVar("unroll", default=False)


def stack(make: Callable[[nnx.Rngs], M], *, depth: int, rngs: nnx.Rngs) -> M:
    """`depth` modules as one, every parameter with a leading L axis."""

    @nnx.split_rngs(splits=depth)
    @nnx.vmap
    def build(rngs: nnx.Rngs) -> M:
        return make(rngs)

    return build(rngs)


def scan(
    blocks: nnx.Module,
    step: Callable[[Any, Any, Any], tuple[Any, Any]],
    carry: Any,
    xs: Any = None,
    *,
    remat: Remat = Remat.NONE,
) -> Any:
    """`lax.scan` of `step(block, carry, x) -> (carry, y)` over a stacked module's L axis."""
    graphdef, state = nnx.split(blocks)

    def body(carry: Any, inputs: Any) -> tuple[Any, Any]:
        layer, x = inputs
        return step(nnx.merge(graphdef, layer), carry, x)

    unrolled = _unroll.get()
    return jax.lax.scan(apply_remat(body, remat, unrolled=unrolled), carry, (state, xs), unroll=unrolled)


@contextlib.contextmanager
def unrolled() -> Iterator[None]:
    """Layers one after the other in what is traced inside: a compiler's counts see each of them."""
    token = _unroll.set(True)
    try:
        yield
    finally:
        _unroll.reset(token)
