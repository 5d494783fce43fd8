"""Image files to pixels: the only place that decodes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from earthgpt_jax.common.errors import EarthGPTError


def decode(data: bytes) -> np.ndarray:
    """uint8[h, w, 3], RGB. A single band of more than 8 bits is stretched between its 2nd and 98th percentile.

    Pixels without a value (NaN, infinite: no data in float rasters) come out black.

    Raises:
        EarthGPTError: not an image, cut short, or larger than Pillow opens.
    """
    if (pixels := _jpeg(data)) is not None:
        return pixels
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            if image.mode in ("I", "F", "I;16", "I;16B", "I;16L"):
                return np.repeat(_stretch(np.asarray(image, np.float32))[..., None], 3, axis=-1)
            return np.asarray(image.convert("RGB"))
    except Image.DecompressionBombError as error:
        raise EarthGPTError(f"image of {len(data)} bytes cannot be decoded: {error}; cut it into tiles") from error
    except UnidentifiedImageError as error:  # Pillow's words hold an address in memory, another one in every run
        raise EarthGPTError(
            f"image of {len(data)} bytes cannot be decoded: no format that Pillow knows, or more bands than it reads"
        ) from error
    except (OSError, SyntaxError, ValueError) as error:
        raise EarthGPTError(f"image of {len(data)} bytes cannot be decoded: {error}") from error


def _jpeg(data: bytes) -> np.ndarray | None:
    """uint8[h, w, 3] of a plain JPEG file, the pixels that Pillow gives (it holds the same decoder, behind two copies).

    None for whatever is not plain, for Pillow to decode or to refuse: other colours than YCbCr and grey, damage, size.
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


def read_image(path: Path) -> bytes:
    """The bytes of an image file, which decode.

    Raises:
        EarthGPTError: no such file, unreadable, or not an image; names the file.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        raise EarthGPTError(f"image {path}: {reason}") from error
    try:
        decode(data)
    except EarthGPTError as error:
        raise EarthGPTError(f"image {path}: {error}") from error
    return data


def _stretch(band: np.ndarray) -> np.ndarray:
    known = np.isfinite(band)
    if not known.any():
        return np.zeros(band.shape, np.uint8)
    low, high = np.percentile(band[known], (2, 98))
    stretched = np.clip((band - low) / max(high - low, 1e-6) * 255, 0, 255)
    return np.where(known, stretched, 0).astype(np.uint8)
