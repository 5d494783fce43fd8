"""Read the JSON of NWPU-Captions: class -> list of images with `filename`, `split` and five sentences.

The sentences are under `raw`, `raw_1`, ..., `raw_4`, unlike in Karpathy's layout. Each class has its own image folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.datasets.cards import Card
from earthgpt_jax.datasets.readers.events import Entry, Part, text_or_empty

_SENTENCES = ("raw", "raw_1", "raw_2", "raw_3", "raw_4")


def parse(part: Part, card: Card) -> Iterator[Entry]:
    path = part.paths["annotations"]
    for folder, rows in part.load_json("annotations", dict).items():
        if not isinstance(rows, list):
            raise EarthGPTError(f"{path}: expected a list of images under {folder!r}, got {type(rows).__name__}")
        for row in rows:
            yield _entry(row if isinstance(row, dict) else {}, folder, part)


def _entry(row: dict[str, Any], folder: str, part: Part) -> Entry:
    name = text_or_empty(row.get("filename"))
    return Entry(
        id=f"{part.prefix}{folder}/{name.rsplit('.', 1)[0]}",
        image=f"{folder}/{name}" if name else "",
        file=part.name(part.paths["annotations"]),
        split=text_or_empty(row.get("split")) or part.split,
        problem="" if name else "no filename",
        captions=tuple(text_or_empty(row[key]) for key in _SENTENCES if key in row),
    )
