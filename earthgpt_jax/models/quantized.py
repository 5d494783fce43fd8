"""Frozen kernels in int8: half the bytes of bfloat16, in memory and between devices.

Quantization is weight-only and symmetric, with one scale per output channel: W ~ values * scale. The scale is applied
to the product in fp32, so the weights are rounded once only, and a whole kernel never exists in a wider dtype. The
product has a custom gradient (with respect to its input; a frozen kernel needs none), because JAX's own would keep
the widened kernels of all layers for the backward pass.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from earthgpt_jax import params as params_lib
from earthgpt_jax.config import DType, FrozenDType

# These are nearly all frozen bytes. Norms, biases and adapters are small; embedding, head and encoders stay precise.
_KERNELS = re.compile(r"llm/blocks/(attn|mlp)/\w+/kernel")
_LARGEST = 127.5  # the largest weight of a channel maps to this, as in qwix, so that all 256 levels are used


class Int8(NamedTuple):
    """A quantized kernel [..., in, out].

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
    """Quantize a kernel [..., in, out], rounding to the nearest level."""
    kernel = kernel.astype(jnp.float32)
    scale = jnp.max(jnp.abs(kernel), axis=-2, keepdims=True) / _LARGEST
    scale = jnp.where(scale == 0, 1.0, scale)
    return Int8(jnp.round(kernel / scale).clip(-128, 127).astype(jnp.int8), scale)


def round_to_int8(kernel: np.ndarray, dtype: DType) -> np.ndarray:
    """Return a kernel [..., in, out] on the host with the values that `quantize` keeps, in `dtype`."""
    return np.asarray(dequantize({"": jax.jit(quantize)(kernel)}, dtype)[""])


def matmul(x: Float[Array, "*B I"], kernel: Float[Array, "I O"] | Int8) -> Float[Array, "*B O"]:
    """Return x @ kernel in the dtype of `x`; not differentiable with respect to a quantized kernel."""
    return _int8_matmul(x, kernel) if isinstance(kernel, Int8) else x @ kernel.astype(x.dtype)


@jax.custom_vjp
def _int8_matmul(x: jax.Array, kernel: Int8) -> jax.Array:
    y = jnp.matmul(x, kernel.values.astype(x.dtype), preferred_element_type=jnp.float32)
    return (y * kernel.scale).astype(x.dtype)


def _forward(x: jax.Array, kernel: Int8) -> tuple[jax.Array, Int8]:
    return _int8_matmul(x, kernel), kernel


def _backward(kernel: Int8, gradient: jax.Array) -> tuple[jax.Array, None]:
    scaled = (gradient * kernel.scale).astype(gradient.dtype)
    return scaled @ kernel.values.astype(gradient.dtype).T, None


_int8_matmul.defvjp(_forward, _backward)


def is_quantized(path: str, dtype: FrozenDType) -> bool:
    """Return whether `cast_frozen` quantizes the parameter."""
    return dtype is FrozenDType.INT8 and _KERNELS.fullmatch(path) is not None


def frozen_array_dtype(dtype: FrozenDType) -> Any:
    """Return the dtype of frozen parameters that are not quantized."""
    return jnp.dtype(DType.BFLOAT16 if dtype is FrozenDType.INT8 else dtype)


def cast_frozen(params: Mapping[str, jax.Array], dtype: FrozenDType) -> dict[str, Any]:
    """Cast frozen parameters to `dtype`.

    For int8 the kernels of the LLM's blocks are quantized to `Int8`, and all other parameters are cast to bfloat16.
    """
    if dtype is not FrozenDType.INT8:
        return params_lib.cast(params, dtype)
    kernels, rest = params_lib.split(params, (path for path in params if _KERNELS.fullmatch(path)))
    quantized: dict[str, Any] = {path: quantize(kernel) for path, kernel in kernels.items()}
    return params_lib.merge(quantized, params_lib.cast(rest, DType.BFLOAT16))


def dequantize(frozen: Mapping[str, Any], dtype: DType) -> params_lib.Params:
    """Return frozen parameters with quantized kernels converted to `dtype`, and all others as they are."""
    return {
        path: (value.values * value.scale).astype(jnp.dtype(dtype)) if isinstance(value, Int8) else value
        for path, value in frozen.items()
    }
