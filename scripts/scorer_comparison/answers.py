"""Generated answers, clean and adversarial, and their parts."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

Entries = list[dict[str, Any]]

Figures = Mapping[str, float]

WORDS = (
    *(
        "a",
        "the",
        "ship",
        "ships",
        "airport",
        "dense_residential",
        "yes",
        "no",
        "maybe",
        "rural",
        "urban",
        "3",
        "eleven",
    ),
    *("1.5", "Yes.", "No!", "know", "none"),
)

LEVELS = ("low", "medium", "high", "ultra")

CLASSES = ["Airport", "BareLand", "dense_residential", "storage tank", "Beach", "Port", "Harbor", "Church", "Pond"]


def noise(rng: random.Random) -> str:
    """Return a text that a rule may misread: empty, punctuation, other cases, substrings, several answers."""
    pieces = [
        *WORDS,
        "",
        " ",
        ",",
        ".",
        "...",
        "?",
        "'s",
        "isn't",
        "cannot",
        "\u00e9",
        "<",
        ">",
        "[",
        "]",
        "(",
        ")",
        "-",
        "--",
        "I do not know",
        "yes, no",
        "e",
        "\u2019",
        '"',
        "n't",
        ":",
        "1,000",
        "%",
    ]
    return "".join(rng.choice(pieces) + rng.choice(["", " "]) for _ in range(rng.randrange(0, 7)))


def int_box(rng: random.Random, scale: int) -> list[int]:
    x0, x1 = sorted(rng.sample(range(scale + 1), 2))
    y0, y1 = sorted(rng.sample(range(scale + 1), 2))
    return [x0, y0, x1, y1]


def jittered(rng: random.Random, box: Sequence[int], scale: int, step: int) -> list[int]:
    """Return a box near another one."""
    x0, y0, x1, y1 = (min(max(n + rng.randint(-step, step), 0), scale) for n in box)
    return [min(x0, x1), min(y0, y1), max(x0, x1, min(x0, x1) + 1), max(y0, y1, min(y0, y1) + 1)]


def braces(box: Sequence[int], angle: int | None = None) -> str:
    return "{" + "".join(f"<{n}>" for n in box) + ("" if angle is None else f"|<{angle}>") + "}"
