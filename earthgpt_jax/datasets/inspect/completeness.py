"""Is a native dataset complete? Its files, its counts against its card, its sums against a list."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

from tqdm import tqdm

from earthgpt_jax.common import digests
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.tables import align_columns
from earthgpt_jax.datasets.build import native_files
from earthgpt_jax.datasets.build.counts import BuildCounts
from earthgpt_jax.datasets.cards import EXPECTED_COUNTS, SPLITS, Card
from earthgpt_jax.datasets.readers import ItemType, layout_paths, locate, missing_paths, read

_COUNTED_AS = {
    f"{kind}s": kind.value for kind in (ItemType.IMAGE, ItemType.OBJECT, ItemType.QUESTION, ItemType.CAPTION)
}
_SHOWN = 10  # of a list of files


@dataclasses.dataclass(frozen=True, kw_only=True)
class CountCheck:
    """A count beside what the card expects of the complete set.

    Attributes:
        expected: None where the card does not say.
        slack: so much less is explained: a split does not know of the images that were quarantined.
        verified: False where the card itself marks its figure as unverified.
    """

    name: str
    expected: int | None
    found: int
    slack: int = 0
    verified: bool = True

    @property
    def agrees(self) -> bool:
        return self.expected is None or self.found <= self.expected <= self.found + self.slack

    @property
    def wrong(self) -> bool:
        """A figure that nobody verified cannot convict the files."""
        return not self.agrees and self.verified

    @property
    def verdict(self) -> str:
        if self.expected is None:
            return "nothing is expected"
        words = "agrees" if self.agrees else f"differs by {self.found - self.expected:+d}"
        return words if self.verified else f"{words}; the card's figure is unverified"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompletenessReport:
    """What was found of one native dataset.

    Attributes:
        absent: paths of the card's layout that are not there.
        figures: counts of the native files.
        quarantined: reason, without what is particular of one item -> how many.
        sums: what the list of sums convicts: one line a file.
        unlisted: files that the list does not name.
        failure: why it could not be read at all; "" if it could.
    """

    card: Card
    absent: tuple[str, ...] = ()
    figures: tuple[CountCheck, ...] = ()
    quarantined: Mapping[str, int] = dataclasses.field(default_factory=dict)
    sums: tuple[str, ...] = ()
    unlisted: int = 0
    failure: str = ""

    @property
    def complete(self) -> bool:
        return not (self.failure or self.absent or self.sums or any(figure.wrong for figure in self.figures))

    def text(self) -> str:
        return "\n".join(self._lines())

    def _verdict(self) -> str:
        if not self.complete:
            return "NOT complete"
        counted = {figure.name: figure for figure in self.figures if figure.expected is not None}
        if "images" in counted and all(figure.agrees for figure in counted.values()):
            return "complete"
        return "nothing is known to be missing, but the card has no figures to rely on"

    def _lines(self) -> Iterator[str]:
        yield f"{self.card.name}: {self._verdict()}"
        if self.failure:
            yield f"  {self.failure}"
        rows = [(f.name, "-" if f.expected is None else str(f.expected), str(f.found)) for f in self.figures]
        lines = align_columns([("", "expected", "found"), *rows], indent="  ")
        if rows:
            yield lines[0]
        for line, figure in zip(lines[1:], self.figures, strict=True):
            yield f"{line}  {figure.verdict}"
        yield from (f"  not there: {path}" for path in self.absent)
        yield from (f"  quarantined {count}: {reason}" for reason, count in self.quarantined.items())
        yield from (f"  {line}" for line in self.sums[:_SHOWN])
        if len(self.sums) > _SHOWN:
            yield f"  and {len(self.sums) - _SHOWN} files more"
        if self.unlisted:
            yield f"  {self.unlisted} files are not in the list of sums"
        if self.card.unverified:
            yield f"  unverified in the card: {', '.join(self.card.unverified)}"
        if self.card.obtain and not self.complete:
            yield f"  to be had from: {self.card.obtain}"


def is_present(card: Card, root: Path) -> bool:
    """Is anything of the card's layout in its folder below `root`? Cards may share a folder."""
    return any((root / card.folder / path).exists() for part in card.parts for path in layout_paths(part))


def check_native(card: Card, *, root: Path, listed: Mapping[str, str] | None = None) -> CompletenessReport:
    """Reads a native dataset, images included, as a build would, and writes nothing.

    Args:
        root: the folder below which `card.folder` lies, or that folder.
        listed: file below `root` -> sha256 that it should have.
    """
    try:
        base = locate(root, card)
        tally = _count(card, root)
        sums, unlisted = _compare(card, root, base, listed) if listed is not None else ((), 0)
    except EarthGPTError as error:
        return CompletenessReport(card=card, failure=str(error))
    return CompletenessReport(
        card=card,
        absent=missing_paths(base, card),
        figures=tuple(_figures(card, tally)),
        quarantined=dict(tally.quarantined.most_common()),
        sums=tuple(sums),
        unlisted=unlisted,
    )


def _count(card: Card, root: Path) -> BuildCounts:
    tally = BuildCounts()
    for event in tqdm(read(root, card), desc=card.name, unit="item", leave=False):
        tally.add(event)
    tally.check(card.name)
    return tally


def _figures(card: Card, tally: BuildCounts) -> Iterator[CountCheck]:
    for name in EXPECTED_COUNTS:
        expected = card.expected.get(name)
        verified = not {"expected", f"expected.{name}"} & set(card.unverified)
        if name in SPLITS:
            found, slack = tally.splits[name], tally.counts[ItemType.IMAGE]["quarantined"]
        else:
            found, slack = tally.counts[_COUNTED_AS[name]]["native"], 0
        if expected is not None or found:
            yield CountCheck(name=name, expected=expected, found=found, slack=slack, verified=verified)


def covered_files(card: Card, root: Path) -> tuple[str, ...]:
    """The files that the card's layout covers, below `root`.

    Raises:
        EarthGPTError: the dataset is not there.
    """
    base = locate(root, card)
    return tuple((base / name).relative_to(root).as_posix() for name in native_files.list_files(base, card))


def _compare(card: Card, root: Path, base: Path, listed: Mapping[str, str]) -> tuple[list[str], int]:
    """(one line a file that is not as listed, files that are not listed)."""
    there = covered_files(card, root)
    known = [name for name in there if name in listed]
    found = digests.sha256_files(root, known, title=card.name)
    wrong = [f"sha256 differs: {name}" for name in known if found[name] != listed[name]]
    covered = [base / path for part in card.parts for path in layout_paths(part)]
    lost = [n for n in listed if not (root / n).is_file() and any((root / n).is_relative_to(c) for c in covered)]
    return wrong + [f"listed, but not there: {name}" for name in sorted(lost)], len(there) - len(known)
