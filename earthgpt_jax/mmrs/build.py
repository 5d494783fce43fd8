"""Builds dataset directories from native files: one a source, with counts that must add up.

For every kind (image, object, question, caption): native = kept + quarantined + dropped.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import json
import pickle
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from earthgpt_jax.errors import EarthGPTError
from earthgpt_jax.mmrs import digests, store
from earthgpt_jax.mmrs.cards import SPLITS, Card
from earthgpt_jax.mmrs.readers import Dropped, Event, Kind, Native, Rejected, absent_parts, locate, read
from earthgpt_jax.mmrs.record import Record
from earthgpt_jax.mmrs.synthetic import SyntheticSource

_READERS_VERSION = 2  # raise it when the same native files give other records
_COUNTED = (Kind.IMAGE, Kind.OBJECT, Kind.QUESTION, Kind.CAPTION)
_COLUMNS = ("native", "kept", "quarantined", "dropped")


@dataclasses.dataclass
class Tally:
    """Counts of one source: kind -> native, kept, quarantined, dropped; records a split."""

    counts: dict[str, collections.Counter] = dataclasses.field(
        default_factory=lambda: {kind.value: collections.Counter() for kind in _COUNTED}
    )
    splits: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    reasons: collections.Counter = dataclasses.field(default_factory=collections.Counter)

    def add(self, event: Event) -> None:
        if isinstance(event, Record):
            self.splits[event.split] += 1
            kept = (1, len(event.objects), len(event.turns), len(event.references))
            for kind, count in zip(_COUNTED, kept, strict=True):
                self.counts[kind.value]["kept"] += count
            return
        column = {Native: "native", Rejected: "quarantined", Dropped: "dropped"}[type(event)]
        self.counts[event.kind.counted_as.value][column] += event.count
        if isinstance(event, Dropped):
            self.reasons[event.reason] += event.count

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
        return {
            "native": {kind: {c: row[c] for c in _COLUMNS} for kind, row in self.counts.items()},
            "dropped": dict(self.reasons),
        }


@dataclasses.dataclass(frozen=True)
class Built:
    """What became of one source: its records by split, its counts by kind, whether it was there already."""

    name: str
    splits: Mapping[str, int]
    counts: Mapping[str, Mapping[str, int]]
    absent: tuple[str, ...] = ()
    unchanged: bool = False


@dataclasses.dataclass(frozen=True)
class Summary:
    """All sources of a build."""

    sources: tuple[Built, ...]

    def table(self) -> str:
        """One line a source and kind, and what was not there or was built before."""
        rows: list[tuple[str, ...]] = [("source", "kind", *_COLUMNS, *SPLITS)]
        notes = []
        for built in self.sources:
            if built.unchanged:
                notes.append(f"{built.name}: already built and identical; nothing to do")
            if built.absent:
                notes.append(f"{built.name}: not there, left out: {', '.join(built.absent)}")
            for kind, counts in built.counts.items():
                if not counts["native"]:
                    continue
                splits = [str(built.splits.get(split, 0)) if kind == Kind.IMAGE else "" for split in SPLITS]
                rows.append((built.name, kind, *(str(counts[column]) for column in _COLUMNS), *splits))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join(
                cell.ljust(width) if i < 2 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        return "\n".join([*lines, *notes])


def build(cards: Sequence[Card], *, root: Path, out: Path) -> Summary:
    """Reads every card's dataset below `root` and writes `out/<name>/`.

    Raises:
        EarthGPTError: a dataset is not there, or `out/<name>` holds something else.
    """
    return Summary(tuple(_build_one(card, root=root, out=out / card.name) for card in cards))


def build_synthetic(splits: Mapping[str, int], *, size: int, seed: int, out: Path) -> Summary:
    """Writes `out/synthetic/` with that many records a split.

    Raises:
        EarthGPTError: an unknown split, nothing to build, or `out/synthetic` holds something else.
    """
    sources = {split: SyntheticSource(split, n, seed=seed, size=size) for split, n in splits.items() if n}
    if not sources:
        raise EarthGPTError("build synthetic: expected at least one record; got none. Raise --count or --splits")
    target = out / SyntheticSource.name
    # A drawn record stands for the code that draws: a changed look is another dataset.
    drawn_first = [(hashlib.sha256(first.image).hexdigest(), first.turns) for first in (s[0] for s in sources.values())]
    origin = _digest({"synthetic": dict(splits), "size": size, "seed": seed, "first": drawn_first})
    if before := _finished(target, origin):
        return Summary((before,))
    tally = Tally()
    bar = tqdm(total=sum(splits.values()), desc=SyntheticSource.name, unit="record", leave=False)

    def drawn(source: SyntheticSource) -> Iterator[Record]:
        for record in source:
            counts = (1, len(record.objects), len(record.turns), len(record.references))
            for kind, count in zip(_COUNTED, counts, strict=True):
                tally.add(Native(kind=kind, count=count))
            tally.add(record)
            bar.update()
            yield record

    with bar:
        manifest = {"origin": origin, "card": {"name": SyntheticSource.name, "size": size, "seed": seed}}
        store.write(
            {split: drawn(source) for split, source in sources.items()},
            out=target,
            name=SyntheticSource.name,
            manifest=manifest,
        )
    return Summary((Built(SyntheticSource.name, tally.splits, tally.plain()["native"]),))


def _build_one(card: Card, *, root: Path, out: Path) -> Built:
    # Asked even if `out` is finished: "identical" is a statement about the native files.
    base = locate(root, card)
    origin = _digest({"card": card.describe(), "readers": _READERS_VERSION, "files": _listing(base, card)})
    if before := _finished(out, origin):
        return before
    tally, quarantine = Tally(), []
    events = read(root, card)  # says what is missing before anything is made
    with contextlib.ExitStack() as stack:
        stack.enter_context(store.writing(out))
        out.parent.mkdir(parents=True, exist_ok=True)
        # Records go through files, so that all counts are known before anything is written, in one reading.
        spools = {split: stack.enter_context(tempfile.TemporaryFile(dir=out.parent)) for split in SPLITS}
        for event in tqdm(events, desc=card.name, unit="item", leave=False):
            tally.add(event)
            if isinstance(event, Record):
                pickle.dump(event, spools[event.split], protocol=pickle.HIGHEST_PROTOCOL)
            elif isinstance(event, Rejected):
                quarantine.append({**dataclasses.asdict(event), "kind": event.kind.value})
        tally.check(card.name)
        if not tally.splits:
            raise EarthGPTError(
                f"{card.name}: not one usable record in {base}; first reason: "
                f"{quarantine[0]['reason'] if quarantine else 'no annotations found'}"
            )
        absent = absent_parts(base, card)
        store.write(
            {split: _unspool(spools[split], tally.splits[split]) for split in SPLITS if tally.splits[split]},
            out=out,
            name=card.name,
            manifest={"origin": origin, "card": card.describe(), "absent": list(absent), **tally.plain()},
            quarantine=quarantine,
        )
    return Built(card.name, tally.splits, tally.plain()["native"], absent)


def _unspool(spool: IO[bytes], count: int) -> Iterator[Record]:
    spool.seek(0)
    for _ in range(count):
        yield pickle.load(spool)


def _finished(out: Path, origin: str) -> Built | None:
    """What `out` holds, if it was built from the same; None if there is nothing.

    Raises:
        EarthGPTError: `out` holds anything else.
    """
    if not out.exists():
        return None
    values = store.manifest(out)
    if values.get("origin") != origin or not (out / digests.FILE).exists():  # an earlier version wrote none
        raise EarthGPTError(
            f"{out}: expected no such folder or one built from the same files and card; it holds another build. "
            "Choose another --out, or delete this folder and run the same command again"
        )
    splits = {split: counts["total"].get("records", 0) for split, counts in values["counts"].items()}
    return Built(values["name"], splits, values.get("native", {}), tuple(values.get("absent", ())), unchanged=True)


def _listing(base: Path, card: Card) -> list[tuple[str, int, int]]:
    """(path, bytes, time of change) of the files that the card reads; contents would take as long as a build."""
    found: set[Path] = set()
    for part in card.parts:
        for path in (base / value for value in part.values()):
            found.update(_files(path))
    return [(path.relative_to(base).as_posix(), (s := path.stat()).st_size, s.st_mtime_ns) for path in sorted(found)]


def _files(path: Path) -> Iterable[Path]:
    if path.is_dir():
        return (below for below in path.rglob("*") if below.is_file())
    return (path,) if path.is_file() else ()


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
