"""EarthGPT (arXiv 2401.16822) in PyTorch: two image encoders, their fusion, a projector, and LLaMA.

The model computes the same function as the JAX model of EarthGPT-JAX, from which it was exported. It has no
adapters: they are merged into the weights and biases of LLaMA. Resizing, normalization and norms run in fp32, all
other operations in the dtype of the model.

`EarthGPTModel` is everything but the head, as vLLM's and SGLang's Transformers backends take it;
`EarthGPTForConditionalGeneration` is that and the head.

Shapes: N images, B sequences, T tokens per sequence, P visual tokens per image, D channels.
Parameter names: `lm_head.`, and under `model.` those of DINOv2's hub code in `vit.`, of timm in `convnext.`, and of
transformers' `LlamaModel` in `language_model.`.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    GenerationMixin,
    LlamaForCausalLM,
    LlamaModel,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from .configuration_earthgpt import EarthGPTConfig

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# The names of the argument and of the output for the key-value cache, since transformers 5.24 and before.
CACHE_NAMES = ("cache", "past_key_values")


# --------------------------------------------------------------------------------------------- pixels
def resize_nearest(x: torch.Tensor, size: int) -> torch.Tensor:
    """Resize [N, C, S, S] -> [N, C, size, size] with the source index floor(i * S / size), computed in float64.

    `F.interpolate` computes the index in float32, which is off by one pixel for some sizes.
    """
    side = int(x.shape[-1])  # when traced for ONNX, shapes are tensors
    index = (torch.arange(size, dtype=torch.float64) * (side / size)).long().clamp(max=side - 1).to(x.device)
    return x[:, :, index][..., index]


def resize_bicubic(x: torch.Tensor, size: int) -> torch.Tensor:
    """Resize [N, C, S, S] -> [N, C, size, size] without antialiasing."""
    return x if int(x.shape[-1]) == size else F.interpolate(x, size=(size, size), mode="bicubic", align_corners=False)


def normalise(x: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """Return (x - mean) / std per channel of images [N, 3, H, W] with pixels in 0..1."""
    # Not buffers: a buffer that is in no weights file is lost when the model is created on the `meta` device.
    centre, scale = (torch.tensor(values, device=x.device).reshape(1, 3, 1, 1) for values in (mean, std))
    return (x - centre) / scale


# ---------------------------------------------------------------------------------------------- norms
class LayerNorm(nn.Module):
    """Layer normalization over the last axis, computed in fp32 and cast back."""

    def __init__(self, dim: int, *, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.layer_norm(x.float(), self.weight.shape, self.weight.float(), self.bias.float(), self.eps)
        return y.to(x.dtype)


class LayerNorm2d(LayerNorm):
    """Layer normalization over the channels of [N, C, H, W], at each position."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


# ------------------------------------------------------------------------------------------------ MLPs
class GeluMlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SwigluMlp(nn.Module):
    """Compute w3(silu(a) * b), where a and b are the two halves of w12(x); `hidden` is the width of one half."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.w12 = nn.Linear(dim, 2 * hidden)
        self.w3 = nn.Linear(hidden, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


_MLPS = {"gelu": GeluMlp, "swiglu": SwigluMlp}


# ------------------------------------------------------------------------------------------------- ViT
class PatchEmbed(nn.Module):
    def __init__(self, patch_size: int, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images [N, 3, S, S] to patch tokens [N, G*G, D] in row-major order."""
        return self.proj(images).flatten(2).transpose(1, 2)


