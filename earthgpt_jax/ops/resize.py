"""Separable image resizing as matrices, with the exact rules of the codes whose weights we load.

torch's bicubic takes Keys' a = -0.75 and never widens the kernel; Pillow's takes a = -0.5 and widens
it by the scale when shrinking (antialias). A matrix per axis, built once in float64 on the host,
gives both, and runs as two matmuls on the device.
"""

from __future__ import annotations

import enum
import functools

import jax
import jax.numpy as jnp
import numpy as np


class Method(enum.StrEnum):
    NEAREST = "nearest"  # torch's default: source index floor(i * scale)
    BICUBIC_TORCH = "bicubic_torch"
    BICUBIC_PIL = "bicubic_pil"
    AREA = "area"  # mean over whole cells; the sizes divide


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    x = np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


@functools.lru_cache
def matrix(source: int, target: int, method: Method, scale: float | None = None) -> np.ndarray:
    """f32[target, source]: one axis of the resize.

    Args:
        scale: source pixels a target pixel where it is not `source / target` (the DINOv2 hub code
            passes a scale factor, and torch then uses that instead of the ratio of sizes).
    """
    scale = source / target if scale is None else scale
    rows = np.arange(target)
    weights = np.zeros((target, source))
    if method is Method.NEAREST:
        weights[rows, np.minimum((rows * scale).astype(int), source - 1)] = 1.0
        return weights.astype(np.float32)
    if method is Method.AREA:
        if source % target:
            raise ValueError(f"area resize: {target} does not divide {source}")
        return np.repeat(np.eye(target), source // target, axis=1).astype(np.float32) * (target / source)
    centre = (rows + 0.5) * scale - 0.5
    if method is Method.BICUBIC_TORCH:
        for offset in range(-1, 3):
            index = np.floor(centre).astype(int) + offset
            # Out-of-range taps repeat the border pixel.
            np.add.at(weights, (rows, np.clip(index, 0, source - 1)), _cubic(centre - index, -0.75))
        return weights.astype(np.float32)
    support = max(scale, 1.0)
    distance = (np.arange(source)[None, :] - centre[:, None]) / support
    weights = _cubic(distance, -0.5)  # taps outside of the image are dropped, the rest renormalised
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def resize(x: jax.Array, size: int, method: Method, *, scale: float | None = None) -> jax.Array:
    """[B, H, W, C] -> f32[B, size, size, C]; returns `x` unchanged where the size is right already."""
    if x.shape[1] == x.shape[2] == size and scale is None:
        return x
    rows = matrix(x.shape[1], size, method, scale)
    columns = matrix(x.shape[2], size, method, scale)
    out = jnp.einsum("th,bhwc->btwc", rows, x.astype(jnp.float32))
    return jnp.einsum("tw,bhwc->bhtc", columns, out)
