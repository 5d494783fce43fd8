"""Frozen kernels in int8: values, gradients, memory and sharding."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from earthgpt_jax import config as config_lib
from earthgpt_jax import params as params_lib
from earthgpt_jax.aot import program
from earthgpt_jax.config import DType, FrozenDType, MeshConfig
from earthgpt_jax.models.quantized import Int8, cast_frozen, dequantize, matmul, quantize
from earthgpt_jax.sharding.mesh import Placement, build_mesh

RNG = np.random.default_rng(0)
KERNEL = RNG.standard_normal((3, 64, 48)).astype(np.float32) * np.exp(RNG.normal(size=(3, 1, 48))).astype(np.float32)
X = RNG.standard_normal((2, 5, 64)).astype(np.float32)


def test_values_and_scales_match_qwix():
    qwix = pytest.importorskip("qwix")
    ours, theirs = quantize(jnp.asarray(KERNEL)), qwix.quantize(jnp.asarray(KERNEL), "int8", channelwise_axes=(0, 2))
    np.testing.assert_allclose(ours.scale, theirs.scale, rtol=1e-6)
    np.testing.assert_array_equal(ours.values, theirs.qvalue)


def test_rounding_error_is_at_most_half_a_level_and_zeros_stay_zero():
    kernel = KERNEL.copy()
    kernel[1, :, 7] = 0
    got = quantize(jnp.asarray(kernel))
    assert got.values.dtype == jnp.int8 and got.shape == kernel.shape and got.scale.shape == (3, 1, 48)
    error = np.abs(np.asarray(got.values * got.scale) - kernel)
    assert np.all(error <= np.abs(kernel).max(axis=1, keepdims=True) / 127.5 / 2 * 1.001)
    assert not error[1, :, 7].any()


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 1e-2)])
def test_matmul_and_its_gradient(dtype, tolerance):
    kernel = jax.tree.map(lambda array: array[0], quantize(jnp.asarray(KERNEL)))
    exact = np.asarray(kernel.values, np.float64) * np.asarray(kernel.scale, np.float64)
    x, g = (jnp.asarray(value).astype(dtype) for value in (X, RNG.standard_normal((2, 5, 48))))
    y, back = jax.vjp(lambda x: matmul(x, kernel), x)
    (dx,) = back(g)
    assert y.dtype == dx.dtype == jnp.dtype(dtype)
    for got, expected in ((y, np.asarray(x, np.float64) @ exact), (dx, np.asarray(g, np.float64) @ exact.T)):
        assert np.abs(np.asarray(got, np.float64) - expected).max() < tolerance * np.abs(expected).max()


def _temporaries(multiply) -> int:
    """Return the temporary bytes of a gradient through 16 layers."""
    kernels = jax.eval_shape(quantize, jax.ShapeDtypeStruct((16, 128, 128), jnp.float32))

    def total(scales, x, kernels):
        def body(x, layer):
            scale, kernel = layer
            return x + scale * jax.nn.silu(multiply(x, kernel)), None

        return jnp.sum(jax.lax.scan(body, x, (scales, kernels))[0])

    scales, x = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((16, 128), (4, 128)))
    return jax.jit(jax.grad(total)).lower(scales, x, kernels).compile().memory_analysis().temp_size_in_bytes


def test_widened_kernels_are_not_kept_for_the_backward_pass():
    widened = 16 * 128 * 128 * 4
    assert _temporaries(matmul) < widened / 2
    assert _temporaries(lambda x, kernel: x @ (kernel.values.astype(jnp.float32) * kernel.scale)) > widened


def test_cast_frozen_and_dequantize():
    params = {
        "llm/blocks/mlp/up/kernel": jnp.asarray(KERNEL),
        "llm/blocks/attn/q/bias": jnp.ones((3, 48)),
        "vit/blocks/mlp/fc1/kernel": jnp.asarray(KERNEL),
        "llm/head/kernel": jnp.asarray(KERNEL[0]),
    }
    frozen = cast_frozen(params, FrozenDType.INT8)
    assert {path for path, value in frozen.items() if isinstance(value, Int8)} == {"llm/blocks/mlp/up/kernel"}
    assert {value.dtype for value in frozen.values()} == {jnp.dtype("int8"), jnp.dtype("bfloat16")}
    back = dequantize(frozen, DType.FLOAT32)
    kernel = frozen["llm/blocks/mlp/up/kernel"]
    np.testing.assert_array_equal(back["llm/blocks/mlp/up/kernel"], kernel.values * kernel.scale)
    # Fingerprints see scales as well as values, and of plain arrays are what they were.
    other = frozen | {"llm/blocks/mlp/up/kernel": kernel._replace(scale=2 * kernel.scale)}
    assert params_lib.fingerprint(frozen) != params_lib.fingerprint(other)
    assert cast_frozen(params, FrozenDType.FLOAT32).keys() == params.keys()


def test_values_and_scales_are_sharded_alike():
    mesh = build_mesh(MeshConfig(data=2, fsdp=2, tensor=2), rows=4)
    place = Placement(mesh=mesh, specs={"up": P(None, "fsdp", "tensor"), "down": P(None, "tensor", "fsdp")})
    put = place.put({name: quantize(jnp.asarray(KERNEL)) for name in ("up", "down")})
    assert put["up"].values.sharding.spec == P(None, "fsdp", "tensor")
    assert put["up"].scale.sharding.spec == P(None, None, "tensor")
    assert put["down"].scale.sharding.spec == P(None, None, "fsdp")


def test_13b_needs_half_the_bytes():
    def gib(dtype: str) -> float:
        config = config_lib.load("earthgpt_13b:instruct", [f"--config.frozen_dtype={dtype}", "--config.mesh.fsdp=1"])
        mesh = build_mesh(MeshConfig(data=1), rows=32, devices=jax.devices()[:1])
        return program.bytes_per_device(program.step_inputs(config, mesh).frozen)

    kernels = 40 * (4 * 5120**2 + 3 * 5120 * 13824)
    scales = 4 * 40 * (5 * 5120 + 2 * 13824)
    assert gib("bfloat16") - gib("int8") == kernels - scales
