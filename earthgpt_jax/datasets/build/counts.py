"""Counts of a build: what the native files hold and what became of it, and what the records hold."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from earthgpt_jax.datasets.readers import Dropped, Event, ItemType, Native, Rejected
from earthgpt_jax.records import Record

COUNTED_KINDS = (ItemType.IMAGE, ItemType.OBJECT, ItemType.QUESTION, ItemType.CAPTION)
COLUMNS = ("native", "kept", "quarantined", "dropped")


def _counters(names: Iterable[str]) -> dict[str, collections.Counter]:
    return {name: collections.Counter() for name in names}


@dataclasses.dataclass
class BuildCounts:
    """Counts of one source, all of native units: a scene that is cut into tiles counts once.

    Attributes:
        counts: kind -> native, kept, quarantined, dropped.
        splits: images kept in each split.
        reasons: why something was dropped -> how much.
        quarantined: kind and reason, without what is particular of one item -> how much.
        tiles: what cutting scenes into tiles made (`tiling.cut`).
    """

    counts: dict[str, collections.Counter] = dataclasses.field(
        default_factory=lambda: _counters(map(str, COUNTED_KINDS))
    )
    splits: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    reasons: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    quarantined: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    tiles: collections.Counter = dataclasses.field(default_factory=collections.Counter)

    def add(self, event: Event) -> None:
        if isinstance(event, Record):
            self.splits[event.split] += 1
            for kind, count in zip(COUNTED_KINDS, count_items(event), strict=True):
                self.counts[kind.value]["kept"] += count
            return
        column = {Native: "native", Rejected: "quarantined", Dropped: "dropped"}[type(event)]
        self.counts[event.item_type.counted_as.value][column] += event.count
        if isinstance(event, Dropped):
            self.reasons[event.reason] += event.count
        elif isinstance(event, Rejected):
            self.quarantined[f"{event.item_type.counted_as}: {_general(event.reason)}"] += event.count

    def update(self, other: BuildCounts) -> None:
        """Adds what another part of the same source counted."""
        for kind, row in other.counts.items():
            self.counts[kind].update(row)
        for name in ("splits", "reasons", "quarantined", "tiles"):
            getattr(self, name).update(getattr(other, name))

    def check(self, name: str) -> None:
        """Raises:
        RuntimeError: something vanished on the way; that is a defect of a reader, not of the data.
        """
        for kind, row in self.counts.items():
            used = row["kept"] + row["quarantined"] + row["dropped"]
            if row["native"] != used:
                raise RuntimeError(
                    f"{name}: {kind}s do not add up: {row['native']} native, but {row['kept']} kept + "
                    f"{row['quarantined']} quarantined + {row['dropped']} dropped = {used}"
                )

    def plain(self) -> dict[str, Any]:
        """What a manifest says of it."""
        return {
            "native": {kind: {c: row[c] for c in COLUMNS} for kind, row in self.counts.items()},
            "images": dict(sorted(self.splits.items())),
            "dropped": dict(self.reasons),
            "quarantined": dict(self.quarantined.most_common()),
            **({"tiles": dict(sorted(self.tiles.items()))} if self.tiles else {}),
        }


def count_items(record: Record) -> tuple[int, int, int, int]:
    """How much of each kind of `COUNTED` a record is."""
    return 1, len(record.objects), len(record.turns), len(record.references)


def _general(reason: str) -> str:
    """`missing image 'a.png'` -> `missing image '...'`: a table of reasons must not have a row for each item."""
    quoted = re.sub(r"'[^']*'|\"[^\"]*\"", "'...'", reason)
    return re.sub(r"\d[\d.]*", "N", re.sub(r"the id \S+ occurs", "the id '...' occurs", quoted))


@dataclasses.dataclass
class RecordCounts:
    """What the records of one split hold, each name -> count: `total`, `sensor`, `task`, `label`, `object` (objects
    of a class) and `holding` (records with such objects).
    """

    counters: dict[str, collections.Counter] = dataclasses.field(
        default_factory=lambda: _counters(("total", "sensor", "task", "label", "object", "records_with_object"))
    )

    def add(self, record: Record) -> None:
        _, objects, turns, references = count_items(record)
        self.counters["total"].update(records=1, objects=objects, turns=turns, references=references)
        self.counters["sensor"][record.sensor.value] += 1
        self.counters["task"].update(task.value for task in record.tasks)
        if record.label:
            self.counters["label"][record.label] += 1
        self.counters["object"].update(item.label for item in record.objects)
        self.counters["records_with_object"].update({item.label for item in record.objects})

    def update(self, other: RecordCounts) -> None:
        for kind, counter in other.counters.items():
            self.counters[kind].update(counter)

    def plain(self) -> Mapping[str, Mapping[str, int]]:
        return {kind: dict(sorted(counter.items())) for kind, counter in self.counters.items()}
