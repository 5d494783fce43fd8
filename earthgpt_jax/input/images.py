"""Image bytes -> the uint8 square that reaches the device.

Squares are resized on the host. A square of 512 px is 0.79 MB, 0.05 ms of a PCIe link of 15 GB/s, so there are no bytes
to save: files of 800 px and more would be sent as 1.9 MB and more, files of 256 px as 0.2 MB. To resize on the device,
originals would have to come in shapes known beforehand, padded to the largest or in buckets of a compiled step each.
The host needs 0.5 ms (256 px) to 5 ms (1,024 px) of one core an image, by the sums that evaluation and
LLaMA2-Accessory form, too.
"""

from __future__ import annotations

import numpy as np

from earthgpt_jax.boxes import Square
from earthgpt_jax.input.resize import resize_square
from earthgpt_jax.raster.decode import decode

FILL = (122, 116, 104)  # CLIP's mean colour, as LLaMA2-Accessory pads


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
