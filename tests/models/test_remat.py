"""Rematerialization policies do not change gradients, and recompute exactly what they declare."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from earthgpt_jax import params as params_lib
from earthgpt_jax.aot.flops import products
from earthgpt_jax.config import Remat, Stage
from earthgpt_jax.models import earthgpt
from earthgpt_jax.models.llama import PackedAttention
from earthgpt_jax.ops.attention import make_attention_mask
from earthgpt_jax.training.stages import trainable_paths
from tests.support import nano

ROWS, LENGTH = 2, 24


def _gradient(remat: Remat):
    """Return the gradient function of a sum over the LLM's outputs, and the adapters it is taken at."""
    config = nano.config(Stage.INSTRUCT)
    graphdef, params = earthgpt.init(config.model, seed=0)
    rng = np.random.default_rng(0)
    params = {k: v + 0.1 * rng.standard_normal(v.shape).astype(np.float32) for k, v in params.items()}
    trainable, frozen = params_lib.split(params, trainable_paths(config, params))
    ones = jnp.ones((ROWS, LENGTH), jnp.int32)
    x = jnp.asarray(rng.normal(size=(ROWS, LENGTH, config.model.llm.dim)), jnp.float32)
    attention = PackedAttention(make_attention_mask(ones, 0 * ones))
    positions = jnp.cumsum(ones, 1)

    def total(trainable):
        model = params_lib.merge_module(graphdef, params_lib.merge(trainable, frozen))
        return jnp.sum(model.llm(x, positions=positions, attention=attention, remat=remat).hidden ** 2)

    return jax.grad(total), trainable


@functools.cache
def _products(remat: Remat) -> float:
    return products(*_gradient(remat))


@pytest.mark.parametrize("remat", [policy for policy in Remat if policy is not Remat.NONE])
def test_gradients_do_not_depend_on_the_policy(remat):
    gradient, trainable = _gradient(remat)
    expected = jax.jit(_gradient(Remat.NONE)[0])(trainable)
    for path, value in jax.jit(gradient)(trainable).items():
        scale = np.abs(expected[path]).max()
        np.testing.assert_allclose(value / scale, expected[path] / scale, atol=1e-5, err_msg=path)


def test_which_products_are_recomputed():
    """If outputs were named after the adapters' scale, `minimal` would recompute every linear layer."""
    llm = nano.config(Stage.INSTRUCT).model.llm
    tokens = ROWS * LENGTH
    attention = llm.depth * 2 * 2 * tokens * LENGTH * llm.dim  # scores, and scores times values
    gate_up = llm.depth * 2 * tokens * 2 * llm.dim * llm.ffn_dim
    kv = llm.kv_heads * llm.head_dim
    others = llm.depth * 2 * tokens * (2 * llm.dim * llm.dim + 2 * llm.dim * kv + llm.dim * llm.ffn_dim)
    assert _products(Remat.MINIMAL) - _products(Remat.NONE) == attention
    assert _products(Remat.ATTENTION) - _products(Remat.MINIMAL) == gate_up
    assert _products(Remat.OFFLOAD) == _products(Remat.ATTENTION)
    assert _products(Remat.FULL) - _products(Remat.ATTENTION) == others
