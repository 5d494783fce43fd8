"""Pictures of a scene with its objects: a PNG or JPEG, a Cloud Optimized GeoTIFF, or a map page for a browser."""

from __future__ import annotations

import base64
import colorsys
import hashlib
import io
import json
import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from earthgpt_jax.common import files
from earthgpt_jax.raster.policy import StretchPolicy
from earthgpt_jax.raster.scene_file import SceneFile
from earthgpt_jax.scenes.detection import SceneResult
from earthgpt_jax.scenes.plain import to_dict

LONGEST = 4096  # pixels of a picture
_STRIP = 256  # rows of a picture that are read at a time
_PAGE = Path(__file__).with_name("map_page.html")


def save(path: Path, result: SceneResult, policy: StretchPolicy) -> None:
    """Draw a scene that is read from its file again; the suffix of the name chooses the format.

    Raises:
        EarthGPTError: the file cannot be written.
    """
    with SceneFile(result.path, policy, known=result.stretch) as file:
        pixels = _read_reduced(file)
    content = FORMATS[path.suffix.lower()](np.ascontiguousarray(pixels), result, path.suffix.lower())
    with files.explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_bytes(path, content)


def _read_reduced(file: SceneFile) -> np.ndarray:
    """Return a scene as u8[h, w, 3] of at most `LONGEST` pixels along an axis, read in strips to save memory."""
    reduce = math.ceil(max(file.width, file.height) / LONGEST)
    pixels = np.empty((math.ceil(file.height / reduce), math.ceil(file.width / reduce), 3), np.uint8)
    for top in range(0, len(pixels), _STRIP):
        y = top * reduce
        height = min(_STRIP * reduce, file.height - y)
        part = file.read(0, y, file.width, height, reduce=reduce).pixels
        pixels[top : top + len(part)] = part
    return pixels


def colour(label: str) -> tuple[int, int, int]:
    """Return a bright colour for a class, always the same one."""
    hue = int.from_bytes(hashlib.sha256(label.encode()).digest()[:2], "big") / 65536
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, 1)
    return int(red * 255), int(green * 255), int(blue * 255)


def draw(pixels: np.ndarray, result: SceneResult) -> Image.Image:
    """Return a picture with outlines and labels, thick enough to see when the picture fills a screen.

    Args:
        pixels: u8[h, w, 3], the scene or a reduced copy of it.
    """
    image = Image.fromarray(pixels)
    pen = ImageDraw.Draw(image)
    scale = np.array([image.width / result.width, image.height / result.height])
    width = max(1, round(max(image.size) / 600))
    for item in result.objects:
        corners = [(float(x), float(y)) for x, y in item.polygon * scale]
        pen.line([*corners, corners[0], corners[1]], fill=colour(item.label), width=width, joint="curve")
        if np.ptp(item.polygon * scale, axis=0).max() > 8 * width:
            pen.text(corners[0], item.label, fill=colour(item.label), font_size=9 * width, anchor="ls")
    return image


def _picture(pixels: np.ndarray, result: SceneResult, suffix: str) -> bytes:
    buffer = io.BytesIO()
    draw(pixels, result).save(buffer, format="PNG" if suffix == ".png" else "JPEG", quality=90)
    return buffer.getvalue()


def _cloud_optimized(pixels: np.ndarray, result: SceneResult, suffix: str) -> bytes:
    import rasterio
    import rasterio.shutil

    drawn = np.asarray(draw(pixels, result))
    place: dict[str, Any] = {}
    if result.georeference:
        a, b, c, d, e, f = result.georeference.affine
        sx, sy = result.width / drawn.shape[1], result.height / drawn.shape[0]
        place = {
            "transform": rasterio.Affine(a * sx, b * sy, c, d * sx, e * sy, f),
            "crs": result.georeference.crs or None,
        }
    with tempfile.TemporaryDirectory(prefix="earthgpt-") as scratch:
        plain, target = Path(scratch, "plain.tif"), Path(scratch, "cog.tif")
        with rasterio.open(
            plain, "w", driver="GTiff", width=drawn.shape[1], height=drawn.shape[0], count=3, dtype="uint8",
            photometric="RGB", **place,
        ) as raster:  # fmt: skip
            raster.write(np.moveaxis(drawn, -1, 0))
        rasterio.shutil.copy(plain, target, driver="COG", compress="DEFLATE", predictor="YES", overviews="AUTO")
        return target.read_bytes()


def _page(pixels: np.ndarray, result: SceneResult, suffix: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=85)
    scene = to_dict(result)
    labels = sorted({item.label for item in result.objects})
    data = {
        "title": result.path.name,
        "width": result.width,
        "height": result.height,
        "boxes": scene["boxes"],
        "colours": {label: "#{:02x}{:02x}{:02x}".format(*colour(label)) for label in labels},
    }
    page = _PAGE.read_text(encoding="utf-8")
    # "</" could end the script element early.
    page = page.replace("{{data}}", json.dumps(data).replace("</", "<\\/"))
    return page.replace("{{image}}", base64.b64encode(buffer.getvalue()).decode()).encode()


FORMATS: Mapping[str, Callable[[np.ndarray, SceneResult, str], bytes]] = {
    ".png": _picture, ".jpg": _picture, ".jpeg": _picture, ".tif": _cloud_optimized, ".html": _page,
}  # fmt: skip
