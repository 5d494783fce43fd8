"""Artefacts in other projects' answers: tokens of the tokenizer, numbers and lists in place of texts, several truths.

What has one meaning is read; what was changed is counted, so that the report can say it.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Sequence
from typing import Any

# Special tokens of the tokenizers of LLaMA, Qwen, Florence-2, InternLM and Phi, with which a decoded answer may begin
# or end.
_SPECIAL = re.compile(
    r"</?s>|<pad>|</pad>|<unk>|<\|(?:im_start|im_end|endoftext|end|eot_id|begin_of_text|end_of_text|assistant)\|>"
    r"|<eos>|<bos>"
)
_LINES = re.compile("[\u2028\u2029\u0085]")
_INVISIBLE = re.compile("[\ufeff\u200b\u200c\u200d\u2060\x00]")


class Artefacts:
    """Cleans texts, and counts what it changed."""

    def __init__(self) -> None:
        self._counts: collections.Counter[str] = collections.Counter()

    def clean(self, value: Any) -> str:
        """Return an answer or a truth as text.

        A list of one element is that element. A list of boxes is Falcon's text of boxes. A number is its shortest
        decimal; a whole number has no decimals.
        """
        while isinstance(value, list) and len(value) == 1 and not isinstance(value[0], (int, float)):
            if _is_box(value[0]):
                break
            value = value[0]
        if isinstance(value, list):
            return _boxes_text(value)
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, (int, float)):
            self._counts["number in place of a text"] += 1
            return str(int(value)) if isinstance(value, float) and value.is_integer() else repr(value)
        text = str(value)
        for name, pattern, replacement in (
            ("special token of a tokenizer (such as `</s>`), removed", _SPECIAL, ""),
            ("Unicode line separator, read as a space", _LINES, " "),
            ("invisible character, removed", _INVISIBLE, ""),
        ):
            text, changes = pattern.subn(replacement, text)
            self._counts[name] += bool(changes)
        return text

    def clean_all(self, values: Sequence[Any]) -> tuple[str, ...]:
        """Return several true answers as texts, without duplicates."""
        return tuple(dict.fromkeys(map(self.clean, values)))

    def count_several_truths(self, several: bool) -> None:
        self._counts["several true answers, each of which is accepted"] += several

    def notes(self) -> list[str]:
        """Return one sentence for each kind of artefact that was found."""
        return [f"{count} texts: {name}." for name, count in self._counts.items() if count]


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) >= 3 and all(
        isinstance(n, (int, float)) or (isinstance(n, str) and n.strip().isdecimal()) for n in value
    )  # fmt: skip


def _boxes_text(value: list[Any]) -> str:
    """Return boxes that are lists of numbers as Falcon writes them; other lists as texts, separated by commas."""
    boxes = [value] if _is_box(value) else value
    if not all(map(_is_box, boxes)):
        return ", ".join(str(item) for item in value)
    texts = ["".join(f"<{str(n).strip()}>" for n in box) for box in boxes]
    return "".join(
        f"<quad>{text}</quad>" if len(box) == 8 else f"<box>{text}</box>"
        for text, box in zip(texts, boxes, strict=True)
    )