class LayerScale(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gamma * x


class ViTAttention(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.heads = heads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, length, _ = x.shape
        q, k, v = self.qkv(x).reshape(rows, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # N heads T H
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape))


class ViTBlock(nn.Module):
    def __init__(self, config: dict):
        super().__init__()
        dim, eps = config["dim"], config["norm_eps"]
        self.norm1 = LayerNorm(dim, eps=eps)
        self.attn = ViTAttention(dim, config["heads"])
        self.ls1 = LayerScale(dim)
        self.norm2 = LayerNorm(dim, eps=eps)
        self.mlp = _MLPS[config["mlp"]](dim, config["ffn_dim"])
        self.ls2 = LayerScale(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class ViT(nn.Module):
    """The DINOv2 vision transformer (arXiv 2304.07193)."""

    def __init__(self, config: dict):
        super().__init__()
        dim, self.grid, self.position_rule = config["dim"], config["grid"], config["position_rule"]
        self.patch_embed = PatchEmbed(config["patch_size"], dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid**2, dim))
        self.blocks = nn.ModuleList(ViTBlock(config) for _ in range(config["depth"]))
        self.norm = LayerNorm(dim, eps=config["norm_eps"])

    def forward(self, images: torch.Tensor, taps: list[int]) -> list[torch.Tensor]:
        """Return the tokens [N, P, D] after each of the blocks `taps` (0-based, increasing), with the final norm."""
        x = self.patch_embed(images)
        side = round(int(x.shape[1]) ** 0.5)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions(side).to(x.dtype)
        tapped = []
        for index, block in enumerate(self.blocks[: taps[-1] + 1]):
            x = block(x)
            if index in taps:
                tapped.append(self.norm(x))
        return tapped

    def positions(self, side: int) -> torch.Tensor:
        """Return the position embeddings of a side x side grid, f32[1, 1 + side*side, D]."""
        table, grid = self.pos_embed.float(), self.grid
        if side == grid:
            return table
        # The hub code adds 0.1 to avoid rounding down, and torch resamples with the resulting scale factor.
        target = {"scale_factor": (side + 0.1) / grid} if self.position_rule == "hub" else {"size": (side, side)}
        patches = table[:, 1:].reshape(1, grid, grid, -1).permute(0, 3, 1, 2)
        patches = F.interpolate(patches, mode="bicubic", align_corners=False, **target)
        return torch.cat([table[:, :1], patches.flatten(2).transpose(1, 2)], dim=1)


# -------------------------------------------------------------------------------------------- ConvNeXt
class ConvNeXtBlock(nn.Module):
    def __init__(self, dim: int, *, eps: float):
        super().__init__()
        self.conv_dw = nn.Conv2d(dim, dim, kernel_size=7, padding=3, groups=dim)
        self.norm = LayerNorm(dim, eps=eps)
        self.mlp = GeluMlp(dim, 4 * dim)
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv_dw(x).flatten(2).transpose(1, 2)  # N H*W C: quantized linear layers take no maps
        return x + (self.gamma * self.mlp(self.norm(y))).transpose(1, 2).reshape(x.shape)


class ConvNeXtStage(nn.Module):
    """A downsampling layer and `depth` blocks; no downsampling in the first stage, whose `in_dim` is None."""

    def __init__(self, in_dim: int | None, dim: int, *, depth: int, eps: float):
        super().__init__()
        down = () if in_dim is None else (LayerNorm2d(in_dim, eps=eps), nn.Conv2d(in_dim, dim, 2, stride=2))
        self.downsample = nn.Sequential(*down)
        self.blocks = nn.Sequential(*(ConvNeXtBlock(dim, eps=eps) for _ in range(depth)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.downsample(x))


class ConvNeXt(nn.Module):
    """The ConvNeXt trunk (arXiv 2201.03545) as in timm: four stages with strides 4, 8, 16 and 32."""

    def __init__(self, config: dict):
        super().__init__()
        dims, eps = config["dims"], config["norm_eps"]
        self.stem = nn.Sequential(nn.Conv2d(3, dims[0], 4, stride=4), LayerNorm2d(dims[0], eps=eps))
        self.stages = nn.ModuleList(
            ConvNeXtStage(dims[i - 1] if i else None, dims[i], depth=config["depths"][i], eps=eps) for i in range(4)
        )
        self.head = nn.ModuleDict({"norm": LayerNorm2d(dims[-1], eps=eps)})

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return four feature maps [N, C0, S/4, S/4] ... [N, C3, S/32, S/32], the last one with the head's norm."""
        x, maps = self.stem(images), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return [*maps[:-1], self.head["norm"](maps[-1])]


# ------------------------------------------------------------------------------------------ perception
class Perception(nn.Module):
    """Bring the features of both encoders to the grid of the ViT and concatenate their channels, CNN first.

    Only `cnn_fuse="sum"` has parameters: one linear layer per stage, which brings the stages to the same width.
    """

    def __init__(self, config: EarthGPTConfig):
        super().__init__()
        fusion, vit = config.perception, config.vit
        self.vit_fuse, self.cnn_fuse = fusion["vit_fuse"], fusion["cnn_fuse"]
        self.grid = vit["image_size"] // vit["patch_size"]
        dims = [config.convnext["dims"][stage] for stage in fusion["cnn_stages"]]
        if self.cnn_fuse == "sum":
            self.lateral = nn.ModuleList(nn.Linear(dim, dims[-1]) for dim in dims)
        cnn_dim = sum(dims) if self.cnn_fuse == "concat" else dims[-1]
        layers = len(fusion["vit_layers"]) if self.vit_fuse == "concat" else 1
        self.merge = fusion["spatial_merge"]
        self.out_dim = self.merge**2 * (cnn_dim + layers * vit["dim"])

    def forward(self, taps: list[torch.Tensor], maps: list[torch.Tensor]) -> torch.Tensor:
        """Return features [N, P, out_dim].

        Args:
            taps: ViT tokens [N, P, D] of the configured layers.
            maps: CNN feature maps [N, C, S/s, S/s] of the configured stages, s being the stride of the stage.
        """
        return self._merge_neighbours(torch.cat([self._fuse_cnn(maps), self._fuse_vit(taps)], dim=-1))

    def _merge_neighbours(self, tokens: torch.Tensor) -> torch.Tensor:
        """Concatenate the channels of the patches in each square of neighbours; the CLS token is repeated."""
        merge, side = self.merge, self.grid // self.merge
        cls, patches = tokens[:, :1], tokens[:, 1:]
        patches = patches.reshape(-1, side, merge, side, merge, patches.shape[-1]).transpose(2, 3)
        return torch.cat([cls.repeat(1, 1, merge**2), patches.reshape(tokens.shape[0], side**2, -1)], dim=1)

    def _fuse_vit(self, taps: list[torch.Tensor]) -> torch.Tensor:
        if self.vit_fuse == "concat":
            return torch.cat(taps, dim=-1)
        return sum(taps[1:], taps[0]) / len(taps) if self.vit_fuse == "mean" else taps[-1]

    def _fuse_cnn(self, maps: list[torch.Tensor]) -> torch.Tensor:
        # N G*G C, row-major; contiguous, as the linear layers of servers expect their inputs.
        tokens = [self._to_grid(x).flatten(2).transpose(1, 2).contiguous() for x in maps]
        if self.cnn_fuse == "concat":
            fused = torch.cat(tokens, dim=-1)
        elif self.cnn_fuse == "sum":
            first, *others = (linear(x) for linear, x in zip(self.lateral, tokens, strict=True))
            fused = sum(others, first)
        else:
            fused = tokens[-1]
        return torch.cat([fused.mean(1, keepdim=True), fused], dim=1)  # CLS: mean over the grid

    def _to_grid(self, x: torch.Tensor) -> torch.Tensor:
        """Average a map that is finer than the grid over its cells; repeat the values of a coarser map."""
        side = int(x.shape[-1])
        if side > self.grid:
            return F.avg_pool2d(x.float(), side // self.grid).to(x.dtype)
        times = self.grid // side
        return x.repeat_interleave(times, dim=2).repeat_interleave(times, dim=3) if times > 1 else x


class Projector(nn.Module):
    """A linear layer to the width of the LLM, followed by LayerNorm with torch's default eps."""

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__()
        self.linear = nn.Linear(in_dim, out_dim)
        self.norm = LayerNorm(out_dim, eps=1e-5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.linear(x))


class ImageTokens(nn.Module):
    """The trained vectors before and after the visual tokens of an image."""

    def __init__(self, dim: int):
        super().__init__()
        self.start = nn.Parameter(torch.zeros(dim))
        self.end = nn.Parameter(torch.zeros(dim))

    def forward(self, visual: torch.Tensor) -> torch.Tensor:
        """Put the two vectors around visual tokens [N, P, D]; return [N, P + 2, D]."""
        start, end = (vector.to(visual).expand(visual.shape[0], 1, -1) for vector in (self.start, self.end))
        return torch.cat([start, visual, end], dim=1)


# ------------------------------------------------------------------------------------------- the model
class EarthGPTPreTrainedModel(PreTrainedModel):
    config_class = EarthGPTConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ["image", "text"]  # noqa: RUF012  (transformers reads class attributes)
    supports_gradient_checkpointing = True
    _no_split_modules = ["ViT", "ConvNeXt", "LlamaDecoderLayer"]  # noqa: RUF012
    _skip_keys_device_placement = list(CACHE_NAMES)  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ViT):
            nn.init.normal_(module.cls_token, std=0.02)
            nn.init.normal_(module.pos_embed, std=0.02)
        elif isinstance(module, (LayerScale, ConvNeXtBlock)):
            nn.init.ones_(module.gamma)
        elif isinstance(module, ImageTokens):
            nn.init.uniform_(module.start)
            nn.init.uniform_(module.end)


class EarthGPTModel(EarthGPTPreTrainedModel):
    """EarthGPT without the head.

    An image takes P + 2 positions of a sequence, all with the id `config.image_token_id`: the start vector, the visual
    tokens and the end vector.
    """

    def __init__(self, config: EarthGPTConfig):
        super().__init__(config)
        self.vit = ViT(config.vit)
        self.convnext = ConvNeXt(config.convnext)
        self.perception = Perception(config)
        self.projector = Projector(self.perception.out_dim, config.text_config.hidden_size)
        self.image_tokens = ImageTokens(config.text_config.hidden_size)
        self.language_model = LlamaModel(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.embed_tokens

    def set_input_embeddings(self, value: Any) -> None:
        self.language_model.embed_tokens = value

    def get_decoder(self) -> nn.Module:
        return self.language_model

    def encode(self, pixel_values: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return ViT tokens [N, 1 + G*G, D] and CNN maps [N, C, S/s, S/s] in configured order, of u8[N, 3, S, S].

        The images are resized and normalized separately for each encoder: bicubic for the ViT, nearest for the CNN.
        """
        config, pixels = self.config, pixel_values.float() / 255
        vit = normalise(resize_bicubic(pixels, config.vit["image_size"]), IMAGENET_MEAN, IMAGENET_STD)
        cnn = normalise(resize_nearest(pixels, config.convnext["image_size"]), CLIP_MEAN, CLIP_STD)
        taps = self.vit(vit.to(self.dtype), config.perception["vit_layers"])
        maps = self.convnext(cnn.to(self.dtype))
        return taps, [maps[stage] for stage in config.perception["cnn_stages"]]

    def get_image_features(self, pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Return what takes the place of images u8[N, 3, S, S] in a sequence, `pooler_output` [N, P + 2, D].

        `last_hidden_state` [N, P, D] are the visual tokens alone.
        """
        visual = self.projector(self.perception(*self.encode(pixel_values)))
        return BaseModelOutputWithPooling(last_hidden_state=visual, pooler_output=self.image_tokens(visual))

    def image_positions(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return which of the ids i64[B, T] belong to an image: those of whole images.

        A single image token, which a model may generate, is a token like any other.
        """
        found, span = input_ids == self.config.image_token_id, self.config.visual_tokens + 2
        return found & (found.cumsum(-1) <= found.sum(-1, keepdim=True) // span * span)

    def embed(self, input_ids: torch.Tensor, pixel_values: torch.Tensor | None) -> torch.Tensor:
        """Return the inputs of LLaMA, [B, T, D]: text embeddings, and images in the positions of the image token.

        Args:
            input_ids: i64[B, T].
            pixel_values: u8[N, 3, S, S], the images in the order of the sequences; None if there are none.

        Raises:
            ValueError: the images have another number of positions than `input_ids`.
        """
        x = self.get_input_embeddings()(input_ids)
        is_image = self.image_positions(input_ids).to(x.device)
        if pixel_values is None:
            # The check would wait for the device, so single tokens of a generation go without it.
            if input_ids.shape[1] > 1 and not torch.compiler.is_compiling() and is_image.any():
                raise ValueError("input_ids refer to an image: expected pixel_values, got none")
            return x
        features: Any = self.get_image_features(pixel_values.to(x.device))
        images = features.pooler_output
        expected, positions = images.shape[0] * images.shape[1], int(is_image.sum())
        if positions != expected:
            raise ValueError(
                f"pixel_values: expected {expected} image tokens in input_ids for {len(images)} images, got "
                f"{positions}; the processor returns both"
            )
        return x.masked_scatter(is_image[..., None], images.to(x))

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        cache: Any = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple | BaseModelOutputWithPast:
        """Return the output of `LlamaModel` for sequences of text and images.

        `embed` describes pixel_values. All other arguments are those of LLaMA, including the cache under either of its
        names.
        """
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("expected input_ids or inputs_embeds, got neither")
            inputs_embeds = self.embed(input_ids, pixel_values)
        if position_ids is None and attention_mask is not None and attention_mask.ndim == 2:
            # Positions start at 0 with the first real token; LLaMA would count the padding on the left.
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -inputs_embeds.shape[1] :]
        return self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **{_CACHE_NAME: past_key_values if cache is None else cache},
            **kwargs,
        )


# The name that the installed version of transformers gives the cache.
_CACHE_NAME = next(name for name in CACHE_NAMES if name in inspect.signature(LlamaModel.forward).parameters)


class EndsWith(StoppingCriteria):
    """Stop a sequence as soon as its ids end with one of the given id sequences."""

    def __init__(self, sequences: list[list[int]]):
        self.sequences = sequences

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        done = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        for sequence in self.sequences:
            if len(sequence) <= input_ids.shape[1]:
                done |= (input_ids[:, -len(sequence) :] == input_ids.new_tensor(sequence)).all(dim=1)
        return done


class EarthGPTForConditionalGeneration(EarthGPTPreTrainedModel, GenerationMixin):
    """EarthGPT with a language-model head; `EarthGPTModel` says how images are passed."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}  # noqa: RUF012
    _tp_plan = LlamaForCausalLM._tp_plan
    _pp_plan = LlamaForCausalLM._pp_plan

    def __init__(self, config: EarthGPTConfig):
        super().__init__(config)
        self.model = EarthGPTModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.lm_head = value

    def get_decoder(self) -> nn.Module:
        return self.model.get_decoder()

    def get_image_features(self, pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        return self.model.get_image_features(pixel_values, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        cache: Any = None,
        past_key_values: Any = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Return logits [B, T, V], and the loss if `labels` i64[B, T] are given (-100: not supervised).

        The arguments are those of `EarthGPTModel` and of `LlamaForCausalLM`.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            pixel_values=pixel_values,
            cache=cache,
            past_key_values=past_key_values,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        vocab_size = self.config.text_config.vocab_size
        return CausalLMOutputWithPast(
            loss=None if labels is None else self.loss_function(logits, labels, vocab_size, **kwargs),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{_CACHE_NAME: outputs.get(_CACHE_NAME)},
        )

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, *args: Any, pixel_values: torch.Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        parent: Any = super()  # builds of torch differ in whether these base classes are typed
        inputs = parent.prepare_inputs_for_generation(input_ids, *args, **kwargs)
        # Later steps find the image in the cache.
        if pixel_values is not None and self.model.image_positions(inputs["input_ids"]).any():
            inputs["pixel_values"] = pixel_values
        return inputs

    def generate(self, *args: Any, stopping_criteria: StoppingCriteriaList | None = None, **kwargs: Any) -> Any:
        """Generate as every transformers model does; an answer ends at EOS or after the chat template's separator."""
        ends = EndsWith(self.config.conversation.get("separator_ids", []))
        kwargs["stopping_criteria"] = StoppingCriteriaList([*(stopping_criteria or ()), ends])
        parent: Any = super()
        return parent.generate(*args, **kwargs)
