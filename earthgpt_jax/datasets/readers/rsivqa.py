"""Read RSIVQA text files with one `image:question?answer` per line, split at the first `:` and the last `?`.

Image names may lack the suffix. Question types are not given.
"""

from __future__ import annotations

from collections.abc import Iterator

from earthgpt_jax.datasets.cards import Card
from earthgpt_jax.datasets.readers.events import Entry, Event, ItemType, Native, Part, RawTurn, Rejected, read_text
from earthgpt_jax.records import Turn


def parse(part: Part, card: Card) -> Iterator[Entry | Event]:
    path = part.paths["annotations"]
    file = part.name(path)
    turns: dict[str, list[RawTurn]] = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        image, colon, rest = line.partition(":")
        if not colon or not image.strip():
            yield Native(item_type=ItemType.QUESTION)
            reason = f"expected image:question?answer, got {line.strip()!r}"
            yield Rejected(id=f"line {number}", item_type=ItemType.QUESTION, reason=reason, file=file)
            continue
        turns.setdefault(image.strip(), []).append(_turn(rest, number))
    for image, image_turns in turns.items():
        stem = image.rsplit(".", 1)[0]
        yield Entry(id=part.prefix + stem, image=image, file=file, split=part.split, turns=tuple(image_turns))


def _turn(text: str, number: int) -> RawTurn:
    question, mark, answer = text.rpartition("?")
    if not mark or not question.strip() or not answer.strip():
        return RawTurn(turn=None, problem=f"line {number}: expected question?answer, got {text.strip()!r}")
    return RawTurn(turn=Turn(question=f"{question.strip()}?", answer=answer.strip()))
