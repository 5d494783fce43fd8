"""What a background tells the objects that come onto it, and lines across the image."""

from __future__ import annotations

import dataclasses

import numpy as np

from earthgpt_jax.synthetic.canvas import WORLD
from earthgpt_jax.synthetic.noise import wander


@dataclasses.dataclass(frozen=True, kw_only=True)
class Crossing:
    """A place where a bridge spans water: `angle` is the bridge's, `width` the water's, world units."""

    x: float
    y: float
    angle: float
    width: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Terrain:
    """`flow` is the direction (radians) that ships, lanes or rows of things keep to, if any."""

    crossings: tuple[Crossing, ...] = ()
    flow: float | None = None


def through(rng: np.random.Generator, *, angle: float, bend: float, offset: float = 0.0, count: int = 48) -> np.ndarray:
    """f64[count,2]: a winding line across the whole image, `offset` world units beside the centre."""
    along = np.linspace(-WORLD, WORLD, count)
    across = wander(rng, count=count, amplitude=bend)
    across = across - across.mean() + offset
    cos, sin = np.cos(angle), np.sin(angle)
    half = WORLD / 2
    return np.stack([half + along * cos - across * sin, half + along * sin + across * cos], axis=1)


def edge_line(across: np.ndarray, *, angle: float) -> np.ndarray:
    """f64[N,2]: the part of the plane on one side of a winding line (normal direction `angle`)."""
    along = np.linspace(-WORLD, WORLD, len(across))
    cos, sin = np.cos(angle), np.sin(angle)
    half = WORLD / 2
    line = np.stack([half + across * cos - along * sin, half + across * sin + along * cos], axis=1)
    far = np.array([cos, sin]) * 2 * WORLD
    return np.concatenate([line, line[-1:] + far, line[:1] + far])


def crossings(course: np.ndarray, *, width: float) -> tuple[Crossing, ...]:
    """Places along a watercourse f64[N,2] where a bridge at right angles lies well inside the image."""
    direction = np.gradient(course, axis=0)
    found = []
    for (x, y), (dx, dy) in zip(course, direction, strict=True):
        if 26 < x < WORLD - 26 and 26 < y < WORLD - 26:
            found.append(Crossing(x=float(x), y=float(y), angle=float(np.arctan2(dy, dx) + np.pi / 2), width=width))
    return tuple(found)
