"""Separable image resizing as two matrix products, with exactly the rules of the code whose weights we load.

The bicubic kernel of torch uses Keys' a = -0.75 and is never widened; that of Pillow uses a = -0.5 and is widened by
the scale when an image shrinks (antialiasing). One matrix per axis, built in float64 on the host, covers both.
"""

from __future__ import annotations

import enum
import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped


class Method(enum.StrEnum):
    """How an image is resampled."""

    NEAREST = "nearest"  # torch's default: source index floor(i * scale)
    BICUBIC_TORCH = "bicubic_torch"
    BICUBIC_PIL = "bicubic_pil"
    AREA = "area"  # mean over cells; the target size must divide the source size


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Evaluate Keys' cubic convolution kernel (1981) at distances `x`."""
    x = np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


@functools.lru_cache
def matrix(source: int, target: int, method: Method, scale: float | None = None) -> np.ndarray:
    """Return the matrix that resizes one axis, f32[target, source].

    Args:
        source: size of the axis before.
        target: size of the axis after.
        method: how to resample.
        scale: source pixels per target pixel; default: `source / target`. (The DINOv2 hub code passes a scale factor,
            which torch then uses instead of the ratio of sizes.)

    Raises:
        ValueError: `method` is AREA and `target` does not divide `source`.
    """
    scale = source / target if scale is None else scale
    index = np.arange(target)
    weights = np.zeros((target, source))
    if method is Method.NEAREST:
        weights[index, np.minimum((index * scale).astype(int), source - 1)] = 1.0
        return weights.astype(np.float32)
    if method is Method.AREA:
        if source % target:
            raise ValueError(f"area resize: {target} does not divide {source}")
        return np.repeat(np.eye(target), source // target, axis=1).astype(np.float32) * (target / source)
    center = (index + 0.5) * scale - 0.5
    if method is Method.BICUBIC_TORCH:
        for offset in range(-1, 3):
            tap = np.floor(center).astype(int) + offset
            # Taps outside of the image repeat the border pixel.
            np.add.at(weights, (index, np.clip(tap, 0, source - 1)), _cubic(center - tap, -0.75))
        return weights.astype(np.float32)
    support = max(scale, 1.0)
    distance = (np.arange(source)[None, :] - center[:, None]) / support
    weights = _cubic(distance, -0.5)  # taps outside of the image are dropped, the rest renormalized
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def resize(
    x: Shaped[Array, "B H W C"], size: int, method: Method, *, scale: float | None = None
) -> Float[Array, "B {size} {size} C"]:
    """Resize images to a square; returns `x` unchanged if it has that size already, float32 otherwise."""
    if x.shape[1] == x.shape[2] == size and scale is None:
        return x
    vertical = matrix(x.shape[1], size, method, scale)
    horizontal = matrix(x.shape[2], size, method, scale)
    out = jnp.einsum("th,bhwc->btwc", vertical, x.astype(jnp.float32))
    return jnp.einsum("tw,bhwc->bhtc", horizontal, out)
