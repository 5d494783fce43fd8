"""The LLM over tokens that continue from a prefix which several rows share.

A row's keys lie in parts: those of its image's prefix, held once for all rows about that image; those of its own
earlier tokens; those of the tokens of this call. One softmax goes over all parts, so the result is that of attention
over their concatenation; the prefix is never copied to the rows (hydragen, arXiv 2402.05099).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from earthgpt_jax.models.layers import scan
from earthgpt_jax.models.llama import Block, Cache, Llama
from earthgpt_jax.ops.rope import rope
from earthgpt_jax.sharding.mesh import ROWS, constrain

# Here a cache is [L, B, K, S, H]: heads before slots, so that a step's products read it as it lies.


class Part(NamedTuple):
    """Some of the keys that rows see.

    Attributes:
        k, v: [B/m, K, S, H]; m rows in a row share an entry.
        mask: bool[B, T, S], True where the query sees the key; None: everything.
    """

    k: jax.Array
    v: jax.Array
    mask: jax.Array | None


def attend_parts(q: jax.Array, parts: list[Part]) -> jax.Array:
    """Attention over the concatenation of the parts, softmax in fp32.

    Args:
        q: [B, T, N, H], rotated.

    Returns:
        [B, T, N, H].
    """
    rows, length, heads, head_dim = q.shape
    kv_heads = parts[0].k.shape[1]
    q = (q * head_dim**-0.5).reshape(rows, length, kv_heads, heads // kv_heads, head_dim)
    scores = [_scores(q, part) for part in parts]  # B K T R S
    top = jnp.max(jnp.stack([s.max(axis=-1) for s in scores]), axis=0)[..., None]
    weights = [jnp.exp(s - top) for s in scores]
    total = jnp.asarray(sum(w.sum(axis=-1) for w in weights)).transpose(0, 2, 1, 3)[..., None]  # B T K R 1
    out = sum(_weighted(w, part.v) for w, part in zip(weights, parts, strict=True))
    return (out / total).astype(q.dtype).reshape(rows, length, heads, head_dim)


def _scores(q: jax.Array, part: Part) -> jax.Array:
    """f32[B, K, T, R, S] of q [B, T, K, R, H]."""
    rows, length, kv_heads, each, head_dim = q.shape
    groups, slots = part.k.shape[0], part.k.shape[2]
    share = rows // groups
    q = q.reshape(groups, share, length, kv_heads, each, head_dim).transpose(0, 3, 1, 2, 4, 5)
    q = q.reshape(groups, kv_heads, share * length * each, head_dim)
    scores = jnp.einsum("GKQH,GKSH->GKQS", q, part.k, preferred_element_type=jnp.float32)
    scores = scores.reshape(groups, kv_heads, share, length, each, slots).swapaxes(1, 2)
    scores = scores.reshape(rows, kv_heads, length, each, slots)
    return scores if part.mask is None else scores + jnp.where(part.mask, 0.0, -1e30)[:, None, :, None]


def _weighted(weights: jax.Array, v: jax.Array) -> jax.Array:
    """f32[B, T, K, R, H] of weights [B, K, T, R, S]."""
    rows, kv_heads, length, each, slots = weights.shape
    groups, head_dim = v.shape[0], v.shape[-1]
    share = rows // groups
    w = weights.astype(v.dtype).reshape(groups, share, kv_heads, length * each, slots).swapaxes(1, 2)
    w = w.reshape(groups, kv_heads, share * length * each, slots)
    out = jnp.einsum("GKQS,GKSH->GKQH", w, v, preferred_element_type=jnp.float32)
    out = out.reshape(groups, kv_heads, share, length, each, head_dim).transpose(0, 2, 3, 1, 4, 5)
    return out.reshape(rows, length, kv_heads, each, head_dim)


def heads_first(cache: Cache) -> Cache:
    """[L, B, S, K, H] -> [L, B, K, S, H]."""
    return Cache(cache.k.swapaxes(2, 3), cache.v.swapaxes(2, 3))


def each_group(
    groups: int, function: Callable[..., jax.Array], *arguments: jax.Array, axes: Sequence[int], out: int = 0
) -> jax.Array:
    """`function` of every group's shares of the arguments, which lie one behind the other along `axes`.

    Indices then count within a share, and the partitioner sees that none reaches beyond its own: written over all
    rows at once, it would gather what is indexed.
    """
    if groups == 1:
        return function(*arguments)

    def split(x: jax.Array, axis: int) -> jax.Array:
        return x.reshape(*x.shape[:axis], groups, x.shape[axis] // groups, *x.shape[axis + 1 :])

    shares = [split(x, axis) for x, axis in zip(arguments, axes, strict=True)]
    result = jax.vmap(function, in_axes=tuple(axes), out_axes=out)(*shares)
    return result.reshape(*result.shape[:out], -1, *result.shape[out + 2 :])


def extend(
    llm: Llama,
    x: jax.Array,
    *,
    positions: jax.Array,
    mask: jax.Array | None,
    prefixes: Cache,
    of: jax.Array | None = None,
    groups: int = 1,
    own: Cache | None = None,
    written: jax.Array | None = None,
) -> tuple[jax.Array, Cache]:
    """Hidden states through the final norm, and the keys and values of this call's tokens, [L, B, K, T, H].

    Args:
        x: [B, T, D], embedded.
        positions: i32[B, T].
        mask: bool[B, T, T], who sees whom among these tokens; None: everybody.
        prefixes: [L, G, K, P, H], all of it seen.
        of: i32[B], which prefix of its group's is a row's; None: B/G rows in a row share one.
        groups: what `of` counts in, see `each_group`.
        own: [L, B, K, S, H], the rows' earlier tokens behind the prefix.
        written: i32[B], how many of the S slots those take.
    """
    seen = None
    if own is not None:
        assert written is not None
        slot = jnp.arange(own.k.shape[3])
        seen = jnp.broadcast_to(slot < written[:, None], (len(written), len(slot)))[:, None]

    def step(block: Block, x: jax.Array, layer: tuple[Cache, Cache | None]) -> tuple[jax.Array, Cache]:
        prefix, earlier = layer
        attn, h = block.attn, block.attn_norm(x)
        q, k, v = (f(h).reshape(*h.shape[:2], -1, attn.head_dim) for f in (attn.q, attn.k, attn.v))
        q, k = rope(q, positions, theta=attn.theta), rope(k, positions, theta=attn.theta)
        new = Cache(k.swapaxes(1, 2), v.swapaxes(1, 2))
        shared = prefix
        if of is not None:
            shared = Cache(*(each_group(groups, lambda x, at: x[at], x, of, axes=(0, 0)) for x in prefix))
        parts = [Part(*shared, mask=None), Part(*new, mask=mask)]
        if earlier is not None:
            parts.insert(1, Part(*earlier, mask=seen))
        x = constrain(x + attn.o(attend_parts(q, parts).reshape(*x.shape[:2], -1)), ROWS)
        return constrain(x + block.mlp(block.mlp_norm(x)), ROWS), new

    x, new = scan(llm.blocks, step, x, (prefixes, own))
    return llm.norm(x), new
