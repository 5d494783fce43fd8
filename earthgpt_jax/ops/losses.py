"""The training loss, computed from hidden states without ever holding the logits of a whole sequence."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from earthgpt_jax.sharding.mesh import BATCH_AXES, constrain

CHUNK_SCOPE = "loss_chunks"  # name scope of the loop over supervised positions; its trip count depends on the data


def next_token_loss(
    logits: Float[Array, "B T V"], tokens: Int[Array, "B T"], loss_weights: Float[Array, "B T"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return the weighted sum of next-token cross-entropies (in nats) and the sum of their weights.

    This is the plain definition of the loss, which tests and benchmarks compare `supervised_loss` with; training does
    not use it. It returns sums, not means: the caller divides once over all microbatches and hosts, so that every
    supervised token of the global batch counts equally.

    Args:
        logits: prediction of the token after each position.
        tokens: token ids.
        loss_weights: weight of `tokens[b, t]` as the target of `logits[b, t - 1]`.
    """
    logits = logits[:, :-1].astype(jnp.float32)
    weights = loss_weights[:, 1:]
    target_logits = jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
    losses = jax.nn.logsumexp(logits, axis=-1) - target_logits
    return jnp.sum(losses * weights), jnp.sum(weights)


def supervised_loss(
    x: Float[Array, "B T D"],
    unembedding: Float[Array, "D V"],
    tokens: Int[Array, "B T"],
    loss_weights: Float[Array, "B T"],
    *,
    chunk: int,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Compute `next_token_loss` of `x @ unembedding` at the supervised positions only, chunk by chunk.

    The logits exist for one chunk at a time. The gradient is computed together with the loss in the forward pass, while
    they exist, so that no product with the unembedding is computed twice (as in Liger's fused linear cross-entropy,
    arXiv 2410.10989). The number of chunks is that of the sequence with the most supervised tokens.

    Args:
        x: hidden states.
        unembedding: cast to the dtype of `x`.
        tokens: token ids.
        loss_weights: weight of `tokens[b, t]` as the target of `x[b, t - 1]`.
        chunk: supervised positions per sequence whose logits are held at a time.
    """
    targets, weights = (jnp.pad(array[:, 1:], ((0, 0), (0, 1))) for array in (tokens, loss_weights))
    return _loss(chunk, x, unembedding, targets, weights), jnp.sum(weights)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(chunk: int, x: jax.Array, unembedding: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
    return _loss_and_gradients(x, unembedding, targets, weights, chunk=chunk, wrt=())[0]


def _forward(chunk: int, x: Any, unembedding: Any, targets: Any, weights: Any) -> tuple[jax.Array, dict]:
    wrt = tuple(name for name, array in (("x", x), ("unembedding", unembedding)) if array.perturbed)
    arrays = (array.value for array in (x, unembedding, targets, weights))
    return _loss_and_gradients(*arrays, chunk=chunk, wrt=wrt)


def _backward(chunk: int, gradients: dict[str, jax.Array], cotangent: jax.Array) -> tuple:
    scaled = {name: (cotangent * value).astype(value.dtype) for name, value in gradients.items()}
    return scaled.get("x"), scaled.get("unembedding"), None, None


_loss.defvjp(_forward, _backward, symbolic_zeros=True)


def _loss_and_gradients(
    x: jax.Array, unembedding: jax.Array, targets: jax.Array, weights: jax.Array, *, chunk: int, wrt: tuple[str, ...]
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return the weighted sum of losses, and its gradients with respect to the arguments named in `wrt`."""
    batch, length, dim = x.shape
    chunk = min(chunk, length)
    kernel = constrain(unembedding.astype(x.dtype), None, "tensor")  # gathered once, not once per chunk
    order = jnp.argsort(weights == 0, axis=1, stable=True)  # supervised positions first
    # Padding repeats the last position, with weight 0.
    positions = jnp.pad(order, ((0, 0), (0, -length % chunk)), mode="edge")
    sorted_weights = jnp.pad(jnp.take_along_axis(weights, order, axis=1), ((0, 0), (0, -length % chunk)))
    count = jnp.max(jnp.sum(weights != 0, axis=1))

    def body(step: jax.Array, carry: tuple) -> tuple:
        total, gradients = carry
        position = jax.lax.dynamic_slice_in_dim(positions, step * chunk, chunk, axis=1)  # B C
        weight = jax.lax.dynamic_slice_in_dim(sorted_weights, step * chunk, chunk, axis=1)[..., None]
        hidden = jnp.take_along_axis(x, position[..., None], axis=1)  # B C D
        target = jnp.take_along_axis(targets, position, axis=1)[..., None]
        logits = jnp.einsum("BCD,DV->BCV", hidden, kernel, preferred_element_type=jnp.float32)
        logits = constrain(logits, BATCH_AXES, None, "tensor")
        normalizer = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        is_target = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 2) == target
        target_logits = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1, keepdims=True)
        total = total + jnp.sum(weight * (normalizer - target_logits))
        d_logits = (weight * (jnp.exp(logits - normalizer) - is_target)).astype(x.dtype)
        gradients = dict(gradients)
        if "x" in wrt:
            d_x = jnp.einsum("BCV,DV->BCD", d_logits, kernel, preferred_element_type=jnp.float32).astype(x.dtype)
            gradients["x"] = jax.lax.dynamic_update_slice_in_dim(gradients["x"], d_x, step * chunk, axis=1)
        if "unembedding" in wrt:
            d_kernel = jnp.einsum("BCD,BCV->DV", hidden, d_logits, preferred_element_type=jnp.float32)
            gradients["unembedding"] = gradients["unembedding"] + d_kernel
        return total, gradients

    zeros = {
        "x": constrain(jnp.zeros((batch, positions.shape[1], dim), x.dtype), BATCH_AXES),
        "unembedding": jnp.zeros(unembedding.shape, jnp.float32),
    }
    start = jnp.zeros((), jnp.float32), {name: zeros[name] for name in wrt}
    with jax.named_scope(CHUNK_SCOPE):
        total, gradients = jax.lax.fori_loop(0, -(-count // chunk), body, start)
    if "x" in wrt:  # undo the sort
        inverse = jnp.argsort(order, axis=1)[..., None]
        gradients["x"] = constrain(jnp.take_along_axis(gradients["x"], inverse, axis=1), BATCH_AXES)
    if "unembedding" in wrt:
        gradients["unembedding"] = gradients["unembedding"].astype(unembedding.dtype)
    return total, gradients


class SupervisedSums(NamedTuple):
    """Sums over supervised tokens by group; an answer is a run of consecutive supervised tokens.

    Attributes:
        loss: f32[G], weighted sums of cross-entropies in nats.
        tokens: i32[G], numbers of supervised tokens.
        correct: i32[G], how many of them have the largest logit.
        answers: i32[G], numbers of answers.
        exact: i32[G], how many of them have correct tokens only. Greedy decoding gives exactly these answers.
    """

    loss: jax.Array
    tokens: jax.Array
    correct: jax.Array
    answers: jax.Array
    exact: jax.Array


def supervised_sums(
    x: Float[Array, "B T D"],
    unembedding: Float[Array, "D V"],
    tokens: Int[Array, "B T"],
    loss_weights: Float[Array, "B T"],
    groups: Int[Array, "B T"],
    *,
    num_groups: int,
    chunk: int,
) -> SupervisedSums:
    """Sum the cross-entropies of supervised tokens by group, and count tokens and answers, without a gradient.

    The logits are those of `supervised_loss`, for one chunk of supervised positions at a time.

    Args:
        x, unembedding, tokens, loss_weights, chunk: as in `supervised_loss`.
        groups: group of `tokens[b, t]`, from 0 to `num_groups - 1`; it matters where the loss weight is not 0, and is
            the same for all tokens of an answer.
        num_groups: G.
    """
    targets, weights, groups = (jnp.pad(array[:, 1:], ((0, 0), (0, 1))) for array in (tokens, loss_weights, groups))
    length = x.shape[1]
    chunk = min(chunk, length)
    kernel = constrain(unembedding.astype(x.dtype), None, "tensor")
    order = jnp.argsort(weights == 0, axis=1, stable=True)  # supervised positions first
    positions = jnp.pad(order, ((0, 0), (0, -length % chunk)), mode="edge")
    sorted_weights = jnp.pad(jnp.take_along_axis(weights, order, axis=1), ((0, 0), (0, -length % chunk)))
    count = jnp.max(jnp.sum(weights != 0, axis=1))

    def body(step: jax.Array, carry: tuple) -> tuple:
        losses, correct = carry
        position = jax.lax.dynamic_slice_in_dim(positions, step * chunk, chunk, axis=1)  # B C
        weight = jax.lax.dynamic_slice_in_dim(sorted_weights, step * chunk, chunk, axis=1)
        hidden = jnp.take_along_axis(x, position[..., None], axis=1)  # B C D
        target, group = (jnp.take_along_axis(array, position, axis=1) for array in (targets, groups))
        logits = jnp.einsum("BCD,DV->BCV", hidden, kernel, preferred_element_type=jnp.float32)
        logits = constrain(logits, BATCH_AXES, None, "tensor")
        is_target = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 2) == target[..., None]
        loss = jax.nn.logsumexp(logits, axis=-1) - jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
        member = (weight != 0)[..., None] & (group[..., None] == jnp.arange(num_groups))  # B C G
        losses = losses + jnp.sum(jnp.where(member, (weight * loss)[..., None], 0.0), axis=(0, 1))
        hits = jnp.argmax(logits, axis=-1) == target
        return losses, jax.lax.dynamic_update_slice_in_dim(correct, hits, step * chunk, axis=1)

    start = jnp.zeros(num_groups, jnp.float32), constrain(jnp.zeros(positions.shape, bool), BATCH_AXES)
    with jax.named_scope(CHUNK_SCOPE):
        losses, correct = jax.lax.fori_loop(0, -(-count // chunk), body, start)
    correct = jnp.take_along_axis(correct, jnp.argsort(order, axis=1), axis=1)  # undo the sort
    supervised = weights != 0
    correct = correct & supervised
    ends, exact = _answers(supervised, correct)
    members = groups[..., None] == jnp.arange(num_groups)
    counts = (jnp.sum(members & mask[..., None], axis=(0, 1)) for mask in (supervised, correct, ends, exact))
    return SupervisedSums(losses, *counts)


def _answers(supervised: Bool[Array, "B T"], correct: Bool[Array, "B T"]) -> tuple[jax.Array, jax.Array]:
    """Return masks of the last tokens of all answers, and of those answers that are correct as a whole."""
    before = jnp.pad(supervised[:, :-1], ((0, 0), (1, 0)))
    after = jnp.pad(supervised[:, 1:], ((0, 0), (0, 1)))
    ends = supervised & ~after
    wrong = jnp.cumsum(supervised & ~correct, axis=1)
    wrong_at_start = jax.lax.cummax(jnp.where(supervised & ~before, wrong - (supervised & ~correct), 0), axis=1)
    return ends, ends & (wrong == wrong_at_start)
