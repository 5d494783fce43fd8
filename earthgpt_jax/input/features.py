"""Read the features of the frozen encoders that `training.features` has written to disk.

A file holds the features of one tower for `CHUNK` records of a split, as the bits of bfloat16. Its folder is named
after the dataset, the split, the tower, and a digest of everything that the features depend on.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import UInt16

from earthgpt_jax.common.digests import fingerprint_json
from earthgpt_jax.common.errors import EarthGPTError

CHUNK = 64  # records per file


class IdentifiedRecords(Protocol):
    """The records of a split of a dataset, such as `datasets.store.RecordSource`."""

    @property
    def name(self) -> str: ...

    @property
    def split(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class TowerFeatures:
    """The features of one encoder.

    Attributes:
        folder: folder of all features.
        tower: name of the encoder.
        identity: digest of its weights, its config and the size of its images.
        shape: tokens and channels of one image.
    """

    folder: Path
    tower: str
    identity: str
    shape: tuple[int, int]

    def file(self, source: IdentifiedRecords, number: int) -> Path:
        """Return the file of the records from `CHUNK * number` on."""
        digest = fingerprint_json([source.fingerprint, self.identity])[:16]
        return self.folder / f"{source.name}-{source.split}-{self.tower}-{digest}" / f"{number:05d}.npy"

    def read(self, source: IdentifiedRecords, record: int) -> UInt16[np.ndarray, "T C"]:
        """Return the features of a record, as the bits of bfloat16.

        Raises:
            EarthGPTError: there is no such file, or it is damaged.
        """
        number, place = divmod(record, CHUNK)
        return _open(self.file(source, number), self.shape)[place]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureStore:
    """The features of both encoders. Instances can be pickled for worker processes."""

    towers: tuple[TowerFeatures, ...]

    @property
    def size(self) -> int:
        """Number of values of one image."""
        return sum(math.prod(tower.shape) for tower in self.towers)

    def read(self, source: IdentifiedRecords, record: int, *, out: UInt16[np.ndarray, " F"]) -> None:
        """Write the features of a record to `out`, tower after tower."""
        start = 0
        for tower in self.towers:
            end = start + math.prod(tower.shape)
            out[start:end] = tower.read(source, record).reshape(-1)
            start = end


@functools.lru_cache(maxsize=256)
def _open(path: Path, shape: tuple[int, int]) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise EarthGPTError(f"{path}: cannot be read ({error}); delete its folder to compute it again") from error
    if array.dtype != np.uint16 or array.shape[1:] != shape:
        raise EarthGPTError(
            f"{path}: expected features of shape {shape}, got {array.dtype}{array.shape[1:]}; delete its folder to "
            "compute it again"
        )
    return array
