"""Attention and the one rule of who sees whom.

`attend` is the reference, in plain XLA. What a model runs is an `Attention`; `ops.attention_impl` chooses one.
"""

from __future__ import annotations

from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

CONTEXT = "context"  # the name of attention's output, for rematerialisation
LANES = 128  # what a TPU kernel's blocks of tokens are multiples of

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
    # Heads first, as the products want it: once for all blocks, not once a block.
    q = (q * head_dim**-0.5).reshape(rows, length, k.shape[2], heads // k.shape[2], head_dim).transpose(0, 2, 3, 1, 4)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)  # B K S H
    if causal and length > _BLOCK:
        assert mask is not None
        ends = [*range(_BLOCK, length, _BLOCK), length]
        parts = [
            _block(q[:, :, :, start:end], k[:, :, :end], v[:, :, :end], mask=mask[:, start:end, :end])
            for start, end in zip([0, *ends], ends, strict=False)
        ]
        out = jnp.concatenate(parts, axis=3)
    else:
        out = _block(q, k, v, mask=mask)
    return out.transpose(0, 3, 1, 2, 4).reshape(rows, length, heads, head_dim)


def _block(q: jax.Array, k: jax.Array, v: jax.Array, *, mask: jax.Array | None) -> jax.Array:
    """[B, K, G, T, H] from q [B, K, G, T, H], scaled, and k, v [B, K, S, H]."""
    shape = (*q.shape[:4], k.shape[2])  # B K G T S
    q = q.reshape(*q.shape[:2], -1, q.shape[-1])  # plain batched products, which a CPU has a fast way for
    scores = jnp.einsum("BKTH,BKSH->BKTS", q, k, preferred_element_type=jnp.float32)
    if mask is not None:
        # A finite number: a row that sees nothing (padding) stays finite, in the gradient too.
        scores = (scores.reshape(shape) + jnp.where(mask, 0.0, -1e30)[:, None, None]).reshape(scores.shape)
    top = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = jnp.exp(scores - top)
    # Normalised after the second product: T*H divisions instead of T*S.
    out = jnp.einsum("BKTS,BKSH->BKTH", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return (out / weights.sum(axis=-1, keepdims=True)).astype(v.dtype).reshape(*shape[:4], -1)


def visible(segments: jax.Array, question_index: jax.Array) -> jax.Array:
    """Who sees whom in packed rows.

    A token sees the earlier tokens of its own segment that are shared (question 0) or of its own question.

    Args:
        segments: i32[B, T], 0 is padding.
        question_index: i32[B, T].

    Returns:
        bool[B, T, T], [b, t, s]: t sees s.
    """
    length = segments.shape[1]
    order = jnp.arange(length)
    causal = order[:, None] >= order[None, :]
    same_segment = segments[:, :, None] == segments[:, None, :]
    same_question = (question_index[:, None, :] == 0) | (question_index[:, :, None] == question_index[:, None, :])
    return causal & same_segment & same_question


class Attention(Protocol):
    """Causal self-attention of packed rows, [B, T, N, H] from q [B, T, N, H] and k, v [B, T, K, H]."""

    def prepare(self, mask: jax.Array) -> Any:
        """Brings bool[B, T, T] (True where the query sees the key; none sees a later one) to the kernel's form.

        Done once a step, for all layers.
        """

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array, *, mask: Any) -> jax.Array: ...


class Xla:
    """`attend`, for every platform, length and dtype."""

    def prepare(self, mask: jax.Array) -> jax.Array:
        return mask

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array, *, mask: jax.Array) -> jax.Array:
        return checkpoint_name(attend(q, k, v, mask=mask, causal=True), CONTEXT)


class Cudnn:
    """cuDNN's fused attention; bfloat16 on GPUs. The mask is a bias to it, so branches need nothing special."""

    def prepare(self, mask: jax.Array) -> jax.Array:
        return mask[:, None]  # B 1 T S

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array, *, mask: jax.Array) -> jax.Array:
        return checkpoint_name(jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="cudnn"), CONTEXT)
