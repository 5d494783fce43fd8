"""Digests of tensors that are written or read by rows, in any order and by several processes."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from earthgpt_jax.common.digests import FINGERPRINT_DIGITS


class TensorDigests:
    """SHA-256 digests of tensors of which this process sees the rows.

    The digest of a tensor is the digest of those of its rows, so it depends neither on the order in which the rows
    arrive nor on the files they are in. A row is an index into the leading axis; a scalar has one.
    """

    def __init__(self) -> None:
        self._rows: dict[str, dict[int, bytes]] = {}
        self._about: dict[str, tuple[str, tuple[int, ...]]] = {}

    def add(self, key: str, rows: np.ndarray, start: int = 0) -> None:
        """Add rows of a tensor, in the dtype in which it is stored, from row `start`."""
        digests = self._rows.setdefault(key, {})
        self._about[key] = rows.dtype.name, rows.shape[1:]
        for number, row in enumerate(np.ascontiguousarray(rows if rows.ndim else rows[None]), start):
            digests[number] = hashlib.sha256(np.atleast_1d(row).view(np.uint8).data).digest()

    def values(self) -> dict[str, Any]:
        """Return, for each tensor, `[dtype, shape of a row, number of rows, digest]`, as plain JSON."""
        return {
            key: [
                self._about[key][0], list(self._about[key][1]), len(rows),
                hashlib.sha256(b"".join(rows[number] for number in sorted(rows))).hexdigest()[:FINGERPRINT_DIGITS],
            ]
            for key, rows in self._rows.items()
        }  # fmt: skip
