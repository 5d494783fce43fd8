"""Tiny: every part of the 13B model with small numbers, trained on synthetic scenes on a CPU.

    earthgpt train --config tiny:align --workdir runs/align
    earthgpt train --config tiny:instruct --workdir runs/instruct --config.init=runs/align/model

Stages: `align` trains projector, attention and norms, starting from the embedded model `tiny-base`. `instruct` trains
adapters on top of it. `lora` trains LoRA instead, and `finetune` everything except the vision towers.
"""

from ml_collections import ConfigDict

STAGES = ("align", "instruct", "lora", "finetune")

ADAPTERS = {"instruct": {"kind": "scale+bias"}, "lora": {"kind": "lora", "rank": 8, "alpha": 16.0}}


def get_config(stage: str = "align") -> ConfigDict:
    if stage not in STAGES:
        raise ValueError(f"expected one of {STAGES}, got {stage!r}")
    config = ConfigDict()
    config.recipe = "tiny"
    config.stage = "instruct" if stage == "lora" else stage  # LoRA takes the place of the paper's adapters
    config.init = "tiny-base"
    config.frozen_dtype = "float32"  # bfloat16 matrix products are slow on CPUs
    config.model = model()
    config.model.adapter = ADAPTERS.get(stage, {"kind": "none"})

    config.data = ConfigDict()
    config.data.source = "data/synthetic"  # earthgpt data build synthetic --out data
    config.data.seq_len = 384
    config.data.batch_size = 16
    config.data.max_images = 2
    config.data.max_questions = 3 if stage == "align" else 8
    config.data.decimals = 2  # steps of 1.28 px: a perfect answer about a 16-px object has an IoU above 0.8
    config.data.chat_template = "plain_eos"
    config.data.json_share = 0.4
    if stage == "align":
        # Every image has four captions. A weight of 0.25 uses one of them per epoch, in each of three forms.
        config.data.task_weights = {"caption": 0.25, "grounded_caption": 0.25, "grounded_caption_obb": 0.25}
    else:
        config.data.task_weights = {
            "classification": 1.0, "caption": 0.25, "vqa": 1.0, "region_caption": 0.25, "grounding": 1.0, "hbb": 1.0,
            "obb": 1.0, "presence": 0.25, "count": 0.5, "class_hbb": 0.5, "absent_hbb": 0.25,
        }  # fmt: skip

    config.optim = ConfigDict()
    config.optim.steps = 400
    config.optim.warmup_steps = 20
    # Adapters have few parameters and need a far higher learning rate than the weights themselves.
    config.optim.peak_lr = {"align": 2e-3, "instruct": 5e-3, "lora": 5e-3, "finetune": 5e-4}[stage]
    if stage == "align":
        # Attention and norms are pretrained, the projector is not: they learn at a quarter of its rate.
        config.optim.lr_scale = {"attention": 0.25, "norm": 0.25}
    config.optim.clip_norm = 1.0
    config.optim.weight_decay = 0.01

    config.checkpoint = {"every_steps": 100, "keep": 2}
    return config


def model() -> ConfigDict:
    """Return the architecture; 64 + 1 visual tokens per image."""
    return ConfigDict(
        {
            "image_size": 128,
            "compute_dtype": "float32",
            "vit": {
                "image_size": 128, "patch_size": 16, "dim": 128, "depth": 4, "heads": 4, "ffn_dim": 512, "grid": 8
            },
            "convnext": {"image_size": 128, "depths": (1, 1, 2, 1), "dims": (32, 64, 128, 192)},
            "perception": {"vit_layers": (1, 3), "cnn_stages": (0, 1, 2, 3)},
            "llm": {
                "vocab_size": 1024, "dim": 128, "depth": 5, "heads": 4, "kv_heads": 4, "ffn_dim": 384
            },
        }
    )  # fmt: skip
