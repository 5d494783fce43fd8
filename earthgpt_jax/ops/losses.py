"""The training loss: from logits, and from hidden states without ever holding the logits."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from earthgpt_jax.sharding.mesh import ROWS, constrain

CHUNKS = "loss_chunks"  # scope of the loop over supervised positions, whose turns the data decides


def next_token_loss(logits: jax.Array, tokens: jax.Array, loss_weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Weighted sum of next-token cross-entropies (nats) and the sum of weights, both f32[].

    Sums, not means: the caller divides once over all microbatches and hosts, so that every
    supervised token of the global batch counts alike.

    Args:
        logits: [B, T, V].
        tokens: i32[B, T].
        loss_weights: f32[B, T]; weight of tokens[b, t] as the target of logits[b, t - 1].
    """
    logits = logits[:, :-1].astype(jnp.float32)
    weights = loss_weights[:, 1:]
    picked = jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
    losses = jax.nn.logsumexp(logits, axis=-1) - picked
    return jnp.sum(losses * weights), jnp.sum(weights)


def supervised_loss(
    x: jax.Array, unembedding: jax.Array, tokens: jax.Array, loss_weights: jax.Array, *, chunk: int
) -> tuple[jax.Array, jax.Array]:
    """`next_token_loss` of `x @ unembedding`, computed where weights are not zero, `chunk` positions at a time.

    Logits live for a chunk alone; the gradient is taken with the loss in the forward pass, while they are
    there, so that no product with the unembedding is done twice (as in Liger's fused linear cross-entropy,
    arXiv 2410.10989). The number of chunks is that of the batch's fullest row.

    Args:
        x: [B, T, D].
        unembedding: [D, V]; used in the dtype of `x`.
        tokens: i32[B, T].
        loss_weights: f32[B, T]; weight of tokens[b, t] as the target of x[b, t - 1].
    """
    targets, weights = (jnp.pad(array[:, 1:], ((0, 0), (0, 1))) for array in (tokens, loss_weights))
    return _loss(chunk, x, unembedding, targets, weights), jnp.sum(weights)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(chunk: int, x: jax.Array, unembedding: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
    return _chunks(x, unembedding, targets, weights, chunk=chunk, wanted=())[0]


def _forward(chunk: int, x: Any, unembedding: Any, targets: Any, weights: Any) -> tuple[jax.Array, dict]:
    wanted = tuple(name for name, array in (("x", x), ("unembedding", unembedding)) if array.perturbed)
    arrays = (array.value for array in (x, unembedding, targets, weights))
    return _chunks(*arrays, chunk=chunk, wanted=wanted)


def _backward(chunk: int, gradients: dict[str, jax.Array], cotangent: jax.Array) -> tuple:
    scaled = {name: (cotangent * value).astype(value.dtype) for name, value in gradients.items()}
    return scaled.get("x"), scaled.get("unembedding"), None, None


_loss.defvjp(_forward, _backward, symbolic_zeros=True)


def _chunks(
    x: jax.Array, unembedding: jax.Array, targets: jax.Array, weights: jax.Array, *, chunk: int, wanted: tuple[str, ...]
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The weighted sum of losses, and its gradients for the arguments named in `wanted`."""
    rows, length, dim = x.shape
    chunk = min(chunk, length)
    kernel = constrain(unembedding.astype(x.dtype), None, "tensor")  # gathered once, not once a chunk
    order = jnp.argsort(weights == 0, axis=1, stable=True)  # supervised positions first
    # Beyond the row's end stands its last position, with no weight.
    slots = jnp.pad(order, ((0, 0), (0, -length % chunk)), mode="edge")
    heavy = jnp.pad(jnp.take_along_axis(weights, order, axis=1), ((0, 0), (0, -length % chunk)))
    count = jnp.max(jnp.sum(weights != 0, axis=1))

    def body(step: jax.Array, carry: tuple) -> tuple:
        total, gradients = carry
        here = jax.lax.dynamic_slice_in_dim(slots, step * chunk, chunk, axis=1)  # B C
        weight = jax.lax.dynamic_slice_in_dim(heavy, step * chunk, chunk, axis=1)[..., None]
        some = jnp.take_along_axis(x, here[..., None], axis=1)  # B C D
        target = jnp.take_along_axis(targets, here, axis=1)[..., None]
        logits = jnp.einsum("BCD,DV->BCV", some, kernel, preferred_element_type=jnp.float32)
        logits = constrain(logits, ROWS, None, "tensor")
        normaliser = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        chosen = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 2) == target
        picked = jnp.sum(jnp.where(chosen, logits, 0.0), axis=-1, keepdims=True)
        total = total + jnp.sum(weight * (normaliser - picked))
        slope = (weight * (jnp.exp(logits - normaliser) - chosen)).astype(x.dtype)  # of the logits
        gradients = dict(gradients)
        if "x" in wanted:
            part = jnp.einsum("BCV,DV->BCD", slope, kernel, preferred_element_type=jnp.float32).astype(x.dtype)
            gradients["x"] = jax.lax.dynamic_update_slice_in_dim(gradients["x"], part, step * chunk, axis=1)
        if "unembedding" in wanted:
            part = jnp.einsum("BCD,BCV->DV", some, slope, preferred_element_type=jnp.float32)
            gradients["unembedding"] = gradients["unembedding"] + part
        return total, gradients

    zeros = {
        "x": constrain(jnp.zeros((rows, slots.shape[1], dim), x.dtype), ROWS),
        "unembedding": jnp.zeros(unembedding.shape, jnp.float32),
    }
    start = jnp.zeros((), jnp.float32), {name: zeros[name] for name in wanted}
    with jax.named_scope(CHUNKS):
        total, gradients = jax.lax.fori_loop(0, -(-count // chunk), body, start)
    if "x" in wanted:  # back from the sorted order
        back = jnp.argsort(order, axis=1)[..., None]
        gradients["x"] = constrain(jnp.take_along_axis(gradients["x"], back, axis=1), ROWS)
    if "unembedding" in wanted:
        gradients["unembedding"] = gradients["unembedding"].astype(unembedding.dtype)
    return total, gradients
