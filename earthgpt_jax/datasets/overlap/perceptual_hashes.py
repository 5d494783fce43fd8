"""Compute perceptual image hashes and cache them with the shards of a dataset directory.

`image_digests` finds identical files. The hashes here also find the same pixels in another file format (`pixels`), and
near-duplicates: images that were resized, compressed again, cropped slightly at the border or stretched to 8 bits
(`phash` and `dhash`). Flipped and rotated copies count as different images.

Two images are near-duplicates if two 64-bit hashes of Johannes Buchner's `imagehash` package agree: pHash (signs of the
low frequencies) within `MAX_PHASH_DISTANCE` bits and dHash (signs of the gradients) within `MAX_DHASH_DISTANCE` bits.
`scripts/bench/perceptual_hashes.py` measures false negatives and false positives at these limits. Known weaknesses are
crops of 5 % per side and SAR images with a percentile stretch, which changes most of the contrast of a dark image.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import logging
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from earthgpt_jax.common.digests import sha256_int
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.files import write_output
from earthgpt_jax.common.parallel import parallel_map
from earthgpt_jax.common.progress import Bar
from earthgpt_jax.datasets import store
from earthgpt_jax.datasets.manifest import read_manifest, record_counts
from earthgpt_jax.raster.decode import decode

if TYPE_CHECKING:
    import imagehash

FILE = "perceptual_hashes.npz"
NO_HASH = 0  # of a record without an image, or with one that has too little contrast
MAX_PHASH_DISTANCE, MAX_DHASH_DISTANCE = 8, 12  # bits in which the hashes of near-duplicates may differ
_VERSION = 1  # increase it when the same image gets different hashes
_COLUMNS = ("pixels", "phash", "dhash")
_CHUNK = 64  # records per task of a worker process
_MIN_STD = 2.0  # grey levels; with less contrast (open sea, no data), the frequencies of an image are noise
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerceptualHashes:
    """Hashes of the images of one split, u64[records] each.

    Attributes:
        pixels: digest of the decoded pixels; NO_HASH if there is no image or it cannot be decoded.
        phash, dhash: perceptual hashes; `phash` is also NO_HASH if an image has too little contrast.
    """

    pixels: np.ndarray
    phash: np.ndarray
    dhash: np.ndarray


def hash_image(image: bytes, stretch: str = "") -> tuple[int, int, int]:
    """Return (pixels, phash, dhash) of an image file, as in `PerceptualHashes`.

    Args:
        stretch: as in `Record`.
    """
    if not image:
        return NO_HASH, NO_HASH, NO_HASH
    try:
        array = decode(image, stretch)
    except EarthGPTError:
        return NO_HASH, NO_HASH, NO_HASH
    return hash_array(array)


def hash_array(array: np.ndarray) -> tuple[int, int, int]:
    """Return (pixels, phash, dhash) of u8[h, w, 3], as in `PerceptualHashes`."""
    import imagehash

    pixels = sha256_int(repr(array.shape).encode() + array.tobytes(), size=8, byteorder="little")
    grey = Image.fromarray(array).convert("L")
    if np.asarray(grey).std() < _MIN_STD:
        return pixels, NO_HASH, NO_HASH
    return pixels, _bits(imagehash.phash(grey)), _bits(imagehash.dhash(grey))


def _bits(value: imagehash.ImageHash) -> int:
    return int.from_bytes(np.packbits(value.hash).tobytes(), "big")


def dataset_hashes(directory: Path, *, workers: int | None = None) -> dict[str, PerceptualHashes]:
    """Return split -> hashes of its images in record order; computed once, then read from `FILE`.

    Args:
        workers: number of processes that decode images; None for one per core.

    Raises:
        EarthGPTError: `directory` is not a dataset directory, or the file cannot be written.
    """
    manifest = read_manifest(directory)
    lengths = record_counts(manifest)
    key = f"{manifest['fingerprint']}/{_VERSION}"
    if (cached := _read(directory / FILE, key, lengths)) is not None:
        return cached
    chunks = [
        (split, start, min(start + _CHUNK, length))
        for split, length in lengths.items()
        for start in range(0, length, _CHUNK)
    ]
    arrays = {split: np.zeros((length, len(_COLUMNS)), np.uint64) for split, length in lengths.items()}
    with Bar(total=sum(lengths.values()), desc=f"hashing {manifest['name']}", unit="image", leave=False) as bar:
        results = parallel_map(functools.partial(_hash_chunk, directory), chunks, workers=workers)
        for (split, start, stop), result in zip(chunks, results, strict=True):
            arrays[split][start:stop] = result
            bar.update(stop - start)
    hashes = {split: PerceptualHashes(**dict(zip(_COLUMNS, array.T, strict=True))) for split, array in arrays.items()}
    _write(directory / FILE, key, hashes)
    return hashes


@functools.lru_cache(maxsize=2)
def _source(directory: Path, split: str) -> store.RecordSource:
    return store.RecordSource(directory, split)


def _hash_chunk(directory: Path, chunk: tuple[str, int, int]) -> np.ndarray:
    split, start, stop = chunk
    source = _source(directory, split)
    return np.array(
        [hash_image(record.image, record.stretch) for record in map(source.__getitem__, range(start, stop))], np.uint64
    )


def _read(path: Path, key: str, lengths: dict[str, int]) -> dict[str, PerceptualHashes] | None:
    """Return the cached hashes; None if they must be computed, because the file is missing, damaged or outdated."""
    try:
        with np.load(io.BytesIO(path.read_bytes())) as file:
            if str(file["key"]) != key:
                return None
            hashes = {s: PerceptualHashes(**{name: file[f"{s}/{name}"] for name in _COLUMNS}) for s in lengths}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        _log.warning("%s is damaged (%s); computing it again", path, error)
        return None
    complete = all(len(getattr(hashes[s], name)) == length for s, length in lengths.items() for name in _COLUMNS)
    return hashes if complete else None


def _write(path: Path, key: str, hashes: dict[str, PerceptualHashes]) -> None:
    arrays = {f"{split}/{name}": getattr(columns, name) for split, columns in hashes.items() for name in _COLUMNS}
    buffer = io.BytesIO()
    np.savez(buffer, key=np.array(key), allow_pickle=False, **arrays)
    write_output(path, buffer.getvalue())
