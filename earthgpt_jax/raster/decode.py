"""Decode image files to pixels. No other module decodes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from earthgpt_jax.common.errors import EarthGPTError


def decode(data: bytes) -> np.ndarray:
    """Return the pixels of an image file, uint8[h, w, 3], RGB.

    A single band of more than 8 bits is stretched linearly between its 2nd and 98th percentile. Pixels without a value
    (NaN or infinite, no-data in floating-point rasters) become black.

    Raises:
        EarthGPTError: the data is not an image, is truncated, or has more pixels than Pillow opens.
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
    except UnidentifiedImageError as error:  # Pillow's message has a memory address, which differs in every run
        raise EarthGPTError(
            f"image of {len(data)} bytes cannot be decoded: a format unknown to Pillow, or more bands than it reads"
        ) from error
    except (OSError, SyntaxError, ValueError) as error:
        raise EarthGPTError(f"image of {len(data)} bytes cannot be decoded: {error}") from error


def _jpeg(data: bytes) -> np.ndarray | None:
    """Return the pixels of an ordinary JPEG file, uint8[h, w, 3], or None if Pillow should handle the data.

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


def read_image(path: Path) -> bytes:
    """Return the bytes of an image file, after checking that they can be decoded.

    Raises:
        EarthGPTError: the file does not exist, cannot be read, or is not an image; the message names the file.
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
    """Return a band f32[h, w] stretched to uint8."""
    valid = np.isfinite(band)
    if not valid.any():
        return np.zeros(band.shape, np.uint8)
    low, high = np.percentile(band[valid], (2, 98))
    stretched = np.clip((band - low) / max(high - low, 1e-6) * 255, 0, 255)
    return np.where(valid, stretched, 0).astype(np.uint8)
