"""Tiny, trained on real images: the datasets that `earthgpt data build` wrote to the folder `data/real`.

Real scenes are dense. A detection answer lists as many of the largest boxes as `seq_len` has space for, and gives the
number of the others.

Datasets of the folder may share images under different splits (RSIVQA shares some with RSICD, Sydney and DOTA; see
their cards). An image in an evaluation split of any of them is not trained on; the run logs how many records that
excludes.
"""

from ml_collections import ConfigDict

from earthgpt_jax.config import load_recipe


def get_config(stage: str = "align") -> ConfigDict:
    config = load_recipe(f"tiny:{stage}")
    config.recipe = "tiny_real"
    config.data.source = "data/real"
    config.data.seq_len = 512
    config.data.batch_size = 8
    if stage == "align":
        # Few real images have captions; a detection answer describes an image as well.
        config.data.task_weights = {"caption": 1.0, "hbb": 1.0}
    # The data is small: few steps, and a lower learning rate than on synthetic scenes.
    config.optim.steps = 200
    config.optim.peak_lr = {"align": 5e-4, "instruct": 2e-3, "lora": 2e-3, "finetune": 2e-4}[stage]
    return config
