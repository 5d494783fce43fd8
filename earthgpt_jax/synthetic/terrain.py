"""Features of a background that guide the placement of objects, and curves for drawing backgrounds."""

from __future__ import annotations

import dataclasses

import numpy as np

from earthgpt_jax.synthetic.canvas import WORLD
from earthgpt_jax.synthetic.noise import random_curve


@dataclasses.dataclass(frozen=True, kw_only=True)
class Crossing:
    """A position for a bridge: its centre and angle (radians), and the width of the water in world units."""

    x: float
    y: float
    angle: float
    width: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Terrain:
    """Hints for the placement of objects.

    Attributes:
        crossings: positions for bridges.
        direction: the direction (radians) of streets, ships or rows of objects; None if there is none.
    """

    crossings: tuple[Crossing, ...] = ()
    direction: float | None = None


def winding_line(
    rng: np.random.Generator, *, angle: float, bend: float, offset: float = 0.0, count: int = 48
) -> np.ndarray:
    """Return a winding line across the whole image, f64[count,2], `offset` world units away from the centre."""
    along = np.linspace(-WORLD, WORLD, count)
    across = random_curve(rng, count=count, amplitude=bend)
    across = across - across.mean() + offset
    cos, sin = np.cos(angle), np.sin(angle)
    half = WORLD / 2
    return np.stack([half + along * cos - across * sin, half + along * sin + across * cos], axis=1)


def half_plane(across: np.ndarray, *, angle: float) -> np.ndarray:
    """Return the outline, f64[N,2], of the area on one side of a winding line with normal direction `angle`."""
    along = np.linspace(-WORLD, WORLD, len(across))
    cos, sin = np.cos(angle), np.sin(angle)
    half = WORLD / 2
    line = np.stack([half + across * cos - along * sin, half + across * sin + along * cos], axis=1)
    far = np.array([cos, sin]) * 2 * WORLD
    return np.concatenate([line, line[-1:] + far, line[:1] + far])


def find_crossings(course: np.ndarray, *, width: float) -> tuple[Crossing, ...]:
    """Return the positions along a watercourse, f64[N,2], where a perpendicular bridge is well inside the image."""
    direction = np.gradient(course, axis=0)
    found = []
    for (x, y), (dx, dy) in zip(course, direction, strict=True):
        if 26 < x < WORLD - 26 and 26 < y < WORLD - 26:
            found.append(Crossing(x=float(x), y=float(y), angle=float(np.arctan2(dy, dx) + np.pi / 2), width=width))
    return tuple(found)
