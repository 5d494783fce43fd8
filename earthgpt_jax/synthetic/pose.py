"""The pose of an object: a rotated rectangle in world units, and outlines relative to it."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pose:
    """A rotated rectangle. The local x axis is along the long side (nose or bow at +0.5), the y axis across.

    Attributes:
        cx, cy: centre, world units.
        length, width: long and short side, world units.
        angle: radians, clockwise on screen.
    """

    cx: float
    cy: float
    length: float
    width: float
    angle: float

    def points(self, local: np.ndarray | list[tuple[float, float]]) -> np.ndarray:
        """Return world points, f64[N,2], of local points; the rectangle covers -0.5..0.5 in local x and y."""
        scaled = np.asarray(local, dtype=np.float64) * (self.length, self.width)
        return self.offsets(scaled)

    def offsets(self, local: np.ndarray | list[tuple[float, float]]) -> np.ndarray:
        """Return world points, f64[N,2], of local points in world units relative to the centre."""
        array = np.asarray(local, dtype=np.float64)
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        x, y = array[:, 0], array[:, 1]
        return np.stack([self.cx + x * cos - y * sin, self.cy + x * sin + y * cos], axis=1)

    def rectangle(self, *, margin: float = 0.0) -> np.ndarray:
        """Return the corners, f64[4,2], clockwise on screen, of the rectangle enlarged by `margin` world units."""
        a, b = self.length / 2 + margin, self.width / 2 + margin
        return self.offsets([(-a, -b), (a, -b), (a, b), (-a, b)])

    def ellipse(self, *, scale: float = 1.0, count: int = 36) -> np.ndarray:
        """Return the outline of the inscribed ellipse, f64[count,2], scaled about the centre."""
        t = np.linspace(0, 2 * np.pi, count, endpoint=False)
        return self.points(np.stack([np.cos(t), np.sin(t)], axis=1) * (0.5 * scale))

    def racetrack(self, *, inset: float = 0.0, count: int = 14) -> np.ndarray:
        """Return a running track, f64[N,2]: two straights and two half circles, `inset` units inside the rectangle."""
        radius = self.width / 2
        reach = self.length / 2 - radius
        t = np.linspace(-np.pi / 2, np.pi / 2, count)
        r = radius - inset
        right = np.stack([reach + r * np.cos(t), r * np.sin(t)], axis=1)
        return self.offsets(np.concatenate([right, -right]))
