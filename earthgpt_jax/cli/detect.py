"""Detect objects in an image; print boxes as JSON and draw them.

Boxes are axis-aligned (hbb) or oriented (obb). The JSON on standard output has the label and the
corners of each box, in pixels of the image, the raw answer of the model, and the parts of the answer
that are not valid boxes.

examples:
  earthgpt detect --image scene.png --draw boxes.png
  earthgpt detect --image scene.png --boxes obb --model runs/instruct/model
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from earthgpt_jax.cli import engine_options

if TYPE_CHECKING:
    import numpy as np


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--image", required=True, type=Path, metavar="FILE", help="PNG, JPEG, TIFF or BMP of any size")
    parser.add_argument(
        "--boxes", choices=("hbb", "obb"), default="hbb", help="axis-aligned or oriented boxes (default: hbb)"
    )
    parser.add_argument("--draw", type=Path, metavar="FILE.png", help="draw the boxes on the image and save it here")
    parser.add_argument(
        "--max-new-tokens", type=int, default=448, metavar="N", help="longest answer in tokens (default: 448)"
    )
    engine_options.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from earthgpt_jax.boxes import Square, parse
    from earthgpt_jax.input.images import load_square
    from earthgpt_jax.input.prompts.templates import default_question
    from earthgpt_jax.raster.decode import decode, read_image
    from earthgpt_jax.records import Task

    data = read_image(args.image)
    pixels = decode(data)
    height, width = pixels.shape[:2]
    engine = engine_options.engine(args, batch_size=1)
    question = default_question(Task(args.boxes))
    (answer,) = engine.answer([(load_square(data, engine.image_size), question)], max_new_tokens=args.max_new_tokens)

    parsed, square = parse(answer), Square(width, height)
    polygons = [(box.label, box.pixels(square)) for box in parsed.boxes]
    boxes = [
        {"label": box.label, "kind": box.kind.value, "polygon": [round(float(value), 2) for value in polygon]}
        for box, (_, polygon) in zip(parsed.boxes, polygons, strict=True)
    ]
    result = {"image": str(args.image), "width": width, "height": height, "boxes": boxes,
              "rejected": list(parsed.rejections), "answer": answer}  # fmt: skip
    print(json.dumps(result, indent=1))
    if args.draw:
        _draw(pixels, polygons, args.draw)
        print(f"drawn: {args.draw}", file=sys.stderr)
    return 0


def _draw(pixels: np.ndarray, polygons: Sequence[tuple[str, np.ndarray]], path: Path) -> None:
    """Save the image u8[h, w, 3] with the outlines and labels of boxes, whose corners f32[8] are in pixels."""
    from PIL import Image, ImageDraw

    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    for label, polygon in polygons:
        corners = [(float(x), float(y)) for x, y in polygon.reshape(-1, 2)]
        draw.polygon(corners, outline=(255, 64, 64))
        draw.text(corners[0], label, fill=(255, 255, 0))
    image.save(path)
