"""In the tests, arguments and results are checked against their annotated shapes and dtypes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import jaxtyping
import pytest

from earthgpt_jax.models import earthgpt
from earthgpt_jax.ops.attention import attend, make_attention_mask
from earthgpt_jax.ops.rope import rope
from earthgpt_jax.params import merge_module
from tests.support import nano

Q, KV = jnp.zeros((2, 5, 4, 8)), jnp.zeros((2, 7, 2, 8))


@pytest.mark.parametrize(
    ("k", "v"),
    [
        (KV[:1], KV),  # another batch
        (KV, KV[:, :6]),  # another number of keys
        (KV[..., :4], KV[..., :4]),  # another head size
        (KV[:, :, 0], KV),  # no head axis
        (KV, KV.astype(jnp.int32)),  # not floating point
    ],
)
def test_attention_refuses_wrong_shapes(k, v):
    with pytest.raises(jaxtyping.TypeCheckError):
        attend(Q, k, v)
    assert attend(Q, KV, KV).shape == Q.shape


def test_shapes_are_checked_under_jit():
    positions = jnp.zeros((2, 4), jnp.int32)  # four positions for five tokens
    with pytest.raises(jaxtyping.TypeCheckError):
        jax.jit(rope, static_argnames="theta")(Q, positions, theta=1e4)


def test_the_model_refuses_wrong_shapes():
    config = nano.config("align").model
    model = merge_module(*earthgpt.init(config))
    tokens = jnp.ones((1, 8), jnp.int32)
    with pytest.raises(jaxtyping.TypeCheckError):  # slots of another length than the tokens
        model.embed(tokens, -tokens[:, :7], jnp.zeros((1, config.visual_tokens, config.llm.dim)))
    with pytest.raises(jaxtyping.TypeCheckError):  # floating-point pixels
        model.encode(jnp.zeros((1, 64, 64, 3)))
    with pytest.raises(jaxtyping.TypeCheckError):
        make_attention_mask(tokens, tokens[0])
