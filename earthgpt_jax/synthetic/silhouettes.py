"""Drawings of the object classes: outline, parts, shadow, radar echo and heat."""

from __future__ import annotations

import itertools

import numpy as np

from earthgpt_jax.synthetic.canvas import Canvas
from earthgpt_jax.synthetic.pose import Pose

Outline = list[tuple[float, float]]


def _mirror(upper: Outline) -> Outline:
    """Return a symmetric outline, given its half with y >= 0 from nose to tail."""
    return upper + [(x, -y) for x, y in reversed(upper)]


_WINGS = _mirror([(0.12, 0.0), (0.09, 0.05), (-0.13, 0.5), (-0.22, 0.5), (-0.10, 0.05), (-0.10, 0.0)])
_TAIL = _mirror([(-0.34, 0.0), (-0.36, 0.04), (-0.47, 0.19), (-0.5, 0.19), (-0.5, 0.03), (-0.5, 0.0)])
_FUSELAGE = _mirror([(0.5, 0.0), (0.47, 0.035), (0.40, 0.055), (-0.25, 0.055), (-0.48, 0.018), (-0.5, 0.0)])


def airplane(canvas: Canvas, pose: Pose, rng: np.random.Generator) -> None:
    parts = [pose.points(part) for part in (_WINGS, _TAIL, _FUSELAGE)]
    height = rng.uniform(1.5, 4.5)
    for part in parts:
        canvas.detached_shadow(part, height=height)
    engines = [pose.points(_rectangle(0.02, side * 0.2, 0.07, 0.028)) for side in (-1, 1)]
    wing, body = canvas.add_material("aluminium dark"), canvas.add_material("aluminium")
    for part in (*parts, *engines):
        canvas.set_shadow(part, depth=0.0)
    canvas.polygon(parts[0], wing)
    canvas.polygon(parts[1], wing)
    engine = canvas.add_material("aluminium dark")
    for part in engines:
        canvas.polygon(part, engine)
    canvas.polygon(parts[2], body)
    for part in engines:
        canvas.heat(part, strength=0.75)
        canvas.echo(part, strength=0.9)
    canvas.echo(pose.points([(0.45, 0.0), (-0.48, 0.0)]), strength=0.6, width=1.4)
    x, y = pose.points([(rng.uniform(-0.1, 0.1), 0.0)])[0]
    canvas.point_target(x, y, 2.0)


def ship(canvas: Canvas, pose: Pose, rng: np.random.Generator) -> None:
    hull = _mirror([(0.5, 0.0), (0.44, 0.13), (0.34, 0.32), (0.2, 0.47), (0.05, 0.5), (-0.44, 0.5), (-0.5, 0.4)])
    inner = [(x * 0.94 - 0.005, y * 0.78) for x, y in hull]
    outline = pose.points(hull)
    # A wake: the water after the ship is rougher and lighter.
    if rng.random() < 0.5:
        wake = pose.points([(-0.5, 0.32), (-0.5, -0.32), (-0.62, -0.42), (-0.85, 0.0), (-0.62, 0.42)])
        canvas.polygon(wake, canvas.add_material("shallow"))
    canvas.shadow(outline, height=rng.uniform(1.0, 2.5), depth=0.45)
    canvas.set_shadow(outline, depth=0.0)
    canvas.polygon(outline, "hull")
    canvas.polygon(pose.points(inner), "deck")
    count = int(rng.integers(2, 5))
    edges = np.linspace(-0.2, 0.34, count + 1)
    for start, stop in itertools.pairwise(edges):
        middle, half = (start + stop) / 2, (stop - start) * 0.38
        canvas.polygon(
            pose.points(_rectangle(middle, 0.0, half, 0.27)), str(rng.choice(["cargo", "cargo blue", "cargo pale"]))
        )
        x, y = pose.points([(middle, rng.uniform(-0.2, 0.2))])[0]
        canvas.echo([(x - 0.7, y - 0.7), (x + 0.7, y - 0.7), (x + 0.7, y + 0.7), (x - 0.7, y + 0.7)], strength=1.0)
    house = pose.points(_rectangle(-0.34, 0.0, 0.08, 0.36))
    canvas.shadow(house, height=2.0, depth=0.4)
    canvas.set_shadow(house, depth=0.0)
    canvas.polygon(house, "bridge house")
    funnel = pose.points([(-0.36, 0.0)])[0]
    canvas.heat_disc(funnel[0], funnel[1], 1.6, strength=0.6)
    canvas.echo(house, strength=0.85)
    canvas.point_target(funnel[0], funnel[1], 2.6)


