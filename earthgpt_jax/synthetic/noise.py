"""Random fields: smooth noise of a given cell size, and sums of octaves."""

from __future__ import annotations

import numpy as np
from PIL import Image


def smooth(rng: np.random.Generator, *, size: int, cell: float) -> np.ndarray:
    """f32[size,size]: bicubic noise, about unit variance, with bumps `cell` pixels wide."""
    count = max(4, int(size / cell) + 3)
    grid = rng.standard_normal((count, count), dtype=np.float32)
    side = (count - 3) * 1.0
    image = Image.fromarray(grid)
    # The border cell is left out: bicubic interpolation flattens towards an edge.
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=(1.5, 1.5, 1.5 + side, 1.5 + side)))


def octaves(rng: np.random.Generator, *, size: int, cells: tuple[float, ...], gain: float = 0.6) -> np.ndarray:
    """f32[size,size]: noise of unit variance at several scales, each `gain` times the one before."""
    total = np.zeros((size, size), np.float32)
    weight, power = 1.0, 0.0
    for cell in cells:
        total += weight * smooth(rng, size=size, cell=cell)
        power += weight * weight
        weight *= gain
    return total / np.float32(power**0.5 * 0.8)


def wander(rng: np.random.Generator, *, count: int, amplitude: float) -> np.ndarray:
    """f64[count]: a smooth random curve along 0..1, of about the given amplitude."""
    t = np.linspace(0.0, 1.0, count)
    total = np.zeros(count)
    for order in (1, 2, 3, 5, 8):
        total += np.sin(2 * np.pi * (order * 0.7 * t + rng.random())) * rng.normal() / order
    return total * amplitude


def blob(
    rng: np.random.Generator,
    *,
    cx: float,
    cy: float,
    rx: float,
    ry: float,
    rough: float = 0.22,
    turn: float | None = None,
    count: int = 120,
) -> np.ndarray:
    """f64[count,2]: a closed organic outline around (cx, cy); `turn` radians, by chance where not given."""
    t = np.linspace(0.0, 2 * np.pi, count, endpoint=False)
    radius = np.ones(count)
    for order in (2, 3, 4, 5, 7, 11, 17, 26):
        radius += rough * rng.normal() / order**0.8 * np.sin(order * t + 2 * np.pi * rng.random())
    turn = rng.random() * np.pi if turn is None else turn
    x, y = rx * radius * np.cos(t), ry * radius * np.sin(t)
    return np.stack([cx + x * np.cos(turn) - y * np.sin(turn), cy + x * np.sin(turn) + y * np.cos(turn)], axis=1)
