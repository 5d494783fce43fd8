"""The tiny model on real imagery: both stages on what `earthgpt data build` made, starting from `tiny-base`.

`data.source` is a folder of datasets. Dense images are common there: a question whose answer does
not fit a row is left out, and counted as `left_out` in metrics.jsonl. Datasets of the folder may share
images under different splits (RSIVQA with RSICD, Sydney and DOTA; see their cards): what is in an
evaluation split of any of them is not trained on; a run says at its start how many records that are.
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
        # Few real images have captions: detection sentences are image-text pairs too.
        config.data.task_weights = {"caption": 1.0, "hbb": 1.0}
    # Little data: a smaller rate, few steps.
    config.optim.steps = 200
    config.optim.peak_lr = {"align": 5e-4, "instruct": 2e-3, "lora": 2e-3, "finetune": 2e-4}[stage]
    return config
