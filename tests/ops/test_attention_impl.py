"""Attention implementations match the XLA one on packed sequences with questions and padding; selecting one."""

from __future__ import annotations

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.config import AttentionImpl, DType
from earthgpt_jax.ops import attention_impl
from earthgpt_jax.ops.attention import CudnnAttention, XlaAttention, attend, make_attention_mask
from earthgpt_jax.ops.attention_impl import select_attention
from earthgpt_jax.ops.splash import SplashAttention


def _packed(rows: int, length: int) -> tuple[jax.Array, jax.Array]:
    """Return segments and question indices: two samples and padding; the first sample has two questions."""
    segments, question_index = np.zeros((2, rows, length), np.int32)
    for row in range(rows):
        first, second = length // 2 + 13 * row, length - 7 * row
        segments[row, :first], segments[row, first:second] = 1, 2
        question_index[row, first // 3 : first // 2], question_index[row, first // 2 : first] = 1, 2
    return jnp.asarray(segments), jnp.asarray(question_index)


def _qkv(rows: int, length: int, *, heads: int, kv_heads: int, head_dim: int) -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(0)
    shapes = ((rows, length, n, head_dim) for n in (heads, kv_heads, kv_heads))
    return tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)


@pytest.mark.parametrize(("length", "kv_heads", "head_dim"), [(256, 2, 128), (384, 1, 64)])
def test_splash_matches_xla_forward_and_backward(length, kv_heads, head_dim):
    """Run the TPU kernel in interpret mode; the tolerance is 1e-5 of the largest value."""
    qkv = _qkv(2, length, heads=2, kv_heads=kv_heads, head_dim=head_dim)
    segments, question_index = _packed(2, length)
    mask = make_attention_mask(segments, question_index)
    upstream = jnp.asarray(np.random.default_rng(1).normal(size=qkv[0].shape), jnp.float32)

    def total(kernel):
        def value(*qkv):
            out = kernel(*qkv, mask=kernel.prepare(mask))
            return jnp.sum(out * upstream), out

        return jax.jit(jax.value_and_grad(value, argnums=(0, 1, 2), has_aux=True))

    with pltpu.force_tpu_interpret_mode():
        (_, ours), gradients = total(SplashAttention())(*qkv)
    (_, plain), expected = total(XlaAttention())(*qkv)
    np.testing.assert_allclose(plain, attend(*qkv, mask=mask), atol=1e-6)
    for got, wanted in zip((ours, *gradients), (plain, *expected), strict=True):
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(got / scale, wanted / scale, atol=1e-5)


def test_the_arguments_of_cudnn_attention_are_those_of_attend():
    """JAX cannot lower cuDNN's call without a GPU, so pass the same arguments to its XLA implementation."""
    q, k, v = _qkv(2, 64, heads=4, kv_heads=2, head_dim=16)
    mask = make_attention_mask(*_packed(2, 64))
    same = jax.nn.dot_product_attention(q, k, v, mask=CudnnAttention().prepare(mask), implementation="xla")
    np.testing.assert_allclose(same, attend(q, k, v, mask=mask), atol=1e-6)


CHOICES = [
    ("tpu", DType.BFLOAT16, 1024, SplashAttention, ""),
    ("tpu", DType.BFLOAT16, 1000, XlaAttention, "sequences of 1000 tokens are not a multiple of 128"),
    ("gpu", DType.BFLOAT16, 1000, CudnnAttention, ""),
    ("gpu", DType.FLOAT32, 1024, XlaAttention, "computes in float32"),
    ("cpu", DType.FLOAT32, 1024, XlaAttention, "the devices are cpu, not tpu"),
]


@pytest.mark.parametrize(("platform", "dtype", "length", "kernel", "why"), CHOICES)
def test_auto_selects_what_fits_and_logs_the_reason_once(platform, dtype, length, kernel, why, caplog):
    attention_impl._log_once.cache_clear()
    with caplog.at_level(logging.INFO, logger=attention_impl.__name__):
        for _ in range(2):
            chosen = select_attention(AttentionImpl.AUTO, platform=platform, dtype=dtype, length=length, head_dim=128)
            assert isinstance(chosen, kernel)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("attention auto: ") and why in caplog.messages[0]


def test_a_named_implementation_that_does_not_fit_is_refused_with_all_reasons():
    with pytest.raises(
        EarthGPTError, match="splash does not fit: the devices are cpu, not tpu; sequences of 100 tokens"
    ):
        select_attention(AttentionImpl.SPLASH, platform="cpu", dtype=DType.FLOAT32, length=100, head_dim=128)
