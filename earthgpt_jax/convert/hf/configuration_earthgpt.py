"""EarthGPT's configuration: the encoders' and the fusion's numbers as plain dicts, LLaMA's as a `LlamaConfig`."""

from __future__ import annotations

from transformers import LlamaConfig, PreTrainedConfig


class EarthGPTConfig(PreTrainedConfig):
    """What `EarthGPTForConditionalGeneration` is built from.

    Args:
        image_size: side of the uint8 square that the model takes.
        vit: image_size, patch_size, dim, depth, heads, ffn_dim, grid (side of the stored position table),
            mlp ("gelu" or "swiglu"), position_rule ("hub" or "hf"), norm_eps.
        convnext: image_size, depths, dims, norm_eps.
        perception: vit_layers, cnn_stages (0-based), vit_fuse ("concat", "mean" or "last"),
            cnn_fuse ("concat", "sum" or "last").
        text_config: LLaMA; with attention_bias and mlp_bias where adapters were folded into the weights.
        decimals: how many the model writes in a box, as fractions of the padded square.
        conversation: name, prefix, roles, separator, and `separator_ids`: every id sequence that ends an answer.
    """

    model_type = "earthgpt"
    sub_configs = {"text_config": LlamaConfig}  # noqa: RUF012  (transformers reads it as a class attribute)

    def __init__(
        self,
        *,
        image_size: int = 0,
        vit: dict | None = None,
        convnext: dict | None = None,
        perception: dict | None = None,
        text_config: LlamaConfig | dict | None = None,
        decimals: int = 2,
        conversation: dict | None = None,
        **kwargs,
    ):
        self.image_size = image_size
        self.vit, self.convnext, self.perception = vit or {}, convnext or {}, perception or {}
        self.text_config = text_config if isinstance(text_config, LlamaConfig) else LlamaConfig(**(text_config or {}))
        self.decimals = decimals
        self.conversation = conversation or {}
        super().__init__(**kwargs)

    @property
    def visual_tokens(self) -> int:
        """P: one CLS and the ViT's grid."""
        return 1 + (self.vit["image_size"] // self.vit["patch_size"]) ** 2
