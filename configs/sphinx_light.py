"""SPHINX-Tiny, the `llama_ens_light` model of LLaMA2-Accessory: ConvNeXt-XXL, DINOv2 ViT-g/14, TinyLlama-1.1B.

As in SPHINX, only the last CNN stage and the last ViT block are used; chat template, labels and preprocessing are
LLaMA2-Accessory's. Import the released files (`consolidated.NN-of-MM.model.pth`) with

    earthgpt convert import --config sphinx_light --model DIR --out models/sphinx_light
"""

from ml_collections import ConfigDict

from earthgpt_jax.config import load_recipe


def get_config(stage: str = "instruct") -> ConfigDict:
    config = load_recipe(f"earthgpt_13b:{stage}")
    config.recipe = "sphinx_light"
    config.init = "models/sphinx_light"
    config.data.decimals = 2
    config.data.chat_template = "v1"  # answers end with the separator; EOS is not supervised
    config.data.json_share = 0.0
    config.mesh = ConfigDict()  # data parallel: every device holds the whole model
    config.model.vit.update({"dim": 1536, "depth": 40, "heads": 24, "ffn_dim": 4096, "mlp": "swiglu"})
    config.model.convnext.update({"depths": (3, 4, 30, 3), "dims": (384, 768, 1536, 3072), "norm_eps": 1e-5})
    config.model.perception = ConfigDict(
        {"vit_layers": (39,), "cnn_stages": (3,), "vit_fuse": "last", "cnn_fuse": "last"}
    )
    config.model.llm.update({"dim": 2048, "depth": 22, "heads": 32, "kv_heads": 4, "ffn_dim": 5632})
    return config
