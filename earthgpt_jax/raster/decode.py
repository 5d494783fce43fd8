"""Decode image files to pixels. No other module decodes.

Pictures of 8 bits (JPEG, PNG, BMP, GIF, WebP, AVIF) are decoded without rasterio, which is only
imported for rasters: TIFF, JPEG 2000, NITF, Erdas Imagine, PNM, and PNG with 16 bits.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.raster import orientation, stretch
from earthgpt_jax.raster.bands import Bands, choose_bands
from earthgpt_jax.raster.policy import DEFAULT, Stretch, StretchPolicy
from earthgpt_jax.records import Record

# How the files of a raster format begin -> GDAL's name of the format.
_RASTERS = {
    b"II*\0": "GTiff", b"MM\0*": "GTiff", b"II+\0": "GTiff", b"MM\0+": "GTiff",
    b"\0\0\0\x0cjP  ": "JP2OpenJPEG", b"\xff\x4f\xff\x51": "JP2OpenJPEG",
    b"NITF": "NITF", b"NSIF": "NITF", b"EHFA_HEADER_TAG": "HFA", b"P5": "PNM", b"P6": "PNM",
}  # fmt: skip
_MOST_PIXELS = 1_000_000_000  # a process may need 12 bytes for each; the largest scenes of DOTA have 8e8
# Pillow's names of the formats that it decodes. Others of its plugins start programs, or crash on damaged files.
_PICTURES = ("JPEG", "PNG", "BMP", "DIB", "GIF", "WEBP", "AVIF")
_PNG_SIGNATURE, _PNG_DEPTH = b"\x89PNG\r\n\x1a\n", slice(24, 25)  # the bits per sample in IHDR
# Formats whose pixels are in other files or in one of several subdatasets.
_UNSUPPORTED = {b"\x89HDF": "HDF5 or netCDF", b"CDF": "netCDF", b"<VRTDataset": "VRT", b"PK\3\4": "ZIP"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageInfo:
    """What a build has to know about an image file.

    Attributes:
        width, height: in pixels, as displayed.
        stretch: how its pixels become 8 bits, as `Stretch.to_text` writes it; "" for 8 bits as they are.
        orientation: the orientation tag of the file, by which the displayed pixels are turned.
    """

    width: int
    height: int
    stretch: str = ""
    orientation: int = orientation.AS_STORED


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """An image as a model sees it, before the resize.

    Attributes:
        pixels: uint8[h, w, 3], RGB.
        stretch: as in `ImageInfo`.
    """

    pixels: np.ndarray
    stretch: str = ""

    @property
    def rule(self) -> str:
        """The stretch in words, see `Stretch.rule`."""
        return Stretch.from_text(self.stretch).rule()


@contextlib.contextmanager
def allow_large_images() -> Iterator[None]:
    """Let images of up to `_MOST_PIXELS` be decoded, which are otherwise rejected as decompression bombs."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = _MOST_PIXELS // 2  # Pillow warns above this, and refuses twice as many
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def decode(data: bytes, stretch_text: str = "") -> np.ndarray:
    """Return the pixels of an image file as they are displayed, uint8[h, w, 3], RGB.

    Args:
        stretch_text: the scene's stretch, as `Stretch.to_text` writes it. With "", images of more than 8 bits get their
            own: each band between its 2nd and 98th percentile.

    Raises:
        EarthGPTError: the data is not an image, is truncated, or has more pixels than Pillow opens.
    """
    if not stretch_text:
        return decode_picture(data).pixels
    known = Stretch.from_text(stretch_text)
    return stretch.apply(read_bands(data, StretchPolicy(bands=known.bands, nodata=known.nodata)), known)


def decode_picture(data: bytes, policy: StretchPolicy = DEFAULT) -> Picture:
    """Return the pixels of an image file with the stretch that the policy gives for it.

    Raises:
        EarthGPTError: as for `decode`, or the image does not have the policy's bands.
    """
    if _is_plain(data, policy):
        return Picture(pixels=_picture(data)[0])
    bands = read_bands(data, policy)
    found = stretch.fit(bands, policy)
    return Picture(pixels=stretch.apply(bands, found), stretch=found.to_text())


def record_pixels(record: Record) -> np.ndarray:
    """Return the pixels of a record's image, uint8[h, w, 3], RGB, with the stretch of its scene.

    Raises:
        EarthGPTError: as for `decode`.
    """
    return decode(record.image, record.stretch)


def examine(data: bytes, policy: StretchPolicy = DEFAULT) -> ImageInfo:
    """Decode an image file in full and return its size and stretch.

    Raises:
        EarthGPTError: as for `decode`, or the image does not have the policy's bands.
    """
    if _is_plain(data, policy):
        pixels, turned = _picture(data)
        return ImageInfo(width=pixels.shape[1], height=pixels.shape[0], orientation=turned)
    bands = read_bands(data, policy)
    _, height, width = bands.values.shape
    return ImageInfo(
        width=width, height=height, stretch=stretch.fit(bands, policy).to_text(), orientation=bands.orientation
    )


