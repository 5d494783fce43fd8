"""EarthGPT (arXiv 2401.16822): frozen ViT and CNN, perception, projector, LLaMA with adapters."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from earthgpt_jax.config import ModelConfig
from earthgpt_jax.input.batch import ARRAY_FIELDS, END_SLOT, START_SLOT, Batch
from earthgpt_jax.models.convnext import ConvNeXt
from earthgpt_jax.models.llama import Llama
from earthgpt_jax.models.perception import Perception, Projector
from earthgpt_jax.models.vit import ViT
from earthgpt_jax.ops.resize import Method, resize
from earthgpt_jax.params import Params, split_module
from earthgpt_jax.sharding.mesh import ROWS, constrain

# The input never imports jax, so its batch becomes a pytree here.
jax.tree_util.register_dataclass(Batch, data_fields=ARRAY_FIELDS, meta_fields=(), drop_fields=("ids",))

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Features(NamedTuple):
    """What the frozen encoders say: ViT taps [B, P, D] and CNN maps [B, G, G, C], in configured order."""

    vit: tuple[jax.Array, ...]
    cnn: tuple[jax.Array, ...]


class ImageTokens(nnx.Module):
    """The learnt vectors before and after an image's visual tokens; U[0, 1) at the start, as in SPHINX."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.start = nnx.Param(jax.random.uniform(rngs.params(), (dim,)))
        self.end = nnx.Param(jax.random.uniform(rngs.params(), (dim,)))


class EarthGPT(nnx.Module):
    """B rows, I images a row, P visual tokens an image, T tokens a row."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        dtype = config.compute_dtype
        self.vit = ViT(config.vit, rngs=rngs, dtype=dtype)
        self.convnext = ConvNeXt(config.convnext, rngs=rngs, dtype=dtype)
        self.perception = Perception(config, rngs=rngs, dtype=dtype)
        self.projector = Projector(self.perception.out_dim, config.llm.dim, rngs=rngs, dtype=dtype)
        self.image_tokens = ImageTokens(config.llm.dim, rngs=rngs)
        self.llm = Llama(config.llm, adapter=config.adapter, rngs=rngs, dtype=dtype)
        self.config = config

    def encode(self, images: jax.Array) -> Features:
        """Both encoders on u8[N, S, S, 3] squares; each branch resizes and normalises for itself.

        The resizes are those of LLaMA2-Accessory's `llama_ens_light`: nearest for the CNN, bicubic
        without antialiasing for the ViT.
        """
        config, pixels = self.config, constrain(images, ROWS).astype(jnp.float32) / 255
        vit = normalize(resize(pixels, config.vit.image_size, Method.BICUBIC_TORCH), IMAGENET_MEAN, IMAGENET_STD)
        cnn = normalize(resize(pixels, config.convnext.image_size, Method.NEAREST), CLIP_MEAN, CLIP_STD)
        dtype = jnp.dtype(config.compute_dtype)
        maps = self.convnext(cnn.astype(dtype))
        features = Features(
            vit=self.vit(vit.astype(dtype), taps=config.perception.vit_layers),
            cnn=tuple(maps[stage] for stage in config.perception.cnn_stages),
        )
        # Without the barrier XLA's CPU backend fuses the encoders into their consumers and recomputes them.
        return jax.lax.optimization_barrier(features)

    def perceive(self, features: Features) -> jax.Array:
        """Visual tokens in the LLM's width, [N, P, D]."""
        return constrain(self.projector(self.perception(features.vit, features.cnn)), ROWS)

    def embed(self, tokens: jax.Array, image_slots: jax.Array, visual: jax.Array) -> jax.Array:
        """The LLM's input [B, T, D]: text, visual tokens and the two image marks, each in its slot.

        Args:
            tokens: i32[B, T].
            image_slots: i32[B, T], index into the row's I*P visual tokens, or TEXT/START/END_SLOT.
            visual: [B, I*P, D].
        """
        slots = image_slots[..., None]
        x = self.llm.embed_tokens(tokens)
        x = jnp.where(slots >= 0, jnp.take_along_axis(visual, jnp.maximum(slots, 0), axis=1).astype(x.dtype), x)
        x = jnp.where(slots == START_SLOT, self.image_tokens.start[...].astype(x.dtype), x)
        return jnp.where(slots == END_SLOT, self.image_tokens.end[...].astype(x.dtype), x)


def normalize(x: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """(x - mean) / std per channel; pixels in 0..1."""
    return (x - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)


def init(config: ModelConfig, *, seed: int = 0) -> tuple[nnx.GraphDef, Params]:
    """A model's structure and random parameters."""
    return split_module(EarthGPT(config, rngs=nnx.Rngs(params=seed)))


def abstract(config: ModelConfig) -> tuple[nnx.GraphDef, dict[str, jax.ShapeDtypeStruct]]:
    """A model's structure and the shapes of its parameters, without any array."""
    graphdef, shapes = split_module(nnx.eval_shape(lambda: EarthGPT(config, rngs=nnx.Rngs(params=0))))
    return graphdef, dict(shapes)  # type: ignore[arg-type]  # eval_shape put ShapeDtypeStructs in
