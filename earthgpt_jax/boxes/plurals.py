"""English plurals and counts: `two ships`, and back to `ship`."""

from __future__ import annotations

import re

NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

# Exceptions to the rules of `plural` and `singular`.
_IRREGULAR = {
    "aircraft": "aircraft", "person": "people", "bus": "buses", "gas": "gases", "series": "series",
    "lens": "lenses", "barracks": "barracks", "dontcare": "dontcare",
}  # fmt: skip
_SINGULAR = {plural: singular for singular, plural in _IRREGULAR.items()}


def _last_word(noun: str) -> tuple[str, str]:
    """Split before the last word: `school bus` -> `("school ", "bus")`."""
    start = noun.rfind(" ") + 1
    return noun[:start], noun[start:]


def plural(noun: str) -> str:
    """Return the plural of a noun phrase, that is, of its last word: `school bus` -> `school buses`."""
    start, last = _last_word(noun)
    if last in _IRREGULAR:
        return start + _IRREGULAR[last]
    if re.search(r"(s|x|z|ch|sh)$", noun):
        return noun + "es"
    if re.search(r"[^aeiou]y$", noun):
        return noun[:-1] + "ies"
    return noun + "s"


def singular(noun: str) -> str:
    """Return the singular of a noun phrase; the inverse of `plural`."""
    start, last = _last_word(noun)
    if last in _SINGULAR:
        return start + _SINGULAR[last]
    if noun.endswith("ies") and len(noun) > 4:
        return noun[:-3] + "y"
    if re.search(r"(ss|x|z|ch|sh)es$", noun):
        return noun[:-2]
    return noun[:-1] if noun.endswith("s") and not noun.endswith("ss") else noun


def count_phrase(noun: str, count: int) -> str:
    """Return count and noun, `two ships`; counts up to ten as words, larger ones as digits."""
    number = NUMBER_WORDS[count] if count < len(NUMBER_WORDS) else str(count)
    return f"{number} {noun if count == 1 else plural(noun)}"
