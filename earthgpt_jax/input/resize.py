"""Pad to a square and resize in one step: bitwise equal to Pillow's bicubic filter, in a third of its time.

Pillow (src/libImaging/Resample.c) filters horizontally, then vertically, and rounds to 8 bits after each pass. Weights
are fixed-point numbers with 22 fractional bits. This module computes the same sums. Its innermost loop runs along
memory, so that compilers vectorize it, and sums over nothing but padding are skipped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from earthgpt_jax.boxes import Square

_BITS = 22
_HALF = 1 << (_BITS - 1)
_ROWS, _BLOCK = 64, 16  # rows per tile and columns transposed together, chosen to fit a core's L1 cache


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile with Numba, and cache the result on disk if a cache folder is writable."""
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:
        return numba.njit(nogil=True)(function)


def resize_square(
    image: np.ndarray, size: int, fill: tuple[int, int, int], *, out: np.ndarray | None = None
) -> np.ndarray:
    """Pad u8[h, w, 3] with `fill` to a square and resize it to u8[size, size, 3], bicubic and antialiased.

    Bitwise equal to `Image.fromarray(pad_to_square(image, fill)).resize((size, size), Image.Resampling.BICUBIC)` unless
    the square already has this size, in which case Pillow returns it unchanged.

    Args:
        out: Contiguous array to write the result to, which is returned.
    """
    height, width = image.shape[:2]
    square = Square(width, height)
    left, top = square.offset
    first, count, weights = _windows(square.side, size)
    pixels = np.ascontiguousarray(image).reshape(height, width * 3)
    pixels.flags.writeable = False  # read-only for every decoder, so that Numba compiles one variant
    colour = np.array(fill, np.uint8)
    narrow = np.empty((height, size * 3), np.uint8)
    _horizontal(pixels, square.side, left, first, count, weights, colour, narrow)
    if out is None:
        out = np.empty((size, size, 3), np.uint8)
    _vertical(narrow, top, first, count, weights, np.tile(colour, size), out.reshape(size, size * 3))
    return out


@_compiled
def _cubic(x: float) -> float:
    """Evaluate Keys' kernel with a = -1/2, with Pillow's order of operations."""
    x = abs(x)
    if x < 1.0:
        return (1.5 * x - 2.5) * x * x + 1.0
    if x < 2.0:
        return (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
    return 0.0


@_compiled
def _windows(side: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return for each output pixel its first input pixel i32[size], their number i32[size] and weights i32[size, n]."""
    scale = side / size
    stretch = max(scale, 1.0)
    support = 2.0 * stretch
    most = int(np.ceil(support)) * 2 + 1
    first, count = np.empty(size, np.int32), np.empty(size, np.int32)
    weights = np.zeros((size, most), np.int32)
    exact = np.empty(most, np.float64)
    for x in range(size):
        center = (x + 0.5) * scale
        begin = max(int(center - support + 0.5), 0)
        taps = min(int(center + support + 0.5), side) - begin
        total = 0.0
        for t in range(taps):
            exact[t] = _cubic((t + begin - center + 0.5) * (1.0 / stretch))
            total += exact[t]
        for t in range(taps):
            weight = exact[t] / total * (1 << _BITS)
            weights[x, t] = int(weight - 0.5) if weight < 0 else int(weight + 0.5)
        first[x], count[x] = begin, taps
    return first, count, weights


@_compiled
def _horizontal(
    pixels: np.ndarray,
    side: int,
    left: int,
    first: np.ndarray,
    count: np.ndarray,
    weights: np.ndarray,
    fill: np.ndarray,
    out: np.ndarray,
) -> None:
    """Resize the rows u8[h, w * 3], padded left and right with `fill`, to u8[h, size * 3]."""
    height, length = pixels.shape
    size = len(first)
    # Tile of the padded image, transposed: each line holds one column's reds, greens and blues.
    columns_first = np.empty((side, 3 * _ROWS), np.uint8)
    columns_first[:] = np.repeat(fill, _ROWS)
    done = np.empty((_BLOCK, 3 * _ROWS), np.uint8)
    sums = np.empty(3 * _ROWS, np.int32)
    for y in range(0, height, _ROWS):
        rows = min(_ROWS, height - y)
        for tile in range(0, length // 3, _BLOCK):
            for i in range(rows):
                for x in range(tile, min(tile + _BLOCK, length // 3)):
                    for channel in range(3):
                        columns_first[left + x, channel * _ROWS + i] = pixels[y + i, x * 3 + channel]
        for block in range(0, size, _BLOCK):
            columns = min(_BLOCK, size - block)
            for x in range(columns):
                sums[:] = _HALF
                for t in range(count[block + x]):
                    weight = weights[block + x, t]
                    values = columns_first[first[block + x] + t]
                    for i in range(3 * _ROWS):
                        sums[i] += np.int32(values[i]) * weight
                target = done[x]
                for i in range(3 * _ROWS):
                    target[i] = min(max(sums[i] >> _BITS, 0), 255)
            for i in range(rows):
                for x in range(columns):
                    for channel in range(3):
                        out[y + i, (block + x) * 3 + channel] = done[x, channel * _ROWS + i]


@_compiled
def _vertical(
    narrow: np.ndarray,
    top: int,
    first: np.ndarray,
    count: np.ndarray,
    weights: np.ndarray,
    fill: np.ndarray,
    out: np.ndarray,
) -> None:
    """Resize the columns u8[h, n], padded above and below with rows `fill` u8[n], to u8[size, n]."""
    height, length = narrow.shape
    sums = np.empty(length, np.int32)
    for y in range(len(first)):
        target = out[y]
        begin = first[y] - top
        if begin + count[y] <= 0 or begin >= height:
            target[:] = fill
            continue
        sums[:] = _HALF
        for t in range(count[y]):
            weight = weights[y, t]
            values = narrow[begin + t] if 0 <= begin + t < height else fill
            for i in range(length):
                sums[i] += np.int32(values[i]) * weight
        for i in range(length):
            target[i] = min(max(sums[i] >> _BITS, 0), 255)
