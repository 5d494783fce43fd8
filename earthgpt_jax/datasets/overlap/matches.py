"""Store the result of an overlap audit with the datasets, and read it back.

A match is a pair of records with the same picture, one in a training split and one in an evaluation split. The audit
writes counts into the manifest of each dataset directory and the matched records into `overlap.jsonl` next to it. Each
directory lists its own records, of training and evaluation splits, with the closest counterpart in every other split.
So a benchmark can be scored without contaminated images, and training can exclude images of evaluation splits.
"""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from earthgpt_jax.common import typed
from earthgpt_jax.common.digests import sha256
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.parsing import parse_json

FILE = "overlap.jsonl"
KEY = "overlap"  # of the manifest


class MatchType(enum.StrEnum):
    """Why two images count as the same: equal file bytes, equal decoded pixels, or similar perceptual hashes."""

    FILE = "file"
    PIXELS = "pixels"
    NEAR_DUPLICATE = "near_duplicate"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Match:
    """A record of this dataset and its closest counterpart in one split of a dataset (possibly the same dataset).

    Attributes:
        id, split, index: the record of this dataset; `index` is its position in the split.
        match_type: how the two images match.
        distance: bits in which the pHashes differ; 0 unless `match_type` is NEAR_DUPLICATE.
        other_id, other_dataset, other_split: the counterpart.
    """

    id: str
    split: str
    index: int
    match_type: MatchType
    distance: int
    other_id: str
    other_dataset: str
    other_split: str


def to_jsonl(matches: Sequence[Match]) -> bytes:
    """Return the content of `FILE`: one JSON object per line."""
    return "".join(json.dumps(dataclasses.asdict(match)) + "\n" for match in matches).encode()


def read(directory: Path, manifest: Mapping[str, Any]) -> list[Match]:
    """Return the matches of a dataset directory; none if it was never audited.

    Args:
        manifest: the directory's manifest.

    Raises:
        EarthGPTError: the file is missing, damaged, or of another audit than the manifest's entry.
    """
    if KEY not in manifest:
        return []
    path = directory / FILE
    try:
        content = path.read_bytes()
    except OSError as error:
        raise EarthGPTError(f"{path}: cannot be read ({error.strerror}); run `earthgpt data audit` again") from error
    if sha256(content) != manifest[KEY]["sha256"]:
        raise EarthGPTError(
            f"{path} is damaged: its sha256 differs from the one in the manifest; run `earthgpt data audit` again"
        )
    lines = ((f"{path}, line {i}", line) for i, line in enumerate(content.splitlines(), start=1))
    return [typed.check(Match, parse_json(line, where=where), where=where) for where, line in lines]


def held_out_mask(
    directory: Path, manifest: Mapping[str, Any], *, fingerprints: Mapping[str, str], split: str
) -> np.ndarray:
    """Return which records of a split match an image in an evaluation split of the datasets that are used together.

    Without an audit, the result is all False. Near-duplicates count only across datasets: the published splits of one
    dataset, such as frames of one video, are left as they are.

    Args:
        manifest: the directory's manifest.
        fingerprints: name -> fingerprint of the datasets that are used together. Matches with other datasets, or with
            other builds of these, are ignored.

    Returns:
        bool[records of the split].

    Raises:
        EarthGPTError: as for `read`.
    """
    mask = np.zeros(manifest["counts"].get(split, {}).get("total", {}).get("records", 0), bool)
    matches = read(directory, manifest)
    if not matches:
        return mask
    audited = manifest[KEY]["datasets"]
    current = {name for name, fingerprint in audited.items() if fingerprints.get(name) == fingerprint}
    for match in matches:
        if match.split != split or match.other_dataset not in current:
            continue
        if match.match_type is not MatchType.NEAR_DUPLICATE or match.other_dataset != manifest["name"]:
            mask[match.index] = True
    return mask
