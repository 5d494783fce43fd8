"""Adapters of a frozen linear y = W x: what stage `instruct` trains.

`scale+bias`: y -> scale * (y + bias), LLaMA-Adapter V2's form (arXiv 2304.15010), which is how
EarthGPT's "bias and shift" on every linear is read here; scale starts at 1 and bias at 0, so a fresh
adapter changes nothing. `bias`: LLaMA2-Accessory's bias tuning. `lora`: y + alpha/rank x A B (arXiv
2106.09685); without an alpha, y + x A B, as in LLaMA2-Accessory.

The vectors act in fp32, so that their gradients, sums over all tokens, are summed in fp32 across devices too.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from earthgpt_jax.config import AdapterConfig, AdapterKind


class ScaleBias(nnx.Module):
    def __init__(self, in_dim: int, out_dim: int, *, config: AdapterConfig, rngs: nnx.Rngs):
        self.scale = nnx.Param(jnp.ones(out_dim))
        self.bias = nnx.Param(jnp.zeros(out_dim))

    def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
        return (self.scale[...] * (y.astype(jnp.float32) + self.bias[...])).astype(y.dtype)


class Bias(nnx.Module):
    def __init__(self, in_dim: int, out_dim: int, *, config: AdapterConfig, rngs: nnx.Rngs):
        self.bias = nnx.Param(jnp.zeros(out_dim))

    def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
        return (y.astype(jnp.float32) + self.bias[...]).astype(y.dtype)


class Lora(nnx.Module):
    """a [in, r] truncated normal (std 0.02), b [r, out] zeros."""

    def __init__(self, in_dim: int, out_dim: int, *, config: AdapterConfig, rngs: nnx.Rngs):
        self.a = nnx.Param(0.02 * jax.random.truncated_normal(rngs.params(), -2, 2, (in_dim, config.rank)))
        self.b = nnx.Param(jnp.zeros((config.rank, out_dim)))
        self.factor = config.factor

    def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
        low = self.factor * (x @ self.a[...].astype(y.dtype))  # scaled where it is smallest
        return y + low @ self.b[...].astype(y.dtype)


_KINDS = {AdapterKind.SCALE_BIAS: ScaleBias, AdapterKind.BIAS: Bias, AdapterKind.LORA: Lora}


def make_adapter(in_dim: int, out_dim: int, *, config: AdapterConfig, rngs: nnx.Rngs) -> nnx.Module:
    """A fresh adapter, which leaves its linear's output as it is."""
    return _KINDS[config.kind](in_dim, out_dim, config=config, rngs=rngs)
