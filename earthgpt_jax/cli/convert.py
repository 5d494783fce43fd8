"""Import source checkpoints; export models for transformers, vLLM, llama.cpp, ONNX, PEFT and LLaMA2-Accessory.

`import` builds a model directory from DINOv2, a CLIP ConvNeXt and a LLaMA, each in the files that
its authors publish, or from a complete EarthGPT. `export` writes folders that other programs load.
`merge` copies a model that holds adapters alone, and its parent, into one directory. `inspect` shows
what is in a checkpoint. Nothing is downloaded. Tensors are converted one at a time, so a host with
little memory can convert a model of any size.

examples:
  earthgpt convert export tiny --to hf --out exported
  earthgpt convert import --model exported --out models/tiny
  earthgpt convert inspect exported
  earthgpt convert COMMAND --help
"""

from __future__ import annotations

import argparse
import sys

from earthgpt_jax.cli.engine_options import add_parent
from earthgpt_jax.cli.help_text import add_parser, summary
from earthgpt_jax.common import files

OVERRIDES = True
TARGETS = ("hf", "llama", "accessory", "gguf", "onnx", "peft")
_PARTS = {
    "vit": "a DINOv2, with the parameter names of transformers or of the hub code",
    "convnext": "a CLIP ConvNeXt, with the names of timm or open_clip",
    "llm": "a LLaMA, with the names of transformers, Meta or LLaMA2-Accessory, or a GGUF file of llama.cpp",
    "projector": "an EarthGPT whose projector and image start and end vectors are used (default: initialize them)",
    "model": "a complete EarthGPT: an export, or a checkpoint of LLaMA2-Accessory; the other options replace its parts",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="verb", required=True, metavar="import | export | merge | inspect")

    importing = add_parser(commands, "import", _import, help=summary(_import))
    importing.add_argument(
        "--config", metavar="NAME:STAGE",
        help="recipe whose model the weights are for; required unless --model is an export",
    )  # fmt: skip
    for part, description in _PARTS.items():
        importing.add_argument(
            f"--{part}", type=files.path, action="append", metavar="PATH",
            help=description,
        )  # fmt: skip
    importing.add_argument(
        "--tokenizer",
        type=files.path,
        metavar="FILE",
        help="tokenizer.model or tokenizer.json (default: the one in the folder of the LLM)",
    )
    importing.add_argument(
        "--dtype", choices=["float32", "bfloat16"], help="dtype of all tensors (default: as in the checkpoints)"
    )
    importing.add_argument(
        "--derive", action="store_true",
        help="write a recipe to --out instead: that of --config, with the architecture of these checkpoints",
    )  # fmt: skip
    importing.add_argument(
        "--out",
        type=files.output_path,
        required=True,
        metavar="PATH",
        help="model directory to write; --derive: a recipe (.py)",
    )

    exporting = add_parser(commands, "export", _export, help=summary(_export))
    exporting.add_argument("model", help="an embedded model (tiny, tiny-base) or a model directory")
    add_parent(exporting)
    exporting.add_argument("--to", choices=TARGETS, default="hf", help="format (default: hf)")
    exporting.add_argument("--out", type=files.output_path, required=True, metavar="DIR", help="folder to write")
    exporting.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        help="dtype of all tensors (default: bfloat16 from a billion parameters on; otherwise as in the model, or "
        "float32 if adapters are merged, which is exact)",
    )
    exporting.add_argument(
        "--adapter", choices=["merge", "separate"], default="merge",
        help="hf: merge adapters into the weights, or write them to adapter/ (default: merge)",
    )  # fmt: skip
    exporting.add_argument(
        "--quantize", choices=["none", "int8", "w8a8"], default="none",
        help="hf: 8 bits for the linear layers of the language model, in the format of compressed-tensors: int8 for "
        "the weights, w8a8 for activations as well (default: none)",
    )  # fmt: skip
    exporting.add_argument(
        "--shards", type=int, default=1, metavar="N", help="accessory: number of model-parallel files (default: 1)"
    )
    exporting.add_argument(
        "--max-shard-gb", type=float, default=5.0, metavar="GB", help="hf, llama: largest size of a file (default: 5)"
    )
    exporting.add_argument(
        "--scores", type=files.path, metavar="FILE", help="hf: scores.json of `earthgpt eval`, for the model card"
    )
    exporting.add_argument(
        "--push-ready", action="store_true",
        help="hf: refuse an export whose model card lacks licences of the training data, or scores with baselines",
    )  # fmt: skip

    merging = add_parser(commands, "merge", _merge, help=summary(_merge))
    merging.add_argument("model", help="a model directory")
    add_parent(merging)
    merging.add_argument("--out", type=files.output_path, required=True, metavar="DIR", help="model directory to write")
    merging.add_argument(
        "--int8", action="store_true", help="store large arrays in 8 bits: a quarter of float32; values are rounded"
    )
    merging.add_argument("--max-shard-mb", type=float, metavar="MB", help="largest size of a file (default: one file)")

    inspecting = add_parser(commands, "inspect", _inspect, help=summary(_inspect))
    inspecting.add_argument("path", type=files.path, nargs="+", help="files or folders of a checkpoint")


