"""Images: file bytes become the padded uint8 square that is sent to the device.

Squares are resized on the host. Resizing on the device would save no transfer: a square of 512 px has 0.79 MB, which
takes 0.05 ms on a PCIe link of 15 GB/s, whereas an original of 800 px has 1.9 MB. It would also need static shapes, by
padding to the largest original or by one compiled step per size bucket. On the host, an image takes 0.5 ms (256 px) to
5 ms (1,024 px) of one core, with the same arithmetic as evaluation and LLaMA2-Accessory.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Protocol

import numpy as np
from PIL import Image

from earthgpt_jax.boxes import Square
from earthgpt_jax.raster.decode import decode

FILL = (122, 116, 104)  # CLIP's mean colour, as LLaMA2-Accessory pads


class ResizeSquare(Protocol):
    """See `resize.resize_square`."""

    def __call__(
        self, image: np.ndarray, size: int, fill: tuple[int, int, int], *, out: np.ndarray | None = None
    ) -> np.ndarray: ...


def pad_to_square(image: np.ndarray, fill: tuple[int, int, int] = FILL) -> np.ndarray:
    """Pad u8[h, w, 3] to u8[s, s, 3] with s = max(h, w) and the image in the middle (see `boxes.Square`)."""
    height, width = image.shape[:2]
    if height == width:
        return image
    square = Square(width, height)
    left, top = square.offset
    canvas = np.empty((square.side, square.side, 3), np.uint8)
    # Assigned row by row, because assigning pixels is slow.
    canvas.reshape(square.side, -1)[:] = np.tile(np.array(fill, np.uint8), square.side)
    canvas[top : top + height, left : left + width] = image
    return canvas


def load_square(data: bytes, size: int, stretch: str = "") -> np.ndarray:
    """Decode an image file, and pad and resize it to u8[size, size, 3].

    Args:
        stretch: as in `Record`.
    """
    return to_square(decode(data, stretch), size)


def to_square(image: np.ndarray, size: int, *, out: np.ndarray | None = None) -> np.ndarray:
    """Pad and resize u8[h, w, 3] to u8[size, size, 3], bicubic and antialiased, as Pillow does.

    Args:
        out: Where to write the result, which is returned.
    """
    if max(image.shape[:2]) != size:
        return _resize_square()(image, size, FILL, out=out)
    if out is None:
        return pad_to_square(image)
    out[:] = pad_to_square(image)
    return out


@functools.cache
def _resize_square() -> ResizeSquare:
    """Return the kernel that Numba compiles (extra `train`); without it, Pillow, which is slower and gives the same."""
    if importlib.util.find_spec("numba") is None:
        return resize_with_pillow
    from earthgpt_jax.input.resize import resize_square

    return resize_square


def resize_with_pillow(
    image: np.ndarray, size: int, fill: tuple[int, int, int], *, out: np.ndarray | None = None
) -> np.ndarray:
    """Do as `resize.resize_square`, with Pillow."""
    square = Image.fromarray(pad_to_square(image, fill)).resize((size, size), Image.Resampling.BICUBIC)
    if out is None:
        return np.array(square)
    out[:] = square
    return out


def grey_square(size: int) -> np.ndarray:
    """Return the image of the blind baseline, filled with the padding colour."""
    return np.broadcast_to(np.array(FILL, np.uint8), (size, size, 3)).copy()
