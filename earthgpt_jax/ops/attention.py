"""Attention, and the mask that keeps the samples of a packed sequence apart.

`attend` is the reference in plain XLA. Training runs one of the `SelfAttention` implementations, which
`ops.attention_impl` selects.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from earthgpt_jax.config import CONTEXT

LANES = 128  # block sizes of TPU kernels are multiples of this

# Causal attention processes queries in blocks of this size: keys after the end of a block are never multiplied, and
# the scores of one block stay in the cache of a CPU.
_QUERY_BLOCK = 128


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    *,
    mask: Bool[Array, "#B T S"] | None = None,
    causal: bool = False,
) -> Float[Array, "B T N H"]:
    """Compute scaled dot-product attention with the softmax in fp32.

    Args:
        q: queries; N is a multiple of K (grouped-query attention).
        k: keys.
        v: values.
        mask: True where the query attends to the key; None attends to every key.
        causal: asserts that S equals T and that `mask` shows no query a later key, so that blocks above the diagonal
            can be skipped.

    Returns:
        The attention output. A query whose mask is all False (padding) gets an arbitrary finite value.
    """
    batch, length, heads, head_dim = q.shape
    # The products want heads first: transpose once, not once per block.
    q = (q * head_dim**-0.5).reshape(batch, length, k.shape[2], heads // k.shape[2], head_dim).transpose(0, 2, 3, 1, 4)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)  # B K S H
    if causal and length > _QUERY_BLOCK:
        assert mask is not None
        ends = [*range(_QUERY_BLOCK, length, _QUERY_BLOCK), length]
        parts = [
            _attend_block(q[:, :, :, start:end], k[:, :, :end], v[:, :, :end], mask=mask[:, start:end, :end])
            for start, end in zip([0, *ends], ends, strict=False)
        ]
        out = jnp.concatenate(parts, axis=3)
    else:
        out = _attend_block(q, k, v, mask=mask)
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, head_dim)


def _attend_block(
    q: Float[Array, "B K G T H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    *,
    mask: Bool[Array, "#B T S"] | None,
) -> Float[Array, "B K G T H"]:
    """Attend from scaled queries, where G query heads share each key head."""
    shape = (*q.shape[:4], k.shape[2])  # B K G T S
    q = q.reshape(*q.shape[:2], -1, q.shape[-1])  # a plain batched product has a fast path on CPUs
    scores = jnp.einsum("BKTH,BKSH->BKTS", q, k, preferred_element_type=jnp.float32)
    if mask is not None:
        # A finite number instead of -inf: queries that attend to nothing (padding) keep finite values and gradients.
        scores = (scores.reshape(shape) + jnp.where(mask, 0.0, -1e30)[:, None, None]).reshape(scores.shape)
    top = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = jnp.exp(scores - top)
    # Normalizing after the second product takes T*H divisions instead of T*S.
    out = jnp.einsum("BKTS,BKSH->BKTH", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return (out / weights.sum(axis=-1, keepdims=True)).astype(v.dtype).reshape(*shape[:4], -1)


def make_attention_mask(segments: Int[Array, "B T"], question_index: Int[Array, "B T"]) -> Bool[Array, "B T T"]:
    """Return the attention mask of packed sequences.

    A token attends to the earlier tokens (itself included) of its own segment that are either shared (question 0) or
    of its own question.

    Example: segments `[1, 1, 1, 2]` with question_index `[0, 1, 2, 0]` (an image prefix, two questions about it, and
    another sample) give, with a row per query:

        1 0 0 0
        1 1 0 0
        1 0 1 0
        0 0 0 1

    Args:
        segments: number of the sample that a token belongs to; 0 is padding.
        question_index: number of the question within the sample; 0 is shared by all its questions.

    Returns:
        `mask[b, t, s]`: True where token t attends to token s.
    """
    length = segments.shape[1]
    order = jnp.arange(length)
    causal = order[:, None] >= order[None, :]
    same_segment = segments[:, :, None] == segments[:, None, :]
    shared = question_index[:, None, :] == 0
    same_question = question_index[:, :, None] == question_index[:, None, :]
    return causal & same_segment & (shared | same_question)


@runtime_checkable
class SelfAttention(Protocol):
    """An implementation of causal self-attention over packed sequences."""

    def prepare(self, mask: Bool[Array, "B T T"]) -> Any:
        """Convert the mask (True where the query attends to the key, never a later one) to what the kernel takes.

        Called once per step, for all layers.
        """

    def __call__(
        self, q: Float[Array, "B T N H"], k: Float[Array, "B T K H"], v: Float[Array, "B T K H"], *, mask: Any
    ) -> Float[Array, "B T N H"]: ...


class XlaAttention:
    """`attend`: runs on every platform, with any length and dtype."""

    def prepare(self, mask: Bool[Array, "B T T"]) -> Bool[Array, "B T T"]:
        return mask

    def __call__(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B T K H"],
        v: Float[Array, "B T K H"],
        *,
        mask: Bool[Array, "B T T"],
    ) -> Float[Array, "B T N H"]:
        return checkpoint_name(attend(q, k, v, mask=mask, causal=True), CONTEXT)


class CudnnAttention:
    """cuDNN's fused attention, for bfloat16 on GPUs.

    cuDNN takes the mask as a bias, so question indices need no special treatment.

    Attributes:
        implementation: argument of `jax.nn.dot_product_attention`. A subclass with "xla" runs on every platform, so
            that the mask can be checked without a GPU.
    """

    implementation: Literal["cudnn", "xla"] = "cudnn"

    def prepare(self, mask: Bool[Array, "B T T"]) -> Bool[Array, "B 1 T T"]:
        return mask[:, None]

    def __call__(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B T K H"],
        v: Float[Array, "B T K H"],
        *,
        mask: Bool[Array, "B 1 T T"],
    ) -> Float[Array, "B T N H"]:
        out = jax.nn.dot_product_attention(q, k, v, mask=mask, implementation=self.implementation)
        return checkpoint_name(out, CONTEXT)
