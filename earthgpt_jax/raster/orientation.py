"""Read the orientation tag of an image file, and turn its pixels the way the tag says they are displayed.

The tag is number 274 of TIFF and Exif (Exif 2.3, section 4.6.4): 1 is as stored, 3 is rotated by 180 degrees, 6 and 8
by 90 degrees, and 2, 4, 5 and 7 are the same mirrored.
"""

from __future__ import annotations

import io
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, TiffImagePlugin

_TAG = 274
AS_STORED = 1
_SWAPS_SIDES = (5, 6, 7, 8)  # orientations that exchange width and height
# Orientation -> (transpose the stored pixels first, then reverse rows, reverse columns).
_TURNS = {
    2: (False, False, True), 3: (False, True, True), 4: (False, True, False), 5: (True, False, False),
    6: (True, False, True), 7: (True, True, True), 8: (True, True, False),
}  # fmt: skip


def jpeg_orientation(data: bytes) -> int:
    """Return the orientation in a JPEG file's Exif segment, `AS_STORED` if it has none."""
    start = 2
    while data[start : start + 1] == b"\xff" and (marker := data[start + 1 : start + 2]) not in (b"\xda", b""):
        end = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
        if marker == b"\xe1" and data[start + 4 : start + 10] == b"Exif\0\0":
            return exif_orientation(data[start + 4 : end])
        start = end
    return AS_STORED


def exif_orientation(exif: bytes | None) -> int:
    """Return the orientation in an Exif block, `AS_STORED` if it has none or is damaged."""
    if not exif:
        return AS_STORED
    parsed = Image.Exif()
    try:
        parsed.load(exif)
        return _valid(parsed.get(_TAG))
    except Exception:  # Pillow raises many types for a damaged block, and the pixels do not depend on it
        return AS_STORED


def tiff_orientation(data: bytes | BinaryIO) -> int:
    """Return the orientation of the first image of a TIFF or BigTIFF file, `AS_STORED` if it has none."""
    file = io.BytesIO(data) if isinstance(data, bytes) else data
    header = file.read(8)
    if 43 in header[2:4]:  # BigTIFF
        header += file.read(8)
    try:
        directory = TiffImagePlugin.ImageFileDirectory_v2(header)
        file.seek(directory.next)
        directory.load(file)
        return _valid(directory.get(_TAG))
    except Exception:  # as for Exif
        return AS_STORED


def swaps_sides(orientation: int) -> bool:
    """Return whether the displayed image has the stored image's width as its height."""
    return orientation in _SWAPS_SIDES


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Return stored pixels [h, w, ...] as they are displayed; a view where possible."""
    if orientation == AS_STORED:
        return pixels
    transpose, rows, columns = _TURNS[orientation]
    pixels = pixels.swapaxes(0, 1) if transpose else pixels
    return pixels[:: -1 if rows else 1, :: -1 if columns else 1]


def _valid(value: Any) -> int:
    return value if isinstance(value, int) and value in _TURNS else AS_STORED
