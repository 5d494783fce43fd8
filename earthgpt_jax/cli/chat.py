"""Hold a dialogue about an image.

Without --question, questions are read from standard input, one per line. Each question sees the
earlier questions and answers; with --independent it sees the image alone. The embedded `tiny` was
trained on synthetic scenes and on single questions only: on real imagery it demonstrates the
interface, not the quality.

examples:
  earthgpt chat --image scene.png
  earthgpt chat --image scene.png --question "What is the category of this remote sensing image?"
  earthgpt chat --image scene.png --model runs/instruct/model --temperature 0.7 --top-p 0.9
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from earthgpt_jax.cli import engine_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--image", required=True, type=Path, metavar="FILE", help="PNG, JPEG, TIFF or BMP of any size")
    parser.add_argument("--question", action="append", metavar="TEXT", help="a question; may be repeated")
    parser.add_argument("--independent", action="store_true", help="answer each question without the earlier ones")
    parser.add_argument(
        "--max-new-tokens", type=int, default=256, metavar="N", help="longest answer in tokens (default: 256)"
    )
    engine_options.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from earthgpt_jax.api import Model
    from earthgpt_jax.common.errors import EarthGPTError
    from earthgpt_jax.raster.decode import read_image

    if args.max_new_tokens < 1:
        raise EarthGPTError(f"--max-new-tokens: expected at least 1, got {args.max_new_tokens}")
    data = read_image(args.image)
    dialogue = Model(engine_options.engine(args, batch_size=1)).chat(data, max_new_tokens=args.max_new_tokens)
    interactive = args.question is None and sys.stdin.isatty()
    for question in args.question or _lines(interactive):
        if args.independent:
            dialogue.reset()
        answer = dialogue.ask(question)
        print(answer if interactive else f"Q: {question}\nA: {answer}", flush=True)
    return 0


def _lines(interactive: bool) -> Iterator[str]:
    """Yield the lines of standard input that are not blank."""
    while True:
        try:
            line = input("> " if interactive else "").strip()
        except EOFError:
            return
        if line:
            yield line
