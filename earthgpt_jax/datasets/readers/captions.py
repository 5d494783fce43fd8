"""Read caption datasets in the JSON layout of Karpathy and Fei-Fei (2015).

The file holds `images`, each with `filename`, `split` and `sentences`; each sentence has its text under `raw`.
Repeated captions are kept, because some releases repeat captions to reach five per image.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from earthgpt_jax.datasets.cards import Card
from earthgpt_jax.datasets.readers.events import Entry, Part


def parse(part: Part, card: Card) -> Iterator[Entry]:
    for row in part.rows("annotations", "images"):
        name = str(row.get("filename") or "")
        sentences = row.get("sentences")
        yield Entry(
            id=part.prefix + name.rsplit(".", 1)[0],
            image=name,
            file=part.name(part.paths["annotations"]),
            split=str(row.get("split") or part.split),
            problem="" if name else "no filename",
            captions=tuple(map(_text, sentences if isinstance(sentences, list) else ())),
        )


def _text(sentence: Any) -> str:
    """Return the text of a sentence, or "" if it has none; empty captions are counted, then rejected."""
    return str(sentence.get("raw") or "") if isinstance(sentence, dict) else ""
