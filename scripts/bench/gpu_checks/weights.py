"""Random parameters, created on the device in their final type: never a whole model in another one."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from earthgpt_jax.models.quantized import Int8

# Elements; arrays up to this size are made on the host by repeating a random vector, which needs no compilation.
_HOST_LIMIT = 1 << 27
_VECTOR = 1_000_003  # a prime, so that no row of a matrix repeats
_INT8_STD = 73.9  # standard deviation of uniform int8 values


def random_params(shapes: Mapping[str, Any]) -> dict[str, Any]:
    """Return random parameters with the given shapes and dtypes; int8 kernels stay int8.

    The values serve to run and time a model: kernels have a variance of 1 / inputs, norms and scales are one, and
    biases are zero.

    Args:
        shapes: path -> ShapeDtypeStruct, or `quantized.Int8` of two of them.
    """
    return {path: _random(path, value) for path, value in shapes.items()}


def _random(path: str, shape: Any) -> Any:
    if isinstance(shape, Int8):  # its scale makes the variance of the kernel 1 / inputs
        std = shape.values.shape[-2] ** -0.5 / _INT8_STD
        scale = jnp.asarray(np.full(shape.scale.shape, std, shape.scale.dtype))
        return Int8(_values(path, shape.values), scale)
    last = path.rsplit("/", 1)[-1]
    if last in ("scale", "gamma", "ls1", "ls2"):
        return jnp.asarray(np.ones(shape.shape, shape.dtype))
    if last in ("bias", "dw_bias"):
        return jnp.asarray(np.zeros(shape.shape, shape.dtype))
    return _values(path, shape)


def _values(path: str, shape: Any) -> jax.Array:
    seed, inputs = zlib.crc32(path.encode()), shape.shape[-2] if len(shape.shape) > 1 else 1
    std = 0.02 if path == "llm/embed" or inputs == 1 else inputs**-0.5
    if np.prod(shape.shape, dtype=np.int64) > _HOST_LIMIT:
        return _on_device(shape.shape, jnp.dtype(shape.dtype).name)(jax.random.key(seed, impl="rbg"), std)
    generator = np.random.default_rng(seed)
    if shape.dtype == jnp.int8:
        vector = generator.integers(-128, 128, _VECTOR, np.int8)
    else:
        vector = (std * generator.standard_normal(_VECTOR, np.float32)).astype(shape.dtype)
    return jnp.asarray(np.resize(vector, shape.shape))


@functools.lru_cache(maxsize=32)
def _on_device(shape: tuple[int, ...], dtype: str) -> Any:
    """Return the compiled generator of an array, which makes one layer at a time."""

    def part(key: jax.Array, std: jax.Array) -> jax.Array:
        if dtype == "int8":
            return jax.lax.bitcast_convert_type(jax.random.bits(key, shape[1:], jnp.uint8), jnp.int8)
        return std.astype(dtype) * jax.random.normal(key, shape[1:], jnp.dtype(dtype))

    def whole(key: jax.Array, std: jax.Array) -> jax.Array:
        std = jnp.asarray(std, jnp.float32)
        if len(shape) < 3:
            values = jax.random.normal(key, shape, jnp.dtype(dtype))
            return std.astype(dtype) * values
        return jax.lax.map(lambda key: part(key, std), jax.random.split(key, shape[0]))

    return jax.jit(whole)


def size_in_bytes(tree: Any) -> int:
    """Return the bytes of all arrays, or shapes, of a tree."""
    return sum(int(np.prod(x.shape, dtype=np.int64)) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))
