"""Where an object lies: a rotated rectangle in world units, and points inside of it."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pose:
    """A rotated rectangle. Local axes: x along the long side (nose or bow at +0.5), y across.

    Attributes:
        cx, cy: centre, world units.
        long, short: sides, world units.
        angle: radians, clockwise on screen.
    """

    cx: float
    cy: float
    long: float
    short: float
    angle: float

    def points(self, local: np.ndarray | list[tuple[float, float]]) -> np.ndarray:
        """f64[N,2] world points of local ones, where the rectangle is -0.5..0.5 both ways."""
        scaled = np.asarray(local, dtype=np.float64) * (self.long, self.short)
        return self.offsets(scaled)

    def offsets(self, local: np.ndarray | list[tuple[float, float]]) -> np.ndarray:
        """f64[N,2] world points of local ones that are in world units already."""
        array = np.asarray(local, dtype=np.float64)
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        x, y = array[:, 0], array[:, 1]
        return np.stack([self.cx + x * cos - y * sin, self.cy + x * sin + y * cos], axis=1)

    def rectangle(self, *, margin: float = 0.0) -> np.ndarray:
        """f64[4,2]: the corners, clockwise on screen, `margin` world units outside."""
        a, b = self.long / 2 + margin, self.short / 2 + margin
        return self.offsets([(-a, -b), (a, -b), (a, b), (-a, b)])

    def oval(self, *, scale: float = 1.0, count: int = 36) -> np.ndarray:
        """f64[count,2]: the inscribed ellipse, scaled about the centre."""
        t = np.linspace(0, 2 * np.pi, count, endpoint=False)
        return self.points(np.stack([np.cos(t), np.sin(t)], axis=1) * (0.5 * scale))

    def racetrack(self, *, inset: float = 0.0, count: int = 14) -> np.ndarray:
        """f64[N,2]: two straights joined by half circles, `inset` world units inside of the rectangle."""
        radius = self.short / 2
        reach = self.long / 2 - radius
        t = np.linspace(-np.pi / 2, np.pi / 2, count)
        r = radius - inset
        right = np.stack([reach + r * np.cos(t), r * np.sin(t)], axis=1)
        return self.offsets(np.concatenate([right, -right]))
