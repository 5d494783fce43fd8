"""Read TIFF, JPEG 2000 and the other raster formats of remote sensing with rasterio, and write tiles of them.

A raster is read from the bytes of one file. Files next to it (`.aux.xml`, `.msk`, `.ovr`, `.tfw`) are not read.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence

import numpy as np
from PIL import Image
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import NodataShadowWarning, NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader, MemoryFile
from rasterio.windows import Window

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.raster import orientation
from earthgpt_jax.raster.bands import Bands, choose_bands

# Most images here have no georeference, and nothing here needs one. Set once, because filters belong to the process.
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)
warnings.filterwarnings("ignore", category=NodataShadowWarning)  # `_valid` looks at both

_NAME = "image"  # of the file in memory, as GDAL's messages have it
_TIFF = "GTiff"


def read_bands(data: bytes, *, driver: str, bands: Sequence[int | str] = (), nodata: float | None = None) -> Bands:
    """Return bands of a raster file, turned as its orientation tag says.

    Palettes become three bands. Bands of fewer than 8 bits are spread over 0..255, and bands in which 0 is white are
    inverted. Complex numbers become their amplitude. A scale and an offset in the file are applied.

    Args:
        driver: name of GDAL's driver for the file's format.
        bands, nodata: as in `StretchPolicy`.

    Raises:
        EarthGPTError: the file is damaged or has too many pixels, or as for `choose_bands`.
    """
    try:
        with MemoryFile(data, filename=_NAME) as file, file.open(driver=driver) as raster:
            _check_size(raster)
            found = read_part(raster, bands, nodata)
            turned = orientation.AS_STORED
            # A georeference is about pixels as they are stored, and other programs do not turn such files.
            if driver == _TIFF and raster.transform.is_identity and not raster.gcps[0]:
                turned = orientation.tiff_orientation(data)
    except (RasterioError, MemoryError, ValueError) as error:
        raise EarthGPTError(explain(error)) from error
    return _turned(found, turned)


def _turned(bands: Bands, turned: int) -> Bands:
    if turned == orientation.AS_STORED:
        return bands

    def planes(array: np.ndarray) -> np.ndarray:
        return np.stack([orientation.turn(plane, turned) for plane in array])

    valid = None if bands.valid is None else planes(bands.valid)
    return dataclasses.replace(bands, values=planes(bands.values), valid=valid, orientation=turned)


def explain(error: BaseException) -> str:
    """Return the reason of an error of rasterio or GDAL on one line."""
    reason = error.__cause__ if str(error).startswith("Read failed") and error.__cause__ else error
    return " ".join(str(reason).split()) or type(reason).__name__


def read_part(
    raster: DatasetReader,
    wanted: Sequence[int | str],
    nodata: float | None,
    *,
    window: Window | None = None,
    shape: tuple[int, int] | None = None,
) -> Bands:
    """Return bands of a raster or of a part of it, as stored: an orientation tag is not regarded.

    Args:
        wanted, nodata: as `bands` and `nodata` in `StretchPolicy`.
        window: the part; default: all.
        shape: height and width to which the part is reduced, with the file's overviews where it has some.

    Raises:
        EarthGPTError: as for `choose_bands`.
        RasterioError: the file is damaged.
    """
    if not raster.count:
        raise EarthGPTError("it has no bands of its own, only subdatasets; write one of them as GeoTIFF")
    colours = [colour.name for colour in raster.colorinterp]
    numbers = choose_bands(wanted, colours=colours, names=raster.descriptions)
    palette = raster.colorinterp[numbers[0] - 1] is ColorInterp.palette and len(numbers) == 1
    values = raster.read(
        numbers, window=window, out_shape=shape and (len(numbers), *shape),
        resampling=Resampling.nearest if palette or not shape else Resampling.average,
    )  # fmt: skip
    valid = _valid(raster, values, numbers, nodata, window, shape)
    bounded = valid is not None
    if valid is not None and valid.all():
        valid = None
    if palette:
        colours_of = raster.colormap(numbers[0])
        table = np.zeros((max(colours_of) + 1, 4), np.uint8)
        table[list(colours_of)] = list(colours_of.values())
        painted = table[np.minimum(values[0], len(table) - 1)]
        opaque = np.broadcast_to(painted[..., 3] > 0, (3, *painted.shape[:2]))
        valid = opaque if valid is None else opaque & valid
        return Bands(values=np.moveaxis(painted[..., :3], -1, 0), valid=valid, bounded=bounded)
    values = np.stack([_physical(raster, plane, number) for plane, number in zip(values, numbers, strict=True)])
    return Bands(
        values=values, valid=valid, bounded=bounded, numbers=() if values.dtype == np.uint8 and not wanted else numbers
    )


def _check_size(raster: DatasetReader) -> None:
    """Raise EarthGPTError where Pillow raises DecompressionBombError."""
    limit = 2 * (Image.MAX_IMAGE_PIXELS or np.inf)
    if raster.width * raster.height > limit:
        raise EarthGPTError(
            f"its {raster.width} x {raster.height} pixels are more than the limit of {limit:.0f}; cut it into tiles"
        )


def _valid(
    raster: DatasetReader,
    values: np.ndarray,
    numbers: Sequence[int],
    nodata: float | None,
    window: Window | None,
    shape: tuple[int, int] | None,
) -> np.ndarray | None:
    """Return bool[bands, h, w], False for pixels without data; None if nothing says which have data."""
    flags = [set(raster.mask_flag_enums[number - 1]) for number in numbers]
    masks = None
    if any(MaskFlags.all_valid not in of_band for of_band in flags):
        masks = raster.read_masks(numbers, window=window, out_shape=shape and (len(numbers), *shape)) != 0
    if raster.nodata is not None and ColorInterp.alpha in raster.colorinterp:  # GDAL's masks then leave alpha out
        alpha = raster.colorinterp.index(ColorInterp.alpha) + 1
        opaque = raster.read(alpha, window=window, out_shape=shape) != 0
        masks = opaque[None] if masks is None else masks & opaque
    if nodata is not None:
        known = values != nodata
        masks = known if masks is None else masks & known
    return masks


def _physical(raster: DatasetReader, plane: np.ndarray, number: int) -> np.ndarray:
    """Return a band with its values in the unit of the file; bands of at most 8 bits stay as they are shown."""
    if plane.dtype.kind == "c":
        plane = np.abs(plane)
    scale, offset = raster.scales[number - 1], raster.offsets[number - 1]
    if plane.dtype == np.uint8:
        bits = int(raster.tags(number, ns="IMAGE_STRUCTURE").get("NBITS", 8))
        plane = plane if bits == 8 else (plane.astype(np.uint16) * 255 // ((1 << bits) - 1)).astype(np.uint8)
    elif (scale, offset) != (1.0, 0.0):
        plane = plane * scale + offset
    if raster.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") == "YES":
        plane = np.iinfo(plane.dtype).max - plane if plane.dtype.kind in "iu" else -plane
    return plane


def encode_bands(values: np.ndarray) -> bytes:
    """Return bands [bands, h, w] as a TIFF file without loss. Equal bands give equal bytes."""
    count, height, width = values.shape
    with MemoryFile(filename=_NAME) as file:
        with file.open(
            driver=_TIFF, count=count, height=height, width=width, dtype=values.dtype, compress="deflate",
            photometric="RGB" if count == 3 else "MINISBLACK",
        ) as raster:  # fmt: skip
            raster.write(values)
        return file.read()
