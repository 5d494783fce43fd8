"""The KV cache: keys and values of earlier tokens, stacked over layers."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from earthgpt_jax.config import DType, LlamaConfig


class Cache(NamedTuple):
    """Keys (with RoPE applied) and values, [L, B, S, K, H] each.

    Batched inference keeps them as [L, B, K, S, H] (`heads_first`), which is how a decoding step reads them.
    """

    k: Float[Array, "L B S K H"]
    v: Float[Array, "L B S K H"]

    def layer(self, index: Int[Array, ""]) -> Cache:
        """Return the keys and values of one layer, without the L axis."""
        return Cache(*(jax.lax.dynamic_index_in_dim(x, index, keepdims=False) for x in self))

    def heads_first(self) -> Cache:
        """Swap slots and heads: [L, B, S, K, H] -> [L, B, K, S, H]."""
        return Cache(self.k.swapaxes(2, 3), self.v.swapaxes(2, 3))


def empty_cache(config: LlamaConfig, *, batch: int, slots: int, dtype: DType) -> Cache:
    """Return a cache of zeros, [L, B, S, K, H]."""
    shape = (config.depth, batch, slots, config.kv_heads, config.head_dim)
    return Cache(jnp.zeros(shape, jnp.dtype(dtype)), jnp.zeros(shape, jnp.dtype(dtype)))
