"""The boxes of an answer, in pixels of the original image, whatever grammar it is in."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np

from earthgpt_jax.boxes import BoxKind, Frame, FullImage, Parsed, ParsedBox, Square, area, parse, polygon_to_rect
from earthgpt_jax.evaluation.predictions import FrameKind, Prediction

# COCO's areas, in square pixels of the original image: upper ends.
SIZES: Mapping[str, float] = {"small": 32.0**2, "medium": 96.0**2, "large": np.inf}
_FRAMES: Mapping[FrameKind, type[Square] | type[FullImage]] = {FrameKind.SQUARE: Square, FrameKind.WHOLE: FullImage}


@functools.lru_cache(maxsize=2**15)
def _parse(text: str, box_format: str, size: tuple[int, int]) -> Parsed:
    return parse(text, box_format=box_format, size=size)


def boxes_of(prediction: Prediction) -> Parsed:
    return _parse(prediction.prediction, prediction.box_format, (prediction.width, prediction.height))


def frame_of(prediction: Prediction) -> Frame:
    return _FRAMES[FrameKind(prediction.frame)](prediction.width, prediction.height)


def pixels_of(box: ParsedBox, frame: Frame) -> np.ndarray:
    """f64[4] or f64[8] in pixels: what IoUs are computed of."""
    return frame.to_pixels(box.coords)


def numbers(polygon: np.ndarray, kind: BoxKind) -> np.ndarray:
    """The same of a true object: the enclosing upright box, or the polygon itself."""
    corners = np.asarray(polygon, np.float64)
    return np.asarray(polygon_to_rect(corners)) if kind is BoxKind.HBB else corners


def extent(box: np.ndarray) -> float:
    """The area of `numbers`, in their square unit."""
    return float(np.prod(box[2:] - box[:2])) if len(box) == 4 else area(box)


def size_of(box: np.ndarray, prediction: Prediction) -> str:
    """Of `numbers`: `small`, `medium` or `large` as in COCO; "" where a file gives no sizes of images to go by."""
    return next(name for name, end in SIZES.items() if extent(box) < end) if prediction.width > 1 else ""
