"""Images and polygons for self-contained HTML pages: data URIs and SVG points."""

from __future__ import annotations

import base64
import enum
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image


class Encoding(enum.StrEnum):
    """Encoding of an image on a page: PNG is lossless, JPEG is small."""

    PNG = "png"
    JPEG = "jpeg"


def data_uri(pixels: np.ndarray, *, longest_side: int, encoding: Encoding = Encoding.PNG) -> str:
    """Return an image u8[h, w, 3] as a data URI, downscaled so that no side exceeds `longest_side` pixels."""
    image = Image.fromarray(pixels)
    image.thumbnail((longest_side, longest_side))
    out = io.BytesIO()
    image.save(out, encoding.upper(), optimize=True)
    return f"data:image/{encoding};base64," + base64.b64encode(out.getvalue()).decode()


def svg_points(polygon: Sequence[float] | np.ndarray) -> str:
    """Return a polygon f32[2n], x1,y1,x2,y2,..., as the value of an SVG `points` attribute."""
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in np.asarray(polygon).reshape(-1, 2))
