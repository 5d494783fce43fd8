"""Visual-enhanced perception: fuse several ViT layers and CNN scales on one grid, and project them to the LLM."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from earthgpt_jax.config import DType, Fuse, ModelConfig
from earthgpt_jax.models.layers import LayerNorm, Linear
from earthgpt_jax.ops.resize import Method, resize


class Perception(nnx.Module):
    """Fuses the features of both encoders along the channels: CNN first, then ViT.

    With `cnn_fuse: sum` there is one 1x1 convolution per CNN stage, which brings the stages to the same width; all
    other ways of fusing have no parameters.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, dtype: DType):
        self.config = config.perception
        self.grid = config.vit.tokens_per_side
        dims = [config.convnext.dims[stage] for stage in self.config.cnn_stages]
        if self.config.cnn_fuse is Fuse.SUM:
            self.lateral = nnx.List(Linear(dim, dims[-1], rngs=rngs, dtype=dtype) for dim in dims)
        cnn_dim = sum(dims) if self.config.cnn_fuse is Fuse.CONCAT else dims[-1]
        layers = len(self.config.vit_layers) if self.config.vit_fuse is Fuse.CONCAT else 1
        self.out_dim = self.config.spatial_merge**2 * (cnn_dim + layers * config.vit.dim)

    def __call__(
        self, vit: tuple[Float[Array, "N T _"], ...], cnn: tuple[Float[Array, "N _ _ _"], ...]
    ) -> Float[Array, "N P {self.out_dim}"]:
        """Fuse ViT token maps [N, 1 + G*G, C] and CNN feature maps [N, G, G, C] to tokens [N, P, out_dim]."""
        return self._merge(jnp.concatenate([self._fuse_cnn(cnn), self._fuse_vit(vit)], axis=-1))

    def _merge(self, tokens: Float[Array, "N _ _"]) -> Float[Array, "N P {self.out_dim}"]:
        """Concatenate the channels of the patches in each square of neighbours; the CLS token is repeated."""
        merge, side = self.config.spatial_merge, self.grid // self.config.spatial_merge
        if merge == 1:
            return tokens
        cls, patches = tokens[:, :1], tokens[:, 1:]
        patches = patches.reshape(-1, side, merge, side, merge, patches.shape[-1]).transpose(0, 1, 3, 2, 4, 5)
        return jnp.concatenate([jnp.tile(cls, merge**2), patches.reshape(len(tokens), side**2, -1)], axis=1)

    def _fuse_vit(self, taps: tuple[Float[Array, "N T _"], ...]) -> Float[Array, "N T _"]:
        match self.config.vit_fuse:
            case Fuse.CONCAT:
                return jnp.concatenate(taps, axis=-1)
            case Fuse.MEAN:
                return sum(taps[1:], taps[0]) / len(taps)
            case _:
                return taps[-1]

    def _fuse_cnn(self, maps: tuple[Float[Array, "N _ _ _"], ...]) -> Float[Array, "N T _"]:
        match self.config.cnn_fuse:
            case Fuse.CONCAT:
                fused = jnp.concatenate([self._to_grid(x) for x in maps], axis=-1)
            case Fuse.SUM:
                lateral = [f(self._to_grid(x)) for f, x in zip(self.lateral, maps, strict=True)]
                fused = sum(lateral[1:], lateral[0])
            case _:
                fused = self._to_grid(maps[-1])
        tokens = fused.reshape(fused.shape[0], self.grid**2, -1)  # in row-major order, like the patches of the ViT
        return jnp.concatenate([tokens.mean(1, keepdims=True), tokens], axis=1)  # the CLS token is the mean of the grid

    def _to_grid(self, x: Float[Array, "N _ _ C"]) -> Float[Array, "N {self.grid} {self.grid} C"]:
        return to_grid(x, self.grid)


def to_grid(x: Float[Array, "N _ _ C"], side: int) -> Float[Array, "N {side} {side} C"]:
    """Average a feature map that is finer than side x side over its cells; repeat the values of a coarser one."""
    return resize(x, side, Method.AREA if x.shape[1] > side else Method.NEAREST).astype(x.dtype)


class Projector(nnx.Module):
    """Linear layer and LayerNorm (with PyTorch's default eps) to the width of the LLM."""

    def __init__(self, in_dim: int, out_dim: int, *, rngs: nnx.Rngs, dtype: DType):
        self.linear = Linear(in_dim, out_dim, rngs=rngs, dtype=dtype)
        self.norm = LayerNorm(out_dim, eps=1e-5)

    def __call__(self, x: Float[Array, "N P C"]) -> Float[Array, "N P D"]:
        return self.norm(self.linear(x))
