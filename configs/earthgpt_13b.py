"""EarthGPT-13B (arXiv 2401.16822): DINOv2 ViT-L/14, CLIP ConvNeXt-L and LLaMA-2-13B.

Stages: `align` trains projector, attention and norms on image-caption pairs. `instruct` then trains scale+bias adapters
on MMRS. Two alternatives to `instruct` also start from the model of `align`: `lora` trains LoRA on the same linear
layers, and `finetune` trains everything except the vision towers.

The paper does not give the layers, fusion, sizes, batch size and schedule. They follow SPHINX, whose published
fine-tuning has the same learning rate and betas.
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
    config.stage = "instruct" if stage == "lora" else stage  # LoRA takes the place of the paper's adapters
    config.init = "models/earthgpt_13b"  # a model directory of this architecture, from `earthgpt convert import`
    config.model = model()
    config.model.llm = ConfigDict(LLM)
    config.model.adapter = ADAPTERS.get(stage, {"kind": "none"})

    config.data = ConfigDict()
    config.data.source = "data/captions" if stage == "align" else "data/mmrs"
    config.data.seq_len = 2048
    config.data.max_images = 4  # more fit, but four pack mixed tasks just as densely
    config.data.batch_size = 32  # packed sequences of about four images each: SPHINX's 128 images per step
    config.data.max_questions = 8
    config.data.decimals = 3
    config.data.chat_template = "v1_eos"
    config.data.json_share = 0.2
    if stage == "align":
        config.data.task_weights = {"caption": 1.0}
    else:
        config.data.task_weights = {
            "classification": 1.0, "caption": 1.0, "vqa": 1.0, "region_caption": 1.0, "grounding": 1.0, "hbb": 1.0,
            "obb": 1.0,
        }  # fmt: skip

    # Weights, gradients and Adam's moments of `align` and `finetune` take 86 GB and 209 GB: shard them over all
    # devices. `instruct` and `lora` have 27 GB of frozen weights, which four v5e chips hold together. Where one chip
    # holds them alone (v5p, H100), set mesh.fsdp=1. `earthgpt plan` estimates whether a choice fits a TPU slice;
    # docs/guides/scale.md has its estimates for several.
    config.mesh = {"data": 1, "fsdp": -1} if stage in ("align", "finetune") else {"data": -1, "fsdp": 4}
    config.remat = "auto"  # keeps what saves the most FLOPs in the memory of the devices

    config.optim = ConfigDict()
    config.optim.steps = 8000  # about a million images; `earthgpt data stats --packing` shows the steps per epoch
    config.optim.warmup_steps = 240
    config.optim.peak_lr = 2e-4 if stage == "lora" else 2e-5  # 2e-5 is the paper's; LoRA starts at zero
    config.optim.clip_norm = 8.0
    return config


def model() -> ConfigDict:
    """Return the architecture without the LLM; 256 + 1 visual tokens per image."""
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
