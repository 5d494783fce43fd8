"""Random fields, curves and outlines."""

from __future__ import annotations

import numpy as np
from PIL import Image


def smooth_noise(rng: np.random.Generator, *, size: int, cell: float) -> np.ndarray:
    """Return bicubic noise, f32[size,size], with about unit variance and bumps `cell` pixels wide."""
    count = max(4, int(size / cell) + 3)
    grid = rng.standard_normal((count, count), dtype=np.float32)
    side = (count - 3) * 1.0
    image = Image.fromarray(grid)
    # The border cells are cropped, because bicubic interpolation flattens towards an edge.
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=(1.5, 1.5, 1.5 + side, 1.5 + side)))


def octave_noise(rng: np.random.Generator, *, size: int, cells: tuple[float, ...], gain: float = 0.6) -> np.ndarray:
    """Return a sum of noise at several scales, f32[size,size], with unit variance.

    Args:
        cells: widths of the bumps in pixels.
        gain: factor between the amplitudes of successive scales.
    """
    total = np.zeros((size, size), np.float32)
    weight, power = 1.0, 0.0
    for cell in cells:
        total += weight * smooth_noise(rng, size=size, cell=cell)
        power += weight * weight
        weight *= gain
    return total / np.float32(power**0.5 * 0.8)


def random_curve(rng: np.random.Generator, *, count: int, amplitude: float) -> np.ndarray:
    """Return the values of a smooth random curve, f64[count], with about the given amplitude."""
    t = np.linspace(0.0, 1.0, count)
    total = np.zeros(count)
    for order in (1, 2, 3, 5, 8):
        total += np.sin(2 * np.pi * (order * 0.7 * t + rng.random())) * rng.normal() / order
    return total * amplitude


def blob_outline(
    rng: np.random.Generator,
    *,
    cx: float,
    cy: float,
    rx: float,
    ry: float,
    roughness: float = 0.22,
    rotation: float | None = None,
    count: int = 120,
) -> np.ndarray:
    """Return an irregular ellipse around (cx, cy), f64[count,2], rotated by `rotation` radians (default: random)."""
    t = np.linspace(0.0, 2 * np.pi, count, endpoint=False)
    radius = np.ones(count)
    for order in (2, 3, 4, 5, 7, 11, 17, 26):
        radius += roughness * rng.normal() / order**0.8 * np.sin(order * t + 2 * np.pi * rng.random())
    rotation = rng.random() * np.pi if rotation is None else rotation
    x, y = rx * radius * np.cos(t), ry * radius * np.sin(t)
    return np.stack(
        [cx + x * np.cos(rotation) - y * np.sin(rotation), cy + x * np.sin(rotation) + y * np.cos(rotation)], axis=1
    )
