"""EarthGPT with TinyLlama-1.1B as its LLM: the towers, data and schedule of `earthgpt_13b`.

    earthgpt convert import --config tinyllama:align --vit dinov2-large --config.model.vit.position_rule=hf \
        --convnext CLIP-convnext_large_d_320 --llm TinyLlama-1.1B-intermediate-step-1431k-3T --out models/tinyllama
"""

from ml_collections import ConfigDict

from earthgpt_jax.config import load_recipe


def get_config(stage: str = "align") -> ConfigDict:
    config = load_recipe(f"earthgpt_13b:{stage}")
    config.recipe = "tinyllama"
    config.init = "models/tinyllama"
    config.mesh = ConfigDict()  # data parallel: every device holds the whole model
    config.model.llm.update({"dim": 2048, "depth": 22, "heads": 32, "kv_heads": 4, "ffn_dim": 5632})
    config.model.llm.max_positions = 2048
    return config
