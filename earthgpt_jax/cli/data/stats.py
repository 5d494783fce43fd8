"""`earthgpt data stats`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HELP = "classes, sensors, box sizes and texts in tokens, as tables and plots"
DESCRIPTION = """\
Measures what dataset directories hold: records, sensors, tasks and classes by split; sizes of boxes in
pixels and by COCO's small, medium and large, aspects, objects an image; lengths of questions and answers
in tokens, by kind of question. Of several datasets also all together.

examples:
  earthgpt data stats datasets
  earthgpt data stats datasets/hit_uav --html stats.html --json stats.json
  earthgpt data stats datasets --tokenizer Llama-2-13b-hf/tokenizer.model
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", type=Path, help="a dataset directory, or a folder of several")
    parser.add_argument("--tokenizer", type=Path, help="a SentencePiece model (default: the embedded one)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON too")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with tables and plots too")


def run(args: argparse.Namespace) -> int:
    import json

    from earthgpt_jax.errors import EarthGPTError
    from earthgpt_jax.input.tokenizer import Tokenizer
    from earthgpt_jax.mmrs import statistics, store
    from earthgpt_jax.mmrs.inspection import directories
    from earthgpt_jax.resources import assets_path

    for option, path in (("--json", args.json), ("--html", args.html)):
        if path and (path.is_dir() or not path.absolute().parent.is_dir()):
            raise EarthGPTError(f"{option} {path}: expected the name of a file in a folder that exists")
    folders = directories(args.dir)
    tokenizer = Tokenizer(args.tokenizer or assets_path("tiny", "tokenizer.model"))
    found = statistics.measure(folders, tokenizer=tokenizer)
    print("\n\n".join(statistics.text(each) for each in found))
    if args.json:
        content = json.dumps([each.plain() for each in found], indent=1) + "\n"
        store.replace(args.json, content.encode())
    if args.html:
        named = f"{args.tokenizer or 'the embedded tokenizer'} ({tokenizer.vocab_size} pieces)"
        title = f"Statistics of {', '.join(folder.name for folder in folders)}"
        store.replace(args.html, statistics.page(found, title=title, tokenizer=named).encode())
    for path in (args.json, args.html):
        if path:
            print(f"wrote {path}", file=sys.stderr)
    return 0
