"""Small: real parts, trained on real optical, SAR and infrared images, to be used and tuned on a laptop.

    python scripts/make_small.py --native NATIVE --workdir runs/small     # does all of this, and can be resumed

Parts: DINOv2 ViT-S/14, a ConvNeXt-Atto that `scripts/make_small.py` distils from it, and the first layers of
SmolLM2-135M with the part of its vocabulary that the data uses.

Stages: `align` trains projector, attention and norms on captions and boxes as the paper does; `finetune` then trains
the LLM as a whole, because what was cut has to be made up for. To tune the result on your own data, use `instruct`
(the paper's adapters) or `lora`.
"""

from ml_collections import ConfigDict

STAGES = ("align", "finetune", "instruct", "lora")
ADAPTERS = {"instruct": {"kind": "scale+bias"}, "lora": {"kind": "lora", "rank": 8, "alpha": 16.0}}


def get_config(stage: str = "align") -> ConfigDict:
    if stage not in STAGES:
        raise ValueError(f"expected one of {STAGES}, got {stage!r}")
    config = ConfigDict()
    config.recipe = "small"
    config.stage = "instruct" if stage == "lora" else stage
    config.init = {"align": "runs/small/base", "finetune": "runs/small/align/model"}.get(stage, "runs/small/small")
    config.frozen_dtype = "float32"  # bfloat16 matrix products are slow on CPUs
    config.model = model()
    config.model.adapter = ADAPTERS.get(stage, {"kind": "none"})

    config.data = ConfigDict()
    config.data.source = "datasets"
    config.data.mixture = "small_real"
    config.data.features = "runs/small/features"  # the encoders would take most of a step
    config.data.seq_len = 512
    config.data.batch_size = 8
    config.data.max_images = 6
    config.data.max_questions = 6
    config.data.max_boxes = 12
    config.data.decimals = 3
    config.data.chat_template = "plain_eos"
    config.data.json_share = 0.1  # clients ask for JSON; longer answers leave room for fewer questions
    if stage == "align":
        config.data.task_weights = {"caption": 0.4, "classification": 1.0, "hbb": 1.0}
    else:
        config.data.task_weights = {
            "classification": 1.0, "caption": 0.4, "vqa": 0.5, "region_caption": 0.5, "grounding": 1.0,
            "hbb": 1.0, "obb": 0.5, "presence": 0.5, "count": 0.5, "region_class": 0.5, "class_hbb": 0.5,
            "absent_hbb": 0.25, "absent_grounding": 0.25,
        }  # fmt: skip

    config.optim = ConfigDict()
    config.optim.steps = {"align": 200, "finetune": 8000}.get(stage, 300)
    config.optim.warmup_steps = 50
    config.optim.peak_lr = {"align": 1e-3, "finetune": 5e-4, "instruct": 3e-3, "lora": 2e-3}[stage]
    if stage in ("align", "finetune"):
        # Everything but the projector is pretrained.
        config.optim.lr_scale = {"attention": 0.5, "norm": 0.5}
    config.optim.clip_norm = 1.0
    config.optim.weight_decay = 0.05

    config.checkpoint = {"every_steps": 100, "keep": 2}
    config.validation = {"every_steps": 500, "split": "val", "share": 0.005}
    return config


def model() -> ConfigDict:
    """Return the architecture; 64 + 1 visual tokens per image, each of 2 x 2 patches."""
    return ConfigDict(
        {
            "image_size": 512,
            "compute_dtype": "float32",
            "vit": {
                "image_size": 224, "patch_size": 14, "dim": 384, "depth": 12, "heads": 6, "ffn_dim": 1536, "grid": 37,
                "position_rule": "hf",
            },
            "convnext": {"image_size": 256, "depths": (2, 2, 6, 2), "dims": (40, 80, 160, 320)},
            "perception": {"vit_layers": (5, 11), "cnn_stages": (0, 1, 2, 3), "spatial_merge": 2},
            "llm": {
                "vocab_size": 8192, "dim": 576, "depth": 4, "heads": 9, "kv_heads": 3, "ffn_dim": 1536,
                "norm_eps": 1e-5, "tied_head": True, "rope_theta": 100000.0, "max_positions": 8192,
            },
        }
    )  # fmt: skip
