"""What an audit found, kept with the datasets: counts in the manifest, record by record in `leaks.jsonl` beside it.

A leak is a training record and an evaluation record with the same picture. Each dataset directory names its own
records of such pairs, of the training split and of the evaluation splits, with the closest counterpart in each other
split; so a benchmark can be scored without what was trained on, and training can leave out what will be asked.
"""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from earthgpt_jax.common.digests import sha256
from earthgpt_jax.common.errors import EarthGPTError

FILE = "leaks.jsonl"
KEY = "leaks"  # in the manifest


class MatchType(enum.StrEnum):
    """How two images are the same: the file's bytes, the decoded pixels, or what perceptual hashes see."""

    FILE = "file"
    PIXELS = "pixels"
    NEAR = "near"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Match:
    """A record of this dataset and its closest counterpart in one split of a dataset.

    Attributes:
        id, split, index: the record here; `index` is its place in its split.
        kind, distance: how alike they are; bits of the perceptual hash, 0 unless near.
        other, dataset, of_split: the counterpart's id, its dataset's name and its split.
    """

    id: str
    split: str
    index: int
    kind: MatchType
    distance: int
    other: str
    dataset: str
    of_split: str


def lines(found: Sequence[Match]) -> bytes:
    """The content of `FILE`: one JSON object a line."""
    return "".join(json.dumps(dataclasses.asdict(leak)) + "\n" for leak in found).encode()


def read(directory: Path, verdict: Mapping[str, Any]) -> list[Match]:
    """The leaks of a dataset directory.

    Args:
        verdict: what its manifest says under `KEY`.

    Raises:
        EarthGPTError: the file is missing or not of this verdict.
    """
    path = directory / FILE
    try:
        content = path.read_bytes()
    except OSError as error:
        raise EarthGPTError(f"{path}: cannot be read ({error.strerror}); run `earthgpt data audit` again") from error
    if sha256(content) != verdict["sha256"]:
        raise EarthGPTError(
            f"{path} is damaged: expected the file that the manifest tells of, its sha256 is another; "
            "run `earthgpt data audit` again"
        )
    found = [json.loads(line) for line in content.splitlines()]
    return [Match(**values | {"kind": MatchType(values["kind"])}) for values in found]


def held_out_mask(directory: Path, manifest: Mapping[str, Any], *, beside: Mapping[str, str], split: str) -> np.ndarray:
    """bool[records of the split]: does an evaluation split of the datasets `beside` show the same picture?

    Nothing, where no audit was run. A near copy counts only where it is another dataset's: what a dataset publishes
    as its own splits, as frames of one film, stays as published.

    Args:
        manifest: the dataset's.
        beside: name -> fingerprint of the datasets that are read together; verdicts on others do not count.
    """
    mask = np.zeros(manifest["counts"].get(split, {}).get("total", {}).get("records", 0), bool)
    verdict = manifest.get(KEY)
    if not verdict:
        return mask
    current = {name for name, fingerprint in verdict["datasets"].items() if beside.get(name) == fingerprint}
    for leak in read(directory, verdict):
        own = leak.dataset == manifest["name"]
        if leak.split == split and leak.dataset in current and not (own and leak.kind is MatchType.NEAR):
            mask[leak.index] = True
    return mask
