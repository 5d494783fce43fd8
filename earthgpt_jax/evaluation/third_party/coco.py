"""COCO results: a list of boxes with scores, and the annotation file that they belong to."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.evaluation.predictions import CoordinateFrame, Prediction, Truth
from earthgpt_jax.evaluation.third_party.entries import Entry, read_document
from earthgpt_jax.records import Sensor, Task

_DIGITS = 12  # of fractions; enough for an exact IoU in float64


def predictions(results: Sequence[Entry], *, path: Path, annotations: Path) -> list[Prediction]:
    """Return one prediction per annotated image, with its boxes as text and their scores as confidences.

    Boxes beyond the image are clipped to it, since text cannot say them; crowd regions are difficult objects.

    Args:
        results: entries with `image_id`, `category_id`, `bbox` (x, y, width, height in pixels) and `score`.
        path: their file, for error messages.
        annotations: the annotation file, with `images`, `categories` and `annotations`.

    Raises:
        EarthGPTError: a field is missing or has the wrong type, or an image or a class is unknown.
    """
    truth = read_document(annotations)
    try:
        images = {item["id"]: item for item in truth["images"]}
        names = {item["id"]: str(item["name"]).lower() for item in truth["categories"]}
        objects: dict[Any, list[Truth]] = collections.defaultdict(list)
        for item in truth["annotations"]:
            objects[item["image_id"]].append(
                Truth(label=names[item["category_id"]], polygon=_polygon(item["bbox"]),
                      difficult=bool(item.get("iscrowd", 0)))
            )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise EarthGPTError(
            f"{annotations}: expected a COCO annotation file with images, categories and annotations ({error!r})"
        ) from error
    boxes: dict[Any, list[tuple[str, float]]] = collections.defaultdict(list)
    for number, item in enumerate(results, start=1):
        try:
            image = images[item["image_id"]]
            text = _text(item["bbox"], names[item["category_id"]], image)
            if text:
                boxes[item["image_id"]].append((text, float(item["score"])))
        except (KeyError, TypeError, ValueError) as error:
            raise EarthGPTError(
                f"{path}, entry {number}: expected a box of an image and a class of {annotations} ({error!r})"
            ) from error
    return [
        Prediction(
            id=str(name), record_id=str(image.get("file_name", name)), task=Task.HBB.value, question_type="",
            sensor=Sensor.OPTICAL.value, source=annotations.stem, question="",
            prediction=" ".join(text for text, _ in boxes[name]), answer="", references=("",),
            objects=tuple(objects[name]), object_index=None, width=int(image["width"]), height=int(image["height"]),
            frame=CoordinateFrame.IMAGE.value, confidences=tuple(score for _, score in boxes[name]),
        )
        for name, image in images.items()
    ]  # fmt: skip


def _polygon(bbox: Sequence[float]) -> tuple[float, ...]:
    x, y, width, height = (float(n) for n in bbox)
    return (x, y, x + width, y, x + width, y + height, x, y + height)


def _text(bbox: Sequence[float], label: str, image: Entry) -> str:
    """Return a box in the MMRS format, in fractions of the image; "" if nothing of it is in the image."""
    x, y, width, height = (float(n) for n in bbox)
    sides = (float(image["width"]), float(image["height"])) * 2
    fractions = [min(max(n / side, 0.0), 1.0) for n, side in zip((x, y, x + width, y + height), sides, strict=True)]
    if fractions[0] >= fractions[2] or fractions[1] >= fractions[3]:
        return ""
    return f"<p>one {label}</p>[" + ",".join(f"{n:.{_DIGITS}f}" for n in fractions) + "]"