def read_bands(data: bytes, policy: StretchPolicy = DEFAULT) -> Bands:
    """Return the bands of an image file that a policy chooses, before the stretch.

    Raises:
        EarthGPTError: as for `examine`.
    """
    driver = raster_driver(data)
    if driver is None:
        return _bands_of_picture(*_picture(data), policy)
    from earthgpt_jax.raster import gdal

    try:
        return gdal.read_bands(data, driver=driver, bands=policy.bands, nodata=policy.nodata)
    except EarthGPTError as error:
        raise _undecodable(data, error) from error


def read_image(path: Path, policy: StretchPolicy = DEFAULT) -> Picture:
    """Return what `decode_picture` returns for a file.

    Raises:
        EarthGPTError: the file does not exist, cannot be read, or is not an image; the message names the file.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        raise EarthGPTError(f"image {path}: {reason}") from error
    try:
        return decode_picture(data, policy)
    except EarthGPTError as error:
        raise EarthGPTError(f"image {path}: {error}") from error


def _undecodable(data: bytes, reason: object) -> EarthGPTError:
    return EarthGPTError(f"image of {len(data)} bytes cannot be decoded: {reason}")


def raster_driver(data: bytes) -> str | None:
    """Return GDAL's name of a raster's format, or None for a picture that is decoded without rasterio."""
    if data.startswith(b"\xff\xd8"):  # JPEG, the most frequent
        return None
    if data.startswith(_PNG_SIGNATURE):
        return "PNG" if data[_PNG_DEPTH] == b"\x10" else None
    return next((driver for start, driver in _RASTERS.items() if data.startswith(start)), None)


def _is_plain(data: bytes, policy: StretchPolicy) -> bool:
    """Return whether a file is a picture of 8 bits that is shown as it is."""
    return raster_driver(data) is None and policy.keeps_eight_bits() and not policy.bands and policy.nodata is None


def _bands_of_picture(pixels: np.ndarray, turned: int, policy: StretchPolicy) -> Bands:
    colours = ("red", "green", "blue")
    numbers = choose_bands(policy.bands, colours=colours, names=(None,) * 3)
    values = np.moveaxis(pixels, -1, 0)[[number - 1 for number in numbers]]
    valid = None if policy.nodata is None else values != policy.nodata
    return Bands(
        values=values, valid=valid, numbers=numbers if policy.bands else (), bounded=valid is not None,
        orientation=turned,
    )  # fmt: skip


def _picture(data: bytes) -> tuple[np.ndarray, int]:
    """Return the pixels of an 8-bit image, uint8[h, w, 3], and its orientation, by which they are already turned.

    Raises:
        EarthGPTError: as for `decode`.
    """
    if (pixels := _jpeg(data)) is not None:
        turned = orientation.jpeg_orientation(data)
        return np.ascontiguousarray(orientation.turn(pixels, turned)), turned
    if kind := next((kind for start, kind in _UNSUPPORTED.items() if data.startswith(start)), None):
        raise _undecodable(data, f"a file of the format {kind}; write the wanted part as GeoTIFF, with gdal_translate")
    try:
        with Image.open(io.BytesIO(data), formats=_PICTURES) as image:
            image.load()
            turned = orientation.exif_orientation(image.info.get("exif"))
            pixels = np.asarray(_to_rgb(image))
    except Image.DecompressionBombError as error:
        raise _undecodable(data, f"{error}; cut it into tiles") from error
    except UnidentifiedImageError as error:  # Pillow's message has a memory address, which differs in every run
        raise _undecodable(data, "not a format that Pillow or rasterio reads from one file") from error
    except MemoryError:
        raise
    except Exception as error:  # decoders raise many types on damaged data
        raise _undecodable(data, error) from error
    return np.ascontiguousarray(orientation.turn(pixels, turned)), turned


def _to_rgb(image: Image.Image) -> Image.Image:
    """Return an image in RGB, black where it is fully transparent."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        raise ValueError(f"{image.format} with more than 8 bits; write it as TIFF")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    alpha = image.getchannel("A")
    colours = image.convert("RGB")
    if alpha.getextrema()[0] == 0:
        colours.paste(0, mask=alpha.point(lambda value: 255 * (value == 0)))
    return colours


def _jpeg(data: bytes) -> np.ndarray | None:
    """Return the stored pixels of an ordinary JPEG file, uint8[h, w, 3], or None if Pillow should handle the data.

    The pixels equal Pillow's, which uses the same decoder but copies twice. None for other files, for colour spaces
    other than YCbCr and grey, and for damaged or very large images.
    """
    if not simplejpeg.is_jpeg(data):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in ("YCbCr", "Gray") or height * width > (Image.MAX_IMAGE_PIXELS or np.inf):
            return None
        return simplejpeg.decode_jpeg(data, "RGB")
    except ValueError:
        return None
