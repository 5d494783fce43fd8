"""EarthGPT-7B: the recipe of `earthgpt_13b` with LLaMA-2-7B as its LLM."""

from ml_collections import ConfigDict

from earthgpt_jax.config import load_recipe


def get_config(stage: str = "align") -> ConfigDict:
    config = load_recipe(f"earthgpt_13b:{stage}")
    config.recipe = "earthgpt_7b"
    config.init = "models/earthgpt_7b"
    config.model.llm.update({"dim": 4096, "depth": 32, "heads": 32, "kv_heads": 32, "ffn_dim": 11008})
    return config
