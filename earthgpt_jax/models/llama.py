"""LLaMA (arXiv 2307.09288): RMSNorm, RoPE, grouped-query attention, SwiGLU, KV cache."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from earthgpt_jax.config import AdapterConfig, DType, LlamaConfig, Remat
from earthgpt_jax.models.layers import Linear, RMSNorm, scan, stack
from earthgpt_jax.ops.attention import SelfAttention as Kernel
from earthgpt_jax.ops.attention import XlaAttention, attend
from earthgpt_jax.ops.rope import rope
from earthgpt_jax.sharding.mesh import ROWS, constrain


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExecutionOptions:
    """How the LLM runs in training; nothing here changes a result beyond rounding.

    Attributes:
        loss_chunk: supervised positions of a row whose logits are held at a time.
        kernel_dtype: dtype that trainable kernels of blocks are cast to outside of the differentiated function. It is
            the dtype that they multiply in, and therefore the dtype of their gradients.
    """

    remat: Remat = Remat.NONE
    attention: Kernel = dataclasses.field(default_factory=XlaAttention)
    loss_chunk: int = 256
    kernel_dtype: DType = DType.FLOAT32


PLAIN = ExecutionOptions()


class Cache(NamedTuple):
    """Keys (rotated) and values of S slots: [L, B, S, K, H] each."""

    k: jax.Array
    v: jax.Array


def empty_cache(config: LlamaConfig, *, batch: int, slots: int, dtype: DType) -> Cache:
    shape = (config.depth, batch, slots, config.kv_heads, config.head_dim)
    return Cache(jnp.zeros(shape, jnp.dtype(dtype)), jnp.zeros(shape, jnp.dtype(dtype)))


def _write(stacked: jax.Array, new: jax.Array, *, layer: jax.Array, slot: jax.Array | int) -> jax.Array:
    """[L, B, S, K, H] with [B, T, K, H] at (layer, :, slot:slot+T)."""
    return jax.lax.dynamic_update_slice(stacked, new[None].astype(stacked.dtype), (layer, 0, slot, 0, 0))


class _Linears(nnx.Module):
    """What attention and MLP share: linears that carry an adapter where the config targets them."""

    def _linear(
        self,
        name: str,
        in_dim: int,
        out_dim: int,
        *,
        rngs: nnx.Rngs,
        dtype: DType,
        bias: bool,
        adapter: AdapterConfig,
    ) -> Linear:
        chosen = adapter if name in adapter.targets else None
        return Linear(in_dim, out_dim, rngs=rngs, dtype=dtype, use_bias=bias, adapter=chosen, name=name)


class Attention(_Linears):
    q: Linear
    k: Linear
    v: Linear
    o: Linear

    def __init__(self, config: LlamaConfig, *, adapter: AdapterConfig, rngs: nnx.Rngs, dtype: DType):
        queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
        for name, in_dim, out_dim in (
            ("q", config.dim, queries),
            ("k", config.dim, keys),
            ("v", config.dim, keys),
            ("o", queries, config.dim),
        ):
            linear = self._linear(
                name, in_dim, out_dim, rngs=rngs, dtype=dtype, bias=config.attention_bias, adapter=adapter
            )
            setattr(self, name, linear)
        self.head_dim, self.theta = config.head_dim, config.rope_theta

    def __call__(
        self,
        x: jax.Array,
        *,
        positions: jax.Array,
        mask: Any,
        kernel: Kernel,
        cache: Cache | None,
        layer: jax.Array,
        slot: jax.Array | int,
    ) -> tuple[jax.Array, Cache | None]:
        q, k, v = (f(x).reshape(*x.shape[:2], -1, self.head_dim) for f in (self.q, self.k, self.v))  # B T N|K H
        q, k = rope(q, positions, theta=self.theta), rope(k, positions, theta=self.theta)
        if cache is not None:
            # Into the stacked cache, which is carried through the layers: written in place, never copied.
            cache = Cache(*(_write(old, new, layer=layer, slot=slot) for old, new in zip(cache, (k, v), strict=True)))
            k, v = (jax.lax.dynamic_index_in_dim(stacked, layer, keepdims=False) for stacked in cache)
        out = kernel(q, k, v, mask=mask) if cache is None else attend(q, k, v, mask=mask)
        return self.o(out.reshape(*x.shape[:2], -1)), cache


class Mlp(_Linears):
    gate: Linear
    up: Linear
    down: Linear

    def __init__(self, config: LlamaConfig, *, adapter: AdapterConfig, rngs: nnx.Rngs, dtype: DType):
        for name, in_dim, out_dim in (
            ("gate", config.dim, config.ffn_dim),
            ("up", config.dim, config.ffn_dim),
            ("down", config.ffn_dim, config.dim),
        ):
            linear = self._linear(name, in_dim, out_dim, rngs=rngs, dtype=dtype, bias=config.mlp_bias, adapter=adapter)
            setattr(self, name, linear)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class Block(nnx.Module):
    def __init__(self, config: LlamaConfig, *, adapter: AdapterConfig, rngs: nnx.Rngs, dtype: DType):
        self.attn_norm = RMSNorm(config.dim, eps=config.norm_eps)
        self.attn = Attention(config, adapter=adapter, rngs=rngs, dtype=dtype)
        self.mlp_norm = RMSNorm(config.dim, eps=config.norm_eps)
        self.mlp = Mlp(config, adapter=adapter, rngs=rngs, dtype=dtype)

    def __call__(self, x: jax.Array, **attention: Any) -> tuple[jax.Array, Cache | None]:
        out, cache = self.attn(self.attn_norm(x), **attention)
        x = constrain(x + out, ROWS)
        return constrain(x + self.mlp(self.mlp_norm(x)), ROWS), cache


class Llama(nnx.Module):
    def __init__(self, config: LlamaConfig, *, adapter: AdapterConfig, rngs: nnx.Rngs, dtype: DType):
        self.embed = nnx.Param(0.02 * jax.random.normal(rngs.params(), (config.vocab_size, config.dim)))
        self.blocks = stack(
            lambda rngs: Block(config, adapter=adapter, rngs=rngs, dtype=dtype), depth=config.depth, rngs=rngs
        )
        self.depth = config.depth
        self.norm = RMSNorm(config.dim, eps=config.norm_eps)
        if not config.tied_head:
            self.head = Linear(config.dim, config.vocab_size, rngs=rngs, dtype=dtype, use_bias=False)
        self.dtype = jnp.dtype(dtype)

    def embed_tokens(self, tokens: jax.Array) -> jax.Array:
        """i32[B, T] -> [B, T, D]."""
        return self.embed[...][tokens].astype(self.dtype)

    def __call__(
        self,
        x: jax.Array,
        *,
        positions: jax.Array,
        mask: jax.Array,
        cache: Cache | None = None,
        slot: jax.Array | int = 0,
        execution: ExecutionOptions = PLAIN,
    ) -> tuple[jax.Array, Cache | None]:
        """Hidden states through the final norm, and the cache with this call's keys and values in it.

        Args:
            x: [B, T, D], embedded.
            positions: i32[B, T].
            mask: bool[B, T, S]; S is T without a cache, the cache's slots with one. Without a cache it
                must not show a token any later one.
            slot: where in the cache the T new entries go.
            execution: of a call without a cache.
        """
        kernel = execution.attention
        seen = kernel.prepare(mask) if cache is None else mask

        def step(block: Block, carry: tuple, layer: jax.Array) -> tuple[tuple, None]:
            x, cache = carry
            attention = {"positions": positions, "mask": seen, "kernel": kernel, "cache": cache}
            return block(x, **attention, layer=layer, slot=slot), None

        (x, cache), _ = scan(self.blocks, step, (x, cache), jnp.arange(self.depth), remat=execution.remat)
        return self.norm(x), cache

    def unembedding(self) -> jax.Array:
        """The head's kernel [D, V]; the embedding's transpose where the two are tied."""
        return self.head.kernel[...] if hasattr(self, "head") else self.embed[...].T

    def logits(self, x: jax.Array) -> jax.Array:
        """[B, T, D] -> f32[B, T, V]."""
        return (x @ self.unembedding().astype(self.dtype)).astype(jnp.float32)
