"""Which records hold the same image: a digest a record, beside the shards of every dataset directory.

Datasets share images under splits of their own (RSIVQA asks about those of RSICD), so that one's training
images are another's test images. The digest is of the file's bytes: datasets pass images on as files, and
decoding all of them once more made builds 39 % slower, hashing their bytes 2 %. The same image encoded
anew, resized or cut is therefore another image here; an audit finds those (`looks`). Only tiles that a build cut
from a scene have the digest of the scene's file.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from earthgpt_jax.common.digests import sha256_int
from earthgpt_jax.common.errors import EarthGPTError

FILE = "digests.npz"
TRAIN = "train"  # every other split is for evaluation
NONE = 0  # of a record without an image


def digest(image: bytes) -> int:
    """The first 8 bytes of the sha256 of an image file's bytes; NONE if there is no image."""
    return sha256_int(image, size=8, byteorder="little") if image else NONE


def shortened(sha256: bytes) -> int:
    """The digest of an image whose sha256 is known."""
    return int.from_bytes(sha256[:8], "little")


def write(directory: Path, digests: Mapping[str, Sequence[int]]) -> None:
    """Writes the digests of each split, in the order of its records; the same digests give the same bytes."""
    arrays: dict[str, Any] = {split: np.array(values, np.uint64) for split, values in digests.items()}
    np.savez(directory / FILE, **arrays)


def read(directory: Path, lengths: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Split -> u64[records].

    Args:
        lengths: how many records each split has.

    Raises:
        EarthGPTError: there is no such file, or it is not of these records.
    """
    path = directory / FILE
    try:
        with np.load(path) as file:
            found = dict(file)
    except FileNotFoundError:
        raise EarthGPTError(
            f"data {directory}: it lacks {FILE}, which tells images that several datasets share; it was built by an "
            "earlier version. Delete the folder and build it anew, or name it alone instead of a folder of several"
        ) from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise EarthGPTError(f"{path} is damaged ({error}); build the folder anew") from error
    if {split: len(values) for split, values in found.items()} != dict(lengths):
        raise EarthGPTError(f"{path} is damaged (it is not of this folder's records); build the folder anew")
    return found


def leaks(datasets: Sequence[Mapping[str, np.ndarray]]) -> list[np.ndarray]:
    """bool[training records] a dataset: is the image in an evaluation split of any of the datasets?"""
    nothing = np.zeros(0, np.uint64)
    held_out = [values for splits in datasets for split, values in splits.items() if split != TRAIN]
    asked = np.unique(np.concatenate([nothing, *held_out]))
    return [np.isin(train := splits.get(TRAIN, nothing), asked) & (train != NONE) for splits in datasets]
