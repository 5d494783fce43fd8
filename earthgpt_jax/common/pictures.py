"""Pictures and boxes as self-contained pages hold them: data URIs and SVG points."""

from __future__ import annotations

import base64
import enum
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image


class Encoding(enum.StrEnum):
    """Of a picture on a page: without loss, or small."""

    PNG = "png"
    JPEG = "jpeg"


def data_uri(pixels: np.ndarray, *, longest_side: int, encoding: Encoding = Encoding.PNG) -> str:
    """u8[h, w, 3] as the text of an `href`, made smaller where a side is longer."""
    image = Image.fromarray(pixels)
    image.thumbnail((longest_side, longest_side))
    out = io.BytesIO()
    image.save(out, encoding.upper(), optimize=True)
    return f"data:image/{encoding};base64," + base64.b64encode(out.getvalue()).decode()


def svg_points(polygon: Sequence[float] | np.ndarray) -> str:
    """f32[8] or longer, x1,y1,x2,y2,... as an SVG `points` attribute."""
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in np.asarray(polygon).reshape(-1, 2))
