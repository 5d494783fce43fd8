"""EarthGPT (arXiv 2401.16822): two frozen image encoders, their fusion, a projector, and LLaMA with adapters.

images ──┬─ ViT ──────┐
         └─ ConvNeXt ─┴─ Perception ─ Projector ─ visual tokens ─┐
text tokens ───────────────────────────────── embedding ─────────┴─ Llama ─ hidden states ─ logits
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8, UInt16

from earthgpt_jax.config import ModelConfig, Remat
from earthgpt_jax.input.batch import ARRAY_FIELDS, END_SLOT, START_SLOT, Batch
from earthgpt_jax.models.convnext import ConvNeXt
from earthgpt_jax.models.llama import Attention, Llama, PackedAttention
from earthgpt_jax.models.perception import Perception, Projector, to_grid
from earthgpt_jax.models.vit import ViT
from earthgpt_jax.ops.attention import make_attention_mask
from earthgpt_jax.ops.kv_cache import Cache
from earthgpt_jax.ops.resize import Method, resize
from earthgpt_jax.params import Params, split_module
from earthgpt_jax.sharding.mesh import BATCH_AXES, constrain

# The input never imports jax, so its batch becomes a pytree here.
jax.tree_util.register_dataclass(Batch, data_fields=ARRAY_FIELDS, meta_fields=(), drop_fields=("ids",))

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Features(NamedTuple):
    """Outputs of the frozen encoders for N images, in the order of the config.

    Attributes:
        vit: token maps of the configured layers, [N, P, C] each.
        cnn: feature maps of the configured stages, [N, G, G, C] each, with a G and a C per stage.
    """

    vit: tuple[jax.Array, ...]
    cnn: tuple[jax.Array, ...]


class ImageTokens(nnx.Module):
    """The learned embeddings that enclose the visual tokens of an image; uniform in [0, 1) at first, as in SPHINX."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.start = nnx.Param(jax.random.uniform(rngs.params(), (dim,)))
        self.end = nnx.Param(jax.random.uniform(rngs.params(), (dim,)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class EarthGPTOutput:
    """What `EarthGPT` returns.

    Attributes:
        hidden: hidden states of the LLM after the final norm.
        visual_tokens: the images as the LLM reads them; None without images.
        cache: what the attention keeps for later calls; None where it keeps nothing.
        llm: the language model that `logits` are computed with.
    """

    hidden: Float[Array, "B T D"]
    visual_tokens: Float[Array, "B IP D"] | None
    cache: Cache | None
    llm: Llama = dataclasses.field(repr=False)

    @property
    def logits(self) -> Float[Array, "B T V"]:
        """Next-token logits in fp32, computed when read: training and decoding never need those of all positions."""
        return self.llm.logits(self.hidden)


class EarthGPT(nnx.Module):
    """The whole model.

    Dim letters: B sequences of T tokens; I images per sequence, N = B*I in all; P visual tokens per image, IP = I*P per
    sequence.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        dtype = config.compute_dtype
        self.vit = ViT(config.vit, rngs=rngs, dtype=dtype)
        self.convnext = ConvNeXt(config.convnext, rngs=rngs, dtype=dtype)
        self.perception = Perception(config, rngs=rngs, dtype=dtype)
        self.projector = Projector(self.perception.out_dim, config.llm.dim, rngs=rngs, dtype=dtype)
        self.image_tokens = ImageTokens(config.llm.dim, rngs=rngs)
        self.llm = Llama(config.llm, adapter=config.adapter, rngs=rngs, dtype=dtype)
        self.config = config

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        *,
        image_slots: Int[Array, "B T"] | None = None,
        images: UInt8[Array, "N S S 3"] | None = None,
        features: Features | None = None,
        visual_tokens: Float[Array, "N P D"] | None = None,
        positions: Int[Array, "B T"] | None = None,
        attention: Attention | None = None,
        remat: str = Remat.NONE,
    ) -> EarthGPTOutput:
        """Run the model on text and images.

        The images may be given at any of three stages, at most one of `images`, `features` and `visual_tokens`:
        training runs the frozen encoders outside of the differentiated function and gives features; inference projects
        an image once for all its questions and gives visual tokens.

        Args:
            tokens: token ids.
            image_slots: which visual token stands at each position, see `embed`; required with images.
            images: pixels of the padded square images.
            features: result of `encode`.
            visual_tokens: result of `project`.
            positions: RoPE positions; default: 0 to T-1.
            attention: what the tokens attend to; default: all earlier tokens of the sequence.
            remat: what each block of the LLM keeps for the backward pass.
        """
        if images is not None:
            features = self.encode(images)
        if features is not None:
            visual_tokens = self.project(features)
        if visual_tokens is None:
            x = self.llm.embed_tokens(tokens)
        else:
            assert image_slots is not None, "image_slots are required with images"
            visual_tokens = visual_tokens.reshape(len(tokens), -1, visual_tokens.shape[-1])  # B I*P D
            x = self.embed(tokens, image_slots, visual_tokens)
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        if attention is None:
            attention = PackedAttention(make_attention_mask(jnp.ones_like(tokens), jnp.zeros_like(tokens)))
        out = self.llm(constrain(x, BATCH_AXES), positions=positions, attention=attention, remat=remat)
        return EarthGPTOutput(hidden=out.hidden, visual_tokens=visual_tokens, cache=out.cache, llm=self.llm)

    def encode(self, images: UInt8[Array, "N S S 3"]) -> Features:
        """Run both encoders; each tower resizes and normalizes the images for itself.

        The resizing rules are those of LLaMA2-Accessory's `llama_ens_light`: nearest for the CNN, bicubic without
        antialiasing for the ViT.
        """
        features = Features(vit=self._encode_vit(images), cnn=self._encode_cnn(images))
        # Without the barrier XLA's CPU backend fuses the encoders into their consumers and recomputes them.
        return jax.lax.optimization_barrier(features)

    def _encode_vit(self, images: UInt8[Array, "N S S 3"]) -> tuple[jax.Array, ...]:
        config, pixels = self.config, constrain(images, BATCH_AXES).astype(jnp.float32) / 255
        vit = normalize(resize(pixels, config.vit.image_size, Method.BICUBIC_TORCH), IMAGENET_MEAN, IMAGENET_STD)
        return self.vit(vit.astype(jnp.dtype(config.compute_dtype)), taps=config.perception.vit_layers)

    def _encode_cnn(self, images: UInt8[Array, "N S S 3"]) -> tuple[jax.Array, ...]:
        config, pixels = self.config, constrain(images, BATCH_AXES).astype(jnp.float32) / 255
        cnn = normalize(resize(pixels, config.convnext.image_size, Method.NEAREST), CLIP_MEAN, CLIP_STD)
        maps = self.convnext(cnn.astype(jnp.dtype(config.compute_dtype)))
        return tuple(maps[stage] for stage in config.perception.cnn_stages)

    def packed_vit(self, images: UInt8[Array, "N S S 3"]) -> UInt16[Array, "N T C"]:
        """Return the features of the ViT as one array, the bits of bfloat16, to be stored."""
        return _bits(jnp.concatenate(self._encode_vit(images), axis=-1))

    def packed_cnn(self, images: UInt8[Array, "N S S 3"]) -> UInt16[Array, "N GG C"]:
        """Return the features of the CNN, on the grid of the ViT, as one array, the bits of bfloat16, to be stored."""
        side = self.config.vit.tokens_per_side
        maps = jnp.concatenate([to_grid(x, side) for x in self._encode_cnn(images)], axis=-1)
        return _bits(maps.reshape(len(maps), side**2, -1))

    def unpack(self, packed: UInt16[Array, "N F"]) -> Features:
        """Return the features of images from the flattened results of `packed_vit` and `packed_cnn`, in this order."""
        config, side = self.config, self.config.vit.tokens_per_side
        layers, stages = config.perception.vit_layers, config.perception.cnn_stages
        values = jax.lax.bitcast_convert_type(packed, jnp.bfloat16).astype(jnp.dtype(config.compute_dtype))
        vit, cnn = jnp.split(values, [(1 + side**2) * len(layers) * config.vit.dim], axis=-1)
        dims = np.cumsum([config.convnext.dims[stage] for stage in stages])
        return Features(
            vit=tuple(jnp.split(vit.reshape(len(vit), 1 + side**2, -1), len(layers), axis=-1)),
            cnn=tuple(jnp.split(cnn.reshape(len(cnn), side, side, -1), dims[:-1], axis=-1)),
        )

    def project(self, features: Features) -> Float[Array, "N P D"]:
        """Fuse the features of both encoders and project them to visual tokens."""
        return constrain(self.projector(self.perception(features.vit, features.cnn)), BATCH_AXES)

    def embed(
        self, tokens: Int[Array, "B T"], image_slots: Int[Array, "B T"], visual_tokens: Float[Array, "B IP D"]
    ) -> Float[Array, "B T D"]:
        """Return the input of the LLM: text embeddings, visual tokens and image start/end embeddings in their places.

        Args:
            tokens: token ids.
            image_slots: index into the visual tokens of the sequence, or TEXT_SLOT, START_SLOT or END_SLOT.
            visual_tokens: visual tokens of all images of each sequence.
        """
        slots = image_slots[..., None]
        x = self.llm.embed_tokens(tokens)
        visual = jnp.take_along_axis(visual_tokens, jnp.maximum(slots, 0), axis=1).astype(x.dtype)
        x = jnp.where(slots >= 0, visual, x)
        x = jnp.where(slots == START_SLOT, self.image_tokens.start[...].astype(x.dtype), x)
        return jnp.where(slots == END_SLOT, self.image_tokens.end[...].astype(x.dtype), x)


def _bits(x: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(x.astype(jnp.bfloat16), jnp.uint16)


def normalize(x: Float[Array, "*B C"], mean: tuple[float, ...], std: tuple[float, ...]) -> Float[Array, "*B C"]:
    """Return (x - mean) / std per channel, for pixels in 0..1."""
    return (x - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)


def init(config: ModelConfig, *, seed: int = 0) -> tuple[nnx.GraphDef, Params]:
    """Return the structure of a model and randomly initialized parameters."""
    return split_module(EarthGPT(config, rngs=nnx.Rngs(params=seed)))


def abstract(config: ModelConfig) -> tuple[nnx.GraphDef, dict[str, jax.ShapeDtypeStruct]]:
    """Return the structure of a model and the shapes of its parameters, without allocating any array."""
    graphdef, shapes = split_module(nnx.eval_shape(lambda: EarthGPT(config, rngs=nnx.Rngs(params=0))))
    return graphdef, dict(shapes)  # type: ignore[arg-type]  # eval_shape returns ShapeDtypeStructs
