"""Cut tiles from a scene, as image files with the scene's pixels and the scene's stretch."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
from PIL import Image

from earthgpt_jax.raster.decode import read_bands
from earthgpt_jax.raster.policy import Speckle, Stretch, StretchPolicy
from earthgpt_jax.raster.stretch import without_speckle


class Scene:
    """A decoded scene.

    Attributes:
        stretch: how the pixels of its tiles become 8 bits, as in `Record`.
    """

    def __init__(self, image: bytes, stretch: str):
        """Decode the scene.

        Args:
            image, stretch: as in `Record`.

        Raises:
            EarthGPTError: as for `decode`.
        """
        known = Stretch.from_text(stretch)
        bands = read_bands(image, StretchPolicy(bands=known.bands, nodata=known.nodata))
        self._values = without_speckle(bands, known.speckle)
        if bands.valid is not None:  # darker than every stretch shows as black, in the tiles as in the scene
            self._values = np.where(bands.valid, self._values, _darkest(self._values.dtype))
        numbers = tuple(range(1, len(self._values) + 1)) if known.low else ()
        self.stretch = dataclasses.replace(known, bands=numbers, nodata=None, speckle=Speckle.NONE).to_text()

    def tile(self, x0: int, y0: int, x1: int, y1: int) -> bytes:
        """Return a part of the scene as a lossless file: PNG for 8 bits and for one band of 16, otherwise TIFF.

        Equal pixels give equal bytes.
        """
        values = self._values[:, y0:y1, x0:x1]
        if values.dtype == np.uint8:
            grey = (values == values[:1]).all()
            return _png(values[0] if grey else np.ascontiguousarray(np.moveaxis(values, 0, -1)))
        if values.dtype == np.uint16 and len(values) == 1:
            return _png(values[0])
        from earthgpt_jax.raster.gdal import encode_bands

        return encode_bands(values)


def _darkest(dtype: np.dtype) -> np.generic:
    return dtype.type(np.nan if dtype.kind == "f" else np.iinfo(dtype).min)


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
