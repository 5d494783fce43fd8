"""Rotary position embedding (RoFormer, arXiv 2104.09864), with half-split pairs as in Hugging Face LLaMA."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from earthgpt_jax.config import RopeScaling, RopeScalingConfig


def rope(
    x: Float[Array, "B T N H"],
    positions: Int[Array, "B T"],
    *,
    theta: float,
    scaling: RopeScalingConfig = RopeScalingConfig(),  # noqa: B008  (frozen)
) -> Float[Array, "B T N H"]:
    """Rotate the channel pairs (j, j + H/2) of `x` by the angles `positions * theta^(-2j/H)`, scaled as configured.

    The angles are computed in fp32; the result has the dtype of `x`.
    """
    half = x.shape[-1] // 2
    inverse = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    inverse = _SCALINGS[scaling.kind](inverse, theta, scaling)
    angles = positions[..., None, None].astype(jnp.float32) * inverse  # B T 1 H/2
    factor = _attention_factor(scaling)
    cos, sin = factor * jnp.cos(angles), factor * jnp.sin(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def _linear(inverse: Array, theta: float, scaling: RopeScalingConfig) -> Array:
    return inverse / scaling.factor


def _llama3(inverse: Array, theta: float, scaling: RopeScalingConfig) -> Array:
    """Stretch long wavelengths, keep short ones, and interpolate in between."""
    rotations = scaling.original_positions * inverse / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = jnp.clip((rotations - low) / (high - low), 0, 1)
    return kept * inverse + (1 - kept) * inverse / scaling.factor


def _yarn(inverse: Array, theta: float, scaling: RopeScalingConfig) -> Array:
    """Stretch the channels that rotate rarely; a linear ramp over the channels leads to those that are kept."""
    half = inverse.shape[0]

    def channel(rotations: float) -> float:
        return half * math.log(scaling.original_positions / (rotations * 2 * math.pi)) / math.log(theta)

    low = max(math.floor(channel(scaling.beta_fast)), 0)
    high = min(math.ceil(channel(scaling.beta_slow)), 2 * half - 1)
    stretched = jnp.clip((jnp.arange(half, dtype=jnp.float32) - low) / max(high - low, 1e-3), 0, 1)
    return (1 - stretched) * inverse + stretched * inverse / scaling.factor


_SCALINGS: dict[RopeScaling, Callable[[Array, float, RopeScalingConfig], Array]] = {
    RopeScaling.NONE: lambda inverse, theta, scaling: inverse,
    RopeScaling.LINEAR: _linear,
    RopeScaling.LLAMA3: _llama3,
    RopeScaling.YARN: _yarn,
}


def _attention_factor(scaling: RopeScalingConfig) -> float:
    """Return the number that yarn multiplies queries and keys by."""
    if scaling.kind is not RopeScaling.YARN:
        return 1.0
    return scaling.attention_factor or (0.1 * math.log(scaling.factor) + 1 if scaling.factor > 1 else 1.0)
