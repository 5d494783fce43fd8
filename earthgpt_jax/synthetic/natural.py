"""Natural and rural backgrounds: water, vegetation, fields, rock and sand."""

from __future__ import annotations

import numpy as np

from earthgpt_jax.synthetic.canvas import WORLD, Canvas
from earthgpt_jax.synthetic.noise import blob_outline, octave_noise, random_curve, smooth_noise
from earthgpt_jax.synthetic.terrain import Terrain, find_crossings, half_plane, winding_line

_STREAM_SHARE = 0.15  # of the images without bridges that have a stream nevertheless
_FIELD_SIZE = 128  # resolution of the noise fields that define patches; the canvas interpolates them


def _patches(canvas: Canvas, material: str, *, above: float, cells: tuple[float, ...] = (40, 16, 7)) -> None:
    canvas.fill_where(octave_noise(canvas.rng, size=_FIELD_SIZE, cells=cells), material, above=above)


def _trees(canvas: Canvas, count: int, *, radius: tuple[float, float] = (1.6, 3.2)) -> None:
    rng, wood = canvas.rng, canvas.add_material("wood")
    for _ in range(count):
        x, y = rng.uniform(0, WORLD, 2)
        r = rng.uniform(*radius)
        shift = canvas.sun_direction * r * 0.8
        canvas.set_shadow_disc(x - shift[0], y - shift[1], r, depth=0.45)
        canvas.set_shadow_disc(x, y, r, depth=0.0)
        canvas.disc(x, y, r, wood)


def river(canvas: Canvas, rng: np.random.Generator, *, needs_crossing: bool) -> Terrain:
    canvas.fill(str(rng.choice(["grass", "meadow"])))
    _patches(canvas, "wood", above=0.5)
    _patches(canvas, "crop", above=1.2, cells=(40,))
    _trees(canvas, int(rng.integers(4, 14)))
    width = float(rng.uniform(26, 40))
    angle = rng.uniform(0, np.pi)
    course = winding_line(rng, angle=angle, bend=9.0, offset=float(rng.uniform(-16, 16)))
    canvas.line(course, "shrub", width=width + 7)
    canvas.line(course, "beach", width=width + 2.5)
    canvas.line(course, "fresh", width=width)
    return Terrain(crossings=find_crossings(course, width=width), direction=angle)


def lake(canvas: Canvas, rng: np.random.Generator, *, needs_crossing: bool) -> Terrain:
    canvas.fill(str(rng.choice(["grass", "meadow", "shrub"])))
    _patches(canvas, "wood", above=0.1)
    cx, cy = rng.uniform(50, 78, 2)
    rx, ry = rng.uniform(40, 52), rng.uniform(28, 40)
    outline = blob_outline(rng, cx=float(cx), cy=float(cy), rx=float(rx), ry=float(ry))
    centre = np.array([cx, cy])
    canvas.polygon(centre + (outline - centre) * 1.08, "shrub")
    canvas.polygon(centre + (outline - centre) * 1.02, "beach")
    canvas.polygon(outline, "shallow")
    canvas.polygon(centre + (outline - centre) * 0.96, "fresh")
    return Terrain()


def beach(canvas: Canvas, rng: np.random.Generator, *, needs_crossing: bool) -> Terrain:
    angle = rng.uniform(0, 2 * np.pi)
    canvas.rows_angle, canvas.rows_period = angle, 5.0
    canvas.fill("sea")
    line = random_curve(rng, count=40, amplitude=5.0)
    offset = float(rng.uniform(-14, 14))
    for shift, material in ((-20, "shallow"), (-6, "surf"), (-3.5, "shallow"), (-1.5, "surf"), (0, "beach")):
        jitter = random_curve(rng, count=40, amplitude=0.8)
        canvas.polygon(half_plane(line + jitter + offset + shift, angle=angle), material)
    canvas.polygon(half_plane(line + offset + float(rng.uniform(24, 34)), angle=angle), "grass")
    inland = half_plane(line + offset + 42 + random_curve(rng, count=40, amplitude=3), angle=angle)
    canvas.polygon(inland, "shrub")
    return Terrain(direction=angle + np.pi / 2)


def forest(canvas: Canvas, rng: np.random.Generator, *, needs_crossing: bool) -> Terrain:
    canvas.fill("wood")
    _patches(canvas, "wood", above=0.2, cells=(50, 20))
    _patches(canvas, "wood", above=0.7)
    _patches(canvas, "shrub", above=1.5)
    if rng.random() < 0.5:
        canvas.line(winding_line(rng, angle=rng.uniform(0, np.pi), bend=8.0), "track", width=2.6)
    return _stream(canvas, rng, needs_crossing=needs_crossing, bank="shrub")


