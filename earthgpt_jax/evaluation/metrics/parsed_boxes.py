"""The boxes of an answer, in pixels of the original image, for every box format."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np

from earthgpt_jax.boxes import BoxKind, Frame, FullImage, Parsed, ParsedBox, Square, area, parse, polygon_to_rect
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.evaluation.predictions import CoordinateFrame, Prediction

# COCO's object sizes: upper limits of the area, in square pixels of the original image.
SIZE_LIMITS: Mapping[str, float] = {"small": 32.0**2, "medium": 96.0**2, "large": np.inf}
_AXIS_ALIGNED_DEGREES = 15.0
_FRAMES: Mapping[CoordinateFrame, type[Square] | type[FullImage]] = {
    CoordinateFrame.SQUARE: Square,
    CoordinateFrame.IMAGE: FullImage,
}


@functools.lru_cache(maxsize=2**15)
def _parse(text: str, box_format: str, size: tuple[int, int]) -> Parsed:
    return parse(text, box_format=box_format, size=size)


def parse_answer(prediction: Prediction) -> Parsed:
    """Parse the boxes of an answer in its box format."""
    return _parse(prediction.prediction, prediction.box_format, (prediction.width, prediction.height))


def frame_of(prediction: Prediction) -> Frame:
    """Return the frame that the coordinates of an answer are fractions of."""
    return _FRAMES[CoordinateFrame(prediction.frame)](prediction.width, prediction.height)


def box_in_pixels(box: ParsedBox, frame: Frame) -> np.ndarray:
    """Return a parsed box in pixels: f64[4] for an axis-aligned box, f64[8] for an oriented one."""
    return frame.to_pixels(box.coords)


def truth_box(polygon: np.ndarray, kind: BoxKind) -> np.ndarray:
    """Return an annotated polygon f[8] as a box of `kind`: its enclosing axis-aligned box f64[4], or itself f64[8]."""
    corners = np.asarray(polygon, np.float64)
    return np.asarray(polygon_to_rect(corners)) if kind is BoxKind.HBB else corners


def box_area(box: np.ndarray) -> float:
    """Return the area of a box f[4] or f[8], in the square of its unit."""
    return float(np.prod(box[2:] - box[:2])) if len(box) == 4 else area(box)


def size_category(box: np.ndarray, prediction: Prediction) -> str:
    """Return COCO's size of a box in pixels: `small`, `medium` or `large`; "" if the image size is unknown."""
    return next(name for name, end in SIZE_LIMITS.items() if box_area(box) < end) if prediction.width > 1 else ""


def orientation_category(box: np.ndarray, prediction: Prediction) -> str:
    """Return whether an oriented box f[8] is `axis-aligned`, within 15 degrees, or `oblique`; "" if unknown."""
    if len(box) == 4 or prediction.width <= 1:
        return ""
    degrees = np.degrees(np.arctan2(box[3] - box[1], box[2] - box[0])) % 90
    return "axis-aligned" if min(degrees, 90 - degrees) <= _AXIS_ALIGNED_DEGREES else "oblique"


def box_confidences(prediction: Prediction) -> np.ndarray:
    """Return one confidence per parsed box, f[boxes]; all 1 if the prediction has none.

    Raises:
        EarthGPTError: the number of confidences is not the number of boxes, or one is not finite.
    """
    boxes = parse_answer(prediction).boxes
    confidences = np.asarray(prediction.confidences or [1.0] * len(boxes), float)
    if len(confidences) != len(boxes) or not np.isfinite(confidences).all():
        raise EarthGPTError(
            f"prediction {prediction.id}: expected one finite confidence for each of {len(boxes)} boxes, "
            f"got {list(prediction.confidences)}; write one number per box that can be parsed, or none at all"
        )
    return confidences
