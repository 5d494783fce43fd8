"""EarthGPT with Llama-3.2-1B as its LLM: the towers, data and schedule of `earthgpt_13b`.

    earthgpt convert import --config llama3_1b:align --vit dinov2-large --config.model.vit.position_rule=hf \
        --convnext CLIP-convnext_large_d_320 --llm Llama-3.2-1B --out models/llama3_1b
"""

from ml_collections import ConfigDict

from earthgpt_jax.config import load_recipe


def get_config(stage: str = "align") -> ConfigDict:
    config = load_recipe(f"earthgpt_13b:{stage}")
    config.recipe = "llama3_1b"
    config.init = "models/llama3_1b"
    config.mesh = ConfigDict()  # data parallel: every device holds the whole model
    config.model.llm = ConfigDict(
        {
            "vocab_size": 128256, "dim": 2048, "depth": 16, "heads": 32, "kv_heads": 8, "ffn_dim": 8192,
            "norm_eps": 1e-5, "tied_head": True, "rope_theta": 500000.0, "max_positions": 131072,
            "rope_scaling": {
                "kind": "llama3", "factor": 32.0, "original_positions": 8192, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
            },
        }
    )  # fmt: skip
    return config
