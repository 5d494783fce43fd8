"""Frames: pixels of an image, fractions of its padded square or of the image, pixels of a tile or a resized copy.

Coordinates are f[2n], x and y alternating, and continuous: 0 is the left edge of the first pixel. Resizing an image is
therefore a multiplication.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Square:
    """The square that an image is padded to; box coordinates in text are fractions of it.

    The padding before the shorter side is floor(difference / 2) (EarthGPT's README; LLaMA2-Accessory).

    Attributes:
        width, height: size of the image, in pixels.
    """

    width: int
    height: int

    @property
    def side(self) -> int:
        """Side of the square, in pixels."""
        return max(self.width, self.height)

    @property
    def offset(self) -> tuple[int, int]:
        """Padding left of and above the image, in pixels."""
        return (self.side - self.width) // 2, (self.side - self.height) // 2

    def to_fractions(self, coordinates: np.ndarray | Sequence[float]) -> np.ndarray:
        """Convert pixels of the image to fractions of the square, f64[2n]."""
        return ((np.asarray(coordinates, np.float64).reshape(-1, 2) + self.offset) / self.side).reshape(-1)

    def to_pixels(self, coordinates: np.ndarray | Sequence[float]) -> np.ndarray:
        """Convert fractions of the square to pixels of the image, f64[2n]."""
        return (np.asarray(coordinates, np.float64).reshape(-1, 2) * self.side - self.offset).reshape(-1)

    def resized(self, side: int) -> Window:
        """Return the square, resized to `side` x `side` pixels, as a window of the image."""
        x, y = self.offset
        return Window(x=-x, y=-y, scale=side / self.side)


@dataclasses.dataclass(frozen=True)
class FullImage:
    """The image without padding: x is a fraction of its width, y of its height. For models that do not pad.

    Attributes:
        width, height: size of the image, in pixels.
    """

    width: int
    height: int

    def to_fractions(self, coordinates: np.ndarray | Sequence[float]) -> np.ndarray:
        """Convert pixels of the image to fractions of its sides, f64[2n]."""
        return (np.asarray(coordinates, np.float64).reshape(-1, 2) / (self.width, self.height)).reshape(-1)

    def to_pixels(self, coordinates: np.ndarray | Sequence[float]) -> np.ndarray:
        """Convert fractions of the sides to pixels of the image, f64[2n]."""
        return (np.asarray(coordinates, np.float64).reshape(-1, 2) * (self.width, self.height)).reshape(-1)


Frame = Square | FullImage


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
    """A picture of a part of an image. A tile is `Window(x=512, y=0)`, an image at half size `Window(scale=0.5)`.

    Attributes:
        x, y: position of the picture's top-left corner, in pixels of the image.
        scale: pixels of the picture per pixel of the image.
    """

    x: float = 0
    y: float = 0
    scale: float = 1

    def to_window(self, coordinates: np.ndarray | Sequence[float]) -> np.ndarray:
        """Convert pixels of the image to pixels of the picture, f64[2n]."""
        return ((np.asarray(coordinates, np.float64).reshape(-1, 2) - (self.x, self.y)) * self.scale).reshape(-1)

    def to_pixels(self, coordinates: np.ndarray | Sequence[float]) -> np.ndarray:
        """Convert pixels of the picture to pixels of the image, f64[2n]."""
        return (np.asarray(coordinates, np.float64).reshape(-1, 2) / self.scale + (self.x, self.y)).reshape(-1)
