"""Hold a dialogue about an image, or ask the same questions about many.

Without --question, questions are read from standard input, one per line. Each question sees the
earlier questions and answers about its image; with --independent it sees the image alone. The
embedded `tiny` was trained on synthetic scenes and on single questions only: on real imagery it
demonstrates the interface, not the quality.

examples:
  earthgpt chat scene.png
  earthgpt chat scene.png --question "What is the category of this remote sensing image?"
  earthgpt chat scenes/ --question "How many ships are there?" --out answers.csv
  earthgpt chat scene.tif --window 4096,2048,1024,1024 --question "How many ships are there?"
  earthgpt chat scene.png --model runs/instruct/model --temperature 0.7 --top-p 0.9
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from earthgpt_jax.cli import engine_options, images, table_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    images.add_arguments(parser)
    parser.add_argument("--question", action="append", metavar="TEXT", help="a question; may be repeated")
    parser.add_argument(
        "--window", metavar="X,Y,WIDTH,HEIGHT", help="ask about this part of a scene, in pixels from the top left"
    )
    parser.add_argument("--independent", action="store_true", help="answer each question without the earlier ones")
    parser.add_argument(
        "--max-new-tokens", type=int, default=256, metavar="N", help="longest answer in tokens (default: 256)"
    )
    table_file.add_argument(parser)
    engine_options.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from earthgpt_jax.api import Model
    from earthgpt_jax.common.errors import EarthGPTError
    from earthgpt_jax.scenes.windows import Window

    if args.max_new_tokens < 1:
        raise EarthGPTError(f"--max-new-tokens: expected at least 1, got {args.max_new_tokens}")
    window = None if args.window is None else Window.parse(args.window)
    source = images.Images(images.find(args.images, asset=args.asset), images.stretch_policy(args), window=window)
    several = len(source.paths) > 1
    if several and args.question is None:
        raise EarthGPTError(f"{len(source.paths)} images: expected --question TEXT, to ask about each of them")
    interactive = args.question is None and sys.stdin.isatty()
    model = None
    answers: list[dict[str, Any]] = []
    for path, picture in source.read():
        if model is None:
            model = Model(engine_options.engine(args, batch_size=1))
            if not args.quiet:
                images.warn_about_model(model.engine.model)
        if not args.quiet:
            height, width = picture.pixels.shape[:2]
            images.warn_about_size(path, width=width, height=height, image_size=model.engine.image_size)
        dialogue = model.chat(picture, max_new_tokens=args.max_new_tokens)
        if several and not args.out:
            print(f"\n{path}")
        for question in args.question or _lines(interactive):
            if args.independent:
                dialogue.reset()
            answer = dialogue.ask(question)
            answers.append({"image": str(path), "stretch": picture.rule, "question": question, "answer": answer})
            if not args.out:
                print(answer if interactive else f"Q: {question}\nA: {answer}", flush=True)
    if args.out:
        table_file.write(args.out, answers, columns=("image", "stretch", "question", "answer"), to_rows=_to_rows)
    return source.status()


def _to_rows(answer: Mapping[str, Any]) -> list[list[Any]]:
    return [list(answer.values())]


def _lines(interactive: bool) -> Iterator[str]:
    """Yield the lines of standard input that are not blank."""
    while True:
        try:
            line = input("> " if interactive else "").strip()
        except EOFError:
            return
        if line:
            yield line
