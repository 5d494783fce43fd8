"""What images look like: digests that survive another encoding, cached beside the shards of a dataset directory.

`digests` tells the same file; here the same pixels are found in another file format, and the same picture resized,
compressed, cut a little at its border or stretched to 8 bits. Flipped and turned copies are other pictures here.

Two 64-bit hashes of Johannes Buchner's `imagehash` must agree: pHash (signs of the low frequencies) within `NEAR`
bits and dHash (signs of the gradients) within `CONFIRMED`. `scripts/bench/looks.py` measures what these limits miss
and confuse; the weak spots are cuts of 5 % a side, and SAR images stretched between percentiles, where that moves most
of what a dark image is made of.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import logging
import zipfile
from pathlib import Path

import imagehash
import numpy as np
from PIL import Image
from tqdm import tqdm

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.parallel import parallel_map
from earthgpt_jax.datasets import store
from earthgpt_jax.raster.decode import decode

FILE = "looks.npz"
NONE = 0  # of a record without a picture, or with one that shows nothing
NEAR, CONFIRMED = 8, 12  # bits that may differ: of pHash, of dHash
_VERSION = 1  # raise it when the same image gets other digests
_COLUMNS = ("pixels", "phash", "dhash")
_CHUNK = 64  # records a task of a worker process
_FLAT = 2.0  # grey levels of standard deviation below which a picture's frequencies are noise: open sea, no data
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Looks:
    """Of one split, u64[records] each.

    Attributes:
        pixels: digest of the decoded pixels; NONE where there is no image or it does not decode.
        phash, dhash: perceptual hashes; phash is NONE also where an image shows nothing.
    """

    pixels: np.ndarray
    phash: np.ndarray
    dhash: np.ndarray


def look(image: bytes) -> tuple[int, int, int]:
    """(pixels, phash, dhash) of an image file; NONE where there is none to take."""
    if not image:
        return NONE, NONE, NONE
    try:
        array = decode(image)
    except EarthGPTError:
        return NONE, NONE, NONE
    digest = hashlib.sha256(repr(array.shape).encode() + array.tobytes())
    pixels = int.from_bytes(digest.digest()[:8], "little")
    grey = Image.fromarray(array).convert("L")
    if np.asarray(grey).std() < _FLAT:
        return pixels, NONE, NONE
    return pixels, _bits(imagehash.phash(grey)), _bits(imagehash.dhash(grey))


def _bits(value: imagehash.ImageHash) -> int:
    return int.from_bytes(np.packbits(value.hash).tobytes(), "big")


def looks(directory: Path, *, workers: int | None = None) -> dict[str, Looks]:
    """Split -> what its images look like, in the order of the records; computed once, then read from `FILE`.

    Args:
        workers: processes that decode images; None: one a core.

    Raises:
        EarthGPTError: `directory` is no dataset directory, or the file cannot be written.
    """
    values = store.manifest(directory)
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
    taken = {split: Looks(**dict(zip(_COLUMNS, array.T, strict=True))) for split, array in arrays.items()}
    _write(directory / FILE, key, taken)
    return taken


@functools.lru_cache(maxsize=2)
def _source(directory: Path, split: str) -> store.RecordSource:
    return store.RecordSource(directory, split)


def _chunk(directory: Path, chunk: tuple[str, int, int]) -> np.ndarray:
    split, start, stop = chunk
    source = _source(directory, split)
    return np.array([look(source[index].image) for index in range(start, stop)], np.uint64)


def _read(path: Path, key: str, lengths: dict[str, int]) -> dict[str, Looks] | None:
    """None where there is no file, or it is of other records; it is computed anew then."""
    try:
        with np.load(path) as file:
            if str(file["key"]) != key:
                return None
            found = {s: Looks(**{name: file[f"{s}/{name}"] for name in _COLUMNS}) for s in lengths}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        _log.warning("%s is damaged (%s); computing it anew", path, error)
        return None
    whole = all(len(getattr(found[s], name)) == length for s, length in lengths.items() for name in _COLUMNS)
    return found if whole else None


def _write(path: Path, key: str, taken: dict[str, Looks]) -> None:
    arrays = {f"{split}/{name}": getattr(each, name) for split, each in taken.items() for name in _COLUMNS}
    buffer = io.BytesIO()
    np.savez(buffer, key=np.array(key), allow_pickle=False, **arrays)
    store.replace(path, buffer.getvalue())