def run(args: argparse.Namespace) -> int:
    return {"import": _import, "export": _export, "merge": _merge, "inspect": _inspect}[args.verb](args)


def _import(args: argparse.Namespace) -> int:
    """Build a model directory from source checkpoints.

    Give one checkpoint per part (--vit, --convnext, --llm), or a complete EarthGPT (--model). Each is
    a file or a folder; repeat an option to replace tensors by those of later files. Every tensor must
    match the model of --config in name and shape, and so must the config.json or params.json next to
    it: RoPE, heads, epsilons, activation. A difference is an error that names the override to give;
    --derive writes a recipe with all of them instead. Adapters in a checkpoint are imported with it.

    examples:
      earthgpt convert import --config earthgpt_13b:align --vit dinov2-large --llm Llama-2-13b-hf \\
          --convnext CLIP-convnext_large_d_320/open_clip_model.safetensors --out models/13b-base \\
          --config.model.vit.position_rule=hf
      earthgpt convert import --derive --config llama3_1b:align --vit dinov2-small --llm MY_LLAMA --out mine.py
      earthgpt convert import --config sphinx_light --model SPHINX-1k --out models/sphinx
      earthgpt convert import --model exported --out models/tiny
    """
    import numpy as np

    from earthgpt_jax.common.errors import EarthGPTError
    from earthgpt_jax.config import load
    from earthgpt_jax.convert.export_info import read_export_info
    from earthgpt_jax.convert.importer import derive_model, find_tokenizer, import_model
    from earthgpt_jax.convert.recipe import write_recipe

    parts = {part: getattr(args, part) for part in _PARTS if getattr(args, part)}
    if not parts:
        raise EarthGPTError(f"convert import: expected a checkpoint; give at least one of --{', --'.join(_PARTS)}")
    exported = read_export_info(parts["model"][0]) if "model" in parts else None
    if args.config is not None:
        config = load(args.config, args.overrides)
        model, decimals, chat_template = config.model, config.data.decimals, config.data.chat_template
    elif exported is not None:
        model, decimals, chat_template = exported.model, exported.decimals, exported.chat_template
    else:
        raise EarthGPTError(
            "convert import: expected --config NAME:STAGE, the recipe whose model these weights are for"
        )
    if args.derive:
        if args.config is None:
            raise EarthGPTError("convert import --derive: expected --config NAME:STAGE, the recipe to start from")
        base = args.config.partition(":")[0]
        derived = derive_model(parts, model, tokenizer=args.tokenizer or find_tokenizer(parts, required=False))
        write_recipe(args.out, base=base, model=derived)
        print(f"wrote: {args.out}", file=sys.stderr)
        return 0
    out = import_model(
        parts, model, out=args.out, tokenizer=args.tokenizer or find_tokenizer(parts), decimals=decimals,
        chat_template=chat_template, dtype=np.dtype(args.dtype) if args.dtype else None,
    )  # fmt: skip
    print(f"wrote: {out}", file=sys.stderr)
    return 0


