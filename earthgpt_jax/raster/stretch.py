"""Compute the stretch of a scene, and apply it: bands of any type become 8 bits.

Values are mapped linearly from `low`..`high` of each band to 0..255. Pixels without data (no-data, masked, transparent,
NaN, infinite) are black and do not count for the percentiles. Neither does a border of zeros: many products fill the
pixels outside of a scene with 0, often without a no-data tag.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from earthgpt_jax.raster.bands import Bands
from earthgpt_jax.raster.policy import DEFAULT, PERCENTILES, Speckle, Stretch, StretchPolicy, Values, ZeroBorder

LEAST_BORDER = 0.01  # share of the image's pixels
_LEE_WINDOW = 7  # side in pixels
_COUNTED_AT_ONCE = 1 << 24  # pixels


def fit(bands: Bands, policy: StretchPolicy = DEFAULT) -> Stretch:
    """Return the stretch of a scene. `bands` must be those of the policy, read with its `nodata`."""
    stretch = Stretch(bands=bands.numbers, values=policy.values, nodata=policy.nodata, speckle=policy.speckle)
    if bands.eight_bits and policy.keeps_eight_bits():
        return stretch
    count = len(bands.values)
    if policy.range:
        return dataclasses.replace(stretch, low=(policy.range[0],) * count, high=(policy.range[1],) * count)
    valid, share = bands.valid, 0.0
    if not bands.bounded and policy.zero_border is ZeroBorder.EXCLUDE:
        border = zero_border(bands.values)
        if border.mean() >= LEAST_BORDER:
            share = round(float(border.mean()), 4)
            valid = np.broadcast_to(~border, bands.values.shape)
    percentiles = policy.percentiles or PERCENTILES
    ends = [
        _percentiles(plane, None if valid is None else valid[i], percentiles, policy.values)
        for i, plane in enumerate(without_speckle(bands, policy.speckle))
    ]
    low, high = (tuple(pair[i] for pair in ends) for i in (0, 1))
    return dataclasses.replace(stretch, low=low, high=high, percentiles=percentiles, zero_border=share)


def apply(bands: Bands, stretch: Stretch) -> np.ndarray:
    """Return the pixels uint8[h, w, 3] of bands, RGB; one band becomes grey."""
    planes = without_speckle(bands, stretch.speckle)
    pixels = np.empty((*planes.shape[1:], 3), np.uint8)
    for i, plane in enumerate(planes):
        if stretch.low:
            plane = _levels(plane, stretch.low[i], stretch.high[i], stretch.values)
        if bands.valid is not None:
            plane = np.where(bands.valid[i], plane, np.uint8(0))
        pixels[..., slice(None) if len(planes) == 1 else i] = plane[..., None] if len(planes) == 1 else plane
    return pixels


def without_speckle(bands: Bands, speckle: Speckle) -> np.ndarray:
    """Return the values of bands after a speckle filter, f32[bands, h, w], or as they are if there is none."""
    if speckle is Speckle.NONE:
        return bands.values
    valid = np.isfinite(bands.values)
    if bands.valid is not None:
        valid &= bands.valid
    return np.stack([_lee(plane.astype(np.float32), known) for plane, known in zip(bands.values, valid, strict=True)])


def zero_border(values: np.ndarray) -> np.ndarray:
    """Return bool[h, w], True for pixels of a border of zeros in an image [bands, h, w].

    As in GDAL's `nearblack`, these are pixels that are 0 in all bands, in an unbroken run along a row or a column from
    the edge of the image.
    """
    zero = ~values.any(axis=0)
    border = np.zeros_like(zero)
    for axis in (0, 1):
        for view, out in ((zero, border), (np.flip(zero, axis), np.flip(border, axis))):
            if view.take(0, axis).any():
                out |= np.logical_and.accumulate(view, axis=axis)
    return border


# ------------------------------------------------------------------------------------------ values to 8 bits
def _levels(plane: np.ndarray, low: float, high: float, values: Values) -> np.ndarray:
    """Return a band uint8[h, w]."""
    if is_small(plane.dtype):
        return _level_table(plane.dtype, low, high, values)[value_index(plane)]
    return _scaled(converted(as_float(plane), values), low, high)


@functools.lru_cache(maxsize=64)
def _level_table(dtype: np.dtype, low: float, high: float, values: Values) -> np.ndarray:
    return _scaled(converted(all_values(dtype), values), low, high)


def _scaled(plane: np.ndarray, low: float, high: float) -> np.ndarray:
    if not high > low:
        return np.zeros(plane.shape, np.uint8)
    with np.errstate(invalid="ignore", over="ignore"):
        levels = np.clip((plane - low) / (high - low) * 255, 0, 255)
    return np.where(np.isfinite(plane), levels, 0).astype(np.uint8)


def converted(plane: np.ndarray, values: Values) -> np.ndarray:
    """Return values in the unit of the stretch. Decibels of 0 are -inf, those of negative values NaN."""
    factor = {Values.AMPLITUDE: 20, Values.INTENSITY: 10}.get(values)
    if factor is None:
        return plane
    with np.errstate(divide="ignore", invalid="ignore"):
        return factor * np.log10(plane)


def as_float(plane: np.ndarray) -> np.ndarray:
    """Return values as floating-point numbers that hold them exactly."""
    return plane if plane.dtype.kind == "f" else plane.astype(np.float64)  # float32 has too few digits for int32


# ------------------------------------------------------------------------------------------ percentiles
def _percentiles(
    plane: np.ndarray, valid: np.ndarray | None, percentiles: tuple[float, float], values: Values
) -> tuple[float, float]:
    """Return two percentiles of the valid pixels of a band, interpolated linearly; zeros if there is no such pixel."""
    if is_small(plane.dtype):
        return _counted_percentiles(plane, valid, percentiles, values)
    chosen = converted(as_float(plane if valid is None else plane[valid]), values)
    chosen = chosen[np.isfinite(chosen)]
    if not chosen.size:
        return 0.0, 0.0
    low, high = np.percentile(chosen, percentiles)
    return float(low), float(high)


def _counted_percentiles(
    plane: np.ndarray, valid: np.ndarray | None, percentiles: tuple[float, float], values: Values
) -> tuple[float, float]:
    """Return what `np.percentile` returns, from the count of each value: in less time and without a copy of a scene."""
    counts = np.zeros(1 << 8 * plane.dtype.itemsize, np.int64)
    rows = max(1, _COUNTED_AT_ONCE // max(1, plane.shape[1]))
    for start in range(0, len(plane), rows):
        part = value_index(plane[start : start + rows])
        part = part.ravel() if valid is None else part[valid[start : start + rows]]
        counts += np.bincount(part, minlength=len(counts))
    levels = converted(all_values(plane.dtype), values)
    counts[~np.isfinite(levels)] = 0
    ends = counts.cumsum()
    if not ends[-1]:
        return 0.0, 0.0
    low, high = (interpolated(levels, ends, number / 100) for number in percentiles)
    return low, high


def interpolated(levels: np.ndarray, ends: np.ndarray, fraction: float) -> float:
    """Return a quantile of levels that occur in the places up to `ends`, with the arithmetic of `np.percentile`."""
    last = ends[-1] - 1
    place = last * fraction
    below = int(place)
    share = place - below
    a, b = (levels[np.searchsorted(ends, min(i, last), side="right")] for i in (below, below + 1))
    return float(b - (b - a) * (1 - share) if share >= 0.5 else a + (b - a) * share)


def is_small(dtype: np.dtype) -> bool:
    """Return whether a type is an integer with so few values that they can be listed."""
    return dtype.kind in "iu" and dtype.itemsize <= 2


def all_values(dtype: np.dtype) -> np.ndarray:
    """Return every value of an integer type, f64, from the smallest to the largest."""
    return np.arange(np.iinfo(dtype).min, np.iinfo(dtype).max + 1, dtype=np.float64)


def value_index(plane: np.ndarray) -> np.ndarray:
    """Return the place of each pixel's value in `all_values`, as unsigned integers of the same size."""
    if plane.dtype.kind == "u":
        return plane
    unsigned = np.dtype(f"u{plane.dtype.itemsize}")
    return plane.view(unsigned) ^ unsigned.type(1 << 8 * plane.dtype.itemsize - 1)


# ------------------------------------------------------------------------------------------ speckle
def _lee(plane: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return a band f32[h, w] after Lee's filter, with the variance of the whole band as that of the noise."""
    from scipy.ndimage import uniform_filter

    if not valid.any():
        return plane
    known = np.where(valid, plane, 0)
    weight = np.maximum(uniform_filter(valid.astype(np.float32), _LEE_WINDOW), np.finfo(np.float32).tiny)
    mean = uniform_filter(known, _LEE_WINDOW) / weight
    variance = np.maximum(uniform_filter(known * known, _LEE_WINDOW) / weight - mean * mean, 0)
    noise = max(float(plane[valid].var()), np.finfo(np.float32).tiny)
    return np.where(valid, mean + variance / (variance + noise) * (plane - mean), plane)