def storage_tank(canvas: Canvas, pose: Pose, rng: np.random.Generator) -> None:
    radius = pose.length / 2
    canvas.shadow(pose.ellipse(), height=rng.uniform(0.25, 0.5) * radius, depth=0.6)
    canvas.set_shadow_disc(pose.cx, pose.cy, radius, depth=0.0)
    canvas.disc(pose.cx, pose.cy, radius, "tank rim")
    inner = radius - 1.8
    canvas.disc(pose.cx, pose.cy, inner, "tank")
    # A floating roof is below the rim, which casts a crescent-shaped shadow onto it.
    if rng.random() < 0.6:
        shift = canvas.sun_direction * 0.18 * radius
        canvas.set_shadow_disc(pose.cx, pose.cy, inner, depth=0.42)
        canvas.set_shadow_disc(pose.cx - shift[0], pose.cy - shift[1], inner - 0.16 * radius, depth=0.0)
    canvas.disc(pose.cx, pose.cy, 1.3, "tank rim")
    rotation = rng.uniform(0, 2 * np.pi)
    end = (pose.cx + np.cos(rotation) * inner, pose.cy + np.sin(rotation) * inner)
    canvas.line([(pose.cx, pose.cy), end], "tank rim", width=0.8)
    canvas.echo_arc(pose.cx, pose.cy, radius, strength=1.0, width=2.2)
    canvas.point_target(pose.cx + canvas.radar_direction[0] * (radius - 1), pose.cy, 2.0)


def truck(canvas: Canvas, pose: Pose, rng: np.random.Generator) -> None:
    trailer = pose.points([(-0.5, -0.5), (0.2, -0.5), (0.2, 0.5), (-0.5, 0.5)])
    cab = pose.points([(0.25, -0.44), (0.46, -0.44), (0.5, -0.3), (0.5, 0.3), (0.46, 0.44), (0.25, 0.44)])
    hitch = pose.points(_rectangle(0.22, 0.0, 0.05, 0.2))
    for part in (trailer, cab):
        canvas.shadow(part, height=rng.uniform(2.5, 3.5), depth=0.6)
    for part in (trailer, cab, hitch):
        canvas.set_shadow(part, depth=0.0)
    canvas.polygon(hitch, "glass")
    canvas.polygon(trailer, "trailer")
    rib = canvas.add_material("aluminium dark")
    for x in (-0.32, -0.14, 0.04):
        canvas.line(pose.points([(x, -0.46), (x, 0.46)]), rib, width=0.6)
    canvas.polygon(cab, "cab")
    canvas.polygon(pose.points(_rectangle(0.43, 0.0, 0.022, 0.36)), "glass")
    canvas.heat(cab, strength=0.25)
    canvas.echo(trailer[[0, 1, 2, 3, 0]], strength=0.6, width=0.8)
    canvas.echo(cab, strength=0.6)
    x, y = pose.points([(0.22, 0.0)])[0]
    canvas.point_target(x, y, 2.2)


def warehouse(canvas: Canvas, pose: Pose, rng: np.random.Generator) -> None:
    outline = pose.rectangle()
    canvas.shadow(outline, height=rng.uniform(4, 7), depth=0.62)
    canvas.set_shadow(outline, depth=0.0)
    name = str(rng.choice(["roof grey", "roof pale", "roof blue", "roof red"]))
    canvas.polygon(outline, canvas.add_material(name))
    # Pitched roof: the side that faces away from the sun is a little darker.
    normal = pose.points([(0.0, 0.5)])[0] - (pose.cx, pose.cy)
    side = -0.5 if normal @ canvas.sun_direction > 0 else 0.5
    canvas.set_shadow(pose.points([(-0.5, 0.0), (0.5, 0.0), (0.5, side), (-0.5, side)]), depth=0.2)
    seam = canvas.add_material("roof grey")
    for x in np.linspace(-0.5, 0.5, int(pose.length / 6) + 1)[1:-1]:
        canvas.line(pose.points([(x, -0.5), (x, 0.5)]), seam, width=0.4)
    canvas.line(pose.points([(-0.5, 0.0), (0.5, 0.0)]), "roof pale", width=0.8)
    for x in rng.uniform(-0.4, 0.4, 3):
        vent = pose.points(_rectangle(x, rng.choice([-0.25, 0.25]), 0.035, 0.06))
        canvas.polygon(vent, "roof pale")
        canvas.heat(vent, strength=0.25)
        canvas.echo(vent, strength=0.7)
    corners = np.concatenate([outline, outline[:1]])
    for start, stop in itertools.pairwise(corners):
        # The wall and the ground in front of it form a corner reflector.
        outward = (start + stop) / 2 - (pose.cx, pose.cy)
        facing = outward @ canvas.radar_direction / np.linalg.norm(outward)
        if facing > 0.3:
            canvas.echo([tuple(start), tuple(stop)], strength=0.6 + 0.4 * facing, width=1.8)
    canvas.echo(pose.points([(-0.5, 0.0), (0.5, 0.0)]), strength=0.5, width=0.9)