def meadow(canvas: Canvas, rng: np.random.Generator, *, needs_crossing: bool) -> Terrain:
    canvas.fill("meadow")
    _patches(canvas, "grass", above=0.4, cells=(44, 18))
    _patches(canvas, "meadow", above=0.6)
    _patches(canvas, "ripe", above=1.5)
    _trees(canvas, int(rng.integers(5, 18)), radius=(1.4, 3.6))
    if rng.random() < 0.5:
        canvas.line(winding_line(rng, angle=rng.uniform(0, np.pi), bend=7.0), "track", width=1.8)
    return _stream(canvas, rng, needs_crossing=needs_crossing, bank="grass")


def farmland(canvas: Canvas, rng: np.random.Generator, *, needs_crossing: bool) -> Terrain:
    angle = rng.uniform(0, np.pi)
    canvas.rows_angle, canvas.rows_period = angle, float(rng.uniform(3.0, 5.0))
    canvas.fill("track")
    centre = np.array([WORLD / 2, WORLD / 2])
    axes = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    across = -100.0
    while across < 100:
        breadth = rng.uniform(18, 34)
        along = -100.0
        while along < 100:
            length = rng.uniform(22, 56)
            a, b, c, d = along + 0.7, across + 0.7, along + length - 0.7, across + breadth - 0.7
            field = np.array([(a, b), (c, b), (c, d), (a, d)]) @ axes + centre
            canvas.polygon(field, str(rng.choice(["crop", "crop", "crop", "ripe", "soil", "soil", "meadow"])))
            along += length
        across += breadth
    for offset in rng.uniform(-60, 60, 2):
        hedge = np.array([(-100.0, offset), (100.0, offset)]) @ axes + centre
        canvas.line(hedge, "wood", width=2.5)
    if needs_crossing or rng.random() < _STREAM_SHARE:
        width = float(rng.uniform(18, 24))
        course = np.array([(-100.0, 0.0), (100.0, 0.0)]) @ axes + centre + rng.uniform(-14, 14, 2)
        course = np.linspace(course[0], course[1], 40)
        canvas.line(course, "grass", width=width + 5)
        canvas.line(course, "fresh", width=width)
        return Terrain(crossings=find_crossings(course, width=width))
    return Terrain()


def desert(canvas: Canvas, rng: np.random.Generator, *, needs_crossing: bool) -> Terrain:
    canvas.rows_period = float(rng.uniform(7, 12))
    canvas.fill("dune")
    _patches(canvas, "scree", above=0.9)
    _patches(canvas, "dune", above=0.5, cells=(50, 20))
    y, x = np.mgrid[0 : canvas.size, 0 : canvas.size].astype(np.float32) * np.float32(WORLD / canvas.size)
    along = x * np.float32(np.cos(canvas.rows_angle)) + y * np.float32(np.sin(canvas.rows_angle))
    phase = along + 9 * smooth_noise(rng, size=canvas.size, cell=40 * canvas.size / WORLD)
    crest = (phase / np.float32(rng.uniform(18, 28))) % 1.0
    # Dunes have long windward slopes and short slip faces.
    canvas.relief = np.where(crest < 0.8, crest / 0.8, (1 - crest) / 0.2) * np.float32(0.9)
    return Terrain()


def mountain(canvas: Canvas, rng: np.random.Generator, *, needs_crossing: bool) -> Terrain:
    unit = canvas.size / WORLD
    ridges = octave_noise(rng, size=canvas.size, cells=(52 * unit, 24 * unit, 11 * unit), gain=0.5)
    fine = octave_noise(rng, size=canvas.size, cells=(24 * unit, 11 * unit, 5 * unit))
    height = 1.5 - np.abs(ridges) + 0.16 * fine
    canvas.fill("shrub")
    canvas.fill_where(height, "rock", above=0.55)
    canvas.fill_where(-height, "wood", above=-0.35)
    canvas.fill_where(height, "snow", above=float(rng.uniform(1.4, 1.75)))
    canvas.relief = (height * np.float32(4.2)).astype(np.float32)
    return _stream(canvas, rng, needs_crossing=needs_crossing, bank="rock")


def _stream(canvas: Canvas, rng: np.random.Generator, *, needs_crossing: bool, bank: str) -> Terrain:
    """Draw a stream if bridges need one, and sometimes without bridges."""
    if not (needs_crossing or rng.random() < _STREAM_SHARE):
        return Terrain()
    width = float(rng.uniform(17, 22))
    course = winding_line(rng, angle=rng.uniform(0, np.pi), bend=6.0, offset=float(rng.uniform(-18, 18)))
    canvas.line(course, bank, width=width + 5)
    canvas.line(course, "fresh", width=width)
    if canvas.relief is not None:
        canvas.relief = canvas.relief * np.float32(0.75)
    return Terrain(crossings=find_crossings(course, width=width))
