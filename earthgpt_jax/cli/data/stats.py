"""Classes, sensors, box sizes and texts in tokens, as tables and plots.

Measures what dataset directories hold: records, sensors, tasks and classes by split; sizes of boxes in
pixels and by COCO's small, medium and large, aspects, objects an image; lengths of questions and answers
in tokens, by kind of question. Of several datasets also all together.

With --plan, instead: what training packs. How full the rows of a recipe are, in which several images
with their questions stand, against one image a row; images a row, tokens an image, how often an epoch
goes through each source of the mixture, and questions longer than a row. Lengths of questions are kept
beside the shards (lengths-*.npz) for the next time, and for training.

examples:
  earthgpt data stats datasets
  earthgpt data stats datasets/hit_uav --html stats.html --json stats.json
  earthgpt data stats datasets --tokenizer Llama-2-13b-hf/tokenizer.model
  earthgpt data stats datasets --plan --config earthgpt_13b:instruct --tokens-per-row 4096
  earthgpt data stats datasets --plan --mixture mmrs_balanced
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

_CONFIG = "tiny:instruct"
_FIELDS = ("mixture", "seq_len", "max_images")  # of a recipe's data
_OF_PLAN = ("config", *_FIELDS, "workers")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", type=Path, help="a dataset directory, or a folder of several")
    parser.add_argument("--tokenizer", type=Path, help="a SentencePiece model (default: the embedded one)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON too")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with tables and plots too")
    parser.add_argument("--plan", action="store_true", help="what training packs into rows")
    parser.add_argument("--config", help=f"--plan: the recipe that asks (default: {_CONFIG})")
    parser.add_argument("--mixture", help="--plan: a name, or a YAML file (default: the recipe's)")
    parser.add_argument("--tokens-per-row", type=int, metavar="N", help="--plan: T (default: the recipe's)")
    parser.add_argument("--images-per-row", type=int, metavar="N", help="--plan: at most (default: the recipe's)")
    parser.add_argument("--workers", type=int, metavar="N", help="--plan: processes that measure (default: one a core)")


def run(args: argparse.Namespace) -> int:
    return _plan(args) if args.plan else _measure(args)


def _plan(args: argparse.Namespace) -> int:
    from earthgpt_jax.common.errors import EarthGPTError
    from earthgpt_jax.common.resources import assets_path
    from earthgpt_jax.config import load
    from earthgpt_jax.input.packing import efficiency
    from earthgpt_jax.input.packing.training_data import load_training_data
    from earthgpt_jax.input.tokenizer import Tokenizer

    if args.json or args.html:
        raise EarthGPTError("--json and --html are of the statistics; leave them out, or --plan")
    for name in ("seq_len", "max_images", "workers"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise EarthGPTError(f"--{name.replace('_', '-')}: expected at least 1, got {value}")
    given = {"source": str(args.dir)} | {name: getattr(args, name) for name in _FIELDS}
    fields = [f"--config.data.{name}={value!r}" for name, value in given.items() if value is not None]
    config = load(args.config or _CONFIG, fields)
    tokenizer = Tokenizer(args.tokenizer or assets_path("tiny", "tokenizer.model"))
    plan = load_training_data(config, tokenizer=tokenizer, workers=args.workers).schedule
    print(efficiency.format_report(plan, batch_size=config.data.batch_size))
    return 0


def _measure(args: argparse.Namespace) -> int:
    import json

    from earthgpt_jax.common.errors import EarthGPTError
    from earthgpt_jax.common.files import write_output
    from earthgpt_jax.common.resources import assets_path
    from earthgpt_jax.datasets.manifest import dataset_directories
    from earthgpt_jax.input import statistics
    from earthgpt_jax.input.tokenizer import Tokenizer

    if given := [name for name in _OF_PLAN if getattr(args, name) is not None]:
        raise EarthGPTError(f"--{given[0].replace('_', '-')} is for --plan; add it, or leave this out")
    for option, path in (("--json", args.json), ("--html", args.html)):
        if path and (path.is_dir() or not path.absolute().parent.is_dir()):
            raise EarthGPTError(f"{option} {path}: expected the name of a file in a folder that exists")
    folders = dataset_directories(args.dir)
    tokenizer = Tokenizer(args.tokenizer or assets_path("tiny", "tokenizer.model"))
    found = statistics.compute_statistics(folders, tokenizer=tokenizer)
    print("\n\n".join(statistics.format_statistics(each) for each in found))
    if args.json:
        content = json.dumps([each.plain() for each in found], indent=1) + "\n"
        write_output(args.json, content.encode())
    if args.html:
        named = f"{args.tokenizer or 'the embedded tokenizer'} ({tokenizer.vocab_size} pieces)"
        title = f"Statistics of {', '.join(folder.name for folder in folders)}"
        write_output(args.html, statistics.render_page(found, title=title, tokenizer=named).encode())
    for path in (args.json, args.html):
        if path:
            print(f"wrote {path}", file=sys.stderr)
    return 0
