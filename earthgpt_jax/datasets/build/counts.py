"""Count what the native files of a dataset contain and what became of it, and what the records contain."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from earthgpt_jax.datasets.readers import Dropped, Event, ItemType, Native, Rejected
from earthgpt_jax.records import Record

COUNTED_TYPES = (ItemType.IMAGE, ItemType.OBJECT, ItemType.QUESTION, ItemType.CAPTION)
COLUMNS = ("native", "kept", "quarantined", "dropped")


def _counters(names: Iterable[str]) -> dict[str, collections.Counter]:
    return {name: collections.Counter() for name in names}


@dataclasses.dataclass
class BuildCounts:
    """Counts of the native items of one dataset. A scene that is cut into tiles counts as one image.

    Attributes:
        items: for each of `COUNTED_TYPES`, and for `file` if there are such files, the numbers native, kept,
            quarantined and dropped.
        splits: number of kept images by split.
        drop_reasons: number of dropped items by reason.
        quarantine_reasons: number of quarantined items by "type: reason", where the reason has no details of one item.
        tiles: what `tiling.cut_into_tiles` counted.
    """

    items: dict[str, collections.Counter] = dataclasses.field(
        default_factory=lambda: _counters(map(str, COUNTED_TYPES))
    )
    splits: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    drop_reasons: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    quarantine_reasons: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    tiles: collections.Counter = dataclasses.field(default_factory=collections.Counter)

    def add(self, event: Event) -> None:
        """Count one event of a reader."""
        if isinstance(event, Record):
            self.splits[event.split] += 1
            for item_type, count in zip(COUNTED_TYPES, count_items(event), strict=True):
                self.items[item_type.value]["kept"] += count
            return
        column = {Native: "native", Rejected: "quarantined", Dropped: "dropped"}[type(event)]
        self.items.setdefault(event.item_type.counted_as.value, collections.Counter())[column] += event.count
        if isinstance(event, Dropped):
            self.drop_reasons[event.reason] += event.count
        elif isinstance(event, Rejected):
            self.quarantine_reasons[f"{event.item_type.counted_as}: {_without_details(event.reason)}"] += event.count

    def update(self, other: BuildCounts) -> None:
        """Add the counts of another part of the same dataset."""
        for item_type, row in other.items.items():
            self.items.setdefault(item_type, collections.Counter()).update(row)
        for name in ("splits", "drop_reasons", "quarantine_reasons", "tiles"):
            getattr(self, name).update(getattr(other, name))

    def check(self, name: str) -> None:
        """Check that native = kept + quarantined + dropped for each item type.

        Raises:
            RuntimeError: an item got lost, which is a defect of a reader and not of the data.
        """
        for item_type, row in self.items.items():
            used = row["kept"] + row["quarantined"] + row["dropped"]
            if row["native"] != used:
                raise RuntimeError(
                    f"{name}: {item_type}s do not add up: {row['native']} native, but {row['kept']} kept + "
                    f"{row['quarantined']} quarantined + {row['dropped']} dropped = {used}"
                )

    def to_dict(self) -> dict[str, Any]:
        """Return the counts as entries of the manifest."""
        return {
            "native": {item_type: {column: row[column] for column in COLUMNS} for item_type, row in self.items.items()},
            "images": dict(sorted(self.splits.items())),
            "dropped": dict(self.drop_reasons),
            "quarantined": dict(self.quarantine_reasons.most_common()),
            **({"tiles": dict(sorted(self.tiles.items()))} if self.tiles else {}),
        }


def count_items(record: Record) -> tuple[int, int, int, int]:
    """Return how many items of each of `COUNTED_TYPES` a record consists of."""
    return 1, len(record.objects), len(record.turns), len(record.references)


def _without_details(reason: str) -> str:
    """Return `missing image '...'` for `missing image 'a.png'`, so that all missing images count under one reason."""
    quoted = re.sub(r"'[^']*'|\"[^\"]*\"", "'...'", reason)
    return re.sub(r"\d[\d.]*", "N", re.sub(r"the id \S+ occurs", "the id '...' occurs", quoted))


@dataclasses.dataclass
class RecordCounts:
    """Counts of the records of one split.

    Attributes:
        counters: `total` counts records, objects, turns (questions) and references (captions); `sensor`, `task` and
            `label` (class of the scene) count records; `object` counts objects by class, `records_with_object` the
            records with at least one object of the class.
    """

    counters: dict[str, collections.Counter] = dataclasses.field(
        default_factory=lambda: _counters(("total", "sensor", "task", "label", "object", "records_with_object"))
    )

    def add(self, record: Record) -> None:
        """Count one record."""
        _, objects, turns, references = count_items(record)
        self.counters["total"].update(records=1, objects=objects, turns=turns, references=references)
        self.counters["sensor"][record.sensor.value] += 1
        self.counters["task"].update(task.value for task in record.tasks)
        if record.label:
            self.counters["label"][record.label] += 1
        self.counters["object"].update(item.label for item in record.objects)
        self.counters["records_with_object"].update({item.label for item in record.objects})

    def update(self, other: RecordCounts) -> None:
        """Add the counts of other records of the same split."""
        for name, counter in other.counters.items():
            self.counters[name].update(counter)

    def to_dict(self) -> Mapping[str, Mapping[str, int]]:
        """Return the counts as an entry of the manifest."""
        return {name: dict(sorted(counter.items())) for name, counter in self.counters.items()}
