"""Urban backgrounds: streets, yards, quays, runways, pitches."""

from __future__ import annotations

import math

import numpy as np

from earthgpt_jax.synthetic.canvas import WORLD, Canvas
from earthgpt_jax.synthetic.noise import octave_noise, random_curve
from earthgpt_jax.synthetic.terrain import Terrain, half_plane

_CARGO = ("cargo", "cargo", "cargo blue", "cargo blue", "cargo pale")
_CENTRE = np.array([WORLD / 2, WORLD / 2])


def _axes(angle: float) -> np.ndarray:
    """Return a rotation matrix, f64[2,2]; `points @ _axes(angle) + _CENTRE` maps site coordinates to the world."""
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def _visible(x: float, y: float, angle: float, *, margin: float) -> bool:
    """Return whether a point in site coordinates is at most `margin` world units outside the image."""
    cos, sin = math.cos(angle), math.sin(angle)
    low, high = -margin - WORLD / 2, margin + WORLD / 2
    return low <= x * cos - y * sin <= high and low <= x * sin + y * cos <= high


def _rectangle(x: float, y: float, w: float, h: float) -> np.ndarray:
    return np.array([(x, y), (x + w, y), (x + w, y + h), (x, y + h)])


def _building(canvas: Canvas, outline: np.ndarray, slot: int, *, height: float, echo: float) -> None:
    """Draw a small building: its shadow, its roof, and the bright wall that faces the radar."""
    canvas.shadow(outline, height=height, depth=0.5)
    canvas.set_shadow(outline, depth=0.0)
    canvas.polygon(outline, slot)
    centre = outline.mean(axis=0)
    middles = (outline + np.roll(outline, -1, axis=0)) / 2
    facing = int(np.argmax((middles - centre) @ canvas.radar_direction))
    canvas.echo([tuple(outline[facing]), tuple(outline[(facing + 1) % 4])], strength=echo, width=1.3)


def residential(canvas: Canvas, rng: np.random.Generator, *, needs_crossing: bool) -> Terrain:
    angle = rng.uniform(0, np.pi / 2)
    axes = _axes(angle)
    canvas.fill("grass")
    canvas.fill_where(octave_noise(rng, size=64, cells=(12, 5)), "wood", above=1.0)
    roofs = [canvas.add_material(name) for name in ("roof red", "roof red", "roof grey", "roof grey", "roof pale")]
    road, wood, driveway = canvas.add_material("asphalt"), canvas.add_material("wood"), canvas.add_material("concrete")
    spacing, start = rng.uniform(30, 36), rng.uniform(0, 20)
    for y in np.arange(-110 + start, 110, spacing):
        canvas.line(np.array([(-110, y), (110, y)]) @ axes + _CENTRE, road, width=4.2)
        for side in (-1, 1):
            x = -100.0
            while x < 100:
                w, h = rng.uniform(6.5, 9.0), rng.uniform(5.5, 7.5)
                near = y + side * (5.6 + h / 2)
                if _visible(x + w / 2, near, angle, margin=7.0):
                    house = _rectangle(x, near - h / 2, w, h) @ axes + _CENTRE
                    canvas.line(np.array([(x + w / 2, y), (x + w / 2, near)]) @ axes + _CENTRE, driveway, width=1.6)
                    _building(
                        canvas,
                        house,
                        roofs[int(rng.integers(len(roofs)))],
                        height=2.2,
                        echo=rng.uniform(0.5, 1.0),
                    )
                    if rng.random() < 0.5:
                        tree = np.array([x + w + 1.8, near + side * rng.uniform(1, 6)]) @ axes + _CENTRE
                        canvas.disc(tree[0], tree[1], rng.uniform(1.2, 2.2), wood)
                x += w + rng.uniform(3.0, 5.5)
    for x in rng.uniform(-50, 50, 2):
        canvas.line(np.array([(x, -110), (x, 110)]) @ axes + _CENTRE, road, width=4.2)
    return Terrain(direction=angle)


