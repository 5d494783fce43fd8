"""Adapters of frozen linear layers y = W x, which stage `instruct` trains.

    scale+bias   y -> scale * (y + bias), as in LLaMA-Adapter V2 (arXiv 2304.15010). This is our reading of EarthGPT's
                 "bias and shift" on every linear layer. Scale is initialized to 1 and bias to 0.
    bias         y -> y + bias, the bias tuning of LLaMA2-Accessory
    lora         y -> y + alpha/rank * x A B (arXiv 2106.09685); without alpha, y + x A B as in LLaMA2-Accessory

A fresh adapter does not change the output of its layer. Scales and biases are applied in fp32, so that their gradients,
which are sums over all tokens, are also summed in fp32 across devices.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from earthgpt_jax.config import AdapterConfig, AdapterKind


class ScaleBias(nnx.Module):
    """y -> scale * (y + bias)."""

    def __init__(self, in_dim: int, out_dim: int, *, config: AdapterConfig, rngs: nnx.Rngs):
        self.scale = nnx.Param(jnp.ones(out_dim))
        self.bias = nnx.Param(jnp.zeros(out_dim))

    def __call__(self, x: Float[Array, "*B I"], y: Float[Array, "*B O"]) -> Float[Array, "*B O"]:
        return (self.scale[...] * (y.astype(jnp.float32) + self.bias[...])).astype(y.dtype)


class Bias(nnx.Module):
    """y -> y + bias."""

    def __init__(self, in_dim: int, out_dim: int, *, config: AdapterConfig, rngs: nnx.Rngs):
        self.bias = nnx.Param(jnp.zeros(out_dim))

    def __call__(self, x: Float[Array, "*B I"], y: Float[Array, "*B O"]) -> Float[Array, "*B O"]:
        return (y.astype(jnp.float32) + self.bias[...]).astype(y.dtype)


class Lora(nnx.Module):
    """y -> y + factor * x A B; A is initialized to a truncated normal (std 0.02), B to zeros."""

    def __init__(self, in_dim: int, out_dim: int, *, config: AdapterConfig, rngs: nnx.Rngs):
        self.a = nnx.Param(0.02 * jax.random.truncated_normal(rngs.params(), -2, 2, (in_dim, config.rank)))
        self.b = nnx.Param(jnp.zeros((config.rank, out_dim)))
        self.factor = config.factor

    def __call__(self, x: Float[Array, "*B I"], y: Float[Array, "*B O"]) -> Float[Array, "*B O"]:
        low = self.factor * (x @ self.a[...].astype(y.dtype))  # the smallest array to scale
        return y + low @ self.b[...].astype(y.dtype)


_ADAPTERS = {AdapterKind.SCALE_BIAS: ScaleBias, AdapterKind.BIAS: Bias, AdapterKind.LORA: Lora}


def make_adapter(in_dim: int, out_dim: int, *, config: AdapterConfig, rngs: nnx.Rngs) -> nnx.Module:
    """Return a fresh adapter, which does not change the output of its layer."""
    return _ADAPTERS[config.kind](in_dim, out_dim, config=config, rngs=rngs)