def _export(args: argparse.Namespace) -> int:
    """Write a model as a folder that other programs load.

    formats:
      hf         for AutoModelForImageTextToText and AutoProcessor of transformers, with trust_remote_code=True
      llama      the language model alone, for LlamaForCausalLM
      accessory  for LLaMA2-Accessory
      gguf       the language model alone, for llama.cpp: model.gguf
      onnx       the encoders, their fusion and the projector, for onnxruntime: vision.onnx
      peft       LoRA adapters alone, for PeftModel on top of `--to hf --adapter separate`

    examples:
      earthgpt convert export tiny --to hf --out exported
      earthgpt convert export runs/instruct/model --to hf --adapter separate --dtype bfloat16 --out exported
      earthgpt convert export runs/instruct/model --to accessory --shards 2 --out consolidated
    """

    import numpy as np

    from earthgpt_jax.common.errors import EarthGPTError
    from earthgpt_jax.common.parsing import parse_json
    from earthgpt_jax.convert import exporter
    from earthgpt_jax.convert.int8 import Quantization

    if args.overrides:
        raise EarthGPTError(f"{args.overrides[0]}: `earthgpt convert export` takes no config overrides")
    import ml_dtypes  # noqa: F401  (registers bfloat16 with numpy)

    dtype, parent = np.dtype(args.dtype) if args.dtype else None, args.parent
    shard_bytes = int(args.max_shard_gb * 1e9)
    scores = parse_json(args.scores.read_bytes(), where=f"--scores {args.scores}") if args.scores else None
    match args.to:
        case "hf":
            out = exporter.export_hf(
                args.model, args.out, dtype=dtype, adapter=args.adapter, shard_bytes=shard_bytes, scores=scores,
                push_ready=args.push_ready, quantization=Quantization(args.quantize), parent=parent,
            )  # fmt: skip
        case "llama":
            out = exporter.export_llama(args.model, args.out, dtype=dtype, shard_bytes=shard_bytes, parent=parent)
        case "gguf":
            from earthgpt_jax.convert.gguf_export import export_gguf

            out = export_gguf(args.model, args.out, dtype=dtype, parent=parent)
        case "onnx":
            from earthgpt_jax.convert.onnx_export import export_onnx

            out = export_onnx(args.model, args.out, parent=parent)
        case "peft":
            from earthgpt_jax.convert.peft_export import export_peft

            out = export_peft(args.model, args.out, dtype=dtype, parent=parent)
        case _:
            out = exporter.export_accessory(args.model, args.out, dtype=dtype, shards=args.shards, parent=parent)
    print(f"wrote: {out}", file=sys.stderr)
    return 0


def _merge(args: argparse.Namespace) -> int:
    """Copy a model that holds adapters alone, and its parent, into one model directory.

    The adapters stay adapters and every parameter keeps its value, so the copy gives the same answers.
    It needs no other directory. `earthgpt convert export` merges adapters into the weights instead.
    --int8 rounds the large arrays to 8 bits in the files; they are read as float32.

    examples:
      earthgpt convert merge runs/instruct/model --out models/earthgpt
      earthgpt convert merge runs/instruct/model --out models/small --int8 --max-shard-mb 40
    """
    from earthgpt_jax.common.errors import EarthGPTError
    from earthgpt_jax.models.model_copy import copy_whole

    if args.overrides:
        raise EarthGPTError(f"{args.overrides[0]}: `earthgpt convert merge` takes no config overrides")
    if args.max_shard_mb is not None and not 1e-3 <= args.max_shard_mb < 1e9:
        raise EarthGPTError(f"--max-shard-mb: expected a number of megabytes above 0, got {args.max_shard_mb}")
    shard_bytes = None if args.max_shard_mb is None else int(args.max_shard_mb * 1e6)
    out = copy_whole(args.model, args.out, parent=args.parent, int8=args.int8, shard_bytes=shard_bytes)
    print(f"wrote: {out}", file=sys.stderr)
    return 0


def _inspect(args: argparse.Namespace) -> int:
    """Show the layout, tensors and size of a checkpoint without loading it.

    examples:
      earthgpt convert inspect Llama-2-13b-hf
      earthgpt convert inspect consolidated.00-of-02.model.pth consolidated.01-of-02.model.pth
    """
    from earthgpt_jax.cli.inspect import show

    return show(args.path)
