"""Tell which records of all datasets have the same image, by one 64-bit digest per record.

The digest is the beginning of the sha256 of the image file. Datasets pass images on as files, so hashing the files
finds most shared images, and it is cheap: it made builds 2 % slower, where hashing the decoded pixels made them 39 %
slower. An image that was encoded again, resized or cropped has another digest; `earthgpt data audit` finds those.
Tiles that a build cut from a scene have the digest of the scene's file.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from earthgpt_jax.common.digests import sha256_int
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.files import write_bytes
from earthgpt_jax.datasets.manifest import read_manifest, record_counts

FILE = "image_digests.npz"
TRAIN = "train"  # every other split is an evaluation split
NO_IMAGE = 0  # the digest of a record without an image


def image_digest(image: bytes) -> int:
    """Return the digest of an image file's bytes, `NO_IMAGE` if there are none."""
    return sha256_int(image, size=8, byteorder="little") if image else NO_IMAGE


def truncate_sha256(sha256: bytes) -> int:
    """Return the image digest that belongs to a sha256: its first 8 bytes, little-endian."""
    return int.from_bytes(sha256[:8], "little")


def write_image_digests(directory: Path, digests: Mapping[str, Sequence[int]]) -> None:
    """Write the digests of each split, in the order of its records; equal digests give equal bytes."""
    arrays: dict[str, Any] = {split: np.array(values, np.uint64) for split, values in digests.items()}
    content = io.BytesIO()
    np.savez(content, **arrays)
    write_bytes(directory / FILE, content.getvalue())


def read_image_digests(directory: Path) -> dict[str, np.ndarray]:
    """Return u64[records] by split, in the order of the records; equal values stand for equal image files.

    Raises:
        EarthGPTError: `directory` is not a dataset directory, or its digests are missing or damaged.
    """
    path = directory / FILE
    lengths = record_counts(read_manifest(directory))
    try:
        with np.load(io.BytesIO(path.read_bytes())) as file:
            found = dict(file)
    except FileNotFoundError:
        raise EarthGPTError(
            f"data {directory}: {FILE} is missing; it is needed to find images that several datasets share. Delete the "
            "folder and build it again, or open it alone instead of a folder of several datasets"
        ) from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise EarthGPTError(f"{path} is damaged ({error}); build the dataset again") from error
    if {split: len(values) for split, values in found.items()} != lengths:
        raise EarthGPTError(f"{path} is damaged (it does not fit this folder's records); build the dataset again")
    return found


def overlap_masks(datasets: Sequence[Mapping[str, np.ndarray]]) -> list[np.ndarray]:
    """Find the training images that are the same file as an image of an evaluation split.

    Args:
        datasets: for each dataset, what `read_image_digests` returns.

    Returns:
        bool[training records] for each dataset: True if an evaluation split of any of the datasets has the image.
    """
    empty = np.zeros(0, np.uint64)
    held_out = [values for splits in datasets for split, values in splits.items() if split != TRAIN]
    evaluated = np.unique(np.concatenate([empty, *held_out]))
    return [np.isin(train := splits.get(TRAIN, empty), evaluated) & (train != NO_IMAGE) for splits in datasets]
