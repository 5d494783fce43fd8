"""Coordinates of one image in another frame: its padded square, a tile of it, a resized copy."""

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
