"""Check whether a native dataset is complete: its files, its counts against the card, its sha256 against a list."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

from earthgpt_jax.common import digests
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.progress import Bar
from earthgpt_jax.common.tables import align_columns
from earthgpt_jax.datasets.build import native_files
from earthgpt_jax.datasets.build.counts import COUNTED_TYPES, BuildCounts
from earthgpt_jax.datasets.cards import EXPECTED_COUNTS, SPLITS, Card
from earthgpt_jax.datasets.readers import ItemType, layout_paths, locate, missing_paths, read

_ITEM_TYPES = {f"{item_type}s": item_type.value for item_type in COUNTED_TYPES}  # "images" -> "image"
_MAX_LISTED = 10  # files that a report lists


@dataclasses.dataclass(frozen=True, kw_only=True)
class CountCheck:
    """A count of the native files, and the count that the card expects of the complete dataset.

    Attributes:
        name: what was counted, such as "images" or "train".
        expected: the expected count; None if the card has none.
        found: the actual count.
        slack: how much lower `found` may be. Quarantined images are in no split, so the counts of splits may be lower
            by their number.
        verified: False if the card marks its count as unverified.
    """

    name: str
    expected: int | None
    found: int
    slack: int = 0
    verified: bool = True

    @property
    def agrees(self) -> bool:
        """Whether the count is as expected, or nothing is expected."""
        return self.expected is None or self.found <= self.expected <= self.found + self.slack

    @property
    def failed(self) -> bool:
        """Whether the count differs from a verified expectation; unverified ones never cause a failure."""
        return not self.agrees and self.verified

    @property
    def result(self) -> str:
        """The outcome in words, for the report."""
        if self.expected is None:
            return "the card expects no number"
        words = "agrees" if self.agrees else f"differs by {self.found - self.expected:+d}"
        return words if self.verified else f"{words}; the card's number is unverified"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompletenessReport:
    """The state of one native dataset.

    Attributes:
        missing_paths: paths of the card's layout that do not exist.
        counts: counts of the native files.
        quarantined: number of items that a build would quarantine, by reason.
        wrong_sums: one line for each file that differs from the sha256 list, or is missing.
        extra_files: number of files that the sha256 list does not have.
        failure: why the dataset could not be read at all; "" if it could.
    """

    card: Card
    missing_paths: tuple[str, ...] = ()
    counts: tuple[CountCheck, ...] = ()
    quarantined: Mapping[str, int] = dataclasses.field(default_factory=dict)
    wrong_sums: tuple[str, ...] = ()
    extra_files: int = 0
    failure: str = ""

    @property
    def complete(self) -> bool:
        """Whether nothing is known to be missing or wrong."""
        return not (self.failure or self.missing_paths or self.wrong_sums or any(count.failed for count in self.counts))

    def text(self) -> str:
        """Return the report as text for a terminal."""
        return "\n".join(self._lines())

    def _verdict(self) -> str:
        if not self.complete:
            return "NOT complete"
        expected = {count.name: count for count in self.counts if count.expected is not None}
        if "images" in expected and all(count.agrees for count in expected.values()):
            return "complete"
        return "no problem found, but the counts of the card cannot confirm that it is complete"

    def _lines(self) -> Iterator[str]:
        yield f"{self.card.name}: {self._verdict()}"
        if self.failure:
            yield f"  {self.failure}"
        rows = [(c.name, "-" if c.expected is None else str(c.expected), str(c.found)) for c in self.counts]
        lines = align_columns([("", "expected", "found"), *rows], indent="  ")
        if rows:
            yield lines[0]
        for line, count in zip(lines[1:], self.counts, strict=True):
            yield f"{line}  {count.result}"
        yield from (f"  missing: {path}" for path in self.missing_paths)
        yield from (f"  quarantined {count}: {reason}" for reason, count in self.quarantined.items())
        yield from (f"  {line}" for line in self.wrong_sums[:_MAX_LISTED])
        if len(self.wrong_sums) > _MAX_LISTED:
            yield f"  and {len(self.wrong_sums) - _MAX_LISTED} more files"
        if self.extra_files:
            yield f"  {self.extra_files} files are not in the sha256 list"
        if self.card.unverified:
            yield f"  unverified in the card: {', '.join(self.card.unverified)}"
        if self.card.obtain and not self.complete:
            yield f"  download: {self.card.obtain}"


def is_present(card: Card, root: Path) -> bool:
    """Return whether any path of the card's layout exists below `root`. Several cards may share a folder."""
    return any((root / card.folder / path).exists() for part in card.parts for path in layout_paths(part))


def check_native(card: Card, *, root: Path, sums: Mapping[str, str] | None = None) -> CompletenessReport:
    """Read a native dataset with its images, as a build does, but without writing anything.

    Args:
        root: the folder of all native datasets, or of this one.
        sums: the expected sha256 of files, by path relative to `root`; None skips this check.
    """
    try:
        base = locate(root, card)
        counts = _count(card, root)
        wrong_sums, extra_files = _compare_sums(card, root, base, sums) if sums is not None else ([], 0)
    except EarthGPTError as error:
        return CompletenessReport(card=card, failure=str(error))
    return CompletenessReport(
        card=card,
        missing_paths=missing_paths(base, card),
        counts=tuple(_count_checks(card, counts)),
        quarantined=dict(counts.quarantine_reasons.most_common()),
        wrong_sums=tuple(wrong_sums),
        extra_files=extra_files,
    )


def _count(card: Card, root: Path) -> BuildCounts:
    counts = BuildCounts()
    for event in Bar(read(root, card), desc=card.name, unit="item", leave=False):
        counts.add(event)
    counts.check(card.name)
    return counts


def _count_checks(card: Card, counts: BuildCounts) -> Iterator[CountCheck]:
    for name in EXPECTED_COUNTS:
        expected = card.expected.get(name)
        verified = not {"expected", f"expected.{name}"} & set(card.unverified)
        if name in SPLITS:
            found, slack = counts.splits[name], counts.items[ItemType.IMAGE]["quarantined"]
        else:
            found, slack = counts.items[_ITEM_TYPES[name]]["native"], 0
        if expected is not None or found:
            yield CountCheck(name=name, expected=expected, found=found, slack=slack, verified=verified)


def covered_files(card: Card, root: Path) -> tuple[str, ...]:
    """Return the files that the card's layout covers, relative to `root`.

    Raises:
        EarthGPTError: the dataset's folder does not exist.
    """
    base = locate(root, card)
    return tuple((base / name).relative_to(root).as_posix() for name in native_files.list_files(base, card))


def _compare_sums(card: Card, root: Path, base: Path, sums: Mapping[str, str]) -> tuple[list[str], int]:
    """Return one line for each file that is not as listed, and the number of files that are not listed."""
    files = covered_files(card, root)
    listed = [name for name in files if name in sums]
    actual = digests.sha256_files(root, listed, title=card.name)
    wrong = [f"sha256 differs: {name}" for name in listed if actual[name] != sums[name]]
    covered = [base / path for part in card.parts for path in layout_paths(part)]
    missing = [
        name
        for name in sorted(sums)
        if not (root / name).is_file() and any((root / name).is_relative_to(path) for path in covered)
    ]
    return wrong + [f"listed, but missing: {name}" for name in missing], len(files) - len(listed)