def industrial(canvas: Canvas, rng: np.random.Generator, *, needs_crossing: bool) -> Terrain:
    angle = rng.uniform(0, np.pi / 2)
    axes = _axes(angle)
    canvas.fill("yard")
    canvas.fill_where(octave_noise(rng, size=64, cells=(20, 8)), "concrete", above=0.5)
    canvas.fill_where(octave_noise(rng, size=64, cells=(16, 6)), "soil", above=1.4)
    road, pipe = canvas.add_material("asphalt"), canvas.add_material("tank rim")
    stacks = [canvas.add_material(name) for name in _CARGO]
    for offset in (rng.uniform(-50, -20), rng.uniform(20, 50)):
        canvas.line(np.array([(-110, offset), (110, offset)]) @ axes + _CENTRE, road, width=6.0)
    cross = rng.uniform(-30, 30)
    canvas.line(np.array([(cross, -110), (cross, 110)]) @ axes + _CENTRE, road, width=6.0)
    for _ in range(4):
        x, y, run = rng.uniform(-60, 60), rng.uniform(-60, 60), rng.uniform(30, 70)
        rotation = axes if rng.random() < 0.5 else axes[::-1]
        for gap in (0.0, 1.6):
            line = np.array([(x, y + gap), (x + run, y + gap)]) @ rotation + _CENTRE
            canvas.line(line, pipe, width=0.7)
            canvas.echo(line, strength=0.5, width=0.7)
    for _ in range(16):  # stacked containers and small machinery
        x, y = rng.uniform(-75, 75, 2)
        for row in range(int(rng.integers(2, 5))):
            item = _rectangle(x, y + row * 2.8, rng.uniform(5, 7), 2.3) @ axes + _CENTRE
            _building(canvas, item, stacks[int(rng.integers(5))], height=1.2, echo=rng.uniform(0.4, 0.9))
    return Terrain(direction=angle)


def harbor(canvas: Canvas, rng: np.random.Generator, *, needs_crossing: bool) -> Terrain:
    angle = rng.uniform(0, 2 * np.pi)
    canvas.fill("sea")
    offset = float(rng.uniform(2, 16))
    quay, apron, road = (
        canvas.add_material("concrete"),
        canvas.add_material("quay"),
        canvas.add_material("asphalt"),
    )
    straight = np.zeros(4)
    canvas.polygon(half_plane(straight + offset, angle=angle), quay)
    canvas.polygon(half_plane(straight + offset + 4, angle=angle), apron)
    canvas.line(half_plane(straight + offset + 13, angle=angle)[:4], road, width=4.0)
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    for position in (rng.uniform(-52, -34), rng.uniform(34, 52)):
        reach = rng.uniform(24, 44)
        pier = np.array([(offset + 1, position), (offset - reach, position)]) @ rotation + _CENTRE
        canvas.line(pier, quay, width=6.5)
        canvas.line(pier, apron, width=4.5)
        canvas.echo(pier, strength=0.35, width=4.5)
    edge = half_plane(straight + offset, angle=angle)[:4]
    canvas.echo(edge, strength=0.7, width=1.2)
    stacks = [canvas.add_material(name) for name in _CARGO]
    for _ in range(14):
        x, y = offset + rng.uniform(20, 70), rng.uniform(-80, 80)
        for row in range(int(rng.integers(1, 5))):
            item = _rectangle(x, y + row * 2.6, 5.5, 2.2) @ rotation + _CENTRE
            _building(canvas, item, stacks[int(rng.integers(5))], height=1.4, echo=rng.uniform(0.4, 1.0))
    return Terrain(direction=angle + np.pi / 2 * float(rng.integers(2)))


def airport(canvas: Canvas, rng: np.random.Generator, *, needs_crossing: bool) -> Terrain:
    angle = rng.uniform(0, np.pi)
    axes = _axes(angle)
    canvas.fill("grass")
    canvas.fill_where(octave_noise(rng, size=64, cells=(20, 8)), "ripe", above=1.0)
    apron = half_plane(np.zeros(4) + rng.uniform(-22, -6), angle=angle + np.pi / 2)
    canvas.polygon(apron, canvas.add_material("concrete"))
    joint, paint, road = (
        canvas.add_material("track"),
        canvas.add_material("paint"),
        canvas.add_material("asphalt", variation=0.4),
    )
    for step in np.arange(0, 110, 12.0):  # slabs of the apron
        canvas.line(np.array([(-110, step), (110, step)]) @ axes + _CENTRE, joint, width=0.4)
    runway = rng.uniform(-52, -40)
    canvas.line(np.array([(-110, runway), (110, runway)]) @ axes + _CENTRE, road, width=17.0)
    for x in np.arange(-100, 100, 10.0):
        canvas.line(np.array([(x, runway), (x + 5.5, runway)]) @ axes + _CENTRE, paint, width=0.9)
    for side in (-7.6, 7.6):
        canvas.line(np.array([(-110, runway + side), (110, runway + side)]) @ axes + _CENTRE, paint, width=0.5)
    link = rng.uniform(-30, 30)
    canvas.line(np.array([(link, runway), (link + 20, 30)]) @ axes + _CENTRE, road, width=8.0)
    taxi = canvas.add_material("roof pale")
    canvas.line(np.array([(-110, 8), (110, 8)]) @ axes + _CENTRE, taxi, width=0.5)
    return Terrain(direction=angle + np.pi / 2)


