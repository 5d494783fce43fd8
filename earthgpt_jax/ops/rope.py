"""Rotary position embedding (RoFormer, arXiv 2104.09864), with half-split pairs as in Hugging Face LLaMA."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def rope(x: Float[Array, "B T N H"], positions: Int[Array, "B T"], *, theta: float) -> Float[Array, "B T N H"]:
    """Rotate the channel pairs (j, j + H/2) of `x` by the angles `positions * theta^(-2j/H)`.

    The angles are computed in fp32; the result has the dtype of `x`.
    """
    half = x.shape[-1] // 2
    inverse = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[..., None, None].astype(jnp.float32) * inverse  # B T 1 H/2
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
