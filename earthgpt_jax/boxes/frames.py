"""Coordinates of one image in another frame: its padded square, a tile of it, a resized copy.

Coordinates are f[2n], x and y alternating, continuous: 0 is the left edge of the first pixel, so that resizing is
nothing but a factor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Square:
    """The square that an image is padded to: fractions of it are what box texts hold.

    The shorter side is padded by floor(difference / 2) before it (EarthGPT's README; LLaMA2-Accessory).
    """

    width: int
    height: int

    @property
    def side(self) -> int:
        return max(self.width, self.height)

    @property
    def offset(self) -> tuple[int, int]:
        """Padding left of and above the image, in pixels."""
        return (self.side - self.width) // 2, (self.side - self.height) // 2

    def to_fractions(self, coordinates: np.ndarray | Sequence[float]) -> np.ndarray:
        """Pixels of the original image -> fractions of the square; x and y alternate."""
        return ((np.asarray(coordinates, np.float64).reshape(-1, 2) + self.offset) / self.side).reshape(-1)

    def to_pixels(self, coordinates: np.ndarray | Sequence[float]) -> np.ndarray:
        """The inverse of `to_fractions`."""
        return (np.asarray(coordinates, np.float64).reshape(-1, 2) * self.side - self.offset).reshape(-1)

    def resized(self, side: int) -> Window:
        """The square as a picture of `side` x `side` pixels."""
        x, y = self.offset
        return Window(x=-x, y=-y, scale=side / self.side)


@dataclasses.dataclass(frozen=True)
class FullImage:
    """The image itself, of which the boxes of models that do not pad hold fractions, each side's of its own."""

    width: int
    height: int

    def to_fractions(self, coordinates: np.ndarray | Sequence[float]) -> np.ndarray:
        """Pixels of the original image -> fractions of its sides."""
        return (np.asarray(coordinates, np.float64).reshape(-1, 2) / (self.width, self.height)).reshape(-1)

    def to_pixels(self, coordinates: np.ndarray | Sequence[float]) -> np.ndarray:
        """The inverse of `to_fractions`."""
        return (np.asarray(coordinates, np.float64).reshape(-1, 2) * (self.width, self.height)).reshape(-1)


Frame = Square | FullImage


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
    """A picture of a part of an image: its corner in pixels of the image, and the picture's pixels a pixel.

    A tile is `Window(x=512, y=0)`, an image at half its size `Window(scale=0.5)`.
    """

    x: float = 0
    y: float = 0
    scale: float = 1

    def to_window(self, coordinates: np.ndarray | Sequence[float]) -> np.ndarray:
        """Pixels of the original image -> pixels of the picture."""
        return ((np.asarray(coordinates, np.float64).reshape(-1, 2) - (self.x, self.y)) * self.scale).reshape(-1)

    def to_pixels(self, coordinates: np.ndarray | Sequence[float]) -> np.ndarray:
        """The inverse of `to_window`."""
        return (np.asarray(coordinates, np.float64).reshape(-1, 2) / self.scale + (self.x, self.y)).reshape(-1)
