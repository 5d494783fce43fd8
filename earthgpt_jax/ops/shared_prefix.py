"""Attention of sequences that share a prefix, without copying the prefix to each of them (Hydragen, arXiv 2402.05099).

The keys that a sequence attends to come in parts: those of its image's prefix, stored once for all questions about
that image; those of its own earlier tokens; and those of the tokens of this call. One softmax runs over all parts, so
the result equals attention over their concatenation.

Caches are [L, B, K, S, H] here: with heads before slots, a decoding step reads them without a transpose.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from earthgpt_jax.ops.kv_cache import Cache
from earthgpt_jax.sharding.mesh import BATCH_AXES, constrain


class Part(NamedTuple):
    """Some of the keys and values that queries attend to.

    Attributes:
        k, v: [G, K, S, H], where G divides B: B/G consecutive sequences share an entry.
        mask: True where the query attends to the key; None attends to every key.
    """

    k: Float[Array, "G K S H"]
    v: Float[Array, "G K S H"]
    mask: Bool[Array, "B T S"] | None


def attend_parts(q: Float[Array, "B T N H"], parts: Sequence[Part]) -> Float[Array, "B T N H"]:
    """Attend over the concatenation of `parts`, with the softmax in fp32.

    Args:
        q: queries with RoPE applied.
        parts: keys and values; every query must attend to at least one key.
    """
    batch, length, heads, head_dim = q.shape
    kv_heads = parts[0].k.shape[1]
    q = (q * head_dim**-0.5).reshape(batch, length, kv_heads, heads // kv_heads, head_dim)
    scores = [_scores(q, part) for part in parts]  # B K T R S
    top = jnp.max(jnp.stack([s.max(axis=-1) for s in scores]), axis=0)[..., None]
    weights = [jnp.exp(s - top) for s in scores]
    total = jnp.asarray(sum(w.sum(axis=-1) for w in weights)).transpose(0, 2, 1, 3)[..., None]  # B T K R 1
    out = sum(_weighted_sum(w, part.v) for w, part in zip(weights, parts, strict=True))
    return (out / total).astype(q.dtype).reshape(batch, length, heads, head_dim)


def _scores(q: Float[Array, "B T K R H"], part: Part) -> Float[Array, "B K T R S"]:
    """Multiply queries and keys; R query heads share each key head, B/G sequences each entry of the part."""
    batch, length, kv_heads, repeats, head_dim = q.shape
    entries, slots = part.k.shape[0], part.k.shape[2]
    share = batch // entries
    q = q.reshape(entries, share, length, kv_heads, repeats, head_dim).transpose(0, 3, 1, 2, 4, 5)
    q = q.reshape(entries, kv_heads, share * length * repeats, head_dim)
    scores = jnp.einsum("GKQH,GKSH->GKQS", q, part.k, preferred_element_type=jnp.float32)
    scores = scores.reshape(entries, kv_heads, share, length, repeats, slots).swapaxes(1, 2)
    scores = scores.reshape(batch, kv_heads, length, repeats, slots)
    return scores if part.mask is None else scores + jnp.where(part.mask, 0.0, -1e30)[:, None, :, None]


def _weighted_sum(weights: Float[Array, "B K T R S"], v: Float[Array, "G K S H"]) -> Float[Array, "B T K R H"]:
    """Sum the values by their softmax weights, in fp32."""
    batch, kv_heads, length, repeats, slots = weights.shape
    entries, head_dim = v.shape[0], v.shape[-1]
    share = batch // entries
    w = weights.astype(v.dtype).reshape(entries, share, kv_heads, length * repeats, slots).swapaxes(1, 2)
    w = w.reshape(entries, kv_heads, share * length * repeats, slots)
    out = jnp.einsum("GKQS,GKSH->GKQH", w, v, preferred_element_type=jnp.float32)
    out = out.reshape(entries, kv_heads, share, length, repeats, head_dim).transpose(0, 2, 3, 1, 4, 5)
    return out.reshape(batch, length, kv_heads, repeats, head_dim)


def per_group(
    groups: int, function: Callable[..., jax.Array], *arguments: jax.Array, axes: Sequence[int], out: int = 0
) -> jax.Array:
    """Apply `function` to every device group's share of the arguments, and concatenate the results.

    Inside of `function` indices count within one group. This tells the partitioner that no index reaches into another
    group's share; indexing the whole array at once would make it gather that array on every device.

    Args:
        groups: number of device groups.
        function: maps one group's shares to its result.
        arguments: arrays whose shares are concatenated along `axes`, one axis per argument.
        axes: axis of each argument along which the groups are concatenated.
        out: the same axis of the result.
    """
    if groups == 1:
        return function(*arguments)

    def split(x: jax.Array, axis: int) -> jax.Array:
        return x.reshape(*x.shape[:axis], groups, x.shape[axis] // groups, *x.shape[axis + 1 :])

    shares = [split(x, axis) for x, axis in zip(arguments, axes, strict=True)]
    result = jax.vmap(function, in_axes=tuple(axes), out_axes=out)(*shares)
    return result.reshape(*result.shape[:out], -1, *result.shape[out + 2 :])


@dataclasses.dataclass(frozen=True, kw_only=True)
class SharedPrefixAttention:
    """Attention for `Llama` over an image prefix, the sequence's own cache, and the tokens of this call.

    The cache that `Llama` returns holds the keys and values of this call's tokens, [L, B, K, T, H].

    Attributes:
        prefixes: keys and values of the image prefixes; every query attends to all tokens of its prefix.
        mask: which of this call's tokens attend to which; None attends to all of them.
        prefix_index: index of the prefix of each sequence, counted within its device group; None: B/I consecutive
            sequences share a prefix.
        groups: number of device groups that `prefix_index` counts within, see `per_group`.
        own: keys and values of the sequences' earlier tokens after the prefix, if any.
        own_length: number of slots of `own` that are filled; required with `own`.
    """

    prefixes: Cache  # L I K P H
    mask: Bool[Array, "B T T"] | None = None
    prefix_index: Int[Array, " B"] | None = None
    groups: int = 1
    own: Cache | None = None  # L B K S H
    own_length: Int[Array, " B"] | None = None

    def init_cache(self, batch: int, length: int) -> Cache:
        """Return the empty cache for this call's tokens, [L, B, K, T, H]."""

        def empty(like: jax.Array) -> jax.Array:
            layers, _, kv_heads, _, head_dim = like.shape
            zeros = jnp.zeros((layers, batch, kv_heads, length, head_dim), like.dtype)
            return constrain(zeros, None, BATCH_AXES, "tensor")

        return Cache(*map(empty, self.prefixes))

    def __call__(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B T K H"],
        v: Float[Array, "B T K H"],
        *,
        layer: Int[Array, ""],
        cache: Cache,
    ) -> tuple[Float[Array, "B T N H"], Cache]:
        new = Cache(k.swapaxes(1, 2), v.swapaxes(1, 2))
        prefix = self.prefixes.layer(layer)
        if self.prefix_index is not None:
            prefix = Cache(
                *(per_group(self.groups, lambda x, i: x[i], x, self.prefix_index, axes=(0, 0)) for x in prefix)
            )
        parts = [Part(*prefix, mask=None), Part(*new, mask=self.mask)]
        if self.own is not None:
            parts.insert(1, Part(*self.own.layer(layer), mask=self._filled()))
        cache = Cache(*(old.at[layer].set(x.astype(old.dtype)) for old, x in zip(cache, new, strict=True)))
        return attend_parts(q, parts), cache

    def _filled(self) -> Bool[Array, "B 1 S"]:
        """Return a mask of the filled slots of `own`."""
        assert self.own is not None and self.own_length is not None
        slot = jnp.arange(self.own.k.shape[3])
        return (slot < self.own_length[:, None])[:, None]
