import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from earthgpt_jax.ops.attention import attend, make_attention_mask
from earthgpt_jax.ops.depthwise import _grouped, depthwise
from earthgpt_jax.ops.losses import next_token_loss
from earthgpt_jax.ops.resize import Method, matrix, resize
from earthgpt_jax.ops.rope import rope


def _random(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention_matches_jax_with_grouped_queries(kv_heads):
    q, k, v = _random(2, 5, 4, 8), _random(2, 7, kv_heads, 8, seed=1), _random(2, 7, kv_heads, 8, seed=2)
    mask = jnp.asarray(np.random.default_rng(3).random((2, 5, 7)) < 0.6).at[:, :, 0].set(True)
    expected = jax.nn.dot_product_attention(q, k, v, mask=mask[:, None], implementation="xla")
    np.testing.assert_allclose(attend(q, k, v, mask=mask), expected, atol=1e-6)


@pytest.mark.parametrize("length", [128, 129, 300])
def test_blockwise_causal_attention_matches_unblocked(length):
    """Values and gradients, for two segments with questions and padding, at lengths around the block size."""
    rng = np.random.default_rng(0)
    q, k, v = _random(2, length, 4, 8), _random(2, length, 2, 8, seed=1), _random(2, length, 2, 8, seed=2)
    segments = jnp.asarray(np.sort(rng.integers(1, 3, (2, length)), axis=1)).at[:, -5:].set(0)
    mask = make_attention_mask(segments, jnp.asarray(rng.integers(0, 3, (2, length))))
    seen = mask.any(-1)[:, :, None, None]  # what sees nothing may differ

    def total(q, k, v, causal):
        return jnp.sum(jnp.where(seen, attend(q, k, v, mask=mask, causal=causal), 0.0) ** 2)

    for ours, whole in zip(
        jax.tree.leaves(jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)), static_argnums=3)(q, k, v, True)),
        jax.tree.leaves(jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)), static_argnums=3)(q, k, v, False)),
        strict=True,
    ):
        np.testing.assert_allclose(ours, whole, rtol=1e-4, atol=1e-5)


def test_a_fully_masked_query_has_finite_values_and_gradients():
    q, k = _random(1, 2, 1, 4), _random(1, 3, 1, 4, seed=1)
    mask = jnp.zeros((1, 2, 3), bool)
    gradient = jax.grad(lambda q: attend(q, k, k, mask=mask).sum())(q)
    assert np.isfinite(attend(q, k, k, mask=mask)).all() and np.isfinite(gradient).all()


def test_attention_mask_of_packed_sequences():
    # one shared token, branch 1 (two tokens), branch 2, then another sample's token, then padding
    segments, question_index = jnp.array([[1, 1, 1, 1, 2, 0]]), jnp.array([[0, 1, 1, 2, 0, 0]])
    expected = [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]
    np.testing.assert_array_equal(make_attention_mask(segments, question_index)[0].astype(int), expected)


def test_rope_depends_on_distances_only_and_preserves_norms():
    q, k = _random(1, 1, 1, 8), _random(1, 1, 1, 8, seed=1)

    def score(i: int, j: int) -> float:
        a, b = (rope(x, jnp.array([[p]]), theta=100.0) for x, p in ((q, i), (k, j)))
        return float((a * b).sum())

    assert score(3, 1) == pytest.approx(score(103, 101), abs=1e-4)
    assert score(3, 1) != pytest.approx(score(3, 2), abs=1e-3)
    np.testing.assert_allclose(rope(q, jnp.array([[0]]), theta=100.0), q, atol=1e-7)
    # by hand: two channels, one angle of 1 radian
    turned = rope(jnp.array([[[[1.0, 0.0]]]]), jnp.array([[1]]), theta=10.0)
    np.testing.assert_allclose(turned[0, 0, 0], [np.cos(1), np.sin(1)], atol=1e-6)


def test_depthwise_on_cpu_matches_the_convolution_forward_and_backward():
    x, kernel = _random(2, 6, 5, 3), _random(7, 7, 1, 3, seed=1)
    np.testing.assert_allclose(depthwise(x, kernel), _grouped(x, kernel), atol=1e-5)
    for argument in (0, 1):
        ours, theirs = (
            jax.grad(lambda x, k, f=f: jnp.sin(f(x, k)).sum(), argnums=argument)(x, kernel)
            for f in (depthwise, _grouped)
        )
        np.testing.assert_allclose(ours, theirs, atol=2e-4)


@pytest.mark.parametrize(("source", "target"), [(40, 16), (16, 40), (33, 7)])
def test_bicubic_matches_pillow(source, target):
    image = np.random.default_rng(0).random((source, source)).astype(np.float32)
    expected = np.asarray(Image.fromarray(image).resize((target, target), Image.Resampling.BICUBIC))
    got = resize(jnp.asarray(image)[None, :, :, None], target, Method.BICUBIC_PIL)[0, :, :, 0]
    np.testing.assert_allclose(got, expected, atol=2e-6)


@pytest.mark.torch
@pytest.mark.parametrize(("source", "target"), [(8, 20), (20, 8), (37, 16)])
@pytest.mark.parametrize("mode", ["bicubic", "nearest"])
def test_resizing_matches_torch(source, target, mode):
    import torch

    image = np.random.default_rng(0).random((1, 2, source, source)).astype(np.float32)
    expected = torch.nn.functional.interpolate(torch.from_numpy(image), size=(target, target), mode=mode).numpy()
    method = {"bicubic": Method.BICUBIC_TORCH, "nearest": Method.NEAREST}[mode]
    got = resize(jnp.asarray(image.transpose(0, 2, 3, 1)), target, method)
    np.testing.assert_allclose(got, expected.transpose(0, 2, 3, 1), atol=2e-6)


@pytest.mark.parametrize("method", Method)
def test_resize_weights_sum_to_one(method):
    np.testing.assert_allclose(matrix(32, 8, method).sum(axis=1), 1, atol=1e-6)


def test_loss_of_a_hand_computed_example():
    # two positions with targets 1 and 0; logits uniform over 2, then certain of 0
    logits = jnp.array([[[0.0, 0.0], [50.0, 0.0], [9.0, 9.0]]])
    tokens, weights = jnp.array([[0, 1, 0]]), jnp.array([[7.0, 1.0, 3.0]])
    total, weight = next_token_loss(logits, tokens, weights)
    assert float(total) == pytest.approx(np.log(2) + 0.0, abs=1e-6)
    assert float(weight) == 4.0  # the first token is nobody's target
