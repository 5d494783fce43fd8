"""The canvas: surfaces drawn once, at three times the resolution, for any sensor to render.

Coordinates are world units: the image is 128 x 128 of them, whatever its pixel size.
Four layers: which material (a slot of the palette), cast shadow, radar echo, heat.
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
    """Surfaces of one scene. Drawing never fails outside of the image; it is clipped."""

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
        self.glints: list[tuple[float, float, float]] = []
        self.relief: np.ndarray | None = None
        self._flats: list[list[float]] = []
        sun = rng.uniform(0, 2 * np.pi)
        self.sun = np.array([np.cos(sun), np.sin(sun)])  # towards the sun
        self.radar = np.array([float(rng.choice([-1.0, 1.0])), 0.0])  # towards the radar
        self.rows_angle = rng.uniform(0, np.pi)
        self.rows_period = 4.0

    def slot(self, name: str, *, vary: float = 1.0) -> int:
        """A palette slot holding an instance of a material, differing from its mean by chance."""
        base = MATERIALS[name]
        spread = base.spread * vary
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

    def _slot_of(self, material: str | int) -> int:
        return material if isinstance(material, int) else self.slot(material)

    def _scaled(self, points: Points) -> list[float]:
        return (np.asarray(points, dtype=np.float64) * self.scale - 0.5).ravel().tolist()

    def fill(self, material: str | int) -> None:
        self._layers["material"].paste(self._slot_of(material), (0, 0, self.side, self.side))

    def polygon(self, points: Points, material: str | int) -> None:
        self._draw["material"].polygon(self._scaled(points), fill=self._slot_of(material))

    def line(self, points: Points, material: str | int, *, width: float) -> None:
        self._draw["material"].line(
            self._scaled(points),
            fill=self._slot_of(material),
            width=max(1, round(width * self.scale)),
            joint="curve",
        )

    def disc(self, cx: float, cy: float, radius: float, material: str | int) -> None:
        self._draw["material"].ellipse(self._box(cx, cy, radius), fill=self._slot_of(material))

    def _box(self, cx: float, cy: float, radius: float) -> tuple[float, float, float, float]:
        k = self.scale
        return ((cx - radius) * k, (cy - radius) * k, (cx + radius) * k - 1, (cy + radius) * k - 1)

    def where(self, field: np.ndarray, material: str | int, *, above: float) -> None:
        """Paints the material where `field` f32[n,n] (of about unit variance) exceeds `above`."""
        levels = np.clip((field - above) * 64 + 128, 0, 255).astype(np.uint8)
        image = Image.fromarray(levels).resize((self.side, self.side), Image.Resampling.BILINEAR)
        mask = image.point([0] * 128 + [255] * 128)
        self._layers["material"].paste(self._slot_of(material), (0, 0), mask)

    def shadow(self, points: Points, *, height: float, depth: float = 0.55) -> None:
        """Casts the outline's shadow, `height` units long, away from the sun."""
        outline = np.asarray(points, dtype=np.float64)
        count = max(2, int(height) + 1)
        for step in range(count):
            shifted = outline - self.sun * (height * step / (count - 1))
            self._draw["shadow"].polygon(self._scaled(shifted), fill=round(255 * depth))

    def flying_shadow(self, points: Points, *, height: float, depth: float = 0.5) -> None:
        """The shadow of something in the air or thin: not connected with it."""
        shifted = np.asarray(points, dtype=np.float64) - self.sun * height
        self._draw["shadow"].polygon(self._scaled(shifted), fill=round(255 * depth))

    def shade(self, points: Points, *, depth: float) -> None:
        """Sets the shadow inside of the outline: 0 is in the sun, 1 is black."""
        self._draw["shadow"].polygon(self._scaled(points), fill=round(255 * depth))

    def shade_disc(self, cx: float, cy: float, radius: float, *, depth: float) -> None:
        self._draw["shadow"].ellipse(self._box(cx, cy, radius), fill=round(255 * depth))

    def echo(self, points: Points, *, strength: float, width: float | None = None) -> None:
        """Radar echo (amplitude 0..1) of the outline's inside, or of a line of the given width."""
        self._mark("echo", points, strength, width)

    def heat(self, points: Points, *, strength: float, width: float | None = None) -> None:
        """Excess temperature (0..1) of the outline's inside, or of a line of the given width."""
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
        """A bright arc on the side that faces the radar."""
        facing = 0 if self.radar[0] > 0 else 180
        self._draw["echo"].arc(
            self._box(cx, cy, radius),
            facing - 70,
            facing + 70,
            fill=round(255 * strength),
            width=max(1, round(width * self.scale)),
        )

    def glint(self, x: float, y: float, amplitude: float) -> None:
        """A point target so strong that its sidelobes show as a cross."""
        self.glints.append((x, y, amplitude))

    def clear(self, points: Points) -> None:
        """Takes shadow, echo and heat away from inside of the outline."""
        scaled = self._scaled(points)
        for layer in ("shadow", "echo", "heat"):
            self._draw[layer].polygon(scaled, fill=0)

    def flatten(self, points: Points) -> None:
        """Levels the relief inside of the outline, so that what stands there is seen undistorted."""
        self._flats.append((np.asarray(points, dtype=np.float64) * (self.size / WORLD)).ravel().tolist())

    def relieved(self) -> np.ndarray:
        """f32[size,size]: how much of the relief is left: 1 is all, 0 on water and in flattened outlines."""
        level = Image.fromarray(self.water()).convert("L").resize((self.size, self.size))
        draw = ImageDraw.Draw(level)
        for outline in self._flats:
            draw.polygon(outline, fill=255)
        soft = level.filter(ImageFilter.GaussianBlur(2.0 * self.size / WORLD))
        return 1 - np.maximum(np.asarray(level), np.asarray(soft)).astype(np.float32) / np.float32(255)

    def water(self) -> np.ndarray:
        """bool[128,128]: where the surface is water, one cell a world unit."""
        table = [255 if m.water else 0 for m in self.palette] + [0] * (256 - len(self.palette))
        image = self._layers["material"].resize((int(WORLD), int(WORLD)), Image.Resampling.NEAREST)
        return np.asarray(image.point(table)) > 0

    def plane(self, attribute: str, *, low: float = 0.0, high: float = 1.0) -> np.ndarray:
        """f32[size,size]: a material attribute, averaged over the supersamples, in 255 steps of low..high."""
        values = np.array([getattr(m, attribute) for m in self.palette])
        levels = np.clip((values - low) / (high - low) * 255, 0, 255).round().astype(int).tolist()
        reduced = self._layers["material"].point(levels + [0] * (256 - len(levels))).reduce(SUPERSAMPLING)
        return np.asarray(reduced, dtype=np.float32) * np.float32((high - low) / 255) + np.float32(low)

    def colour(self) -> np.ndarray:
        """f32[size,size,3]: red, green, blue, 0..255, averaged over the supersamples."""
        indexed = self._layers["material"].copy()
        indexed.putpalette([level for m in self.palette for level in m.rgb])
        return np.asarray(indexed.convert("RGB").reduce(SUPERSAMPLING), dtype=np.float32)

    def layer(self, name: str) -> np.ndarray:
        """f32[size,size]: "shadow", "echo" or "heat", 0..1."""
        return np.asarray(self._layers[name].reduce(SUPERSAMPLING), dtype=np.float32) / np.float32(255)

    def uses(self, attribute: str) -> bool:
        return any(getattr(m, attribute) for m in self.palette)
