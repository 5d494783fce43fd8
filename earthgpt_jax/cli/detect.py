"""Detect objects in an image; print boxes as JSON and draw them.

Boxes are axis-aligned (hbb) or oriented (obb). The JSON on standard output has the label, the corners
in pixels of the image and the confidence of each box, the raw answer of the model, and the parts of
the answer that are not valid boxes. A confidence ranks boxes; it is not a calibrated probability.

examples:
  earthgpt detect --image scene.png --draw boxes.png
  earthgpt detect --image scene.png --boxes obb --model runs/instruct/model
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from earthgpt_jax.cli import engine_options

if TYPE_CHECKING:
    import numpy as np

    from earthgpt_jax.api import DetectionResult


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
    from earthgpt_jax.api import Model
    from earthgpt_jax.raster.decode import decode, read_image

    data = read_image(args.image)
    model = Model(engine_options.engine(args, batch_size=1))
    result = model.detect(data, boxes=args.boxes, max_new_tokens=args.max_new_tokens)
    print(json.dumps({"image": str(args.image), **result.to_dict()}, indent=1))
    if args.draw:
        _draw(decode(data), result, args.draw)
        print(f"drawn: {args.draw}", file=sys.stderr)
    return 0


def _draw(pixels: np.ndarray, result: DetectionResult, path: Path) -> None:
    """Save the image u8[h, w, 3] with the outlines and labels of the detected objects."""
    from PIL import Image, ImageDraw

    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    for detection in result:
        corners = [(float(x), float(y)) for x, y in detection.polygon]
        draw.polygon(corners, outline=(255, 64, 64))
        draw.text(corners[0], detection.label, fill=(255, 255, 0))
    image.save(path)
