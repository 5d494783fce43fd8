"""Image bytes -> the uint8 square that reaches the device.

Squares are resized on the host. A square of 512 px is 0.79 MB, 0.05 ms of a PCIe link of 15 GB/s, so there are no bytes
to save: files of 800 px and more would be sent as 1.9 MB and more, files of 256 px as 0.2 MB. To resize on the device,
originals would have to come in shapes known beforehand, padded to the largest or in buckets of a compiled step each.
The host needs 0.5 ms (256 px) to 5 ms (1,024 px) of one core an image, by the sums that evaluation and
LLaMA2-Accessory form, too.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from earthgpt_jax.errors import EarthGPTError
from earthgpt_jax.geometry import Square
from earthgpt_jax.input.resize import resize_square

FILL = (122, 116, 104)  # CLIP's mean colour, as LLaMA2-Accessory pads


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


def pad_to_square(image: np.ndarray, fill: tuple[int, int, int] = FILL) -> np.ndarray:
    """uint8[h, w, 3] -> uint8[s, s, 3], s = max(h, w), the image in the middle (see `geometry.Square`)."""
    height, width = image.shape[:2]
    if height == width:
        return image
    square = Square(width, height)
    left, top = square.offset
    canvas = np.empty((square.side, square.side, 3), np.uint8)
    canvas.reshape(square.side, -1)[:] = np.tile(np.array(fill, np.uint8), square.side)  # a pixel at a time is slow
    canvas[top : top + height, left : left + width] = image
    return canvas


def load_square(data: bytes, size: int) -> np.ndarray:
    """uint8[size, size, 3]: decoded, then as `to_square`."""
    return to_square(decode(data), size)


def to_square(image: np.ndarray, size: int, *, out: np.ndarray | None = None) -> np.ndarray:
    """uint8[h, w, 3] -> uint8[size, size, 3], in `out` if given: padded, bicubic, antialiased (see `resize_square`)."""
    if max(image.shape[:2]) != size:
        return resize_square(image, size, FILL, out=out)
    if out is None:
        return pad_to_square(image)
    out[:] = pad_to_square(image)
    return out


def grey_square(size: int) -> np.ndarray:
    """The blind baseline's image: the padding colour everywhere."""
    return np.broadcast_to(np.array(FILL, np.uint8), (size, size, 3)).copy()
