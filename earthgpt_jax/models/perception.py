"""Visual-enhanced perception: several ViT layers and CNN scales on one grid, then into the LLM's width."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from earthgpt_jax.config import DType, Fuse, ModelConfig
from earthgpt_jax.models.layers import LayerNorm, Linear
from earthgpt_jax.ops.resize import Method, resize


class Perception(nnx.Module):
    """Fuses encoder features channel-wise: the CNN's first, then the ViT's.

    `sum` needs its stages in one width, so it holds a 1x1 convolution a stage; the others hold nothing.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, dtype: DType):
        self.config = config.perception
        self.grid = config.vit.tokens_per_side
        dims = [config.convnext.dims[stage] for stage in self.config.cnn_stages]
        if self.config.cnn_fuse is Fuse.SUM:
            self.lateral = nnx.List(Linear(dim, dims[-1], rngs=rngs, dtype=dtype) for dim in dims)
        cnn_dim = sum(dims) if self.config.cnn_fuse is Fuse.CONCAT else dims[-1]
        layers = len(self.config.vit_layers) if self.config.vit_fuse is Fuse.CONCAT else 1
        self.out_dim = cnn_dim + layers * config.vit.dim

    def __call__(self, vit: tuple[jax.Array, ...], cnn: tuple[jax.Array, ...]) -> jax.Array:
        """[B, P, out_dim] from ViT taps [B, P, D] and CNN maps [B, S/s, S/s, C] of the configured stages."""
        return jnp.concatenate([self._fuse_cnn(cnn), self._fuse_vit(vit)], axis=-1)

    def _fuse_vit(self, taps: tuple[jax.Array, ...]) -> jax.Array:
        match self.config.vit_fuse:
            case Fuse.CONCAT:
                return jnp.concatenate(taps, axis=-1)
            case Fuse.MEAN:
                return sum(taps[1:], taps[0]) / len(taps)
            case _:
                return taps[-1]

    def _fuse_cnn(self, maps: tuple[jax.Array, ...]) -> jax.Array:
        match self.config.cnn_fuse:
            case Fuse.CONCAT:
                fused = jnp.concatenate([self._to_grid(x) for x in maps], axis=-1)
            case Fuse.SUM:
                lateral = [f(self._to_grid(x)) for f, x in zip(self.lateral, maps, strict=True)]
                fused = sum(lateral[1:], lateral[0])
            case _:
                fused = self._to_grid(maps[-1])
        tokens = fused.reshape(fused.shape[0], self.grid**2, -1)  # row by row, as the ViT's patches
        return jnp.concatenate([tokens.mean(1, keepdims=True), tokens], axis=1)  # CLS = mean of the grid

    def _to_grid(self, x: jax.Array) -> jax.Array:
        method = Method.AREA if x.shape[1] > self.grid else Method.NEAREST
        return resize(x, self.grid, method).astype(x.dtype)


class Projector(nnx.Module):
    """Linear and LayerNorm (torch's default eps) into the LLM's width."""

    def __init__(self, in_dim: int, out_dim: int, *, rngs: nnx.Rngs, dtype: DType):
        self.linear = Linear(in_dim, out_dim, rngs=rngs, dtype=dtype)
        self.norm = LayerNorm(out_dim, eps=1e-5)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(self.linear(x))
