"""Suggestions for misspelled names: "did you mean 'train'?"."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """Return the choice that is spelled most like `name`, or None if none comes close."""
    return next(iter(difflib.get_close_matches(name, list(choices), n=1)), None)


def did_you_mean(name: str | Iterable[str], choices: Iterable[str]) -> str:
    """Return the end of a sentence about one or several unknown names: a suggestion, or just a full stop.

    Example:
        >>> "unknown command 'trian'" + did_you_mean("trian", ["train", "eval"])
        "unknown command 'trian'; did you mean 'train'?"
        >>> "unknown command 'xyz'" + did_you_mean("xyz", ["train", "eval"])
        "unknown command 'xyz'."
    """
    choices = list(choices)
    names = [name] if isinstance(name, str) else name
    suggestions = sorted({match for each in names if (match := nearest(each, choices)) is not None})
    return f"; did you mean {', '.join(map(repr, suggestions))}?" if suggestions else "."
