"""The configuration of EarthGPT: plain dicts for the encoders and their fusion, a `LlamaConfig` for the LLM."""

from __future__ import annotations

from typing import Any

import transformers

OLDEST_TRANSFORMERS = 5
if int(transformers.__version__.split(".")[0]) < OLDEST_TRANSFORMERS:
    raise ImportError(
        f"EarthGPT: expected transformers {OLDEST_TRANSFORMERS}.0 or later, got {transformers.__version__}; "
        "run: pip install --upgrade transformers"
    )

from transformers import LlamaConfig, PreTrainedConfig  # noqa: E402  (earlier releases have another name for it)


class EarthGPTConfig(PreTrainedConfig):
    """Configuration of `EarthGPTForConditionalGeneration`.

    Args:
        image_size: side of the square uint8 image that the model takes, in pixels.
        vit: the ViT encoder: image_size, patch_size, dim, depth, heads, ffn_dim, grid (side of the stored position
            table), mlp ("gelu" or "swiglu"), position_rule ("hub" or "hf"), norm_eps.
        convnext: the CNN encoder: image_size, depths, dims, norm_eps.
        perception: the features that are used and how they are fused: vit_layers and cnn_stages (0-based),
            vit_fuse ("concat", "mean" or "last"), cnn_fuse ("concat", "sum" or "last"), and spatial_merge (side of the
            squares of patches that become one token).
        text_config: the LLM; attention_bias and mlp_bias are set if adapters were merged into the weights.
        image_token_id: the id of all positions of an image in `input_ids`.
        decimals: number of decimals in the box coordinates that the model writes, as fractions of the padded square.
        conversation: the chat template: name, prefix, roles, separator, and `separator_ids`, the token sequences
            that end an answer.
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
        image_token_id: int | None = None,
        decimals: int = 2,
        conversation: dict | None = None,
        **kwargs: Any,
    ) -> None:
        self.image_size = image_size
        self.vit, self.convnext, self.perception = vit or {}, convnext or {}, perception or {}
        self.text_config = text_config if isinstance(text_config, LlamaConfig) else LlamaConfig(**(text_config or {}))
        self.image_token_id = image_token_id
        self.decimals = decimals
        self.conversation = conversation or {}
        super().__init__(**kwargs)

    @property
    def visual_tokens(self) -> int:
        """P, the number of visual tokens of an image: one CLS token and the (merged) patches of the ViT."""
        return 1 + (self.vit["image_size"] // self.vit["patch_size"] // self.perception["spatial_merge"]) ** 2
