"""Find the objects of an image: boxes as JSON and drawn.

Detects all objects, horizontal (hbb) or oriented (obb) boxes, and writes JSON with corners in
pixels of the image to standard output; --draw saves a picture beside it.

examples:
  earthgpt detect --image scene.png --draw boxes.png
  earthgpt detect --image scene.png --boxes obb --model runs/instruct/model
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from earthgpt_jax.cli import engine_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--image", required=True, type=Path, help="PNG, JPEG, TIFF or BMP; any size")
    parser.add_argument("--boxes", choices=("hbb", "obb"), default="hbb", help="kind of boxes (default: hbb)")
    parser.add_argument("--draw", type=Path, metavar="FILE.png", help="also draw the boxes into this file")
    parser.add_argument("--max-new-tokens", type=int, default=448, help="longest answer (default: 448)")
    engine_options.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from PIL import Image, ImageDraw

    from earthgpt_jax.boxes import Square, parse
    from earthgpt_jax.input.images import load_square
    from earthgpt_jax.input.prompts.templates import default_question
    from earthgpt_jax.raster.decode import decode, read_image
    from earthgpt_jax.records import Task

    data = read_image(args.image)
    picture = decode(data)
    engine = engine_options.engine(args, batch_size=1)
    question = default_question(Task(args.boxes))
    item = (load_square(data, engine.image_size), question)
    answer = engine.answer([item], max_new_tokens=args.max_new_tokens)[0]

    height, width = picture.shape[:2]
    parsed, square = parse(answer), Square(width, height)
    boxes = []
    for box in parsed.boxes:
        pixels = [round(float(value), 2) for value in box.pixels(square)]
        boxes.append({"label": box.label, "kind": box.kind.value, "polygon": pixels})
    result = {"image": str(args.image), "width": width, "height": height, "boxes": boxes,
              "rejected": list(parsed.rejections), "answer": answer}  # fmt: skip
    print(json.dumps(result, indent=1))
    if args.draw:
        canvas = Image.fromarray(picture)
        pen = ImageDraw.Draw(canvas)
        for box in parsed.boxes:
            corners = [(float(x), float(y)) for x, y in box.pixels(square).reshape(-1, 2)]
            pen.polygon(corners, outline=(255, 64, 64))
            pen.text(corners[0], box.label, fill=(255, 255, 0))
        canvas.save(args.draw)
        print(f"drawn: {args.draw}", file=sys.stderr)
    return 0
