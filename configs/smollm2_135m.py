"""A small EarthGPT of published parts: DINOv2 ViT-S/14, CLIP ConvNeXt-B and SmolLM2-135M.

It fits into the memory of one consumer GPU, also while training.

    earthgpt convert import --config smollm2_135m:align --vit dinov2-small --config.model.vit.position_rule=hf \
        --convnext CLIP-convnext_base_w_320 --llm SmolLM2-135M --out models/smollm2_135m
"""

from ml_collections import ConfigDict

from earthgpt_jax.config import load_recipe


def get_config(stage: str = "align") -> ConfigDict:
    config = load_recipe(f"earthgpt_13b:{stage}")
    config.recipe = "smollm2_135m"
    config.init = "models/smollm2_135m"
    config.mesh = ConfigDict()  # data parallel: every device holds the whole model
    config.model.vit.update({"dim": 384, "depth": 12, "heads": 6, "ffn_dim": 1536})
    config.model.convnext.update({"depths": (3, 3, 27, 3), "dims": (128, 256, 512, 1024)})
    config.model.perception.vit_layers = (2, 5, 8, 11)
    config.model.llm = ConfigDict(
        {
            "vocab_size": 49152, "dim": 576, "depth": 30, "heads": 9, "kv_heads": 3, "ffn_dim": 1536,
            "norm_eps": 1e-5, "tied_head": True, "rope_theta": 100000.0, "max_positions": 8192,
        }
    )  # fmt: skip
    return config
