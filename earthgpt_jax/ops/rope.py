"""Rotary position embedding (RoFormer, arXiv 2104.09864), half-split pairs as in Hugging Face LLaMA."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def rope(x: jax.Array, positions: jax.Array, *, theta: float) -> jax.Array:
    """Rotates channel pairs (j, j + H/2) of `x` by `positions * theta^(-2j/H)`; angles in fp32.

    Args:
        x: [B, T, N, H].
        positions: i32[B, T].
    """
    half = x.shape[-1] // 2
    inverse = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[..., None, None].astype(jnp.float32) * inverse  # B T 1 H/2
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
