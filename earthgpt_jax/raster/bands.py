"""The bands of a raster as its file stores them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.typed import show
from earthgpt_jax.raster.orientation import AS_STORED

_RGB = ("red", "green", "blue")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Bands:
    """Some bands of a raster.

    Attributes:
        values: [bands, h, w], real numbers: uint8 for pictures, otherwise in the unit of the file.
        valid: bool[bands, h, w], False for pixels without data; None if all have data.
        numbers: numbers of the bands in the file, from 1; () for those that the file itself names.
        bounded: whether something says which pixels have data: a no-data value, a mask or an alpha band.
        orientation: the orientation tag of the file, by which the bands are already turned.
    """

    values: np.ndarray
    valid: np.ndarray | None = None
    numbers: tuple[int, ...] = ()
    bounded: bool = False
    orientation: int = AS_STORED

    @property
    def eight_bits(self) -> bool:
        """Whether the values can be shown as they are."""
        return self.values.dtype == np.uint8


def choose_bands(
    wanted: Sequence[int | str], *, colours: Sequence[str], names: Sequence[str | None]
) -> tuple[int, ...]:
    """Return the numbers of one band (grey) or three (red, green, blue), from 1.

    Args:
        wanted: numbers from 1, names or colours; () for what the file says: its only band, the bands that it calls red,
            green and blue, or its three bands in order.
        colours: for each band of the file, its colour interpretation as rasterio names it: `red`, `gray`, `alpha`.
        names: for each band of the file, its description.

    Raises:
        EarthGPTError: the file has no such band, or does not say which bands are red, green and blue.
    """
    labels = [{colour, (name or colour).lower()} for colour, name in zip(colours, names, strict=True)]
    listed = ", ".join(
        f"{i} ({name or colour})" for i, (colour, name) in enumerate(zip(colours, names, strict=True), 1)
    )
    if wanted:
        return tuple(_number(band, labels, listed) for band in wanted)
    data = [i for i, colour in enumerate(colours, 1) if colour != "alpha"]
    if len(data) == 1:
        return tuple(data)
    named = [[i for i in data if colour in labels[i - 1]] for colour in _RGB]
    if all(len(found) == 1 for found in named):
        return tuple(found[0] for found in named)
    if len(data) == 3 and not any(named):
        return tuple(data)
    raise EarthGPTError(
        f"the file has {len(data)} bands and does not say which are red, green and blue: {listed}. Choose one band, or "
        "three, with `stretch: {bands: [...]}` in the data card or with --stretch 'bands: [...]'"
    )


def _number(band: int | str, labels: Sequence[set[str]], listed: str) -> int:
    found = [band] if isinstance(band, int) else [i for i, names in enumerate(labels, 1) if band.lower() in names]
    if len(found) != 1 or not 1 <= found[0] <= len(labels):
        raise EarthGPTError(f"expected one band {show(band)}, got the bands {listed}")
    return found[0]
