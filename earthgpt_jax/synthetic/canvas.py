"""The canvas: a scene drawn once, at three times the image resolution, for any sensor to render.

Coordinates are world units; an image covers 128 x 128 of them at any pixel size. The canvas has four layers: material
(an index into the palette), cast shadow, radar echo and heat.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from earthgpt_jax.synthetic.materials import MATERIALS, Material

WORLD = 128.0
SUPERSAMPLING = 3

Points = np.ndarray | Sequence[tuple[float, float]]


class Canvas:
    """The surfaces of one scene. Drawing is clipped to the image.

    Attributes:
        sun_direction, radar_direction: unit vectors towards the sun and the radar, f64[2].
        rows_angle, rows_period: direction (radians) and period (world units) of the texture `Material.rows`.
        point_targets: (x, y, amplitude) of point-like radar targets.
        relief: terrain height, f32[size,size]; None for flat terrain.
    """

    def __init__(self, *, size: int, rng: np.random.Generator):
        self.size = size
        self.rng = rng
        self.side = size * SUPERSAMPLING
        self.scale = self.side / WORLD
        self.palette: list[Material] = []
        self._layers = {
            name: Image.new("L", (self.side, self.side), 0) for name in ("material", "shadow", "echo", "heat")
        }
        self._draw = {name: ImageDraw.Draw(image) for name, image in self._layers.items()}
        self.point_targets: list[tuple[float, float, float]] = []
        self.relief: np.ndarray | None = None
        self._flats: list[list[float]] = []
        sun = rng.uniform(0, 2 * np.pi)
        self.sun_direction = np.array([np.cos(sun), np.sin(sun)])
        self.radar_direction = np.array([float(rng.choice([-1.0, 1.0])), 0.0])
        self.rows_angle = rng.uniform(0, np.pi)
        self.rows_period = 4.0

    def add_material(self, name: str, *, variation: float = 1.0) -> int:
        """Add a randomly varied instance of a material to the palette, and return its index.

        Args:
            variation: factor on the material's `spread`.
        """
        base = MATERIALS[name]
        spread = base.spread * variation
        gain, sar, ir, *hues = self.rng.uniform(-spread, spread, 6).tolist()
        red, green, blue = (
            round(min(value * (1 + gain) * (1 + 0.35 * hue), 255)) for value, hue in zip(base.rgb, hues, strict=True)
        )
        instance = Material(
            (red, green, blue),
            base.sar + 8 * sar,
            min(max(base.ir + 0.25 * ir, 0.0), 1.0),
            base.spread,
            base.grain,
            base.patch,
            base.clump,
            base.rows,
            base.water,
        )
        self.palette.append(instance)
        return len(self.palette) - 1

    def _index_of(self, material: str | int) -> int:
        """Return a palette index unchanged, or that of a new instance of a named material."""
        return material if isinstance(material, int) else self.add_material(material)

    def _scaled(self, points: Points) -> list[float]:
        return (np.asarray(points, dtype=np.float64) * self.scale - 0.5).ravel().tolist()

    def fill(self, material: str | int) -> None:
        """Cover the whole canvas with a material."""
        self._layers["material"].paste(self._index_of(material), (0, 0, self.side, self.side))

    def polygon(self, points: Points, material: str | int) -> None:
        self._draw["material"].polygon(self._scaled(points), fill=self._index_of(material))

    def line(self, points: Points, material: str | int, *, width: float) -> None:
        self._draw["material"].line(
            self._scaled(points),
            fill=self._index_of(material),
            width=max(1, round(width * self.scale)),
            joint="curve",
        )

    def disc(self, cx: float, cy: float, radius: float, material: str | int) -> None:
        self._draw["material"].ellipse(self._box(cx, cy, radius), fill=self._index_of(material))

    def _box(self, cx: float, cy: float, radius: float) -> tuple[float, float, float, float]:
        k = self.scale
        return ((cx - radius) * k, (cy - radius) * k, (cx + radius) * k - 1, (cy + radius) * k - 1)

    def fill_where(self, field: np.ndarray, material: str | int, *, above: float) -> None:
        """Paint the material where `field`, f32[n,n] with about unit variance, exceeds `above`."""
        levels = np.clip((field - above) * 64 + 128, 0, 255).astype(np.uint8)
        image = Image.fromarray(levels).resize((self.side, self.side), Image.Resampling.BILINEAR)
        mask = image.point([0] * 128 + [255] * 128)
        self._layers["material"].paste(self._index_of(material), (0, 0), mask)

    def shadow(self, points: Points, *, height: float, depth: float = 0.55) -> None:
        """Cast the shadow of an outline, `height` world units long, away from the sun."""
        outline = np.asarray(points, dtype=np.float64)
        count = max(2, int(height) + 1)
        for step in range(count):
            shifted = outline - self.sun_direction * (height * step / (count - 1))
            self._draw["shadow"].polygon(self._scaled(shifted), fill=round(255 * depth))

    def detached_shadow(self, points: Points, *, height: float, depth: float = 0.5) -> None:
        """Cast the shadow of something that is thin or in the air, so that the shadow is not connected with it."""
        shifted = np.asarray(points, dtype=np.float64) - self.sun_direction * height
        self._draw["shadow"].polygon(self._scaled(shifted), fill=round(255 * depth))

    def set_shadow(self, points: Points, *, depth: float) -> None:
        """Set the shadow inside an outline: 0 is full sun, 1 is black."""
        self._draw["shadow"].polygon(self._scaled(points), fill=round(255 * depth))

    def set_shadow_disc(self, cx: float, cy: float, radius: float, *, depth: float) -> None:
        self._draw["shadow"].ellipse(self._box(cx, cy, radius), fill=round(255 * depth))

    def echo(self, points: Points, *, strength: float, width: float | None = None) -> None:
        """Set the radar echo (amplitude 0..1) inside an outline, or along a line of the given width."""
        self._mark("echo", points, strength, width)

    def heat(self, points: Points, *, strength: float, width: float | None = None) -> None:
        """Set the excess temperature (0..1) inside an outline, or along a line of the given width."""
        self._mark("heat", points, strength, width)

    def _mark(self, layer: str, points: Points, strength: float, width: float | None) -> None:
        scaled, value = self._scaled(points), round(255 * strength)
        if width is None:
            self._draw[layer].polygon(scaled, fill=value)
        else:
            self._draw[layer].line(scaled, fill=value, width=max(1, round(width * self.scale)))

    def heat_disc(self, cx: float, cy: float, radius: float, *, strength: float) -> None:
        self._draw["heat"].ellipse(self._box(cx, cy, radius), fill=round(255 * strength))

    def echo_arc(self, cx: float, cy: float, radius: float, *, strength: float, width: float) -> None:
        """Draw a bright arc on the side of a circle that faces the radar."""
        facing = 0 if self.radar_direction[0] > 0 else 180
        self._draw["echo"].arc(
            self._box(cx, cy, radius),
            facing - 70,
            facing + 70,
            fill=round(255 * strength),
            width=max(1, round(width * self.scale)),
        )

    def point_target(self, x: float, y: float, amplitude: float) -> None:
        """Add a radar target so strong that its sidelobes appear as a cross."""
        self.point_targets.append((x, y, amplitude))

    def clear_effects(self, points: Points) -> None:
        """Remove shadow, echo and heat inside an outline."""
        scaled = self._scaled(points)
        for layer in ("shadow", "echo", "heat"):
            self._draw[layer].polygon(scaled, fill=0)

    def flatten_relief(self, points: Points) -> None:
        """Level the relief inside an outline, so that an object there is not distorted."""
        self._flats.append((np.asarray(points, dtype=np.float64) * (self.size / WORLD)).ravel().tolist())

    def relief_weight(self) -> np.ndarray:
        """Return the weight of the relief, f32[size,size]: 1 on land, 0 on water and in flattened outlines."""
        level = Image.fromarray(self.water()).convert("L").resize((self.size, self.size))
        draw = ImageDraw.Draw(level)
        for outline in self._flats:
            draw.polygon(outline, fill=255)
        soft = level.filter(ImageFilter.GaussianBlur(2.0 * self.size / WORLD))
        return 1 - np.maximum(np.asarray(level), np.asarray(soft)).astype(np.float32) / np.float32(255)

    def water(self) -> np.ndarray:
        """Return the water mask, bool[128,128], one cell per world unit."""
        table = [255 if m.water else 0 for m in self.palette] + [0] * (256 - len(self.palette))
        image = self._layers["material"].resize((int(WORLD), int(WORLD)), Image.Resampling.NEAREST)
        return np.asarray(image.point(table)) > 0

    def material_plane(self, attribute: str, *, low: float = 0.0, high: float = 1.0) -> np.ndarray:
        """Return a numeric attribute of the materials, f32[size,size], averaged over the supersamples.

        Values are quantised to 255 steps between `low` and `high`.
        """
        values = np.array([getattr(m, attribute) for m in self.palette])
        levels = np.clip((values - low) / (high - low) * 255, 0, 255).round().astype(int).tolist()
        reduced = self._layers["material"].point(levels + [0] * (256 - len(levels))).reduce(SUPERSAMPLING)
        return np.asarray(reduced, dtype=np.float32) * np.float32((high - low) / 255) + np.float32(low)

    def rgb_plane(self) -> np.ndarray:
        """Return red, green and blue, f32[size,size,3], 0..255, averaged over the supersamples."""
        indexed = self._layers["material"].copy()
        indexed.putpalette([level for m in self.palette for level in m.rgb])
        return np.asarray(indexed.convert("RGB").reduce(SUPERSAMPLING), dtype=np.float32)

    def layer(self, name: str) -> np.ndarray:
        """Return the layer "shadow", "echo" or "heat", f32[size,size], 0..1."""
        return np.asarray(self._layers[name].reduce(SUPERSAMPLING), dtype=np.float32) / np.float32(255)

    def has_texture(self, attribute: str) -> bool:
        """Return whether any material on the canvas has a texture of this kind, such as "rows"."""
        return any(getattr(m, attribute) for m in self.palette)
