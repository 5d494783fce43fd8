"""Layers that all parts of the model share: Linear (with its adapter), norms, and stacking over depth."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from earthgpt_jax.config import AdapterConfig, AdapterKind, DType, Remat, kept
from earthgpt_jax.models.adapters import make_adapter
from earthgpt_jax.models.quantized import matmul
from earthgpt_jax.models.remat import apply_remat, is_uniform, scan_runs
from earthgpt_jax.params import FROZEN

M = TypeVar("M", bound=nnx.Module)


class Linear(nnx.Module):
    """y = x @ kernel (+ bias), followed by the adapter, if any; the kernel is [in, out].

    `name` identifies the output in the policies of `models.remat`. It is attached before the adapter: the gradient of a
    scale reads W x, so saving the output after the scale would not avoid recomputing the product.
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

    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        x = x.astype(self.dtype)
        y = matmul(x, self.kernel.get_value())
        if hasattr(self, "bias"):
            y = y + self.bias[...].astype(self.dtype)
        if self.name is not None:
            y = checkpoint_name(y, self.name)
        return self.adapter(x, y) if hasattr(self, "adapter") else y


class LayerNorm(nnx.Module):
    """LayerNorm over the last axis, computed in fp32 and cast back."""

    def __init__(self, dim: int, *, eps: float):
        self.scale = nnx.Param(jnp.ones(dim))
        self.bias = nnx.Param(jnp.zeros(dim))
        self.eps = eps

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        y = x.astype(jnp.float32)
        y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + self.eps)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


class RMSNorm(nnx.Module):
    """RMSNorm over the last axis, computed in fp32 and cast back before the weight is applied, as in LLaMA."""

    def __init__(self, dim: int, *, eps: float):
        self.scale = nnx.Param(jnp.ones(dim))
        self.eps = eps

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + self.eps)
        return y.astype(x.dtype) * self.scale[...].astype(x.dtype)


_unroll: ContextVar[bool] = ContextVar("unroll", default=False)


def stack(make: Callable[[nnx.Rngs], M], *, depth: int, rngs: nnx.Rngs) -> M:
    """Return `depth` modules as one, whose parameters have a leading L axis."""

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
    remat: str = Remat.NONE,
) -> Any:
    """Run `lax.scan` of `step(block, carry, x) -> (carry, y)` over the L axis of a stacked module.

    Args:
        blocks: result of `stack`.
        step: function of one layer.
        carry: first carry.
        xs: inputs per layer, with a leading L axis.
        remat: what each layer keeps for the backward pass, see `config.remat`.

    Returns:
        The last carry, and the stacked outputs.
    """
    graphdef, state = nnx.split(blocks)
    if not is_uniform(remat):
        return _scan_in_place(graphdef, state, step, carry, xs, remat=remat)

    def body(carry: Any, inputs: Any) -> tuple[Any, Any]:
        layer, x = inputs
        return step(nnx.merge(graphdef, layer), carry, x)

    unrolled = _unroll.get()
    return jax.lax.scan(apply_remat(body, remat, unrolled=unrolled), carry, (state, xs), unroll=unrolled)


def _scan_in_place(
    graphdef: nnx.GraphDef, state: Any, step: Callable[[Any, Any, Any], tuple[Any, Any]], carry: Any, xs: Any,
    *, remat: str,
) -> Any:  # fmt: skip
    """Scan with a policy that takes several loops.

    A loop over some of the layers would copy their part of the stacked parameters. Frozen ones, which are nearly all of
    a large model, are therefore read by the number of the layer from the whole stack.
    """
    flat = nnx.to_flat_state(state)
    frozen = {path: x.get_value() for path, x in flat if x.get_metadata().get(FROZEN)}
    others = {path: x.get_value() for path, x in flat if path not in frozen}
    depth = len(jax.tree.leaves([x.get_value() for _, x in flat])[0])

    def body(carry: Any, inputs: Any) -> tuple[Any, Any]:
        number, layer, x = inputs
        layer = layer | jax.tree.map(lambda stack: jax.lax.dynamic_index_in_dim(stack, number, keepdims=False), frozen)
        variables = [(path, nnx.Param(layer[path])) for path, _ in flat]
        return step(nnx.merge(graphdef, nnx.from_flat_state(variables)), carry, x)

    return scan_runs(body, carry, (jnp.arange(depth), others, xs), policy=kept(remat), depth=depth)


@contextlib.contextmanager
def unrolled() -> Iterator[None]:
    """Unroll the layers of all scans traced inside, so that a compiler counts the work of each layer."""
    token = _unroll.set(True)
    try:
        yield
    finally:
        _unroll.reset(token)
