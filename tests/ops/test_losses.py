"""The chunked loss matches the plain one, and never holds all logits."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from earthgpt_jax.ops.losses import next_token_loss, supervised_loss

ROWS, LENGTH, DIM, VOCABULARY = 3, 20, 8, 33


def _inputs(share: float) -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(0)
    weights = rng.random((ROWS, LENGTH)) * (rng.random((ROWS, LENGTH)) < share)
    return (
        jnp.asarray(rng.normal(size=(ROWS, LENGTH, DIM)), jnp.float32),
        jnp.asarray(rng.normal(size=(DIM, VOCABULARY)), jnp.float32),
        jnp.asarray(rng.integers(0, VOCABULARY, (ROWS, LENGTH))),
        jnp.asarray(weights, jnp.float32),
    )


def _plain(x, unembedding, tokens, weights):
    return next_token_loss(x @ unembedding, tokens, weights)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("chunk", [4, 7, 20, 64])
def test_values_and_both_gradients_match(share, chunk):
    x, unembedding, tokens, weights = _inputs(share)
    ours = functools.partial(supervised_loss, chunk=chunk)

    def scaled(function, x, unembedding):
        total, weight = function(x, unembedding, tokens, weights)
        return 3 * total / (weight + 1)  # some cotangent other than 1

    for got, expected in zip(
        jax.tree.leaves((ours(*_inputs(share)), jax.grad(scaled, argnums=(1, 2))(ours, x, unembedding))),
        jax.tree.leaves((_plain(*_inputs(share)), jax.grad(scaled, argnums=(1, 2))(_plain, x, unembedding))),
        strict=True,
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_no_array_of_all_logits_and_no_gradient_of_a_frozen_unembedding():
    x, unembedding, tokens, weights = _inputs(0.5)

    def gradient(x, unembedding):
        return jax.grad(lambda x: supervised_loss(x, unembedding, tokens, weights, chunk=4)[0])(x)

    text = str(jax.make_jaxpr(gradient)(x, unembedding))
    assert f"f32[{ROWS},4,{VOCABULARY}]" in text  # a chunk's
    assert f"[{ROWS},{LENGTH},{VOCABULARY}]" not in text
    assert f"f32[{DIM},{VOCABULARY}] = dot_general" not in text


def test_the_number_of_chunks_is_that_of_the_sequence_with_most_supervised_tokens():
    x, unembedding, tokens, _ = _inputs(1.0)
    weights = jnp.zeros((ROWS, LENGTH)).at[1, 5].set(1.0).at[2, 7:10].set(1.0)
    expected, _ = _plain(x, unembedding, tokens, weights)
    # One chunk of four holds the supervised positions and the first others: later positions are never read.
    untouched = x.at[:, 10:].set(jnp.nan)
    np.testing.assert_allclose(
        supervised_loss(untouched, unembedding, tokens, weights, chunk=4)[0], expected, rtol=1e-6
    )
    assert np.isnan(supervised_loss(untouched, unembedding, tokens, weights, chunk=LENGTH)[0])