def bridge_road(canvas: Canvas, pose: Pose, rng: np.random.Generator) -> None:
    """Draw the road that continues beyond the water on both sides."""
    road = _strip(pose.offsets([(-200.0, 0.0), (200.0, 0.0)]), pose.width * 0.55)
    canvas.clear_effects(road)
    canvas.polygon(road, "asphalt")


def bridge(canvas: Canvas, pose: Pose, rng: np.random.Generator) -> None:
    outline = pose.rectangle()
    canvas.shadow(outline, height=rng.uniform(2, 3.5), depth=0.5)
    canvas.set_shadow(outline, depth=0.0)
    canvas.polygon(outline, "rail")
    canvas.polygon(pose.points(_rectangle(0.0, 0.0, 0.5, 0.36)), "deck road")
    for start in np.arange(-0.46, 0.44, 0.1):
        canvas.line(pose.points([(start, 0.0), (start + 0.05, 0.0)]), "paint", width=0.6)
    pier = canvas.add_material("quay")
    for x in np.linspace(-0.5, 0.5, 5):
        canvas.line(pose.points([(x, -0.5), (x, -0.38)]), pier, width=1.0)
        canvas.line(pose.points([(x, 0.38), (x, 0.5)]), pier, width=1.0)
    for y in (-0.45, 0.45):
        canvas.echo(pose.points([(-0.5, y), (0.5, y)]), strength=0.75, width=1.2)


def tennis_court(canvas: Canvas, pose: Pose, rng: np.random.Generator) -> None:
    outline = pose.rectangle()
    canvas.clear_effects(outline)
    outer, inner = [("court out", "court in"), ("court out", "court clay"), ("court clay", "court out")][
        int(rng.integers(3))
    ]
    canvas.polygon(outline, outer)
    canvas.polygon(pose.points(_rectangle(0.0, 0.0, 0.36, 0.34)), inner)
    paint = canvas.add_material("paint")

    def stroke(points: Outline, width: float = 0.75) -> None:
        canvas.line(pose.points(points), paint, width=width)

    a, b = 0.36, 0.34
    stroke([(-a, -b), (a, -b), (a, b), (-a, b), (-a, -b)])
    for y in (-0.25, 0.25):
        stroke([(-a, y), (a, y)], 0.6)
    for x in (-0.19, 0.19):
        stroke([(x, -0.25), (x, 0.25)], 0.6)
    stroke([(-0.19, 0.0), (0.19, 0.0)], 0.6)
    net = pose.points([(0.0, -0.4), (0.0, 0.4)])
    canvas.line(net, "glass", width=0.9)
    canvas.echo(np.concatenate([outline, outline[:1]]), strength=0.45, width=1.1)
    canvas.echo(net, strength=0.5, width=1.0)


def roundabout_roads(canvas: Canvas, pose: Pose, rng: np.random.Generator) -> None:
    """Draw the roads that lead to the roundabout."""
    radius = pose.length / 2
    road, paint = canvas.add_material("new asphalt", variation=0.4), canvas.add_material("paint")
    rotation, arms = rng.uniform(0, np.pi / 2), int(rng.choice([3, 4, 4]))
    for arm in range(arms):
        angle = rotation + arm * np.pi / 2
        far = (pose.cx + 200 * np.cos(angle), pose.cy + 200 * np.sin(angle))
        arm_road = _strip(np.array([(pose.cx, pose.cy), far]), radius * 0.42)
        canvas.clear_effects(arm_road)
        canvas.polygon(arm_road, road)
        near = [(pose.cx + r * np.cos(angle), pose.cy + r * np.sin(angle)) for r in (radius + 1, radius + 14)]
        canvas.line(near, paint, width=0.6)


