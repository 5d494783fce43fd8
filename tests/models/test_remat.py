"""Rematerialization policies do not change gradients, and recompute exactly what they declare."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from earthgpt_jax import params as params_lib
from earthgpt_jax.aot.flops import products
from earthgpt_jax.config import CONTEXT, FrozenDType, Remat, Stage, kept
from earthgpt_jax.models import earthgpt
from earthgpt_jax.models.llama import PackedAttention
from earthgpt_jax.models.quantized import cast_frozen
from earthgpt_jax.ops.attention import make_attention_mask
from earthgpt_jax.training.stages import trainable_paths
from tests.support import nano

ROWS, LENGTH, DEPTH = 2, 24, 4
NAMED = [policy for policy in Remat if policy not in (Remat.NONE, Remat.AUTO)]
LISTED = ["o,down", "o,down,gate:1", "q:3,gate:1", "o,down,q:2,k@host,context"]


def _gradient(remat: str, *, stage: Stage = Stage.INSTRUCT, frozen_dtype: FrozenDType = FrozenDType.FLOAT32):
    """Return the gradient function of a sum over the LLM's outputs, and the trainable parameters it is taken at."""
    config = nano.config(stage, f"model.llm.depth={DEPTH}")
    graphdef, params = earthgpt.init(config.model, seed=0)
    rng = np.random.default_rng(0)
    params = {k: v + 0.1 * rng.standard_normal(v.shape).astype(np.float32) for k, v in params.items()}
    trainable, frozen = params_lib.split(params, trainable_paths(config, params))
    frozen = cast_frozen(frozen, frozen_dtype)
    ones = jnp.ones((ROWS, LENGTH), jnp.int32)
    x = jnp.asarray(rng.normal(size=(ROWS, LENGTH, config.model.llm.dim)), jnp.float32)
    attention = PackedAttention(make_attention_mask(ones, 0 * ones))
    positions = jnp.cumsum(ones, 1)

    def total(trainable):
        model = params_lib.merge_module(graphdef, trainable, frozen=frozen)
        return jnp.sum(model.llm(x, positions=positions, attention=attention, remat=remat).hidden ** 2)

    return jax.grad(total), trainable


@functools.cache
def _products(remat: str) -> float:
    return products(*_gradient(remat))


@functools.cache
def _expected(stage: Stage, frozen_dtype: FrozenDType):
    gradient, trainable = _gradient(Remat.NONE, stage=stage, frozen_dtype=frozen_dtype)
    return jax.jit(gradient)(trainable)


CASES = [
    *((remat, Stage.INSTRUCT, FrozenDType.FLOAT32) for remat in (*NAMED, *LISTED)),
    *((remat, Stage.ALIGN, FrozenDType.FLOAT32) for remat in ("q:3,gate:1", LISTED[-1])),
    (LISTED[-1], Stage.INSTRUCT, FrozenDType.INT8),
]


@pytest.mark.parametrize(("remat", "stage", "frozen_dtype"), CASES)
def test_gradients_do_not_depend_on_the_policy(remat, stage, frozen_dtype):
    gradient, trainable = _gradient(remat, stage=stage, frozen_dtype=frozen_dtype)
    expected = _expected(stage, frozen_dtype)
    for path, value in jax.jit(gradient)(trainable).items():
        if path.startswith("llm/"):
            difference = np.linalg.norm(value - expected[path])
            assert difference <= 3e-6 * np.linalg.norm(expected[path]), path


def _products_by_name() -> dict[str, int]:
    """Return, for each output that can be kept, the FLOPs of its product in one layer."""
    llm = nano.config(Stage.INSTRUCT).model.llm
    per_token = 2 * ROWS * LENGTH * llm.dim
    kv = llm.kv_heads * llm.head_dim
    widths = {"q": llm.dim, "k": kv, "v": kv, "o": llm.dim, "gate": llm.ffn_dim, "up": llm.ffn_dim, "down": llm.ffn_dim}
    return {name: per_token * width for name, width in widths.items()} | {CONTEXT: 2 * per_token * LENGTH}


def test_which_products_are_recomputed():
    """If outputs were named after the adapters' scale, `minimal` would recompute every linear layer."""
    one = _products_by_name()
    attention, gate_up = one[CONTEXT], one["gate"] + one["up"]
    others = sum(one[name] for name in ("q", "k", "v", "o", "down"))
    assert _products(Remat.MINIMAL) - _products(Remat.NONE) == DEPTH * attention
    assert _products(Remat.ATTENTION) - _products(Remat.MINIMAL) == DEPTH * gate_up
    assert _products(Remat.OFFLOAD) == _products(Remat.ATTENTION)
    assert _products(Remat.FULL) - _products(Remat.ATTENTION) == DEPTH * others


@pytest.mark.parametrize("remat", LISTED)
def test_a_list_recomputes_what_it_does_not_keep_and_nothing_twice(remat):
    one = _products_by_name()
    policy = kept(remat)
    counts = dict.fromkeys(policy.offloaded, DEPTH)
    counts |= {name: DEPTH if count is None else count for name, count in policy.layers.items()}
    saved = sum(count * one[name] for name, count in counts.items() if name != CONTEXT)
    assert _products(Remat.FULL) - _products(remat) == saved
