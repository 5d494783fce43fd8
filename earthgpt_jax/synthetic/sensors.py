"""Render a canvas as an optical, SAR or thermal infrared image."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

from earthgpt_jax.records import Sensor
from earthgpt_jax.synthetic.canvas import WORLD, Canvas
from earthgpt_jax.synthetic.noise import octave_noise, smooth_noise


def render(canvas: Canvas, sensor: Sensor, rng: np.random.Generator) -> Image.Image:
    """Render the canvas for one sensor; the image mode is RGB for optical and L for SAR and infrared."""
    return {Sensor.OPTICAL: _optical, Sensor.SAR: _sar, Sensor.INFRARED: _infrared}[sensor](canvas, rng)


def _texture(canvas: Canvas, rng: np.random.Generator, *, light: np.ndarray, grain: float = 1.0) -> np.ndarray:
    """Return the sum of all material textures, f32[size,size], as relative brightness around 0."""
    size, unit = canvas.size, canvas.size / WORLD
    total = canvas.material_plane("patch") * octave_noise(rng, size=size, cells=(36 * unit, 14 * unit, 6 * unit))
    if grain:
        total += grain * canvas.material_plane("grain") * rng.standard_normal((size, size), dtype=np.float32)
    if canvas.has_texture("clump"):
        bumps = smooth_noise(rng, size=size, cell=4.5 * unit) + 0.5 * smooth_noise(rng, size=size, cell=2.4 * unit)
        total += canvas.material_plane("clump") * (_slope(bumps, light) * 1.1 * np.float32(unit) + 0.35 * bumps)
    if canvas.has_texture("rows"):
        total += canvas.material_plane("rows") * _rows(canvas, rng)
    return total


def _rows(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    size, unit = canvas.size, canvas.size / WORLD
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / np.float32(unit)
    along = x * np.float32(np.cos(canvas.rows_angle)) + y * np.float32(np.sin(canvas.rows_angle))
    bend = smooth_noise(rng, size=size, cell=48 * unit) * np.float32(0.25 * canvas.rows_period)
    return np.sin((along + bend) * np.float32(2 * np.pi / canvas.rows_period))


def _slope(height: np.ndarray, towards: np.ndarray) -> np.ndarray:
    """Return the directional derivative, positive where the surface faces `towards`."""
    down, right = np.gradient(height)
    return -(right * np.float32(towards[0]) + down * np.float32(towards[1]))


def _optical(canvas: Canvas, rng: np.random.Generator) -> Image.Image:
    size = canvas.size
    light = 1.0 + _texture(canvas, rng, light=canvas.sun_direction)
    if canvas.relief is not None:
        light *= np.clip(1.0 + 0.9 * _slope(canvas.relief, canvas.sun_direction) * canvas.relief_weight(), 0.35, 1.7)
    light *= 1.0 - canvas.layer("shadow")
    # Haze brightens dark areas; gain and white balance differ between images.
    haze = rng.uniform(2, 14)
    gain = rng.uniform(0.86, 1.14)
    balance = rng.uniform(0.95, 1.05, 3)
    white = np.float32(gain) * balance.astype(np.float32)
    image = canvas.rgb_plane() * light[..., None] * white + np.float32(haze) * np.array([0.8, 1.0, 1.2], np.float32)
    blurred = _to_image(image).filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.6) * size / WORLD))
    noise = rng.standard_normal((size, size, 1), dtype=np.float32) * np.float32(rng.uniform(1.5, 4.0))
    return _to_image(np.asarray(blurred, dtype=np.float32) + noise)


def _sar(canvas: Canvas, rng: np.random.Generator) -> Image.Image:
    size, unit = canvas.size, canvas.size / WORLD
    decibel = canvas.material_plane("sar", low=-26.0, high=4.0)
    decibel += 9.0 * _texture(canvas, rng, light=canvas.radar_direction, grain=0.0)
    decibel -= 9.0 * canvas.layer("shadow") * (decibel > -18)
    if canvas.relief is not None:
        # Slopes that face the radar are foreshortened and bright; slopes that face away are dark.
        weight = canvas.relief_weight()
        decibel += np.clip(13.0 * _slope(canvas.relief, canvas.radar_direction), -9.0, 9.0) * weight
        shift = (canvas.relief - canvas.relief.min()) * weight
        decibel = _layover(decibel, shift, towards=float(canvas.radar_direction[0]), reach=1.2 * unit)
    intensity = np.power(np.float32(10.0), decibel / 10)
    intensity += np.square(1.5 * canvas.layer("echo"))
    looks = rng.uniform(2.0, 8.0)
    intensity *= rng.standard_gamma(looks, (size, size), dtype=np.float32) / np.float32(looks)
    for x, y, point_target in canvas.point_targets:
        _cross(intensity, x * unit, y * unit, point_target)
    amplitude = np.sqrt(intensity)
    grey = 255 * np.power(np.clip(amplitude * np.float32(rng.uniform(0.9, 1.15)), 0, 1), np.float32(0.8))
    return _to_image(grey).filter(ImageFilter.GaussianBlur(0.4 * unit))


def _layover(image: np.ndarray, relief: np.ndarray, *, towards: float, reach: float) -> np.ndarray:
    """Shift high ground towards the radar."""
    size = image.shape[0]
    shift = relief * np.float32(reach * towards)
    columns = np.clip(np.arange(size, dtype=np.float32)[None] - shift, 0, size - 1).astype(np.intp)
    return np.take_along_axis(image, columns, axis=1)


_LOBES = np.sinc(np.arange(-10, 11) * 0.72).astype(np.float32) ** 2


def _cross(intensity: np.ndarray, x: float, y: float, amplitude: float) -> None:
    """Add the response of a point target along range and azimuth, in place."""
    size = intensity.shape[0]
    column, row = int(x), int(y)
    if not (0 <= column < size and 0 <= row < size):
        return
    lobes = _LOBES * np.float32(amplitude * amplitude)
    for axis, centre in ((0, row), (1, column)):
        first, last = max(0, centre - 10), min(size, centre + 11)
        part = lobes[first - centre + 10 : last - centre + 10]
        if axis == 0:
            intensity[first:last, column] += part
        else:
            intensity[row, first:last] += part


def _infrared(canvas: Canvas, rng: np.random.Generator) -> Image.Image:
    size, unit = canvas.size, canvas.size / WORLD
    warmth = canvas.material_plane("ir")
    warmth += 0.45 * warmth * _texture(canvas, rng, light=canvas.sun_direction, grain=0.3)
    warmth -= 0.22 * canvas.layer("shadow") * warmth
    if canvas.relief is not None:
        warmth += np.clip(0.30 * _slope(canvas.relief, canvas.sun_direction), -0.25, 0.25) * canvas.relief_weight()
    warmth += canvas.layer("heat")
    # Uncooled arrays: a drifting background, column offsets, temporal noise, a soft lens.
    warmth += 0.04 * smooth_noise(rng, size=size, cell=90 * unit)
    grey = 18 + 215 * np.clip(warmth, 0, 1.08)
    soft = _to_image(grey).filter(ImageFilter.GaussianBlur(rng.uniform(0.6, 0.9) * unit))
    columns = rng.standard_normal((1, size), dtype=np.float32) * np.float32(rng.uniform(1.0, 2.6))
    noise = rng.standard_normal((size, size), dtype=np.float32) * np.float32(rng.uniform(2.0, 4.0))
    return _to_image(np.asarray(soft, dtype=np.float32) + columns + noise)


def _to_image(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(values + 0.5, 0, 255).astype(np.uint8))
