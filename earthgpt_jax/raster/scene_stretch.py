"""Compute the stretch of a scene that does not fit into memory, from its blocks.

The result is that of `stretch.fit` on the whole scene. Percentiles of integers of up to 16 bits come from the count of
each value. Other values are counted by the upper half of their bits, as float32, and then, within the few groups that
hold the percentiles, by the lower half; this reads the scene twice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from earthgpt_jax.raster import stretch as stretch_lib
from earthgpt_jax.raster.bands import Bands
from earthgpt_jax.raster.policy import PERCENTILES, Stretch, StretchPolicy, Values, ZeroBorder

Blocks = Callable[[], Iterator[tuple[int, int, Bands]]]  # left, top and bands of each block, in any order
_HALF = 16  # bits
_ROWS_AT_ONCE = 1 << 20  # pixels


def fit_blocks(blocks: Blocks, policy: StretchPolicy, *, width: int, height: int) -> Stretch:
    """Return the stretch of a scene. No speckle filter: it needs the whole scene.

    Args:
        blocks: yields the bands of the policy, read with its `nodata`, block by block; called once per pass.
        policy: with `Speckle.NONE`.
        width, height: of the scene, in pixels.
    """
    _, _, first = next(blocks())
    stretch = Stretch(bands=first.numbers, values=policy.values, nodata=policy.nodata)
    count = len(first.values)
    if first.eight_bits and policy.keeps_eight_bits():
        return stretch
    if policy.range:
        return dataclasses.replace(stretch, low=(policy.range[0],) * count, high=(policy.range[1],) * count)
    border = _Border(width, height) if not first.bounded and policy.zero_border is ZeroBorder.EXCLUDE else None
    dtype = first.values.dtype
    counts = [(_Values if stretch_lib.is_small(dtype) else _Halves)(dtype, policy.values) for _ in range(count)]
    for left, top, bands in blocks():
        if border:
            border.add(left, top, bands.values)
        for i, plane in enumerate(bands.values):
            counts[i].add(plane if bands.valid is None else plane[bands.valid[i]])
    zeros = border.pixels() if border else 0
    share = round(zeros / (width * height), 4) if zeros / (width * height) >= stretch_lib.LEAST_BORDER else 0.0
    percentiles = policy.percentiles or PERCENTILES
    for each in counts:
        each.select(percentiles, zeros if share else 0)
    if not stretch_lib.is_small(dtype):
        for _, _, bands in blocks():
            for i, plane in enumerate(bands.values):
                counts[i].refine(plane if bands.valid is None else plane[bands.valid[i]])
    ends = [each.ends() for each in counts]
    low, high = (tuple(pair[i] for pair in ends) for i in (0, 1))
    return dataclasses.replace(stretch, low=low, high=high, percentiles=percentiles, zero_border=share)


class _Border:
    """Counts what `stretch.zero_border` finds: zeros in an unbroken run from an edge, along a row or a column."""

    def __init__(self, width: int, height: int):
        # Of the pixels that are not zero: the first and the last one of each row and of each column.
        self._rows = np.full(height, width), np.full(height, -1)
        self._columns = np.full(width, height), np.full(width, -1)

    def add(self, left: int, top: int, values: np.ndarray) -> None:
        known: np.ndarray = np.any(values, axis=0)
        height, width = known.shape
        for (first, last), start, end, offset, axis in (
            (self._rows, top, top + height, left, 1), (self._columns, left, left + width, top, 0),
        ):  # fmt: skip
            some, length = known.any(axis=axis), known.shape[axis]
            begin = np.where(some, offset + known.argmax(axis=axis), first[start:end])
            stop = np.where(some, offset + length - 1 - np.flip(known, axis).argmax(axis=axis), -1)
            first[start:end] = np.minimum(first[start:end], begin)
            last[start:end] = np.maximum(last[start:end], stop)

    def pixels(self) -> int:
        width, height = len(self._columns[0]), len(self._rows[0])
        columns, total = np.arange(width), 0
        step = max(1, _ROWS_AT_ONCE // width)
        for start in range(0, height, step):
            rows = np.arange(start, min(start + step, height))[:, None]
            outside = (columns < self._rows[0][rows]) | (columns > self._rows[1][rows])
            outside |= (rows < self._columns[0]) | (rows > self._columns[1])
            total += int(outside.sum())
        return total


class _Values:
    """Percentiles of a band of small integers."""

    def __init__(self, dtype: np.dtype, values: Values):
        self._levels = stretch_lib.converted(stretch_lib.all_values(dtype), values)
        self._counts = np.zeros(len(self._levels), np.int64)
        self._zero = int(stretch_lib.value_index(np.zeros(1, dtype))[0])

    def add(self, values: np.ndarray) -> None:
        self._counts += np.bincount(stretch_lib.value_index(values).ravel(), minlength=len(self._counts))

    def select(self, percentiles: tuple[float, float], zeros: int) -> None:
        self._counts[self._zero] -= zeros
        self._counts[~np.isfinite(self._levels)] = 0
        self._fractions = [number / 100 for number in percentiles]

    def refine(self, values: np.ndarray) -> None: ...

    def ends(self) -> tuple[float, float]:
        ends = self._counts.cumsum()
        if not ends[-1]:
            return 0.0, 0.0
        low, high = (stretch_lib.interpolated(self._levels, ends, fraction) for fraction in self._fractions)
        return low, high


class _Halves:
    """Percentiles of a band of other numbers, as float32."""

    def __init__(self, dtype: np.dtype, values: Values):
        self._values = values
        self._upper = np.zeros(1 << _HALF, np.int64)
        self._lower: dict[int, np.ndarray] = {}

    def _keys(self, values: np.ndarray) -> np.ndarray:
        """Return u32[n] in the order of the values; those that are not finite are left out."""
        with np.errstate(over="ignore"):
            plane = stretch_lib.converted(stretch_lib.as_float(values.ravel()), self._values).astype(np.float32)
        bits = (plane[np.isfinite(plane)] + np.float32(0)).view(np.uint32)  # -0 becomes 0
        return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))

    def add(self, values: np.ndarray) -> None:
        self._upper += np.bincount(self._keys(values) >> _HALF, minlength=1 << _HALF)

    def select(self, percentiles: tuple[float, float], zeros: int) -> None:
        if self._values in (Values.AS_STORED, Values.DB):  # otherwise zeros are -inf dB, not counted
            zero = int(self._keys(np.zeros(1))[0])
            self._upper[zero >> _HALF] -= zeros
            self._lower[zero >> _HALF] = np.zeros(1 << _HALF, np.int64)
            self._lower[zero >> _HALF][zero & 0xFFFF] -= zeros
        self._ends = self._upper.cumsum()
        self._places: list[tuple[int, float]] = []  # rank, and share of the next one
        if not self._ends[-1]:
            return
        for number in percentiles:
            place = (self._ends[-1] - 1) * number / 100
            self._places.append((int(place), float(place - int(place))))
            for rank in (int(place), min(int(place) + 1, self._ends[-1] - 1)):
                self._lower.setdefault(
                    int(np.searchsorted(self._ends, rank, side="right")), np.zeros(1 << _HALF, np.int64)
                )

    def refine(self, values: np.ndarray) -> None:
        keys = self._keys(values)
        upper = keys >> _HALF
        for group, counts in self._lower.items():
            counts += np.bincount(keys[upper == group] & 0xFFFF, minlength=1 << _HALF)

    def ends(self) -> tuple[float, float]:
        if not self._places:
            return 0.0, 0.0
        last = self._ends[-1] - 1
        low, high = (
            self._at(rank) + (self._at(min(rank + 1, last)) - self._at(rank)) * share for rank, share in self._places
        )
        return low, high

    def _at(self, rank: int) -> float:
        group = int(np.searchsorted(self._ends, rank, side="right"))
        within = rank - (self._ends[group] - self._upper[group])
        key = np.uint32(group << _HALF | int(np.searchsorted(self._lower[group].cumsum(), within, side="right")))
        bits = key ^ np.uint32(1 << 31) if key >> 31 else ~key
        return float(np.array(bits, np.uint32).view(np.float32))
