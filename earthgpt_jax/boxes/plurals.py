"""Nouns and counts in English: `two ships`, and back to `ship`."""

from __future__ import annotations

import re

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

# Words whose plural the rules of `plural` and `singular` would get wrong.
_IRREGULAR = {
    "aircraft": "aircraft", "person": "people", "bus": "buses", "gas": "gases", "series": "series",
    "lens": "lenses", "barracks": "barracks", "dontcare": "dontcare",
}  # fmt: skip
_SINGULAR = {plural: singular for singular, plural in _IRREGULAR.items()}


def _last_word(noun: str) -> tuple[str, str]:
    """`school bus` -> `("school ", "bus")`."""
    start = noun.rfind(" ") + 1
    return noun[:start], noun[start:]


def plural(noun: str) -> str:
    """More than one of a noun phrase: the last word changes."""
    start, last = _last_word(noun)
    if last in _IRREGULAR:
        return start + _IRREGULAR[last]
    if re.search(r"(s|x|z|ch|sh)$", noun):
        return noun + "es"
    if re.search(r"[^aeiou]y$", noun):
        return noun[:-1] + "ies"
    return noun + "s"


def singular(noun: str) -> str:
    """The inverse of `plural`."""
    start, last = _last_word(noun)
    if last in _SINGULAR:
        return start + _SINGULAR[last]
    if noun.endswith("ies") and len(noun) > 4:
        return noun[:-3] + "y"
    if re.search(r"(ss|x|z|ch|sh)es$", noun):
        return noun[:-2]
    return noun[:-1] if noun.endswith("s") and not noun.endswith("ss") else noun


def count_phrase(noun: str, count: int) -> str:
    """`two ships`; words up to ten, digits beyond."""
    number = WORDS[count] if count < len(WORDS) else str(count)
    return f"{number} {noun if count == 1 else plural(noun)}"
