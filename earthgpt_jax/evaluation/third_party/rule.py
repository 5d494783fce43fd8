"""`Rule`: another project's scoring rule for one task; and the texts that its code sees.

The rules of a project are in the module of its name. Each is reproduced from the evaluation code of the project, with
its defects. A rule sees texts in the project's own box format: the text itself where the file is in that format, else
the boxes written in it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from earthgpt_jax.boxes import BOX_FORMATS, BoxKind, FullImage, Square, polygon_to_rect, write_boxes
from earthgpt_jax.evaluation.metrics.parsed_boxes import frame_of, parse_answer
from earthgpt_jax.evaluation.predictions import Prediction, Truth
from earthgpt_jax.records import Task

Figures = Mapping[str, float]  # name of a figure in the project's table -> its value; fractions, not percent


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """One project's rule for one task.

    Attributes:
        compute: predictions -> every figure of the project's table, the headline figure first. Fractions, where the
            project prints percent. A figure that the project's code cannot compute (it divides by zero) is NaN.
        ours: figure -> our metric that it is usually compared with.
        file: where the rule is in the project's repository.
        description: how it differs from our metric.
    """

    compute: Callable[[Sequence[Prediction]], Figures]
    ours: Mapping[str, str]
    file: str
    description: str


def fraction(numerator: float, denominator: float) -> float:
    """Return `numerator / denominator`; NaN where the project's code would divide by zero."""
    return float(numerator / denominator) if denominator else float("nan")


def answer_in_format(prediction: Prediction, box_format: str) -> str:
    """Return an answer as its model would have written it in another box format; unchanged if it has no boxes."""
    if prediction.box_format == box_format:
        return prediction.prediction
    parsed, frame = parse_answer(prediction), frame_of(prediction)
    if not parsed.boxes:
        return prediction.prediction
    return _write([box.pixels(frame) for box in parsed.boxes], box_format, frame)


def truth_in_format(prediction: Prediction, box_format: str) -> str:
    """Return the true boxes as text: the file's own text if it is in the format, else the objects written in it."""
    objects = objects_of(prediction)
    if prediction.box_format == box_format and _describes(prediction, objects):
        return prediction.answer
    polygons = [comparable_polygon(np.asarray(item.polygon, float), prediction) for item in objects]
    return _write(polygons, box_format, frame_of(prediction))


def comparable_polygon(polygon: np.ndarray, prediction: Prediction) -> np.ndarray:
    """Return a true polygon f[8] as the answer's boxes are meant: enclosed by an axis-aligned box if they are such."""
    oriented = prediction.task == Task.OBB or any(box.kind is BoxKind.OBB for box in parse_answer(prediction).boxes)
    return polygon if oriented else polygon_of(polygon_to_rect(polygon))


def objects_of(prediction: Prediction) -> Sequence[Truth]:
    """Return the objects that a question is about: one for grounding, else all."""
    if prediction.task == Task.GROUNDING and prediction.object_index is not None:
        return prediction.objects[prediction.object_index : prediction.object_index + 1]
    return prediction.objects


def _describes(prediction: Prediction, objects: Sequence[Truth]) -> bool:
    """Return whether the text of the true answer has the boxes of the objects, in the prediction's format and frame."""
    frame = frame_of(prediction)
    boxes = [frame.to_pixels(polygon) for _, polygon in lenient_boxes(prediction.answer, prediction.box_format)]
    return len(boxes) == len(objects) and all(
        np.allclose(box, item.polygon, rtol=0, atol=1e-3 * frame.to_pixels(np.ones(8)).max())
        for box, item in zip(boxes, objects, strict=True)
    )


def lenient_boxes(text: str, box_format: str) -> list[tuple[str, np.ndarray]]:
    """Return (label, polygon f64[8] in fractions) of the boxes of a text, also of those without an area.

    For the ground truth of other projects' files. Boxes whose numbers cannot be read are left out.
    """
    chosen = BOX_FORMATS[box_format]
    if chosen.syntax is None:
        return []
    boxes = []
    for label, part in chosen.syntax.items(text):
        try:
            values = [float(field) for field in chosen.syntax.numbers.split(part or "")]
        except ValueError:
            continue
        if len(values) not in chosen.lengths:
            continue
        has_angle = len(values) == 5
        scale = chosen.largest + 2 * chosen.half_bin or 1.0
        numbers = [(value + chosen.half_bin) / scale for value in values[: 4 if has_angle else None]]
        try:
            coords = list(chosen.decode([*numbers, *values[4:5]] if has_angle else numbers))
        except ValueError:  # no area
            coords = numbers
        boxes.append((label, polygon_of(coords)))
    return boxes


def polygon_of(coords: Sequence[float]) -> np.ndarray:
    """Return the polygon f64[8] of 4 or 8 coordinates, without rounding to float32."""
    if len(coords) == 8:
        return np.asarray(coords, float)
    x0, y0, x1, y1 = (float(n) for n in coords)
    return np.array([x0, y0, x1, y0, x1, y1, x0, y1])


def _write(polygons: Sequence[np.ndarray], box_format: str, frame: Square | FullImage) -> str:
    """Write each box by itself, so that no box depends on the others."""
    if BOX_FORMATS[box_format].scale > 1:
        return "".join(_write_one(np.asarray(polygon, float), box_format, frame) for polygon in polygons)
    rects = [polygon_to_rect(frame.to_fractions(np.asarray(polygon, float))) for polygon in polygons]
    return "".join("[" + ",".join(f"{n:.6f}" for n in rect) + "]" for rect in rects)


def _write_one(polygon: np.ndarray, box_format: str, frame: Square | FullImage) -> str:
    """Write a box; one without an area, which no format can express, as its corners rounded to the scale."""
    try:
        return write_boxes([polygon], box_format=box_format, frame=frame)
    except ValueError:
        chosen, fractions = BOX_FORMATS[box_format], frame.to_fractions(polygon)
        numbers = fractions if chosen.lengths == (8,) else polygon_to_rect(fractions)
        syntax = chosen.syntax
        return syntax.write("", [[str(round(float(n) * chosen.scale)) for n in numbers]]) if syntax else ""
