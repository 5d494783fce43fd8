"""Which records to look at: a seeded choice, spread over datasets and splits, of those that are wanted."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.datasets import store
from earthgpt_jax.datasets.manifest import read_manifest
from earthgpt_jax.records import Record, Sensor, Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordFilter:
    """What records must have; "" and None: anything. `label` is of the scene or of one of its objects."""

    split: str = ""
    sensor: Sensor | None = None
    task: Task | None = None
    label: str = ""

    def fits(self, record: Record) -> bool:
        return (
            (self.sensor is None or record.sensor is self.sensor)
            and (self.task is None or self.task in record.tasks)
            and (not self.label or self.label in {record.label, *(item.label for item in record.objects)})
        )

    def __str__(self) -> str:
        asked = dataclasses.asdict(self)
        return ", ".join(f"{name} {value}" for name, value in asked.items() if value) or "anything"


def select_records(
    directories: Sequence[Path], *, count: int, seed: int = 0, wanted: RecordFilter | None = None
) -> list[Record]:
    """Up to `count` records that fit, as evenly from the splits of all datasets as these allow; in their order.

    Raises:
        EarthGPTError: none fits; says what there is.
    """
    wanted = wanted or RecordFilter()
    sources = [
        store.RecordSource(directory, split)
        for directory in directories
        for split, counts in read_manifest(directory)["counts"].items()
        if split == (wanted.split or split) and _may_fit(counts, wanted)
    ]
    found: list[list[tuple[int, Record]]] = [[] for _ in sources]
    waiting = [(place, _fitting(source, seed=seed, wanted=wanted)) for place, source in enumerate(sources)]
    with tqdm(total=count, desc="choosing", unit="record", leave=False) as bar:
        while waiting and bar.n < count:
            place, following = waiting.pop(0)
            item = next(following, None)
            if item is not None:
                found[place].append(item)
                waiting.append((place, following))
                bar.update()
    chosen = [record for group in found for _, record in sorted(group, key=lambda item: item[0])]
    if not chosen:
        raise EarthGPTError(f"nothing to show: expected records with {wanted}; there are {_there(directories)}")
    return chosen


def _fitting(source: store.RecordSource, *, seed: int, wanted: RecordFilter) -> Iterator[tuple[int, Record]]:
    for index in np.random.default_rng(seed).permutation(len(source)).tolist():
        if wanted.fits(record := source[index]):
            yield index, record


def _may_fit(counts: dict[str, dict[str, int]], wanted: RecordFilter) -> bool:
    """By the manifest: a split without a single such record is not searched."""
    return (
        (wanted.sensor is None or wanted.sensor in counts["sensor"])
        and (wanted.task is None or wanted.task in counts["task"])
        and (not wanted.label or wanted.label in counts["label"] | counts["object"])
    )


def _there(directories: Sequence[Path]) -> str:
    counts = [read_manifest(directory)["counts"] for directory in directories]
    splits = {split for each in counts for split in each}
    kinds = {kind: {name for each in counts for s in each.values() for name in s[kind]} for kind in ("sensor", "task")}
    labels = sorted({name for each in counts for s in each.values() for name in s["label"] | s["object"]})
    shown = ", ".join(labels[:30]) + (", ..." if len(labels) > 30 else "")
    return (
        f"splits {', '.join(sorted(splits))}; sensors {', '.join(sorted(kinds['sensor']))}; "
        f"tasks {', '.join(sorted(kinds['task']))}; labels {shown or 'none'}"
    )
