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

import imagehash
import numpy as np
from PIL import Image
from tqdm import tqdm

from earthgpt_jax.common.digests import sha256_int
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.files import write_output
from earthgpt_jax.common.parallel import parallel_map
from earthgpt_jax.datasets import store
from earthgpt_jax.datasets.manifest import read_manifest
from earthgpt_jax.raster.decode import decode

FILE = "looks.npz"
NO_HASH = 0  # of a record without a picture, or with one that shows nothing
MAX_PHASH_DISTANCE, MAX_DHASH_DISTANCE = 8, 12  # bits that may differ: of pHash, of dHash
_VERSION = 1  # raise it when the same image gets other digests
_COLUMNS = ("pixels", "phash", "dhash")
_CHUNK = 64  # records a task of a worker process
_FLAT = 2.0  # grey levels of standard deviation below which a picture's frequencies are noise: open sea, no data
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerceptualHashes:
    """Of one split, u64[records] each.

    Attributes:
        pixels: digest of the decoded pixels; NONE where there is no image or it does not decode.
        phash, dhash: perceptual hashes; phash is NONE also where an image shows nothing.
    """

    pixels: np.ndarray
    phash: np.ndarray
    dhash: np.ndarray


def hash_image(image: bytes) -> tuple[int, int, int]:
    """(pixels, phash, dhash) of an image file; NONE where there is none to take."""
    if not image:
        return NO_HASH, NO_HASH, NO_HASH
    try:
        array = decode(image)
    except EarthGPTError:
        return NO_HASH, NO_HASH, NO_HASH
    pixels = sha256_int(repr(array.shape).encode() + array.tobytes(), size=8, byteorder="little")
    grey = Image.fromarray(array).convert("L")
    if np.asarray(grey).std() < _FLAT:
        return pixels, NO_HASH, NO_HASH
    return pixels, _bits(imagehash.phash(grey)), _bits(imagehash.dhash(grey))


def _bits(value: imagehash.ImageHash) -> int:
    return int.from_bytes(np.packbits(value.hash).tobytes(), "big")


def dataset_hashes(directory: Path, *, workers: int | None = None) -> dict[str, PerceptualHashes]:
    """Split -> what its images look like, in the order of the records; computed once, then read from `FILE`.

    Args:
        workers: processes that decode images; None: one a core.

    Raises:
        EarthGPTError: `directory` is no dataset directory, or the file cannot be written.
    """
    values = read_manifest(directory)
    lengths = {split: kinds["total"].get("records", 0) for split, kinds in values["counts"].items()}
    key = f"{values['fingerprint']}/{_VERSION}"
    if (cached := _read(directory / FILE, key, lengths)) is not None:
        return cached
    chunks = [
        (split, start, min(start + _CHUNK, length))
        for split, length in lengths.items()
        for start in range(0, length, _CHUNK)
    ]
    arrays = {split: np.zeros((length, len(_COLUMNS)), np.uint64) for split, length in lengths.items()}
    with tqdm(total=sum(lengths.values()), desc=f"{values['name']}: looks", unit="image", leave=False) as bar:
        found_all = parallel_map(functools.partial(_chunk, directory), chunks, workers=workers)
        for (split, start, stop), found in zip(chunks, found_all, strict=True):
            arrays[split][start:stop] = found
            bar.update(stop - start)
    taken = {split: PerceptualHashes(**dict(zip(_COLUMNS, array.T, strict=True))) for split, array in arrays.items()}
    _write(directory / FILE, key, taken)
    return taken


@functools.lru_cache(maxsize=2)
def _source(directory: Path, split: str) -> store.RecordSource:
    return store.RecordSource(directory, split)


def _chunk(directory: Path, chunk: tuple[str, int, int]) -> np.ndarray:
    split, start, stop = chunk
    source = _source(directory, split)
    return np.array([hash_image(source[index].image) for index in range(start, stop)], np.uint64)


def _read(path: Path, key: str, lengths: dict[str, int]) -> dict[str, PerceptualHashes] | None:
    """None where there is no file, or it is of other records; it is computed anew then."""
    try:
        with np.load(path) as file:
            if str(file["key"]) != key:
                return None
            found = {s: PerceptualHashes(**{name: file[f"{s}/{name}"] for name in _COLUMNS}) for s in lengths}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        _log.warning("%s is damaged (%s); computing it anew", path, error)
        return None
    whole = all(len(getattr(found[s], name)) == length for s, length in lengths.items() for name in _COLUMNS)
    return found if whole else None


def _write(path: Path, key: str, taken: dict[str, PerceptualHashes]) -> None:
    arrays = {f"{split}/{name}": getattr(each, name) for split, each in taken.items() for name in _COLUMNS}
    buffer = io.BytesIO()
    np.savez(buffer, key=np.array(key), allow_pickle=False, **arrays)
    write_output(path, buffer.getvalue())
