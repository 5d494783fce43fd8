"""Attention and the one rule of who sees whom."""

from __future__ import annotations

import jax
import jax.numpy as jnp

# Queries are taken in blocks of so many where attention is causal: what lies beyond a block's end is never
# computed, and a block's scores stay in the cache of a CPU.
_BLOCK = 128


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, *, mask: jax.Array | None = None, causal: bool = False
) -> jax.Array:
    """Scaled dot-product attention, softmax in fp32.

    Args:
        q: [B, T, N, H].
        k, v: [B, S, K, H], K divides N (grouped queries).
        mask: bool[B, T, S], True where the query sees the key; None: everything.
        causal: promises that S is T and that the mask shows no query a later key.

    Returns:
        [B, T, N, H]. A query that sees no key (padding) gets an arbitrary finite value.
    """
    rows, length, heads, head_dim = q.shape
    if causal and length > _BLOCK:
        assert mask is not None
        ends = [*range(_BLOCK, length, _BLOCK), length]
        parts = [
            attend(q[:, start:end], k[:, :end], v[:, :end], mask=mask[:, start:end, :end])
            for start, end in zip([0, *ends], ends, strict=False)
        ]
        return jnp.concatenate(parts, axis=1)
    groups = heads // k.shape[2]
    q = (q * head_dim**-0.5).reshape(rows, length, k.shape[2], groups, head_dim)
    scores = jnp.einsum("BTKGH,BSKH->BKGTS", q, k, preferred_element_type=jnp.float32)
    if mask is not None:
        # A finite number: a row that sees nothing (padding) stays finite, in the gradient too.
        scores = scores + jnp.where(mask, 0.0, -1e30)[:, None, None]
    top = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = jnp.exp(scores - top)
    # Normalised after the second product: T*H divisions instead of T*S.
    total = weights.sum(axis=-1).transpose(0, 3, 1, 2)[..., None]  # B T K G 1
    out = jnp.einsum("BKGTS,BSKH->BTKGH", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return (out / total).astype(v.dtype).reshape(rows, length, heads, head_dim)


def visible(segments: jax.Array, branches: jax.Array) -> jax.Array:
    """Who sees whom in packed rows.

    A token sees the earlier tokens of its own segment that are shared (branch 0) or of its own branch.

    Args:
        segments: i32[B, T], 0 is padding.
        branches: i32[B, T].

    Returns:
        bool[B, T, T], [b, t, s]: t sees s.
    """
    length = segments.shape[1]
    order = jnp.arange(length)
    causal = order[:, None] >= order[None, :]
    same_segment = segments[:, :, None] == segments[:, None, :]
    same_branch = (branches[:, None, :] == 0) | (branches[:, :, None] == branches[:, None, :])
    return causal & same_segment & same_branch
