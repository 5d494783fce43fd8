"""Import foreign checkpoints; export for Hugging Face and LLaMA2-Accessory.

Import builds a model directory from DINOv2, a CLIP ConvNeXt and a LLaMA, each in the files that its
makers publish, or from a whole EarthGPT. Export writes folders that others load: `hf` for
AutoModelForImageTextToText and AutoProcessor, `llama` the language model alone for LlamaForCausalLM,
`accessory` for LLaMA2-Accessory. Tensors pass one at a time, so a small host converts any size.
Nothing needs a network; a file or folder may be a checkpoint's own folder on disk.

examples:
  earthgpt convert import --config earthgpt_13b:align --vit dinov2-large --llm Llama-2-13b-hf \\
      --convnext CLIP-convnext_large_d_320/open_clip_model.safetensors --out models/13b-base
  earthgpt convert import --model exported --out models/back
  earthgpt convert export tiny --to hf --out exported
  earthgpt convert export runs/instruct/model --to accessory --shards 2 --out consolidated
  earthgpt convert inspect Llama-2-13b-hf
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

OVERRIDES = True
TARGETS = ("hf", "llama", "accessory")
_PARTS = {
    "vit": "DINOv2: transformers' or the hub's names",
    "convnext": "a CLIP ConvNeXt: timm's or open_clip's names",
    "llm": "a LLaMA: transformers', Meta's or LLaMA2-Accessory's",
    "projector": "an EarthGPT whose projector and image marks are taken; without it they start fresh",
    "model": "a whole EarthGPT: exported by us, or of LLaMA2-Accessory; other parts replace its own",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="import | export | inspect")
    importing = verbs.add_parser("import", help="write a model directory from foreign files")
    importing.add_argument("--config", metavar="NAME:STAGE", help="the recipe whose model the weights are for")
    for part, text in _PARTS.items():
        importing.add_argument(
            f"--{part}", type=Path, action="append", metavar="PATH",
            help=f"{text}; given again, the later files replace tensors of the earlier ones",
        )  # fmt: skip
    importing.add_argument(
        "--tokenizer", type=Path, help="tokenizer.model (default: the one beside the language model)"
    )
    importing.add_argument("--dtype", choices=["float32", "bfloat16"], help="of all tensors (default: as they are)")
    importing.add_argument("--out", type=Path, required=True, help="the model directory to write")

    exporting = verbs.add_parser("export", help="write a folder that others load")
    exporting.add_argument("model", help="an embedded model (tiny, tiny-base) or a model directory")
    exporting.add_argument("--to", choices=TARGETS, default="hf", help="(default: hf)")
    exporting.add_argument("--out", type=Path, required=True, help="the folder to write")
    exporting.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        help="of all tensors (default: as they are; float32 where adapters are folded, which is exact)",
    )
    exporting.add_argument("--adapter", choices=["fold", "separate"], default="fold",
                           help="hf: fold adapters into the weights, or leave them beside (default: fold)")  # fmt: skip
    exporting.add_argument("--shards", type=int, default=1, help="accessory: model-parallel files (default: 1)")
    exporting.add_argument("--max-shard-gb", type=float, default=5.0, help="hf, llama: a file's size (default: 5)")
    exporting.add_argument("--scores", type=Path, help="hf: a scores.json for the model card")

    inspecting = verbs.add_parser("inspect", help="say what a checkpoint is, without loading it")
    inspecting.add_argument("path", type=Path, nargs="+", help="files or folders")


def run(args: argparse.Namespace) -> int:
    return {"import": _import, "export": _export, "inspect": _inspect}[args.verb](args)


def _import(args: argparse.Namespace) -> int:
    import numpy as np

    from earthgpt_jax.common.errors import EarthGPTError
    from earthgpt_jax.config import load
    from earthgpt_jax.convert.export_info import read_export_info
    from earthgpt_jax.convert.importer import find_tokenizer, import_model

    parts = {part: getattr(args, part) for part in _PARTS if getattr(args, part)}
    if not parts:
        raise EarthGPTError(f"convert import: expected sources, some of --{', --'.join(_PARTS)}")
    known = read_export_info(parts["model"][0]) if "model" in parts else None
    if args.config is None and known is None:
        raise EarthGPTError(
            "convert import: expected --config NAME:STAGE, the recipe whose model these weights are for"
        )
    if args.config is not None:
        config = load(args.config, args.overrides)
        model, decimals, chat_template = config.model, config.data.decimals, config.data.chat_template
    else:
        assert known is not None
        model, decimals, chat_template = known.model, known.decimals, known.chat_template
    tokenizer = args.tokenizer or find_tokenizer(parts)
    out = import_model(
        parts, model, out=args.out, tokenizer=tokenizer, decimals=decimals, chat_template=chat_template,
        dtype=np.dtype(args.dtype) if args.dtype else None,
    )  # fmt: skip
    print(f"wrote: {out}", file=sys.stderr)
    return 0


def _export(args: argparse.Namespace) -> int:
    import json

    import numpy as np

    from earthgpt_jax.common.errors import EarthGPTError
    from earthgpt_jax.convert import exporter

    if args.overrides:
        raise EarthGPTError(f"{args.overrides[0]}: `earthgpt convert export` takes no config overrides")
    import ml_dtypes  # noqa: F401  (teaches numpy bfloat16)

    dtype = np.dtype(args.dtype) if args.dtype else None
    shard_bytes = int(args.max_shard_gb * 1e9)
    scores = json.loads(args.scores.read_text()) if args.scores else None
    match args.to:
        case "hf":
            out = exporter.export_hf(
                args.model, args.out, dtype=dtype, adapter=args.adapter, shard_bytes=shard_bytes, scores=scores
            )
        case "llama":
            out = exporter.export_llama(args.model, args.out, dtype=dtype, shard_bytes=shard_bytes)
        case _:
            out = exporter.export_accessory(args.model, args.out, dtype=dtype, shards=args.shards)
    print(f"wrote: {out}", file=sys.stderr)
    return 0


def _inspect(args: argparse.Namespace) -> int:
    from earthgpt_jax.cli.inspect import show

    return show(args.path)
