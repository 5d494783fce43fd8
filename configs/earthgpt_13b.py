"""EarthGPT-13B (arXiv 2401.16822): DINOv2 ViT-L/14, CLIP ConvNeXt-L, LLaMA-2-13B; stages `align` and `instruct`.

Instead of `instruct`'s scales and biases, and like it on what `align` left behind: `lora` trains LoRA on the same
linears, `finetune` everything behind the encoders.

What the paper does not say (layers, fusion, sizes, batch, schedule) follows SPHINX, whose published
fine-tune shares EarthGPT's learning rate and betas. `init` names a model directory with this shape.
"""

from ml_collections import ConfigDict

STAGES = ("align", "instruct", "lora", "finetune")
LLM = {
    "vocab_size": 32000, "dim": 5120, "depth": 40, "heads": 40, "kv_heads": 40, "ffn_dim": 13824, "norm_eps": 1e-5
}  # fmt: skip

ADAPTERS = {"instruct": {"kind": "scale+bias"}, "lora": {"kind": "lora", "rank": 16, "alpha": 32.0}}


def get_config(stage: str = "align") -> ConfigDict:
    if stage not in STAGES:
        raise ValueError(f"expected one of {STAGES}, got {stage!r}")
    config = ConfigDict()
    config.recipe = "earthgpt_13b"
    config.stage = "instruct" if stage == "lora" else stage
    config.init = "models/earthgpt_13b"
    config.model = model()
    config.model.llm = ConfigDict(LLM)
    config.model.adapter = ADAPTERS.get(stage, {"kind": "none"})

    config.data = ConfigDict()
    config.data.source = "data/captions" if stage == "align" else "data/mmrs"
    config.data.seq_len = 2048
    config.data.max_images = 4  # more would fit; on mixed tasks four fill rows as well
    config.data.batch_size = 32  # rows, of some four images each: SPHINX's 128 images
    config.data.max_questions = 8
    config.data.decimals = 3
    config.data.chat_template = "v1"
    if stage == "align":
        config.data.task_weights = {"caption": 1.0}
    else:
        config.data.task_weights = {
            "classification": 1.0, "caption": 1.0, "vqa": 1.0, "region_caption": 1.0, "grounding": 1.0, "hbb": 1.0,
            "obb": 1.0,
        }  # fmt: skip

    # `earthgpt plan` says what fits where; docs/guides/scale.md has measured choices for each slice.
    # align, finetune: weights, gradients and Adam's moments are 86 and 209 GB, so spread over everything. instruct,
    # lora: 27 GB of frozen weights, which four v5e chips hold together; where a chip holds them alone (v5p, H100),
    # mesh.fsdp=1.
    config.mesh = {"data": 1, "fsdp": -1} if stage in ("align", "finetune") else {"data": -1, "fsdp": 4}
    config.remat = "full"

    config.optim = ConfigDict()
    config.optim.steps = 8000  # a million images; `earthgpt data stats --plan` tells what an epoch of your data is
    config.optim.warmup_steps = 240
    config.optim.peak_lr = 2e-4 if stage == "lora" else 2e-5  # the paper's; LoRA starts from zero
    config.optim.clip_norm = 8.0
    return config


def model() -> ConfigDict:
    """Everything but the LLM."""
    return ConfigDict(
        {
            "image_size": 512,
            "compute_dtype": "bfloat16",
            "vit": {
                "image_size": 224, "patch_size": 14, "dim": 1024, "depth": 24, "heads": 16, "ffn_dim": 4096, "grid": 37
            },
            "convnext": {"image_size": 512, "depths": (3, 3, 27, 3), "dims": (192, 384, 768, 1536)},
            "perception": {"vit_layers": (5, 11, 17, 23), "cnn_stages": (0, 1, 2, 3)},
        }
    )  # fmt: skip
