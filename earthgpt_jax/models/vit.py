"""DINOv2's Vision Transformer (arXiv 2304.07193): LayerScale, GELU or SwiGLU, taps through the final norm."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from earthgpt_jax.config import DType, Mlp, PositionRule, ViTConfig
from earthgpt_jax.models.layers import LayerNorm, Linear, scan, stack
from earthgpt_jax.ops.attention import attend
from earthgpt_jax.ops.resize import Method, resize
from earthgpt_jax.sharding.mesh import BATCH_AXES, constrain


class Attention(nnx.Module):
    """Multi-head self-attention over all tokens."""

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs, dtype: DType):
        dim = config.dim
        self.q = Linear(dim, dim, rngs=rngs, dtype=dtype)
        self.k = Linear(dim, dim, rngs=rngs, dtype=dtype)
        self.v = Linear(dim, dim, rngs=rngs, dtype=dtype)
        self.o = Linear(dim, dim, rngs=rngs, dtype=dtype)
        self.heads = config.heads

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        q, k, v = (f(x).reshape(*x.shape[:2], self.heads, -1) for f in (self.q, self.k, self.v))  # B T N H
        return self.o(attend(q, k, v).reshape(x.shape))


class GeluMlp(nnx.Module):
    """fc2(gelu(fc1(x)))."""

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs, dtype: DType):
        self.fc1 = Linear(config.dim, config.ffn_dim, rngs=rngs, dtype=dtype)
        self.fc2 = Linear(config.ffn_dim, config.dim, rngs=rngs, dtype=dtype)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=False))


class SwigluMlp(nnx.Module):
    """fc3(silu(gate) * value), where fc12 computes gate and value; `ffn_dim` is the width of each."""

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs, dtype: DType):
        self.fc12 = Linear(config.dim, 2 * config.ffn_dim, rngs=rngs, dtype=dtype)
        self.fc3 = Linear(config.ffn_dim, config.dim, rngs=rngs, dtype=dtype)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        gate, value = jnp.split(self.fc12(x), 2, axis=-1)
        return self.fc3(jax.nn.silu(gate) * value)


_MLPS = {Mlp.GELU: GeluMlp, Mlp.SWIGLU: SwigluMlp}


class Block(nnx.Module):
    """Pre-norm transformer block with LayerScale."""

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs, dtype: DType):
        self.norm1 = LayerNorm(config.dim, eps=config.norm_eps)
        self.attn = Attention(config, rngs=rngs, dtype=dtype)
        self.ls1 = nnx.Param(jnp.ones(config.dim))
        self.norm2 = LayerNorm(config.dim, eps=config.norm_eps)
        self.mlp = _MLPS[config.mlp](config, rngs=rngs, dtype=dtype)
        self.ls2 = nnx.Param(jnp.ones(config.dim))

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        x = constrain(x + self.ls1[...].astype(x.dtype) * self.attn(self.norm1(x)), BATCH_AXES)
        return constrain(x + self.ls2[...].astype(x.dtype) * self.mlp(self.norm2(x)), BATCH_AXES)


class ViT(nnx.Module):
    """The encoder: patch embedding, CLS token, learned positions, L blocks and the final norm."""

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs, dtype: DType):
        patch, dim = config.patch_size, config.dim
        self.patch = Linear(patch * patch * 3, dim, rngs=rngs, dtype=dtype)
        self.cls = nnx.Param(0.02 * jax.random.normal(rngs.params(), (dim,)))
        self.position = nnx.Param(0.02 * jax.random.normal(rngs.params(), (1 + config.grid**2, dim)))
        self.blocks = stack(lambda rngs: Block(config, rngs=rngs, dtype=dtype), depth=config.depth, rngs=rngs)
        self.norm = LayerNorm(dim, eps=config.norm_eps)
        self.config = config
        self.dtype = jnp.dtype(dtype)

    def __call__(self, images: Float[Array, "B S S 3"], *, taps: tuple[int, ...]) -> tuple[Float[Array, "B P D"], ...]:
        """Return the tokens after the blocks `taps`, each normalized by the final norm.

        Args:
            images: normalized pixels.
            taps: indices of blocks, counted from 0.

        Returns:
            One array [B, 1 + G*G, D] per tap: the CLS token, then the patches in row-major order.
        """
        batch, side, patch = (
            images.shape[0],
            images.shape[1] // self.config.patch_size,
            self.config.patch_size,
        )
        x = images.reshape(batch, side, patch, side, patch, 3).transpose(0, 1, 3, 2, 4, 5)
        x = self.patch(x.reshape(batch, side * side, -1))  # B P D
        cls = jnp.broadcast_to(self.cls[...].astype(x.dtype), (batch, 1, x.shape[-1]))
        x = jnp.concatenate([cls, x], axis=1) + self.positions(side).astype(x.dtype)

        def step(block: Block, x: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
            x = block(x)
            return x, x

        _, layers = scan(self.blocks, step, x)  # L B T D
        return tuple(self.norm(layers[tap]) for tap in taps)

    def positions(self, side: int) -> Float[Array, "1+{side}*{side} D"]:
        """Return the position embeddings of a side x side grid, f32[1 + side*side, D]."""
        table = self.position[...].astype(jnp.float32)
        grid = self.config.grid
        if side == grid:
            return table
        # The hub code adds 0.1 to the size as a guard against rounding; torch then resamples by the resulting factor.
        scale = grid / (side + 0.1) if self.config.position_rule is PositionRule.HUB else None
        patches = table[1:].reshape(1, grid, grid, -1)
        patches = resize(patches, side, Method.BICUBIC_TORCH, scale=scale).reshape(side * side, -1)
        return jnp.concatenate([table[:1], patches])
