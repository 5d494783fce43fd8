"""Classes, sensors, box sizes and text lengths of datasets, as tables and plots.

Measures dataset directories: records, sensors, tasks and classes per split; box sizes in pixels and by COCO's small,
medium and large; aspect ratios and objects per image; lengths of questions and answers in tokens, per task. For several
datasets, also all together.

With --packing, reports the packing schedule of a recipe instead: its packing efficiency compared with padding, images
per packed sequence, tokens per image, epochs per source of the mixture, and questions that do not fit. Lengths of
questions are cached next to the shards (lengths-*.npz) for the next run and for training.

examples:
  earthgpt data stats datasets
  earthgpt data stats datasets/hit_uav --html stats.html --json stats.json
  earthgpt data stats datasets --tokenizer Llama-2-13b-hf/tokenizer.model
  earthgpt data stats datasets --packing --config earthgpt_13b:instruct --seq-len 4096
  earthgpt data stats datasets --packing --mixture mmrs_balanced
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from earthgpt_jax.cli.json_output import STDOUT, json_output
from earthgpt_jax.cli.made_by import made_by
from earthgpt_jax.common import files

_CONFIG = "tiny:instruct"
_FIELDS = ("mixture", "seq_len", "max_images")  # of the recipe's data
_PACKING_OPTIONS = ("config", *_FIELDS, "workers")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", type=files.path, help="a dataset directory, or a folder of several")
    parser.add_argument(
        "--tokenizer", type=files.path, help="tokenizer.model or tokenizer.json (default: the embedded one)"
    )
    parser.add_argument(
        "--json",
        type=files.output_path,
        metavar="FILE",
        help="also write the statistics as JSON; - for standard output",
    )
    parser.add_argument(
        "--html", type=files.output_path, metavar="FILE", help="also write a page with tables and plots"
    )
    parser.add_argument("--packing", action="store_true", help="report the packing schedule of a recipe instead")
    parser.add_argument("--config", help=f"--packing: recipe (default: {_CONFIG})")
    parser.add_argument("--mixture", help="--packing: mixture, a name or a YAML file (default: the recipe's)")
    parser.add_argument(
        "--seq-len", type=int, metavar="N", help="--packing: tokens per sequence (default: the recipe's)"
    )
    parser.add_argument(
        "--max-images", type=int, metavar="N", help="--packing: most images per sequence (default: the recipe's)"
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="--packing: processes that measure lengths (default: one per core)"
    )


def run(args: argparse.Namespace) -> int:
    if args.packing:
        return _report_packing(args)
    with json_output(args.json) as write_json:
        return _measure(args, write_json)


def _report_packing(args: argparse.Namespace) -> int:
    from earthgpt_jax.common.errors import EarthGPTError
    from earthgpt_jax.common.resources import assets_path
    from earthgpt_jax.config import load
    from earthgpt_jax.input.packing.efficiency import format_report
    from earthgpt_jax.input.packing.training_data import load_training_data
    from earthgpt_jax.input.tokenizer import Tokenizer

    if args.json or args.html:
        raise EarthGPTError("--json and --html do not apply to --packing; remove them, or --packing")
    for name in ("seq_len", "max_images", "workers"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise EarthGPTError(f"--{name.replace('_', '-')}: expected at least 1, got {value}")
    fields = {"source": str(args.dir)} | {name: getattr(args, name) for name in _FIELDS}
    overrides = [f"--config.data.{name}={value!r}" for name, value in fields.items() if value is not None]
    config = load(args.config or _CONFIG, overrides)
    tokenizer = Tokenizer(args.tokenizer or assets_path("tiny", "tokenizer.model"))
    schedule = load_training_data(config, tokenizer=tokenizer, workers=args.workers).schedule
    print(format_report(schedule, batch_size=config.data.batch_size))
    return 0


def _measure(args: argparse.Namespace, write_json: Callable[[str], object]) -> int:
    import dataclasses
    import json

    from earthgpt_jax.common.errors import EarthGPTError
    from earthgpt_jax.common.files import write_output
    from earthgpt_jax.common.resources import assets_path
    from earthgpt_jax.datasets.manifest import dataset_directories, read_manifest
    from earthgpt_jax.input import statistics
    from earthgpt_jax.input.tokenizer import Tokenizer

    if given := [name for name in _PACKING_OPTIONS if getattr(args, name) is not None]:
        option = given[0].replace("_", "-")
        raise EarthGPTError(f"--{option} applies to --packing only; add --packing, or remove --{option}")
    for option, path in (("--json", args.json), ("--html", args.html)):
        if path and (path.is_dir() or not files.accepts_files(path.absolute().parent)):
            raise EarthGPTError(f"{option} {path}: expected the name of a file in a folder that exists")
    folders = dataset_directories(args.dir)
    tokenizer = Tokenizer(args.tokenizer or assets_path("tiny", "tokenizer.model"))
    datasets = statistics.compute_statistics(folders, tokenizer=tokenizer)
    print("\n\n".join(map(statistics.format_statistics, datasets)))
    if args.json:
        write_json(json.dumps(list(map(dataclasses.asdict, datasets)), indent=1) + "\n")
    if args.html:
        counted_by = f"{args.tokenizer or 'the embedded tokenizer'} ({tokenizer.vocab_size} pieces)"
        title = f"Statistics of {', '.join(folder.name for folder in folders)}"
        digests = {folder.name: read_manifest(folder)["fingerprint"] for folder in folders}
        page = statistics.render_page(
            datasets, title=title, tokenizer=counted_by, made_by=made_by(args, inputs=digests)
        )  # fmt: skip
        write_output(args.html, page.encode())
    for path in (args.json, args.html):
        if path and str(path) != STDOUT:
            print(f"wrote {path}", file=sys.stderr)
    return 0
