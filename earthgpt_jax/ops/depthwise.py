"""Depthwise convolution.

XLA's CPU backend runs the forward pass of a grouped convolution much slower than the sum of shifted products below (the
gradient gains little); accelerators have a fast kernel for it. `platform_dependent` chooses during lowering, so
ahead-of-time compilation for a TPU sees the convolution.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def depthwise(x: Float[Array, "B H W C"], kernel: Float[Array, "k k 1 C"]) -> Float[Array, "B H W C"]:
    """Convolve every channel with its own kernel, with stride 1 and 'SAME' padding; k is odd."""
    return jax.lax.platform_dependent(x, kernel, cpu=_shifted, default=_grouped)


def _grouped(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=x.shape[-1]
    )


def _shifts(x: jax.Array, size: int) -> list[tuple[int, int, jax.Array]]:
    half, (height, width) = size // 2, x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (half, half), (half, half), (0, 0)))
    return [(i, j, padded[:, i : i + height, j : j + width]) for i in range(size) for j in range(size)]


@jax.custom_vjp
def _shifted(x: jax.Array, kernel: jax.Array) -> jax.Array:
    out = jnp.zeros_like(x)
    for i, j, window in _shifts(x, kernel.shape[0]):
        out = out + window * kernel[i, j, 0]
    return out


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _shifted(x, kernel), (x, kernel)


def _backward(residuals: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    taps = [jnp.sum(window * gradient, axis=(0, 1, 2)) for _, _, window in _shifts(x, kernel.shape[0])]
    return _shifted(gradient, kernel[::-1, ::-1]), jnp.stack(taps).reshape(kernel.shape)


_shifted.defvjp(_forward, _backward)
