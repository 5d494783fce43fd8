"""Read datasets in their native formats: `read(root, card)` yields records, rejections, drops and native counts.

Each format is one module with a parser `parse(part, card)`, registered in `FORMATS`. To add a format, write such a
module and add it to the table. For every item type, native = kept + quarantined + dropped; `datasets.build.builder`
enforces it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.datasets.cards import Card, Images
from earthgpt_jax.datasets.readers import (
    caption_lines,
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
from earthgpt_jax.datasets.readers.native_tree import system_files_below

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
    "caption_lines": caption_lines.parse,
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

NON_PATH_KEYS = ("split", "prefix", "only", "label")  # keys of a layout whose values are not paths


def locate(root: Path, card: Card) -> Path:
    """Return the folder of a dataset: `root / card.folder` if it exists, else `root` if its contents match the card.

    Raises:
        EarthGPTError: neither folder matches.
    """
    below = root / card.folder
    if below.is_dir():
        return below
    # A layout that consists of "." alone matches every folder, so the folder's name must match as well.
    parts = [layout_paths(part) for part in card.parts]
    named = root.resolve().name == Path(card.folder).name
    if any(all((root / path).exists() for path in paths) and (named or paths != {"."}) for paths in parts):
        return root
    missing = ", ".join(sorted(parts[0] - {"."}))
    problem = f"without {missing}" if missing else f"not called {Path(card.folder).name}"
    raise EarthGPTError(
        f"card {card.name}: expected the dataset in {below} (no such folder) or in {root} ({problem}); check --root"
    )


def missing_paths(base: Path, card: Card) -> tuple[str, ...]:
    """Return the paths of the card's layout that do not exist below `base`, sorted.

    Many datasets are released in several archives, and users often download only some of them.
    """
    return tuple(sorted({path for part in card.parts for path in layout_paths(part) if not (base / path).exists()}))


def layout_paths(part: Mapping[str, str]) -> set[str]:
    """Return the paths of one part of a card's layout, relative to the dataset folder."""
    return {path for role, path in part.items() if role not in NON_PATH_KEYS}


def read(root: Path, card: Card) -> Iterator[Event]:
    """Yield every event of one dataset in the order of its native files: `pair_entries`, then `validate_entry`.

    Raises:
        EarthGPTError: as for `pair_entries`.
    """
    items = pair_entries(root, card)
    return itertools.chain.from_iterable(
        validate_entry(item, card) if isinstance(item, PairedEntry) else (item,) for item in items
    )


def pair_entries(root: Path, card: Card) -> Iterator[PairedEntry | Event]:
    """Parse the annotations of one dataset and pair each entry with its image files, without reading any image.

    The result holds entries that still need validation (in any process) and events that are already final, for
    example rejections by the parser.

    Args:
        root: the folder that contains `card.folder`, or that folder itself.

    Raises:
        EarthGPTError: the folder or all of its parts are missing, or the card names an unknown format.
    """
    if card.format not in FORMATS:
        raise EarthGPTError(f"card {card.name}: unknown format {card.format!r}; known: {', '.join(FORMATS)}")
    base = locate(root, card)
    missing = set(missing_paths(base, card))
    layouts = [layout for layout in card.parts if not missing & layout_paths(layout)]
    if not layouts:
        raise EarthGPTError(f"card {card.name}: {base} lacks {', '.join(sorted(missing))}; see the card's layout")
    if card.images is Images.FILES and any("images" not in layout for layout in layouts):
        raise EarthGPTError(f"card {card.name}: every part of the layout needs `images`, or `images: none`")
    return _pair_parts(base, card, layouts)


def _system_files(base: Path, layouts: list[Mapping[str, str]]) -> Iterator[Event]:
    """Count the files that an operating system left in the folders of a layout; no reader looks at them."""
    folders = {base / path for layout in layouts for path in layout_paths(layout) if (base / path).is_dir()}
    outermost = [folder for folder in folders if folders.isdisjoint(folder.parents)]
    found = {path for folder in outermost for path in system_files_below(folder)}
    if found:
        yield Native(item_type=ItemType.FILE, count=len(found))
        yield Dropped(item_type=ItemType.FILE, reason="written by an operating system", count=len(found))


def _pair_parts(base: Path, card: Card, layouts: list[Mapping[str, str]]) -> Iterator[PairedEntry | Event]:
    pairer = ImagePairer(card, base)
    yield from _system_files(base, layouts)
    for layout in layouts:
        paths = {role: base / path for role, path in layout.items() if role not in NON_PATH_KEYS}
        options = {key: layout[key] for key in NON_PATH_KEYS if key in layout}
        part = Part(base=base, paths=paths, **options)
        images = paths["images"] if card.images is Images.FILES else None
        yield from pairer.pair(split_lists.assign(FORMATS[card.format](part, card), part), images)
    yield from pairer.unlisted()
