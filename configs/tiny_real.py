"""The embedded `tiny` model, both stages on real imagery: a dataset directory made by `earthgpt data build`."""

from ml_collections import ConfigDict

from earthgpt_jax.config import recipe


def get_config(stage: str = "align") -> ConfigDict:
    config = recipe(f"tiny:{stage}")
    config.recipe = "tiny_real"
    config.init = "tiny-base"
    config.data.source = "data/real"
    if stage == "align":
        config.data.task_weights = {"caption": 1.0, "grounded_caption": 1.0, "hbb": 1.0}
    # Little data: a small rate and few steps.
    config.optim.steps = 300
    config.optim.peak_lr = 5e-4 if stage == "align" else 2e-3
    return config
