"""Windows over a scene of any size.

A model sees a square of fixed size. A scene that is larger is looked at in windows that overlap: an object that is not
larger than the overlap lies whole in at least one of them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from earthgpt_jax.common.errors import EarthGPTError

EDGE = 0.01  # of a window's side: models write coordinates to about this accuracy


@dataclasses.dataclass(frozen=True, order=True)
class Window:
    """A part of a scene, in pixels. Windows are ordered row by row.

    Attributes:
        y, x: its top left pixel.
        height, width: its size.
    """

    y: int
    x: int
    height: int
    width: int

    @property
    def bounds(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom edge."""
        return self.x, self.y, self.x + self.width, self.y + self.height

    @property
    def extent(self) -> tuple[int, int, int, int]:
        """x, y, width and height."""
        return self.x, self.y, self.width, self.height

    @classmethod
    def parse(cls, text: str) -> Window:
        """Return the window that `X,Y,WIDTH,HEIGHT` names.

        Raises:
            EarthGPTError: the text is something else, or the window has no pixels.
        """
        try:
            x, y, width, height = map(int, text.split(","))
        except ValueError:
            x = y = width = height = -1
        if min(x, y) < 0 or min(width, height) < 1:
            raise EarthGPTError(
                f"window {text!r}: expected X,Y,WIDTH,HEIGHT in pixels, from the top left, such as 512,0,1024,1024"
            )
        return cls(y, x, height, width)


def overlap_for(largest: float, *, size: int) -> int:
    """Return the overlap of windows with which every object lies whole in a window, away from its edges.

    Args:
        largest: the longest extent of any object along x or y, in pixels.
        size: side of the windows in pixels.

    Raises:
        EarthGPTError: such an object does not fit into a window.
    """
    overlap = math.ceil(largest + 2 * EDGE * size)
    if overlap >= size:
        raise EarthGPTError(
            f"objects of {largest:g} pixels do not fit into windows of {size}: expected at most "
            f"{math.floor(size * (1 - 2 * EDGE)) - 1}; choose larger windows"
        )
    return overlap


def starts(length: int, *, size: int, overlap: int) -> list[int]:
    """Return where windows begin along an axis: as few as possible, evenly spaced, from one end to the other.

    Args:
        length: of the scene, in pixels.
        size: of a window.
        overlap: the least number of pixels that neighbours share.
    """
    if not 0 <= overlap < size:
        raise EarthGPTError(f"overlap: expected 0 to {size - 1} pixels for windows of {size}, got {overlap}")
    if length <= size:
        return [0]
    count = math.ceil((length - overlap) / (size - overlap))
    return [(length - size) * i // (count - 1) for i in range(count)]


def grid(width: int, height: int, *, size: int, overlap: int) -> list[Window]:
    """Return windows that cover a scene of `width` x `height` pixels, row by row.

    A scene that is smaller than a window is one window of its own size along that axis.
    """
    columns, rows = (starts(length, size=size, overlap=overlap) for length in (width, height))
    return [Window(y, x, min(size, height), min(size, width)) for y in rows for x in columns]


def with_data(windows: Sequence[Window], valid: np.ndarray) -> list[Window]:
    """Return the windows that have a pixel with data; `valid` is bool[height, width] of the scene."""
    return [w for w in windows if valid[w.y : w.y + w.height, w.x : w.x + w.width].any()]