def parking_lot(canvas: Canvas, rng: np.random.Generator, *, needs_crossing: bool) -> Terrain:
    angle = rng.uniform(0, np.pi)
    axes = _axes(angle)
    canvas.fill("asphalt")
    paint, wood = canvas.add_material("paint"), canvas.add_material("wood")
    cars = [canvas.add_material("car") for _ in range(8)]
    occupied_share = rng.uniform(0.45, 0.85)
    for y in np.arange(-100 + rng.uniform(0, 20), 100, 21.0):
        canvas.line(np.array([(-110, y), (110, y)]) @ axes + _CENTRE, paint, width=0.5)
        for x in np.arange(-92, 92, 3.6):
            if not _visible(float(x), float(y), angle, margin=7.0):
                continue
            ends = np.array([(x, y - 6.2), (x, y + 6.2)]) @ axes + _CENTRE
            canvas.line(ends, paint, width=0.4)
            for side in (-1, 1):
                if rng.random() < occupied_share:
                    car = _rectangle(x + 0.75, y + side * 3.4 - 2.4, 2.1, 4.8) @ axes + _CENTRE
                    canvas.polygon(car, cars[int(rng.integers(8))])
                    if rng.random() < 0.5:
                        canvas.echo(car, strength=rng.uniform(0.4, 1.0))
    for _ in range(7):
        x, y = rng.uniform(0, WORLD, 2)
        canvas.disc(x, y, rng.uniform(1.6, 2.6), wood)
    return Terrain(direction=angle)


def sports_field(canvas: Canvas, rng: np.random.Generator, *, needs_crossing: bool) -> Terrain:
    angle = rng.uniform(0, np.pi)
    axes = _axes(angle)
    canvas.rows_angle, canvas.rows_period = angle, float(rng.uniform(8, 12))
    canvas.fill("pitch")
    paint = canvas.add_material("paint")
    x, y = rng.uniform(-70, -30), rng.uniform(-64, -40)
    for column in range(3):
        for row in range(3):
            left, top = x + column * 84 - 50, y + row * 58 - 20
            _outline(canvas, _rectangle(left, top, 76, 50) @ axes + _CENTRE, paint)
            _outline(canvas, _rectangle(left, top + 12, 12, 26) @ axes + _CENTRE, paint)
            _outline(canvas, _rectangle(left + 64, top + 12, 12, 26) @ axes + _CENTRE, paint)
            canvas.line(np.array([(left + 38, top), (left + 38, top + 50)]) @ axes + _CENTRE, paint, width=0.7)
            t = np.linspace(0, 2 * np.pi, 24)
            ring = np.stack([left + 38 + 8 * np.cos(t), top + 25 + 8 * np.sin(t)], axis=1)
            canvas.line(ring @ axes + _CENTRE, paint, width=0.7)
    path = np.stack([np.linspace(-100, 100, 30), y - 24 + 58 + random_curve(rng, count=30, amplitude=0.4)], axis=1)
    canvas.line(path @ axes + _CENTRE, "track", width=3.2)
    wood = canvas.add_material("wood")
    for x in np.arange(-90, 90, 6.0):
        tree = np.array([x + rng.uniform(-1.5, 1.5), y + 38.5]) @ axes + _CENTRE
        canvas.disc(tree[0], tree[1], rng.uniform(1.4, 2.4), wood)
    return Terrain(direction=angle)


def _outline(canvas: Canvas, outline: np.ndarray, paint: int) -> None:
    """Draw a closed line."""
    canvas.line(np.concatenate([outline, outline[:1]]), paint, width=0.7)
