"""SPHINX-Tiny, LLaMA2-Accessory's `llama_ens_light`: CLIP ConvNeXt-XXL at 512, DINOv2 ViT-g/14 at 224, TinyLlama-1.1B.

The last stage and the last layer only, as SPHINX fuses them; prompt, labels and preprocessing are the
Accessory's. Its released files (`consolidated.NN-of-MM.model.pth`) come in with
`earthgpt convert import --config sphinx_light --model DIR --out models/sphinx_light`.
"""

from ml_collections import ConfigDict

from earthgpt_jax.config import load_recipe


def get_config(stage: str = "instruct") -> ConfigDict:
    config = load_recipe(f"earthgpt_13b:{stage}")
    config.recipe = "sphinx_light"
    config.init = "models/sphinx_light"
    config.data.decimals = 2
    config.mesh = ConfigDict()  # small enough to be whole on every device
    config.model.vit.update({"dim": 1536, "depth": 40, "heads": 24, "ffn_dim": 4096, "mlp": "swiglu"})
    config.model.convnext.update({"depths": (3, 4, 30, 3), "dims": (384, 768, 1536, 3072), "norm_eps": 1e-5})
    config.model.perception = ConfigDict(
        {"vit_layers": (39,), "cnn_stages": (3,), "vit_fuse": "last", "cnn_fuse": "last"}
    )
    config.model.llm.update({"dim": 2048, "depth": 22, "heads": 32, "kv_heads": 4, "ffn_dim": 5632})
    return config
