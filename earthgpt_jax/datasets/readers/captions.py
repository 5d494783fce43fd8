"""Karpathy's caption JSON: `images` with `filename`, `split` and `sentences`, each with its `raw` text.

Repeated captions stay: images with fewer than five distinct ones are padded by repetition in some releases.
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
    """ "" where there is none: it is counted, and rejected as empty."""
    return str(sentence.get("raw") or "") if isinstance(sentence, dict) else ""
