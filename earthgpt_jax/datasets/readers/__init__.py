"""Readers of native formats: `read(root, card)` yields records, rejections, drops and native counts.

A format is one module with one parser, `parse(part, card)`; `FORMATS` is the table of them.
For every kind, native = kept + quarantined + dropped (`datasets.build.builder` insists on it).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.datasets.cards import Card, Images
from earthgpt_jax.datasets.readers import (
    captions,
    coco,
    dior_rsvg,
    dota,
    floodnet,
    folders,
    hit_uav_json,
    llava,
    nwpu_captions,
    qa_lines,
    qa_rows,
    rsivqa,
    rsvqa,
    split_lists,
    vhr10,
    visdrone,
    voc,
    yolo,
)
from earthgpt_jax.datasets.readers.assemble import ImagePairer, PairedEntry, validate_entry
from earthgpt_jax.datasets.readers.events import Dropped, Entry, Event, ItemType, Native, Part, Rejected

__all__ = [
    "FORMATS",
    "Dropped",
    "Event",
    "ItemType",
    "Native",
    "PairedEntry",
    "Part",
    "Rejected",
    "layout_paths",
    "locate",
    "missing_paths",
    "pair_entries",
    "read",
    "validate_entry",
]

Parser = Callable[[Part, Card], Iterator[Entry | Event]]

FORMATS: Mapping[str, Parser] = {
    **dict.fromkeys(voc.DIALECTS, voc.parse),
    "dior_rsvg": dior_rsvg.parse,
    "coco": coco.parse,
    "hit_uav_json": hit_uav_json.parse,
    "yolo": yolo.parse,
    "dota": dota.parse,
    "ucas_aod": dota.parse_ucas_aod,
    "captions": captions.parse,
    "nwpu_captions": nwpu_captions.parse,
    "rsvqa": rsvqa.parse,
    "rsivqa": rsivqa.parse,
    "folders": folders.parse,
    "vhr10": vhr10.parse,
    "visdrone": visdrone.parse,
    "floodnet": floodnet.parse,
    "qa_rows": qa_rows.parse,
    "qa_lines": qa_lines.parse,
    "llava": llava.parse,
}

WORDS = ("split", "prefix", "only", "label")  # entries of a layout that are not paths


def locate(root: Path, card: Card) -> Path:
    """The dataset's folder: `card.folder` below `root`, or `root` itself.

    Raises:
        EarthGPTError: it is neither.
    """
    below = root / card.folder
    if below.is_dir():
        return below
    # A layout of the folder itself ("." only) would fit any folder, so there the name has to agree too.
    parts = [layout_paths(part) for part in card.parts]
    named = root.resolve().name == Path(card.folder).name
    if any(all((root / path).exists() for path in paths) and (named or paths != {"."}) for paths in parts):
        return root
    raise EarthGPTError(
        f"card {card.name}: expected the dataset in {below} (there is no such folder) or in {root} "
        f"(it lacks {', '.join(sorted(parts[0] - {'.'})) or f'the name {Path(card.folder).name}'}); see to --root"
    )


def missing_paths(base: Path, card: Card) -> tuple[str, ...]:
    """The paths of a card's layout that are not below `base`: many releases come in pieces."""
    return tuple(sorted({path for part in card.parts for path in layout_paths(part) if not (base / path).exists()}))


def layout_paths(part: Mapping[str, str]) -> set[str]:
    """The paths of one part of a card's layout, below the dataset's folder."""
    return {path for role, path in part.items() if role not in WORDS}


def read(root: Path, card: Card) -> Iterator[Event]:
    """Everything of one dataset, in the order of its native files: every item of `plan`, judged.

    Raises:
        EarthGPTError: as `plan`.
    """
    items = pair_entries(root, card)
    return itertools.chain.from_iterable(
        validate_entry(item, card) if isinstance(item, PairedEntry) else (item,) for item in items
    )


def pair_entries(root: Path, card: Card) -> Iterator[PairedEntry | Event]:
    """The units of one dataset, to be judged in any process, among what is known without judging; no image is read.

    Args:
        root: the folder below which `card.folder` lies, or that folder.

    Raises:
        EarthGPTError: the folder or all of its parts are missing, or the card names an unknown format.
    """
    if card.format not in FORMATS:
        raise EarthGPTError(f"card {card.name}: unknown format {card.format!r}; known: {', '.join(FORMATS)}")
    base = locate(root, card)
    absent = set(missing_paths(base, card))
    layouts = [layout for layout in card.parts if not absent & layout_paths(layout)]
    if not layouts:
        raise EarthGPTError(f"card {card.name}: {base} lacks {', '.join(sorted(absent))}; see the card's layout")
    if card.images is Images.FILES and any("images" not in layout for layout in layouts):
        raise EarthGPTError(f"card {card.name}: every part of the layout needs `images`, or `images: none`")
    return _plan(base, card, layouts)


def _plan(base: Path, card: Card, layouts: list[Mapping[str, str]]) -> Iterator[PairedEntry | Event]:
    planner = ImagePairer(card, base)
    for layout in layouts:
        paths = {role: base / path for role, path in layout.items() if role not in WORDS}
        words = {word: layout[word] for word in WORDS if word in layout}
        part = Part(base=base, paths=paths, **words)
        images = paths["images"] if card.images is Images.FILES else None
        yield from planner.units(split_lists.assign(FORMATS[card.format](part, card), part), images)
    yield from planner.unlisted()
