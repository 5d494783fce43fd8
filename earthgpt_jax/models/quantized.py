"""Frozen kernels in int8: half the bytes of bfloat16, in memory and on the links.

Weight-only, symmetric, one scale an output channel: W ~ values * scale. The scale is applied to the product, in
float32, so that no product is with rounded weights twice, and a kernel is never there in a wider type as a whole.
That is why the product has a gradient of its own (of its input; a frozen kernel has none): differentiated by JAX, the
widened kernels of all layers would be kept for the backward pass.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from earthgpt_jax import params as params_lib
from earthgpt_jax.config import DType, FrozenDType

# Nearly all of the frozen bytes. Norms, biases and adapters are few; embedding, head and encoders stay precise.
_KERNELS = re.compile(r"llm/blocks/(attn|mlp)/\w+/kernel")
_TOP = 127.5  # what a channel's largest weight is scaled to, as in qwix: 256 levels, none left out


class Int8(NamedTuple):
    """A kernel [..., in, out].

    Attributes:
        values: int8[..., in, out].
        scale: f32[..., 1, out].
    """

    values: jax.Array
    scale: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def dtype(self) -> Any:
        return self.values.dtype


def quantize(kernel: jax.Array) -> Int8:
    """Rounded to the nearest level."""
    kernel = kernel.astype(jnp.float32)
    scale = jnp.max(jnp.abs(kernel), axis=-2, keepdims=True) / _TOP
    scale = jnp.where(scale == 0, 1.0, scale)
    return Int8(jnp.round(kernel / scale).clip(-128, 127).astype(jnp.int8), scale)


def int8_matmul(x: jax.Array, kernel: jax.Array | Int8) -> jax.Array:
    """x @ kernel, [..., in] x [in, out], in the dtype of `x`; of an `Int8` not differentiable for the kernel."""
    return _product(x, kernel) if isinstance(kernel, Int8) else x @ kernel.astype(x.dtype)


@jax.custom_vjp
def _product(x: jax.Array, kernel: Int8) -> jax.Array:
    y = jnp.matmul(x, kernel.values.astype(x.dtype), preferred_element_type=jnp.float32)
    return (y * kernel.scale).astype(x.dtype)


def _forward(x: jax.Array, kernel: Int8) -> tuple[jax.Array, Int8]:
    return _product(x, kernel), kernel


def _backward(kernel: Int8, gradient: jax.Array) -> tuple[jax.Array, None]:
    scaled = (gradient * kernel.scale).astype(gradient.dtype)
    return scaled @ kernel.values.astype(gradient.dtype).T, None


_product.defvjp(_forward, _backward)


def cast_frozen(params: Mapping[str, jax.Array], dtype: FrozenDType) -> dict[str, Any]:
    """Weights that are not trained, as a run holds them; for `int8` the LLM's kernels `Int8`, the rest bfloat16."""
    if dtype is not FrozenDType.INT8:
        return params_lib.cast(params, dtype)
    kernels, rest = params_lib.split(params, (path for path in params if _KERNELS.fullmatch(path)))
    made: dict[str, Any] = {path: quantize(kernel) for path, kernel in kernels.items()}
    return params_lib.merge(made, params_lib.cast(rest, DType.BFLOAT16))


def dequantize(frozen: Mapping[str, Any], dtype: DType) -> params_lib.Params:
    """The arrays that `freeze` stands for: the kernels that were computed with, in `dtype`; the rest as it is."""
    return {
        path: (value.values * value.scale).astype(jnp.dtype(dtype)) if isinstance(value, Int8) else value
        for path, value in frozen.items()
    }