def roundabout(canvas: Canvas, pose: Pose, rng: np.random.Generator) -> None:
    radius = pose.length / 2
    road, paint = canvas.add_material("new asphalt", variation=0.4), canvas.add_material("paint")
    canvas.clear_effects(pose.ellipse())
    canvas.disc(pose.cx, pose.cy, radius, paint)
    canvas.disc(pose.cx, pose.cy, radius - 0.8, road)
    for scale, strength in ((0.97, 0.4), (0.58, 0.5)):  # kerbs and crash barriers
        ring = pose.ellipse(scale=scale)
        canvas.echo(np.concatenate([ring, ring[:1]]), strength=strength, width=0.9)
    canvas.disc(pose.cx, pose.cy, radius * 0.56 + 0.8, paint)
    canvas.disc(pose.cx, pose.cy, radius * 0.56, "grass")
    canvas.disc(pose.cx, pose.cy, radius * 0.3, "wood")


def windmill(canvas: Canvas, pose: Pose, rng: np.random.Generator) -> None:
    radius = pose.length / 2
    hub = (pose.cx, pose.cy)
    canvas.disc(pose.cx, pose.cy, radius * 0.3, "track")
    # Four sails at right angles extend equally far to all four sides at any rotation.
    angles = np.arange(4) * np.pi / 2 + rng.uniform(0.3, np.pi / 2 - 0.3)
    local = [(0.16, 0.05), (0.16, -0.02), (1.0, -0.02), (1.0, 0.13), (0.22, 0.13)]
    sails = []
    for angle in angles:
        rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        sails.append(np.asarray(local) @ rotation)
    reach = max(float(np.abs(sail).max()) for sail in sails)
    sails = [sail * (radius / reach) + hub for sail in sails]
    tower = np.array([hub, np.asarray(hub) - canvas.sun_direction * radius * 0.9])
    canvas.detached_shadow(_strip(tower, 2.4), height=0.0, depth=0.5)
    for sail in sails:
        canvas.detached_shadow(sail, height=radius * 0.35, depth=0.45)
    for sail in sails:
        canvas.set_shadow(sail, depth=0.0)
        canvas.polygon(sail, "blade")
        canvas.echo(sail[[1, 2]], strength=0.75, width=1.0)
    canvas.set_shadow_disc(pose.cx, pose.cy, 2.6, depth=0.0)
    canvas.disc(pose.cx, pose.cy, 2.6, "nacelle")
    canvas.point_target(pose.cx, pose.cy, 2.2)


def stadium(canvas: Canvas, pose: Pose, rng: np.random.Generator) -> None:
    canvas.clear_effects(pose.rectangle())
    canvas.polygon(pose.racetrack(), "tartan")
    lane, inner = canvas.add_material("paint"), pose.width * 0.17
    for inset in (0.4, inner * 0.5):
        outline = pose.racetrack(inset=inset)
        canvas.line(np.concatenate([outline, outline[:1]]), lane, width=0.5)
    canvas.polygon(pose.racetrack(inset=inner - 0.5), lane)
    canvas.polygon(pose.racetrack(inset=inner), "pitch")
    half = 0.5 - inner / pose.width - 0.03
    reach = half * 0.62
    box = [(-reach, -half), (reach, -half), (reach, half), (-reach, half), (-reach, -half)]
    canvas.line(pose.points(box), lane, width=0.5)
    canvas.line(pose.points([(0.0, -half), (0.0, half)]), lane, width=0.5)
    track = pose.racetrack()
    canvas.echo(np.concatenate([track, track[:1]]), strength=0.33, width=0.9)


def _rectangle(x: float, y: float, half_long: float, half_short: float) -> Outline:
    a, b = half_long, half_short
    return [(x - a, y - b), (x + a, y - b), (x + a, y + b), (x - a, y + b)]


def _strip(segment: np.ndarray, width: float) -> np.ndarray:
    """Return the outline, f64[4,2], of a strip along a segment."""
    along = segment[1] - segment[0]
    across = np.array([-along[1], along[0]]) / np.linalg.norm(along) * width / 2
    return np.array([segment[0] + across, segment[1] + across, segment[1] - across, segment[0] - across])
