"""The training loss."""

from __future__ import annotations

import jax
import jax.numpy as jnp


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
