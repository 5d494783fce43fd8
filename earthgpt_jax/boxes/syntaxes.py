"""Syntaxes: how boxes and their numbers are delimited in text, by brackets, braces or tags."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence


@dataclasses.dataclass(frozen=True, kw_only=True)
class Syntax:
    """How boxes are delimited in a text.

    Attributes:
        opening: pattern that only a box begins with; a match outside of all items is rejected.
        item: pattern of an optional phrase (group `label`) and its boxes (group `body`).
        boxes: separator of the boxes in a body; the default matches nothing, so that a body is one box.
        numbers: separator of the numbers of a box.
        write: `(label, numbers of each box as text)` -> text.
    """

    opening: re.Pattern[str]
    item: re.Pattern[str]
    numbers: re.Pattern[str]
    write: Callable[[str, Sequence[Sequence[str]]], str]
    boxes: re.Pattern[str] = re.compile(r"(?!)")

    def items(self, text: str) -> Iterator[tuple[str, str | None]]:
        """Yield `(label, text of one box)`; or `(text, None)` for text that begins like a box but is not one."""
        end = 0
        for match in self.item.finditer(text):
            yield from ((part, None) for part in self._stray(text[end : match.start()]))
            end = match.end()
            label = (match.groupdict().get("label") or "").strip().lower()
            yield from ((label, part) for part in self.boxes.split(match["body"]))
        yield from ((part, None) for part in self._stray(text[end:]))

    def _stray(self, between: str) -> list[str]:
        return [between[match.start() :][:40] for match in self.opening.finditer(between)]


def _phrase(tag: str, label: str) -> str:
    return f"<{tag}>{label}</{tag}>" if label else ""


def _joined(boxes: Sequence[Sequence[str]], *, template: str, inner: str, outer: str) -> str:
    return outer.join(template.format(inner.join(numbers)) for numbers in boxes)


_COMMA = re.compile(",")
BRACKETS = Syntax(
    opening=re.compile(r"\["),
    item=re.compile(r"\[(?P<body>[^\[\]]*)\]"),
    numbers=_COMMA,
    write=lambda label, boxes: _joined(boxes, template="[{}]", inner=",", outer=","),
)
DOUBLE = Syntax(
    opening=re.compile(r"\["),
    item=re.compile(r"\[\[(?P<body>[^\[\]]*(?:\]\s*,\s*\[[^\[\]]*)*)\]\]"),
    boxes=re.compile(r"\]\s*,\s*\["),
    numbers=_COMMA,
    write=lambda label, boxes: f"[{_joined(boxes, template='[{}]', inner=',', outer=',')}]",
)
INTERNVL = Syntax(
    opening=re.compile(r"<box>"),
    item=re.compile(
        r"(?:<ref>(?P<label>[^<>]*)</ref>\s*)?<box>\[\[(?P<body>[^\[\]<>]*(?:\]\s*,\s*\[[^\[\]<>]*)*)\]\]</box>"
    ),
    boxes=re.compile(r"\]\s*,\s*\["),
    numbers=_COMMA,
    write=lambda label, boxes: (
        _phrase("ref", label) + f"<box>[{_joined(boxes, template='[{}]', inner=', ', outer=', ')}]</box>"
    ),
)
QWEN2 = Syntax(
    opening=re.compile(r"<\|box_start\|>"),
    item=re.compile(
        r"(?:<\|object_ref_start\|>(?P<label>[^<>|]*)<\|object_ref_end\|>)?"
        r"<\|box_start\|>\((?P<body>[^<>|]*)\)<\|box_end\|>"
    ),
    numbers=re.compile(r"\)\s*,\s*\(|,"),
    write=lambda label, boxes: (
        (f"<|object_ref_start|>{label}<|object_ref_end|>" if label else "")
        + "".join("<|box_start|>({},{}),({},{})<|box_end|>".format(*numbers) for numbers in boxes)
    ),
)
BRACES = Syntax(
    opening=re.compile(r"\{<"),
    item=re.compile(r"(?:<p>(?P<label>[^<>]*)</p>\s*)?\{<(?P<body>[^{}]*)>\}"),
    numbers=re.compile(r">\|<|><"),
    write=lambda label, boxes: (
        _phrase("p", label)
        + "".join("{" + "".join(f"<{n}>" for n in numbers[:4]) + "".join(f"|<{n}>" for n in numbers[4:]) + "}"
                  for numbers in boxes)
    ),
)  # fmt: skip
LINES = Syntax(
    opening=re.compile(r"(?m)^[ \t]*\d+(?:\.\d+)?[ \t]*,"),
    item=re.compile(r"(?m)^[ \t]*(?P<body>\d+(?:\.\d+)?(?:[ \t]*,[ \t]*\d+(?:\.\d+)?)*)[ \t]+(?P<label>\S.*)$"),
    numbers=_COMMA,
    write=lambda label, boxes: "\n".join(f"{','.join(numbers)} {label}" for numbers in boxes),
)


def florence(tag: str) -> Syntax:
    """Return the syntax `<tag><n><n>...</tag>`, whose numbers are location tokens, as in Florence-2."""
    return Syntax(
        opening=re.compile(f"<{tag}>"),
        item=re.compile(rf"<{tag}><(?P<body>(?:[^<>/]*><)*[^<>/]*)></{tag}>"),
        numbers=re.compile("><"),
        write=lambda label, boxes: "".join(
            f"<{tag}>" + "".join(f"<{n}>" for n in numbers) + f"</{tag}>" for numbers in boxes
        ),
    )
