"""Detect objects in images; print boxes as JSON and draw them.

Boxes are axis-aligned (hbb) or oriented (obb). Standard output gets one JSON object per image, on one
line: the label, the corners in pixels of the image and the confidence of each box, the raw answer of
the model, and the parts of the answer that are not valid boxes. A confidence ranks boxes; it is not a
calibrated probability. With --out, the same goes to a file; a CSV file has one row per box.

examples:
  earthgpt detect scene.png --draw boxes.png
  earthgpt detect scene.png --boxes obb --model runs/instruct/model
  earthgpt detect scenes/ --out boxes.csv --draw drawn/
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from earthgpt_jax.cli import engine_options, images, table_file
from earthgpt_jax.common import files

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from earthgpt_jax.api import DetectionResult
    from earthgpt_jax.raster.decode import Picture

BATCH_SIZE = 8  # images at a time, where there are several
SUFFIXES = (".png", ".jpg", ".jpeg")  # of drawings
CORNERS = tuple(f"{axis}{i}" for i in (1, 2, 3, 4) for axis in "xy")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    images.add_arguments(parser)
    parser.add_argument(
        "--boxes", choices=("hbb", "obb"), default="hbb", help="axis-aligned or oriented boxes (default: hbb)"
    )
    parser.add_argument(
        "--draw", type=files.path, metavar="PATH", help="draw the boxes on the image and save it as this PNG or JPEG "
        "file; for several images, in this folder",
    )  # fmt: skip
    parser.add_argument(
        "--max-new-tokens", type=int, default=448, metavar="N", help="longest answer in tokens (default: 448)"
    )
    table_file.add_argument(parser)
    engine_options.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from earthgpt_jax.api import Model

    source = images.Images(images.find(args.images), images.stretch_policy(args))
    several = len(source.paths) > 1
    drawings = _Drawings(args.draw, images=source.paths) if args.draw else None
    readable = source.read()
    first = next(readable)  # before the model is loaded: a wrong image is reported at once
    model = Model(engine_options.engine(args, batch_size=BATCH_SIZE if several else 1))
    if not args.quiet:
        images.warn_about_model(model.engine.model)
    pending: collections.deque[tuple[Path, Picture]] = collections.deque()

    def pictures() -> Iterator[Picture]:
        for item in itertools.chain([first], readable):
            pending.append(item)
            yield item[1]

    answers = []
    for result in model.detect_each(pictures(), boxes=args.boxes, max_new_tokens=args.max_new_tokens):
        path, picture = pending.popleft()
        answer = {"image": str(path), **result.to_dict()}
        if args.out:
            answers.append(answer)
        else:
            print(json.dumps(answer), flush=True)
        drawn = f"; drawn: {drawings.save(picture.pixels, result, path)}" if drawings else ""
        if not args.quiet:
            size = model.engine.image_size
            images.warn_about_size(path, width=result.width, height=result.height, image_size=size)
            print(f"{path}: {_summary(result)}{drawn}", file=sys.stderr)
    if args.out:
        columns = ("image", "width", "height", "stretch", "label", "kind", "confidence", *CORNERS)
        table_file.write(args.out, answers, columns=columns, to_rows=_to_rows)
    return source.status()


def _summary(result: DetectionResult) -> str:
    """Such as `3 boxes (2 ship, 1 storage tank)`."""
    counts = collections.Counter(detection.label or "no label" for detection in result)
    labels = ", ".join(f"{count} {label}" for label, count in counts.most_common())
    rejected = f", {len(result.rejected)} unreadable" if result.rejected else ""
    return f"{len(result)} box{'' if len(result) == 1 else 'es'}{f' ({labels})' if labels else ''}{rejected}"


def _to_rows(answer: Mapping[str, Any]) -> list[list[Any]]:
    shared = [answer[name] for name in ("image", "width", "height", "stretch")]
    return [[*shared, box["label"], box["kind"], box["confidence"], *box["polygon"]] for box in answer["boxes"]]


class _Drawings:
    """Draws the boxes of one image into a file, or of several into a folder."""

    def __init__(self, path: Path, *, images: Sequence[Path]):
        """Check the path.

        Raises:
            EarthGPTError: it is a folder for one image, a file for several, or has no suffix of a picture.
        """
        from earthgpt_jax.common.errors import EarthGPTError

        several = len(images) > 1
        self._path = path
        self._names = _names_below(images) if several else {}
        if several and path.is_file():
            raise EarthGPTError(f"--draw {path}: expected a folder for several images, got a file")
        if not several and (path.is_dir() or path.suffix.lower() not in SUFFIXES):
            raise EarthGPTError(f"--draw {path}: expected a file name that ends in {' or '.join(SUFFIXES)}")

    def save(self, pixels: np.ndarray, result: DetectionResult, image: Path) -> Path:
        """Draw on the image u8[h, w, 3] that comes from the file `image`; return the drawing's path."""
        import io

        from PIL import Image

        from earthgpt_jax.common.files import explain_write_errors, write_bytes

        path = self._path / self._names[image] if self._names else self._path
        drawing = Image.fromarray(pixels)
        _draw(drawing, result)
        buffer = io.BytesIO()
        drawing.save(buffer, format="PNG" if path.suffix.lower() == ".png" else "JPEG")
        with explain_write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, buffer.getvalue())
        return path


def _names_below(images: Sequence[Path]) -> dict[Path, str]:
    """Return the names of the drawings, each different, with the folders that the images do not all share."""
    parts = {image: image.resolve().parts for image in images}
    levels = enumerate(zip(*(names[:-1] for names in parts.values()), strict=False))
    shared = next((i for i, level in levels if len(set(level)) > 1), min(len(names) - 1 for names in parts.values()))
    # Without a common folder, as on a disk and in a bucket, the first part is a root.
    below = {image: PurePosixPath(*names[max(shared, 1) :]) for image, names in parts.items()}
    counts = collections.Counter(path.with_suffix("") for path in below.values())
    return {
        image: f"{path if counts[path.with_suffix('')] > 1 else path.with_suffix('')}.png"
        for image, path in below.items()
    }


def _draw(image: Image.Image, result: DetectionResult) -> None:
    """Draw the outlines and labels of the detected objects, thick enough to see when the image fills a screen."""
    from PIL import ImageDraw

    draw = ImageDraw.Draw(image)
    scale = max(1, round(max(image.size) / 500))
    for detection in result:
        corners = [(float(x), float(y)) for x, y in detection.polygon]
        draw.line([*corners, corners[0], corners[1]], fill=(255, 64, 64), width=scale, joint="curve")
        draw.text(corners[0], detection.label, fill=(255, 255, 0), font_size=11 * scale, anchor="ls")
