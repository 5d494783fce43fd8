"""Raster files for tests, written with rasterio."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import rasterio
from rasterio.io import MemoryFile
from rasterio.transform import from_origin


def raster_file(
    values: np.ndarray,
    *,
    mask: np.ndarray | None = None,
    colours: tuple[rasterio.enums.ColorInterp, ...] = (),
    names: tuple[str, ...] = (),
    palette: dict[int, tuple[int, int, int, int]] | None = None,
    scale: tuple[float, float] | None = None,
    georeferenced: bool = True,
    driver: str = "GTiff",
    **options: Any,
) -> bytes:
    """Return a raster file with the bands [bands, h, w].

    Args:
        mask: bool[h, w], False for pixels without data, written into the file as a mask.
        colours, names: colour interpretation and description of the bands.
        palette: colours of an 8-bit band.
        scale: scale and offset of all bands.
        options: of rasterio, such as `nodata`, `photometric`, `compress`, `tiled`, and of GDAL's driver.
    """
    count, height, width = values.shape
    place = {"transform": from_origin(500000, 4000000, 10, 10), "crs": "EPSG:32633"} if georeferenced else {}
    options = {"dtype": values.dtype.name, **place, **options}
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK="YES"), MemoryFile() as file:
        with file.open(driver=driver, count=count, height=height, width=width, **options) as raster:
            if colours:
                raster.colorinterp = colours  # before the pixels, which fix the tags
            raster.write(values)
            for number, name in enumerate(names, 1):
                raster.set_band_description(number, name)
            if palette:
                raster.write_colormap(1, palette)
            if scale:
                raster.scales, raster.offsets = (scale[0],) * count, (scale[1],) * count
            if mask is not None:
                raster.write_mask(mask)
        return file.read()


def with_orientation(tiff: bytes, orientation: int) -> bytes:
    """Return a little-endian classic TIFF file with an orientation tag, in a copy of its directory at its end."""
    (start,) = struct.unpack_from("<I", tiff, 4)
    (count,) = struct.unpack_from("<H", tiff, start)
    entries = [tiff[start + 2 + 12 * i :][:12] for i in range(count)]
    entries = [entry for entry in entries if entry[:2] != struct.pack("<H", 274)]
    entries = sorted([*entries, struct.pack("<HHII", 274, 3, 1, orientation)], key=lambda e: struct.unpack("<H", e[:2]))
    following = tiff[start + 2 + 12 * count :][:4]
    body = tiff + b"\0" * (len(tiff) % 2)
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + following
    return body[:4] + struct.pack("<I", len(body)) + body[8:] + directory
