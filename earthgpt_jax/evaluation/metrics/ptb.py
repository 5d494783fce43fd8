"""Penn Treebank tokens of captions, as pycocoevalcap's tokenizer gives them, without Java.

pycocoevalcap runs Stanford CoreNLP 3.4.1's PTBTokenizer in lower case and drops punctuation. This module follows the
rules that matter for English captions: at each position, the longest match of a few patterns is a token. Brackets are
words (`-lrb-`), because the names that pycocoevalcap drops are in upper case; `?!` and other runs of such marks are
words, because only single marks are dropped. Source: Marcus et al. 1993 (Penn Treebank); pycocoevalcap,
`tokenizer/ptbtokenizer.py`.
"""

from __future__ import annotations

import functools
import re

_DROPPED = frozenset(("''", "'", '"', "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"))
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_SYMBOLS = {
    "\u20ac": "$", "\u00a3": "#", "\u00a2": "cents", "\u00bd": "1/2", "\u00bc": "1/4", "\u00be": "3/4", "\u2026": "...",
    "\u2013": "--", "\u2014": "--",
}  # fmt: skip
# Abbreviations that keep their full stop: titles, and words that are also followed by a full stop at the end of a
# sentence; and those that do so before a number only.
_TITLES_TEXT = (
    "mr mrs ms dr prof gen sen rep gov lt col sgt capt st ave blvd rd ft sq mt jr sr vs jan feb mar apr jun jul aug "
    "sept sep oct nov dec mon tue tues wed thu thurs fri messrs est dept assn univ tel ext cf bldg"
)
_TITLES = frozenset(_TITLES_TEXT.split())
_ENDINGS = frozenset(["inc", "co", "corp", "ltd", "etc", "al", "ph.d", "bros"])
_BEFORE_NUMBERS = frozenset(["no", "nos", "pp", "fig", "figs", "art", "arts", "sec"])

_WORD = r"[^\W_]+"
_LETTERS = r"[^\W\d_]+"
_GAP = "\ue000"  # stands for the space in `1 1/2`, which is one token
_MIXED_FRACTION = re.compile(r"(?<![\w/:.,-])(\d{1,4}) (?=\d{1,4}/\d{1,4}(?![\d/]))")
_TOKENS = tuple(
    re.compile(pattern)
    for pattern in (
        _WORD,
        rf"\d+{_GAP}\d+/\d+",
        r"[-+]?(?:\d*(?:[.:,]\d+)+|\d+)",
        rf"{_LETTERS}(?:[.!?]{_LETTERS})+",
        r"[A-Za-z](?:\.[A-Za-z])+\.?",
        r"[A-Za-z0-9][A-Za-z0-9.,]*(?:-[A-Za-z0-9]+)+",
        r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2}",
        r"[A-Za-z]+(?:_[A-Za-z]+)+",
        r"[#@][A-Za-z][A-Za-z0-9_]*",
        r"[A-Z]+&[A-Z]+",
        r"[OoDdLl]'[^\W\d_]+",
        r"'(?:em|til|n'?|cause|\d0s)(?![^\W_])",
        r"'(?:[msd]|re|ve|ll)(?![^\W_])",
        r"n't(?![^\W_])",
        r"[?!]+|\.{3}|_+|\*+|--+|<[A-Za-z/][^<>\s]*>|[<>]{1,2}",
        r"\S",
    )
)
_CONTRACTED = re.compile(rf"({_LETTERS})(?=n't(?![^\W_]))", re.IGNORECASE)
_ASSIMILATED = {
    word: (word[:split], word[split:])
    for word, split in (("cannot", 3), ("gonna", 3), ("gotta", 3), ("lemme", 3), ("gimme", 3), ("wanna", 3))
}


@functools.lru_cache(maxsize=2**17)  # a model and its baselines share their references
def tokenize(text: str) -> str:
    """Return lower-case tokens separated by single spaces, without punctuation; `doesn't` becomes `does n't`."""
    text = _MIXED_FRACTION.sub(rf"\1{_GAP}", text.replace("\u2019", "'").replace("\u2018", "'"))
    chunks = text.split()
    tokens: list[str] = []
    for number, chunk in enumerate(chunks):
        following = chunks[number + 1] if number + 1 < len(chunks) else ""
        tokens += _chunk_tokens(chunk, following)
    kept = (token.lower() for token in tokens if token not in _DROPPED)
    return " ".join(kept).replace(_GAP, "\u00a0")


def _chunk_tokens(chunk: str, following: str) -> list[str]:
    tokens: list[str] = []
    position = 0
    while position < len(chunk):
        token = _longest(chunk, position, following)
        position += len(token)
        tokens += _parts(token)
    return tokens


def _parts(token: str) -> tuple[str, ...]:
    """Return the two parts of a word such as `cannot`, and the Treebank's name of a symbol."""
    return _ASSIMILATED.get(token.lower()) or (_BRACKETS.get(token) or _SYMBOLS.get(token) or token,)


def _longest(chunk: str, position: int, following: str) -> str:
    if contracted := _CONTRACTED.match(chunk, position):
        return contracted[1]
    found = max((match[0] for pattern in _TOKENS if (match := pattern.match(chunk, position))), key=len)
    end = position + len(found)
    if chunk[end : end + 1] == "." and _keeps_full_stop(found, chunk[end + 1 :], following):
        return found + "."
    return found


def _keeps_full_stop(word: str, rest: str, following: str) -> bool:
    """Return whether a word keeps the full stop after it: an abbreviation, an initial, or one before a comma.

    Args:
        word: the word.
        rest: what follows the full stop without a space.
        following: the text after the next space.
    """
    lower = word.lower()
    if rest.startswith((",", ";", ":")):
        return bool(re.fullmatch(_WORD, word))
    if lower in _BEFORE_NUMBERS:
        return (rest or following)[:1].isdigit()
    if len(word) == 1 and word.isalpha():
        return word != "I" and (word.isupper() or not _begins_sentence(rest or following))
    return lower in _TITLES or lower in _ENDINGS


def _begins_sentence(chunk: str) -> bool:
    """Return whether a text is one capitalized word, or a title: an initial before it is the end of a sentence."""
    word = chunk.removesuffix(".").lower()
    return bool(re.fullmatch(r"[A-Z][a-z]*\.?", chunk)) and word not in _ASSIMILATED and (
        not chunk.endswith(".") or word in _TITLES
    )  # fmt: skip
