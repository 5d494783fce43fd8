"""LLaMA (arXiv 2307.09288): RMSNorm, RoPE, grouped-query attention, SwiGLU.

There is one transformer block; what it attends to is plugged in as an `Attention`:

    PackedAttention        training: packed sequences, no cache
    CachedAttention        prefill and decoding with a KV cache
    SharedPrefixAttention  batched inference: many questions about one image (ops.shared_prefix)
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from earthgpt_jax.config import AdapterConfig, DType, LlamaConfig, Remat
from earthgpt_jax.models.layers import Linear, RMSNorm, scan, stack
from earthgpt_jax.ops.attention import SelfAttention, XlaAttention, attend
from earthgpt_jax.ops.kv_cache import Cache
from earthgpt_jax.ops.rope import rope
from earthgpt_jax.sharding.mesh import BATCH_AXES, constrain


@runtime_checkable
class Attention(Protocol):
    """What the queries of all layers attend to, in one call of `Llama`.

    The cache is carried through the layers: each layer gets the cache that the one below returned, and writes its own
    keys and values into it.
    """

    def init_cache(self, batch: int, length: int) -> Cache | None:
        """Return the cache that the first layer gets, for `batch` sequences of `length` tokens."""

    def __call__(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B T K H"],
        v: Float[Array, "B T K H"],
        *,
        layer: Int[Array, ""],
        cache: Any,
    ) -> tuple[Float[Array, "B T N H"], Any]:
        """Attend from the queries of one layer; RoPE is already applied to `q` and `k`.

        Returns:
            The attention output, and the cache for the next layer (a `Cache`, or None as `init_cache` returned).
        """


class PackedAttention:
    """Self-attention over packed sequences, without a cache."""

    def __init__(self, mask: Bool[Array, "B T T"], *, impl: SelfAttention | None = None):
        """Create the attention of one forward pass.

        Args:
            mask: True where the query attends to the key, never to a later one; see `make_attention_mask`.
            impl: implementation, see `ops.attention_impl`; default: XLA.
        """
        self._impl = impl or XlaAttention()
        self._mask = self._impl.prepare(mask)  # once, for all layers

    def init_cache(self, batch: int, length: int) -> None:
        return None

    def __call__(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B T K H"],
        v: Float[Array, "B T K H"],
        *,
        layer: Int[Array, ""],
        cache: None,
    ) -> tuple[Float[Array, "B T N H"], None]:
        return self._impl(q, k, v, mask=self._mask), None


@dataclasses.dataclass(frozen=True, kw_only=True)
class CachedAttention:
    """Attention over a KV cache, which first takes in the keys and values of this call's tokens.

    Attributes:
        cache: [L, B, S, K, H].
        mask: True where the query attends to the slot of the cache.
        slot: the T tokens of this call are written to the slots `slot` to `slot + T - 1`.
    """

    cache: Cache
    mask: Bool[Array, "B T S"]
    slot: Int[Array, ""] | int = 0

    def init_cache(self, batch: int, length: int) -> Cache:
        return self.cache

    def __call__(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B T K H"],
        v: Float[Array, "B T K H"],
        *,
        layer: Int[Array, ""],
        cache: Cache,
    ) -> tuple[Float[Array, "B T N H"], Cache]:
        def write(stacked: jax.Array, new: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice(stacked, new[None].astype(stacked.dtype), (layer, 0, self.slot, 0, 0))

        # The cache of all layers is carried, so that it is updated in place and never copied.
        cache = Cache(*map(write, cache, (k, v)))
        return attend(q, *cache.layer(layer), mask=self.mask), cache


def _linear(
    name: str, in_dim: int, out_dim: int, *, rngs: nnx.Rngs, dtype: DType, config: LlamaConfig, adapter: AdapterConfig
) -> Linear:
    """Return a linear layer of a block, with a bias and an adapter if the configs give it one."""
    targeted = adapter if name in adapter.targets else None
    bias = config.has_bias(name)
    return Linear(in_dim, out_dim, rngs=rngs, dtype=dtype, use_bias=bias, adapter=targeted, name=name)


class AttentionLayer(nnx.Module):
    """The q, k, v and o projections of a block, around a pluggable attention."""

    def __init__(self, config: LlamaConfig, *, adapter: AdapterConfig, rngs: nnx.Rngs, dtype: DType):
        query_dim, key_dim = config.heads * config.head_dim, config.kv_heads * config.head_dim
        options: dict[str, Any] = {"rngs": rngs, "dtype": dtype, "config": config, "adapter": adapter}
        self.q = _linear("q", config.dim, query_dim, **options)
        self.k = _linear("k", config.dim, key_dim, **options)
        self.v = _linear("v", config.dim, key_dim, **options)
        self.o = _linear("o", query_dim, config.dim, **options)
        self.head_dim, self.theta, self.scaling = config.head_dim, config.rope_theta, config.rope_scaling

    def __call__(
        self,
        x: Float[Array, "B T D"],
        *,
        positions: Int[Array, "B T"],
        attention: Attention,
        layer: Int[Array, ""],
        cache: Cache | None,
    ) -> tuple[Float[Array, "B T D"], Cache | None]:
        q, k, v = (f(x).reshape(*x.shape[:2], -1, self.head_dim) for f in (self.q, self.k, self.v))  # B T N|K H
        q, k = (rope(x, positions, theta=self.theta, scaling=self.scaling) for x in (q, k))
        context, cache = attention(q, k, v, layer=layer, cache=cache)
        return self.o(context.reshape(*x.shape[:2], -1)), cache


class Mlp(nnx.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: LlamaConfig, *, adapter: AdapterConfig, rngs: nnx.Rngs, dtype: DType):
        options: dict[str, Any] = {"rngs": rngs, "dtype": dtype, "config": config, "adapter": adapter}
        self.gate = _linear("gate", config.dim, config.ffn_dim, **options)
        self.up = _linear("up", config.dim, config.ffn_dim, **options)
        self.down = _linear("down", config.ffn_dim, config.dim, **options)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class Block(nnx.Module):
    """Pre-norm transformer block: attention and MLP, each added to the residual stream."""

    def __init__(self, config: LlamaConfig, *, adapter: AdapterConfig, rngs: nnx.Rngs, dtype: DType):
        self.attn_norm = RMSNorm(config.dim, eps=config.norm_eps)
        self.attn = AttentionLayer(config, adapter=adapter, rngs=rngs, dtype=dtype)
        self.mlp_norm = RMSNorm(config.dim, eps=config.norm_eps)
        self.mlp = Mlp(config, adapter=adapter, rngs=rngs, dtype=dtype)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        *,
        positions: Int[Array, "B T"],
        attention: Attention,
        layer: Int[Array, ""],
        cache: Cache | None,
    ) -> tuple[Float[Array, "B T D"], Cache | None]:
        out, cache = self.attn(self.attn_norm(x), positions=positions, attention=attention, layer=layer, cache=cache)
        x = constrain(x + out, BATCH_AXES)
        return constrain(x + self.mlp(self.mlp_norm(x)), BATCH_AXES), cache


class LlamaOutput(NamedTuple):
    """What `Llama` returns.

    Attributes:
        hidden: hidden states after the final norm.
        cache: the cache after the last layer; None where the attention keeps none.
    """

    hidden: Float[Array, "B T D"]
    cache: Cache | None


class Llama(nnx.Module):
    """The language model: token embedding, L blocks, final norm and head (tied to the embedding if configured)."""

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

    def embed_tokens(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Look up the embeddings of text tokens."""
        return self.embed[...][tokens].astype(self.dtype)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        *,
        positions: Int[Array, "B T"],
        attention: Attention,
        remat: str = Remat.NONE,
    ) -> LlamaOutput:
        """Run the blocks and the final norm on embedded tokens.

        Args:
            x: embedded tokens.
            positions: RoPE positions.
            attention: what the tokens attend to.
            remat: what each block keeps for the backward pass.
        """

        def step(block: Block, carry: tuple, layer: Int[Array, ""]) -> tuple[tuple, None]:
            x, cache = carry
            return block(x, positions=positions, attention=attention, layer=layer, cache=cache), None

        start = x, attention.init_cache(*x.shape[:2])
        (x, cache), _ = scan(self.blocks, step, start, jnp.arange(self.depth), remat=remat)
        return LlamaOutput(self.norm(x), cache)

    def unembedding(self) -> Float[Array, "D V"]:
        """Return the kernel of the head; the transposed embedding where the two are tied."""
        return self.head.kernel[...] if hasattr(self, "head") else self.embed[...].T

    def logits(self, x: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Return the next-token logits of hidden states, in fp32."""
        return (x @ self.unembedding().astype(self.dtype)).astype(jnp.float32)
