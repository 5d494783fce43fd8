"""What a build did with each dataset, and the table that `earthgpt data build` prints."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping

from earthgpt_jax.common.tables import align_columns
from earthgpt_jax.datasets.build.counts import COLUMNS
from earthgpt_jax.datasets.cards import SPLITS
from earthgpt_jax.datasets.manifest import QUARANTINE
from earthgpt_jax.datasets.readers import ItemType

_MAX_REASONS = 10  # listed for each dataset


@dataclasses.dataclass(frozen=True)
class DatasetSummary:
    """What became of the native files of one dataset.

    Attributes:
        splits: number of native images that were kept, by split.
        counts: for each item type ("image", "object", ...) the numbers native, kept, quarantined and dropped.
        records: number of records by split; larger than `splits` where scenes were cut into tiles.
        quarantined: number of quarantined items by "type: reason", the most frequent first.
        missing_paths: paths of the card's layout that do not exist; they were skipped.
        unchanged: the dataset had been built before, from the same files.
    """

    name: str
    splits: Mapping[str, int]
    counts: Mapping[str, Mapping[str, int]]
    records: Mapping[str, int]
    quarantined: Mapping[str, int] = dataclasses.field(default_factory=dict)
    missing_paths: tuple[str, ...] = ()
    unchanged: bool = False

    def notes(self) -> list[str]:
        """Return the lines below the table: built before, missing paths, tiles, reasons for quarantine."""
        notes = []
        if self.unchanged:
            notes.append(f"{self.name}: already built and identical; nothing to do")
        if self.missing_paths:
            notes.append(f"{self.name}: missing and skipped: {', '.join(self.missing_paths)}")
        if self.records != self.splits:
            numbers = ", ".join(f"{split} {count}" for split, count in self.records.items())
            notes.append(f"{self.name}: scenes were cut into tiles; records (whole images and tiles): {numbers}")
        if self.quarantined:
            notes.append(f"{self.name}: quarantined, see {self.name}/{QUARANTINE}:")
            notes += [f"  {line}" for line in reason_lines(self.quarantined)]
        return notes


@dataclasses.dataclass(frozen=True)
class BuildSummary:
    """What became of all datasets of a build."""

    datasets: tuple[DatasetSummary, ...]

    @property
    def quarantined(self) -> int:
        """The number of quarantined items of all types in all datasets."""
        return sum(sum(dataset.quarantined.values()) for dataset in self.datasets)

    def table(self) -> str:
        """Return a table with one line for each dataset and item type, followed by notes on each dataset."""
        rows: list[tuple[str, ...]] = [("dataset", "item", *COLUMNS, *SPLITS)]
        for dataset in self.datasets:
            for item_type, counts in dataset.counts.items():
                if counts["native"]:
                    splits = [
                        str(dataset.splits.get(split, 0)) if item_type == ItemType.IMAGE else "" for split in SPLITS
                    ]
                    rows.append((dataset.name, item_type, *(str(counts[column]) for column in COLUMNS), *splits))
        notes = [note for dataset in self.datasets for note in dataset.notes()]
        return "\n".join([*align_columns(rows, left=2), *notes])


def reason_lines(quarantined: Mapping[str, int]) -> list[str]:
    """Return one line per reason, the first `_MAX_REASONS` of them and the sum of the others."""
    lines = [f"{count} x {reason}" for reason, count in itertools.islice(quarantined.items(), _MAX_REASONS)]
    more = sum(itertools.islice(quarantined.values(), _MAX_REASONS, None))
    return [*lines, f"{more} x other reasons"] if more else lines
