"""Read parts of a scene of any size from its file, with the scene's stretch and place on Earth.

Rasters, VRT files and files in buckets are read block by block, with overviews where a part is reduced; files next to
them (`.ovr`, `.msk`, `.aux.xml`, `.tfw`) are read too. Pictures (JPEG, PNG), rasters with an orientation tag and those
with a speckle filter are decoded whole.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import rasterio
from rasterio.errors import RasterioError
from rasterio.transform import from_gcps
from rasterio.windows import Window

from earthgpt_jax.common.buckets import BucketPath
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.raster import gdal, orientation, stretch
from earthgpt_jax.raster.bands import Bands
from earthgpt_jax.raster.decode import Picture, allow_large_images, raster_driver, read_image
from earthgpt_jax.raster.policy import DEFAULT, Speckle, Stretch, StretchPolicy
from earthgpt_jax.raster.scene_stretch import fit_blocks

_CACHE_MB = 64  # of decoded blocks, by GDAL
_BLOCK = 1 << 20  # pixels read at once for a stretch
_HEADER = 1024  # bytes
_LONGEST = 8192  # pixels that `read_scene` returns along an axis
_VRT = b"<VRTDataset"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Georeference:
    """Where the pixels of a raster are on Earth.

    Attributes:
        affine: a, b, c, d, e, f of x = a column + b row + c and y = d column + e row + f; column and row are 0 at
            the top left corner.
        crs: coordinate reference system of x and y as WKT; "" if the file has none.
    """

    affine: tuple[float, float, float, float, float, float]
    crs: str

    def to_map(self, points: np.ndarray) -> np.ndarray:
        """Convert pixels f64[..., 2] (column, row) to map coordinates (x, y)."""
        a, b, c, d, e, f = self.affine
        column, row = points[..., 0], points[..., 1]
        return np.stack([a * column + b * row + c, d * column + e * row + f], axis=-1)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Patch:
    """A part of a scene.

    Attributes:
        pixels: u8[h, w, 3], RGB, black where there are no data.
        has_data: whether any pixel of the part has data.
    """

    pixels: np.ndarray
    has_data: bool


class SceneFile:
    """A scene that stays in its file. Use it in one thread.

    Attributes:
        path: the file.
        width, height: in pixels.
        stretch: how its pixels become 8 bits.
        georeference: None if the file has no transform.
    """

    path: Path
    width: int
    height: int
    stretch: Stretch
    georeference: Georeference | None

    def __init__(self, path: Path, policy: StretchPolicy = DEFAULT, *, known: Stretch | None = None):
        """Open a file and compute its stretch, for which rasters of more than 8 bits are read once or twice.

        Args:
            known: the stretch that an earlier reader computed with this policy.

        Raises:
            EarthGPTError: as for `read_image`; the message names the file.
        """
        self.path = path
        self._pixels: np.ndarray | None = None
        self._raster: Any = None
        try:
            start = _start(path)
            driver = "VRT" if _is_vrt(start) else raster_driver(start)
            with _environment():
                self._raster = _open(path) if driver else _open_if_possible(path)
                self.georeference = _georeference(self._raster)
                if driver is None or policy.speckle is not Speckle.NONE or self._is_turned(driver):
                    self._decode(policy)
                else:
                    self.width, self.height = self._raster.width, self._raster.height
                    self.stretch = known or fit_blocks(
                        lambda: self._blocks(policy), policy, width=self.width, height=self.height
                    )
        except (RasterioError, MemoryError, ValueError) as error:
            raise EarthGPTError(f"image {path}: {gdal.explain(error)}") from error
        except EarthGPTError as error:
            raise error if str(path) in str(error) else EarthGPTError(f"image {path}: {error}") from error

    def __enter__(self) -> SceneFile:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self._raster is not None:
            self._raster.close()

    def read(self, x: int, y: int, width: int, height: int, *, reduce: int = 1) -> Patch:
        """Return a part of the scene.

        Args:
            x, y, width, height: the part, in pixels; inside the scene.
            reduce: pixels of the scene per pixel of the patch, along each axis.

        Raises:
            EarthGPTError: the file is damaged there; the message names it.
        """
        shape = None if reduce == 1 else (math.ceil(height / reduce), math.ceil(width / reduce))
        if self._pixels is not None:
            part = self._pixels[y : y + height, x : x + width]
            return Patch(pixels=part if shape is None else _reduced(part, reduce), has_data=True)
        try:
            with _environment():
                bands = self._read(Window(x, y, width, height), shape)
                some = bands.valid is None or bool(bands.valid.any())
                if not some and shape:  # a reduced mask may miss single pixels
                    valid = self._read(Window(x, y, width, height), None).valid
                    some = valid is None or bool(valid.any())
        except (RasterioError, MemoryError, ValueError) as error:
            raise EarthGPTError(f"image {self.path}: {gdal.explain(error)}") from error
        return Patch(pixels=stretch.apply(bands, self.stretch), has_data=some)

    def _read(self, window: Window, shape: tuple[int, int] | None) -> Bands:
        known = self.stretch
        return gdal.read_part(self._raster, known.bands, known.nodata, window=window, shape=shape)

    def _blocks(self, policy: StretchPolicy) -> Iterator[tuple[int, int, Bands]]:
        """Yield blocks of about `_BLOCK` pixels, made of whole blocks of the file."""
        block_height, block_width = self._raster.block_shapes[0]
        width = min(max(block_width, _BLOCK // block_height // block_width * block_width), self.width)
        height = min(max(block_height, _BLOCK // width // block_height * block_height), self.height)
        if width * height > 4 * _BLOCK:  # a file without tiles, as one strip
            height = max(1, _BLOCK // width)
        for y in range(0, self.height, height):
            for x in range(0, self.width, width):
                window = Window(x, y, min(width, self.width - x), min(height, self.height - y))
                yield x, y, gdal.read_part(self._raster, policy.bands, policy.nodata, window=window)

    def _is_turned(self, driver: str) -> bool:
        if driver != "GTiff" or self.georeference is not None:
            return False
        with self.path.open("rb") as file:
            return orientation.tiff_orientation(file) != orientation.AS_STORED

    def _decode(self, policy: StretchPolicy) -> None:
        with allow_large_images():
            picture = read_image(self.path, policy)
        self._pixels = picture.pixels
        self.height, self.width = picture.pixels.shape[:2]
        self.stretch = Stretch.from_text(picture.stretch)


def _environment() -> rasterio.Env:
    return rasterio.Env(GDAL_CACHEMAX=_CACHE_MB)


def _is_vrt(start: bytes) -> bool:
    return start.lstrip().startswith(_VRT)


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_HEADER)
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        raise EarthGPTError(f"image {path}: {reason}") from error


def _open(path: Path) -> Any:
    if isinstance(path, BucketPath):
        return rasterio.open(str(path), opener=_open_in_bucket)
    return rasterio.open(path)


def _open_in_bucket(name: str, mode: str = "rb") -> Any:
    """Open a file in a bucket, or next to it, for GDAL."""
    path = BucketPath(name)
    if not path.is_file():  # GDAL asks for files that may lie next to a raster
        raise FileNotFoundError(name)
    return path.open("rb")


def _open_if_possible(path: Path) -> Any:
    """Return a picture as a raster, for its georeference, or None; Pillow reads formats that GDAL does not."""
    if isinstance(path, BucketPath):
        return None
    try:
        return rasterio.open(path)
    except RasterioError:
        return None


def _georeference(raster: Any) -> Georeference | None:
    if raster is None:
        return None
    points, crs = raster.gcps
    if raster.transform.is_identity and len(points) >= 3:
        return Georeference(affine=tuple(from_gcps(points))[:6], crs=crs.to_wkt() if crs else "")
    if raster.transform.is_identity and not raster.crs:
        return None
    return Georeference(affine=tuple(raster.transform)[:6], crs=raster.crs.to_wkt() if raster.crs else "")


def _reduced(pixels: np.ndarray, reduce: int) -> np.ndarray:
    """Return the means of squares of `reduce` pixels."""
    from PIL import Image

    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).reduce(reduce))


def find_georeference(path: Path) -> Georeference | None:
    """Return where a file says that its pixels are, from its header.

    Raises:
        EarthGPTError: the file does not exist, or is a raster that cannot be opened; the message names it.
    """
    is_raster = _is_vrt(start := _start(path)) or raster_driver(start) is not None
    try:
        with _environment():
            raster = _open(path) if is_raster else _open_if_possible(path)
            if raster is None:
                return None
            with raster:
                return _georeference(raster)
    except (RasterioError, MemoryError, ValueError) as error:
        raise EarthGPTError(f"image {path}: {gdal.explain(error)}") from error


def read_scene(
    path: Path, policy: StretchPolicy = DEFAULT, *, window: tuple[int, int, int, int] | None = None
) -> Picture:
    """Return a scene, or a part of it, as a picture with the stretch of the scene.

    A scene of more than `_LONGEST` pixels along an axis is read reduced, so that it fits into memory.

    Args:
        window: x, y, width and height of the part, in pixels; default: all.

    Raises:
        EarthGPTError: as for `SceneFile`, or the window is not in the scene.
    """
    if window is None and not _needs_scene_file(path):
        return read_image(path, policy)
    with SceneFile(path, policy) as scene:
        x, y, width, height = window or (0, 0, scene.width, scene.height)
        if min(x, y) < 0 or min(width, height) < 1 or x + width > scene.width or y + height > scene.height:
            raise EarthGPTError(
                f"image {path}: expected a window inside its {scene.width} x {scene.height} pixels, got "
                f"{x},{y},{width},{height} (x, y, width, height)"
            )
        reduce = -(-max(width, height) // _LONGEST)
        return Picture(pixels=scene.read(x, y, width, height, reduce=reduce).pixels, stretch=scene.stretch.to_text())


def _needs_scene_file(path: Path) -> bool:
    """Return whether a file is a VRT, or a raster that is larger than what is decoded whole."""
    start = _start(path)
    if _is_vrt(start):
        return True
    if raster_driver(start) is None:
        return False
    try:
        with _environment(), _open(path) as raster:
            return max(raster.width, raster.height) > _LONGEST
    except (RasterioError, ValueError):
        return False  # `read_image` explains it
