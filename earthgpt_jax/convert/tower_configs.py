"""Read the architecture of a vision tower, or of a complete model of LLaMA2-Accessory, from its files and tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from earthgpt_jax.config import Mlp, PositionRule
from earthgpt_jax.convert.llama_configs import llama
from earthgpt_jax.convert.source_config import Shapes, SourceConfig, Values, depth


def dinov2_hf(where: str, values: Values | None, shapes: Shapes) -> SourceConfig:
    """Return the architecture of a DINOv2 of transformers."""
    rule = {"vit.position_rule": PositionRule.HF.value}
    if values is None:
        return SourceConfig(where=where, fields=rule)
    if (model_type := values.get("model_type")) != "dinov2":
        return SourceConfig(where=where, unsupported=[f"expected a model of type 'dinov2', got {model_type!r}"])
    dim, ratio = values.get("hidden_size", 768), values.get("mlp_ratio", 4)
    swiglu = values.get("use_swiglu_ffn", False)
    fields = {
        "dim": dim, "depth": values.get("num_hidden_layers", 12), "heads": values.get("num_attention_heads", 12),
        "patch_size": values.get("patch_size", 14),
        "grid": values.get("image_size", 224) // values.get("patch_size", 14),
        # transformers rounds the width of SwiGLU up to a multiple of 8.
        "ffn_dim": (int(int(dim * ratio) * 2 / 3) + 7) // 8 * 8 if swiglu else int(dim * ratio),
        "mlp": (Mlp.SWIGLU if swiglu else Mlp.GELU).value, "norm_eps": float(values.get("layer_norm_eps", 1e-6)),
    }  # fmt: skip
    fixed = {"hidden_act": "gelu", "qkv_bias": True, "num_channels": 3}
    unsupported = [
        f"{name}: expected {expected}, got {values[name]}, which this model cannot compute"
        for name, expected in fixed.items()
        if values.get(name, expected) != expected
    ]
    return SourceConfig(
        where=where, fields={f"vit.{name}": value for name, value in fields.items()} | rule, unsupported=unsupported
    )


_DINOV2_HEADS = {384: 6, 768: 12, 1024: 16, 1536: 24}  # of the published models, by width


def dinov2_hub(where: str, values: Values | None, shapes: Shapes) -> SourceConfig:
    """Return the architecture of a DINOv2 of the hub code, whose sizes are those of its tensors."""
    dim = shapes["cls_token"][-1]
    gated = "blocks.0.mlp.w12.weight" in shapes
    ffn_dim = shapes["blocks.0.mlp.w12.weight"][0] // 2 if gated else shapes["blocks.0.mlp.fc1.weight"][0]
    fields: dict[str, Any] = {
        "dim": dim, "depth": depth(shapes, r"blocks\.(\d+)\..*"), "ffn_dim": ffn_dim,
        "patch_size": shapes["patch_embed.proj.weight"][-1], "grid": math.isqrt(shapes["pos_embed"][1] - 1),
        "mlp": (Mlp.SWIGLU if gated else Mlp.GELU).value, "position_rule": PositionRule.HUB.value,
    }  # fmt: skip
    if dim in _DINOV2_HEADS:
        fields |= {"heads": _DINOV2_HEADS[dim], "norm_eps": 1e-6}
    return SourceConfig(where=where, fields={f"vit.{name}": value for name, value in fields.items()})


# Epsilon of timm's trunks, by the channels of the first stage and the depth of the third; others are unknown.
_CONVNEXT_EPS = {(384, 30): 1e-5, (96, 9): 1e-6, (96, 27): 1e-6, (128, 27): 1e-6, (192, 27): 1e-6, (256, 27): 1e-6}


def convnext(where: str, values: Values | None, shapes: Shapes) -> SourceConfig:
    """Return the architecture of a ConvNeXt trunk of timm, whose sizes are those of its tensors."""
    depths = [depth(shapes, rf"stages\.{stage}\.blocks\.(\d+)\..*") for stage in range(4)]
    dims = [shapes[f"stages.{stage}.blocks.0.conv_dw.weight"][0] for stage in range(4)]
    fields: dict[str, Any] = {"convnext.depths": depths, "convnext.dims": dims}
    if (eps := _CONVNEXT_EPS.get((dims[0], depths[2]))) is not None:
        fields["convnext.norm_eps"] = eps
    unsupported = []
    if "stages.0.blocks.0.gamma" not in shapes:
        unsupported.append("expected a ConvNeXt with layer scale (`gamma`), got one without, which is not supported")
    return SourceConfig(where=where, fields=fields, unsupported=unsupported)


def accessory(where: str, values: Values | None, shapes: Shapes) -> SourceConfig:
    """Return the architecture of a complete model of LLaMA2-Accessory."""
    parts = [llama(where, values, shapes)]
    for pattern, read in _ACCESSORY_TOWERS.items():
        prefix = next((match[1] for key in shapes if (match := re.fullmatch(pattern, key))), None)
        if prefix is not None:
            inner = {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}
            parts.append(read(where, None, inner))
    return SourceConfig(
        where=where,
        fields={name: value for part in parts for name, value in part.fields.items()},
        unsupported=[reason for part in parts for reason in part.unsupported],
    )


_ACCESSORY_TOWERS: dict[str, Callable[[str, Values | None, Shapes], SourceConfig]] = {
    r"(dinov2_\w+\.)cls_token": dinov2_hub,
    r"(openclip_convnext_\w+\.)stem\.0\.weight": convnext,
}
