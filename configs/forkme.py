"""A recipe to copy: every field that you are likely to change, with what it does.

    cp configs/forkme.py configs/mine.py
    earthgpt train --config mine:align:debug --workdir runs/debug     # seconds on a CPU, to check your edits
    earthgpt train --config mine:align       --workdir runs/align     --config.data.source=DATASETS
    earthgpt train --config mine:instruct    --workdir runs/instruct  --config.data.source=DATASETS \
        --config.init=runs/align/model

A recipe is a Python file with `get_config(stage)`. What it returns is checked once, all errors together, so a typo is
answered with the nearest field. The descriptions of all fields are in `earthgpt_jax/config/schema.py`.
"""

from ml_collections import ConfigDict


def get_config(stage: str = "align") -> ConfigDict:
    # The stage comes after the colon of --config: `mine:align`. Two stages are the paper's, in this order:
    # align     trains the projector and the language model's attention and norms on image-caption pairs;
    # instruct  trains adapters alone on all tasks, from the model that align made.
    # lora and finetune may stand in place of instruct.
    if stage not in ("align", "instruct", "lora", "finetune"):
        raise ValueError(f"expected align, instruct, lora or finetune, got {stage!r}")

    config = ConfigDict()
    config.recipe = "forkme"  # recorded in checkpoints and models, so that you know later where they come from
    config.stage = "instruct" if stage == "lora" else stage  # lora is instruct with another kind of adapter
    config.seed = 0  # seeds fresh parameters, the packing schedule, question templates and augmentation

    # ---------------------------------------------------------------------------------------------------- start from
    # An embedded model (tiny-base, tiny) or a model directory: the `model` folder of a run, or what
    # `earthgpt convert import` wrote. Instead, `init_from` reads published checkpoints part by part:
    #   config.init, config.init_from = "", {"vit": "dinov2-large", "convnext": "...", "llm": "Llama-2-7b-hf"}
    config.init = "tiny-base"

    # --------------------------------------------------------------------------------------------------------- model
    # Sizes must be those of the weights that you start from. These are tiny's; configs/earthgpt_13b.py has the paper's.
    config.model = {
        "image_size": 128,  # side of the square image on the device, in pixels; each tower resizes it to its own size
        "compute_dtype": "float32",  # bfloat16 on TPUs and GPUs
        "vit": {  # DINOv2
            "image_size": 128, "patch_size": 16, "dim": 128, "depth": 4, "heads": 4, "ffn_dim": 512,
            "grid": 8,  # side of the stored position table; it is resized to image_size / patch_size
        },
        "convnext": {"image_size": 128, "depths": (1, 1, 2, 1), "dims": (32, 64, 128, 192)},
        "perception": {
            "vit_layers": (1, 3),  # ViT layers whose output is used, counted from 0
            "cnn_stages": (0, 1, 2, 3),  # ConvNeXt stages whose output is used
            "vit_fuse": "concat",  # concat, mean or last
            "cnn_fuse": "concat",  # concat, sum or last
        },
        "llm": {"vocab_size": 1024, "dim": 128, "depth": 5, "heads": 4, "kv_heads": 4, "ffn_dim": 384},
        "adapter": {  # on the language model's linear layers; `align` and `finetune` have none
            "instruct": {"kind": "scale+bias"},  # the paper's: y = scale * (W x + bias)
            "lora": {"kind": "lora", "rank": 8, "alpha": 16.0},
        }.get(stage, {"kind": "none"}),
    }  # fmt: skip

    # ---------------------------------------------------------------------------------------------------------- data
    config.data = {
        "source": "datasets",  # a dataset directory (`earthgpt data build`), or a folder of them
        "mixture": "",  # which datasets of the folder, and how often: a file of data/mixtures/; "": all, once per epoch
        # How often each task is asked per epoch: 1 asks every question once, 0.5 every other epoch.
        "task_weights": {"caption": 1.0} if stage == "align" else {
            "classification": 1.0, "caption": 1.0, "vqa": 1.0, "region_caption": 1.0, "grounding": 1.0, "hbb": 1.0,
            "obb": 1.0,
        },
        "seq_len": 384,  # tokens of a packed sequence; several images with their questions share one
        "batch_size": 16,  # packed sequences per step, over all hosts
        "max_images": 2,  # most images in a packed sequence; 0: as many as fit
        "max_questions": 8,  # most questions about one image in one sequence
        "decimals": 2,  # of box coordinates, which are fractions of the padded square; 3 above 200 px
        "chat_template": "plain_eos",  # v1_eos has SPHINX's system prompt; plain and v1 end answers with a separator
        "json_share": 0.2,  # of the questions about boxes that ask for JSON
        "augment": "none",  # flips or flips+rotations; boxes turn with the image
        "workers": 0,  # processes per host that make batches; 0: threads of the training process
    }  # fmt: skip

    # ----------------------------------------------------------------------------------------------------- optimizer
    config.optim = {
        "steps": 400,
        "warmup_steps": 20,  # linear warm-up, then half a cosine down to min_lr
        "peak_lr": {"align": 2e-3, "instruct": 5e-3, "lora": 5e-3, "finetune": 5e-4}[stage],  # 2e-5 at 7B and 13B
        "lr_scale": {"attention": 0.25, "norm": 0.25} if stage == "align" else {},  # factor per group of parameters
        "clip_norm": 1.0,  # of the gradients of trainable parameters
        "weight_decay": 0.01,
        "microbatches": 1,  # gradient accumulation: the batch in this many parts
        "on_nan": "stop",  # or skip: leave out a batch whose loss or gradient is not finite
    }

    # ------------------------------------------------------------------------------------------------------- devices
    # Sizes of the mesh axes; -1 takes the devices that the others leave. `data` splits the batch; `fsdp` splits the
    # batch and every large weight; `tensor` splits heads, ffn channels and the vocabulary. `earthgpt plan` says what
    # fits a TPU slice.
    config.mesh = {"data": -1, "fsdp": 1, "tensor": 1}
    config.remat = "none"  # auto keeps what fits; full recomputes each block: less memory, more compute
    config.frozen_dtype = "float32"  # of parameters that the stage does not train: bfloat16, or int8 to save memory

    # --------------------------------------------------------------------------------------------------------- saving
    config.checkpoint = {
        "every_steps": 100,
        "keep": 2,  # number of most recent checkpoints to retain
        "keep_best": "",  # also the best one by a figure of validation ("validation/loss"), which becomes the model
        "model": "adapters",  # of the finished model of instruct and lora: the adapters alone; whole: all parameters
    }
    # Loss, token accuracy and exact answers of a split that is not trained on: metrics.jsonl and TensorBoard.
    config.validation = {
        "every_steps": 0,  # 100 validates whenever a checkpoint is saved; 0: never
        "split": "val",
        "share": 0.0,  # of the training images to hold out of each dataset without that split, for example 0.02
        "answers": 0,  # questions whose answers are generated and scored as by `earthgpt eval`; 0: none
    }
    config.log_every = 10  # steps between lines about the data in metrics.jsonl
    return config
