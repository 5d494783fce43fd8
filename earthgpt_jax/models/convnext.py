"""ConvNeXt trunk (arXiv 2201.03545) as in timm: four stages at strides 4, 8, 16, 32."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from earthgpt_jax.config import ConvNeXtConfig, DType
from earthgpt_jax.models.layers import LayerNorm, Linear, scan, stack
from earthgpt_jax.ops.depthwise import depthwise
from earthgpt_jax.sharding.mesh import BATCH_AXES, constrain


class Patchify(nnx.Module):
    """A convolution whose stride equals its size: a linear layer over cells of `size` x `size` pixels."""

    def __init__(self, in_dim: int, out_dim: int, *, size: int, rngs: nnx.Rngs, dtype: DType):
        self.linear = Linear(size * size * in_dim, out_dim, rngs=rngs, dtype=dtype)
        self.size = size

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H//{self.size} W//{self.size} E"]:
        batch, height, width, dim = x.shape
        rows, columns = height // self.size, width // self.size
        x = x.reshape(batch, rows, self.size, columns, self.size, dim).transpose(0, 1, 3, 2, 4, 5)
        return self.linear(x.reshape(batch, rows, columns, -1))


class Block(nnx.Module):
    """Depthwise 7x7 convolution, LayerNorm and MLP, scaled by gamma and added to the input."""

    def __init__(self, dim: int, *, eps: float, rngs: nnx.Rngs, dtype: DType):
        self.dw_kernel = nnx.Param(jax.random.normal(rngs.params(), (7, 7, 1, dim)) / 7)
        self.dw_bias = nnx.Param(jnp.zeros(dim))
        self.norm = LayerNorm(dim, eps=eps)
        self.fc1 = Linear(dim, 4 * dim, rngs=rngs, dtype=dtype)
        self.fc2 = Linear(4 * dim, dim, rngs=rngs, dtype=dtype)
        self.gamma = nnx.Param(jnp.ones(dim))

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        y = depthwise(x, self.dw_kernel[...].astype(x.dtype)) + self.dw_bias[...].astype(x.dtype)
        y = self.fc2(jax.nn.gelu(self.fc1(self.norm(y)), approximate=False))
        return constrain(x + self.gamma[...].astype(x.dtype) * y, BATCH_AXES)


class Stage(nnx.Module):
    """Downsampling by two, then `depth` blocks; `in_dim` is None for the first stage, which does not downsample."""

    def __init__(self, in_dim: int | None, dim: int, *, depth: int, eps: float, rngs: nnx.Rngs, dtype: DType):
        if in_dim is not None:
            self.down_norm = LayerNorm(in_dim, eps=eps)
            self.down = Patchify(in_dim, dim, size=2, rngs=rngs, dtype=dtype)
        self.blocks = stack(lambda rngs: Block(dim, eps=eps, rngs=rngs, dtype=dtype), depth=depth, rngs=rngs)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B _ _ _"]:
        if hasattr(self, "down"):
            x = constrain(self.down(self.down_norm(x)), BATCH_AXES)
        return scan(self.blocks, lambda block, x, _: (block(x), None), x)[0]


class ConvNeXt(nnx.Module):
    """The trunk of a ConvNeXt: stem and four stages."""

    def __init__(self, config: ConvNeXtConfig, *, rngs: nnx.Rngs, dtype: DType):
        dims, eps = config.dims, config.norm_eps
        self.stem = Patchify(3, dims[0], size=4, rngs=rngs, dtype=dtype)
        self.stem_norm = LayerNorm(dims[0], eps=eps)
        self.stages = nnx.List(
            Stage(dims[i - 1] if i else None, dims[i], depth=config.depths[i], eps=eps, rngs=rngs, dtype=dtype)
            for i in range(4)
        )
        self.norm = LayerNorm(dims[-1], eps=eps)

    def __call__(self, images: Float[Array, "B H W 3"]) -> tuple[Float[Array, "B _ _ _"], ...]:
        """Return four feature maps, [B, H/4, W/4, C0] to [B, H/32, W/32, C3].

        The last one is normalized by the norm of the head, which timm applies per position when pooling is removed;
        the others are the plain outputs of their stages.
        """
        x = self.stem_norm(self.stem(images))
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return *maps[:-1], self.norm(maps[-1])
