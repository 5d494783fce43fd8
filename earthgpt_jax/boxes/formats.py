"""The grammars of boxes in text, one row each: what they look like, what their numbers mean, how they are read.

Reading is strict: whatever begins like a box and is none is rejected with its reason. Several grammars share one
syntax and mean different boxes by it; which one a text is in, its caller must know and say.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from earthgpt_jax.boxes import parameterizations
from earthgpt_jax.boxes.frames import Frame
from earthgpt_jax.boxes.parsing import Parsed, ParsedBox, read_mmrs
from earthgpt_jax.boxes.polygons import BoxKind
from earthgpt_jax.boxes.syntaxes import BRACES, BRACKETS, DOUBLE, INTERNVL, QWEN2, Syntax, florence
from earthgpt_jax.boxes.writing import widen
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.names import did_you_mean

MMRS, AUTO = "mmrs", "auto"

_INTEGER, _DECIMAL, _DEGREES = r"\s*[0-9]+\s*", r"\s*[0-9]+(\.[0-9]+)?\s*", r"\s*-?[0-9]+(\.[0-9]+)?\s*"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoxFormat:
    """One grammar of boxes.

    Attributes:
        name: by which `parse` and `write_boxes` know it.
        owner: who writes it.
        scale: the number that means the far edge; 0: pixels of a picture whose size the caller gives.
        fits: what a text in this grammar has, for `AUTO`.
        counts: how many numbers a box may have; a fifth is an angle in degrees.
        meaning: the numbers of a box as fractions -> 4 or 8 fractions; ValueError with the reason if they are none.
        numbers: the inverse, of a polygon in fractions.
        half: numbers name bins, whose middles are meant.
        read: reads a whole text, where `syntax` cannot say how.
    """

    name: str
    owner: str
    scale: float
    fits: re.Pattern[str]
    syntax: Syntax | None = None
    counts: tuple[int, ...] = (4,)
    number: str = _INTEGER
    meaning: Callable[[parameterizations.Numbers], parameterizations.Numbers] = parameterizations.upright
    numbers: Callable[[np.ndarray], parameterizations.Numbers] = parameterizations.to_rect
    half: float = 0.0
    read: Callable[[str], Parsed] | None = None

    @property
    def last(self) -> float:
        """The largest number there is: the far edge, or the last bin."""
        return self.scale - 2 * self.half


_INT_BRACKET = re.compile(r"(?<!\[)\[\s*\d+\s*,")
_JSON = re.compile(r'"bbox_2d"')
_BRACE = re.compile(r"\{<")
_TURNED, _TO_TURNED = (
    functools.partial(parameterizations.turned, sign=1),
    functools.partial(parameterizations.to_turned, sign=1),
)
_BACK, _TO_BACK = (
    functools.partial(parameterizations.turned, sign=-1),
    functools.partial(parameterizations.to_turned, sign=-1),
)
_FROM_RECT = (parameterizations.to_rect, _TO_TURNED, _TO_BACK)  # their first four numbers are upright corners

BOX_FORMATS: Mapping[str, BoxFormat] = {
    row.name: row
    for row in (
        BoxFormat(name=MMRS, owner="MMRS-1M, EarthGPT-JAX", scale=1, read=read_mmrs,
                   fits=re.compile(r"<p>[^<>]*</p>\s*\[|(?<!\[)\[\s*\d*\.\d+\s*,")),
        BoxFormat(name="lhrs", owner="LHRS-Bot", scale=1, syntax=BRACKETS, number=_DECIMAL,
                   fits=re.compile(r"(?<![\[>])\[\s*\d*\.\d+\s*,")),
        BoxFormat(name="vhm", owner="VHM", scale=999, syntax=BRACKETS, fits=_INT_BRACKET),
        BoxFormat(name="qwen", owner="Qwen style", scale=1000, syntax=BRACKETS, fits=_INT_BRACKET),
        BoxFormat(name="internvl", owner="InternVL", scale=1000, syntax=INTERNVL, fits=re.compile(r"<box>\s*\[")),
        BoxFormat(name="earthdial", owner="EarthDial", scale=100, syntax=DOUBLE, counts=(4, 5),
                   meaning=_BACK, numbers=_TO_BACK, fits=re.compile(r"(?<!<box>)\[\[")),
        BoxFormat(name="qwen2", owner="Qwen2-VL", scale=1000, syntax=QWEN2, fits=re.compile(r"<\|box_start\|>")),
        BoxFormat(name="qwen2_5", owner="Qwen2.5-VL", scale=0, fits=_JSON),
        BoxFormat(name="qwen3", owner="Qwen3-VL", scale=1000, fits=_JSON),
        # One syntax: the un-rotated box turned clockwise on screen (as geochat_demo.py computes corners), turned
        # the other way (as it draws them), and two of VRSBench's.
        BoxFormat(name="geochat", owner="GeoChat, VRSBench", scale=100, syntax=BRACES, counts=(4, 5),
                   meaning=_TURNED, numbers=_TO_TURNED, fits=_BRACE),
        BoxFormat(name="geochat_ccw", owner="GeoChat, as drawn", scale=100, syntax=BRACES, counts=(4, 5),
                   meaning=_BACK, numbers=_TO_BACK, fits=_BRACE),
        BoxFormat(name="vrsbench_obb_v1", owner="VRSBench: cx, cy, w, h, degrees", scale=100, syntax=BRACES,
                   counts=(5,), meaning=parameterizations.centred, numbers=parameterizations.to_centred, fits=_BRACE),
        BoxFormat(name="vrsbench_obb_v2", owner="VRSBench: nearest and farthest corner, degrees", scale=100,
                   syntax=BRACES, counts=(5,), meaning=parameterizations.diagonal,
                   numbers=parameterizations.to_diagonal, fits=_BRACE),
        BoxFormat(name="falcon", owner="Falcon", scale=1000, syntax=florence("box"), half=0.5,
                   fits=re.compile(r"<box>\s*<\d")),
        BoxFormat(name="falcon_quad", owner="Falcon, oriented", scale=1000, syntax=florence("quad"), half=0.5,
                   counts=(8,), meaning=parameterizations.corners, numbers=parameterizations.to_corners,
                   fits=re.compile(r"<quad>")),
    )
}  # fmt: skip


# --------------------------------------------------------------------------------------------- reading
def parse(text: str, *, box_format: str = MMRS, size: tuple[float, float] | None = None) -> Parsed:
    """Reads the boxes of an answer, strictly: whatever is not exactly a box is rejected with its reason.

    Args:
        grammar: a name of `BOX_FORMATS`; or `AUTO`, which reads what all grammars that a text fits agree on, names
            them, and otherwise rejects the text as ambiguous.
        size: (width, height) of the picture whose pixels are written, for a grammar of scale 0.

    Raises:
        EarthGPTError: no such grammar, or one of pixels without `size`. No text raises.
    """
    if box_format == AUTO:
        return _parse_any(text, size)
    row = _row(box_format)
    if row.scale == 0 and size is None:
        raise EarthGPTError(f"grammar {box_format!r}: its numbers are pixels; give the size of the picture")
    if row.name == MMRS and "[" not in text:
        return Parsed("", (), ())
    if row.read is not None:
        return row.read(text)
    return _read_items(text, row, size) if row.syntax else _read_json(text, row, size)


def _row(name: str) -> BoxFormat:
    if name not in BOX_FORMATS:
        raise EarthGPTError(
            f"box format {name!r}: unknown{did_you_mean(name, BOX_FORMATS)} Box formats: {', '.join(BOX_FORMATS)}"
        )
    return BOX_FORMATS[name]


def _parse_any(text: str, size: tuple[float, float] | None) -> Parsed:
    fitting = [row.name for row in BOX_FORMATS.values() if row.fits.search(text)]
    if not fitting:
        return Parsed("", (), ())
    readings = {name: parse(text, box_format=name, size=size) for name in fitting if BOX_FORMATS[name].scale or size}
    whole = {name: read for name, read in readings.items() if not read.rejections}
    taken = whole or readings
    if (len(readings) == len(fitting) or not whole) and len({read.boxes for read in taken.values()}) == 1:
        first = next(iter(taken.values()))
        return Parsed("|".join(taken), first.boxes, first.rejections)
    reason = f"ambiguous: the text fits {', '.join(fitting)}, which mean different boxes; name one"
    return Parsed("", (), (reason,))


def _read_items(text: str, row: BoxFormat, size: tuple[float, float] | None) -> Parsed:
    assert row.syntax
    boxes, rejections = [], []
    for label, part in row.syntax.items(text):
        if part is None:
            rejections.append(f"{label!r}: begins like a box of {row.name!r} and is none")
            continue
        try:
            boxes.append(_box(row, label, row.syntax.numbers.split(part), size))
        except ValueError as error:
            rejections.append(f"{part.strip()!r}: {error}")
    return Parsed(row.name, tuple(boxes), tuple(rejections))


_OBJECT = re.compile(r"\{[^{}]*\}")


def _read_json(text: str, row: BoxFormat, size: tuple[float, float] | None) -> Parsed:
    """Objects with `bbox_2d` and perhaps `label`, alone or in a list, in a code fence or not."""
    boxes, rejections = [], []
    objects = [match[0] for match in _OBJECT.finditer(text) if _JSON.search(match[0])]
    for part in objects:
        try:
            value = json.loads(part, parse_constant=str)
            corners, label = value.get("bbox_2d"), value.get("label", "")
            if not isinstance(corners, list):
                raise ValueError("expected a list of numbers under 'bbox_2d'")
            boxes.append(_box(row, str(label).strip().lower(), [json.dumps(n).strip('"') for n in corners], size))
        except ValueError as error:
            rejections.append(f"{part!r}: {error}")
    rejections += ["'bbox_2d': its object is not closed"] * (len(_JSON.findall(text)) - len(objects))
    return Parsed(row.name, tuple(boxes), tuple(rejections))


def _box(row: BoxFormat, label: str, fields: Sequence[str], size: tuple[float, float] | None) -> ParsedBox:
    """Raises ValueError with the reason why these are not the numbers of a box."""
    if len(fields) not in row.counts:
        raise ValueError(f"expected {' or '.join(map(str, row.counts))} numbers, got {len(fields)}")
    angled = len(fields) == 5
    for place, field in enumerate(fields):
        pattern = _DEGREES if angled and place == 4 else row.number
        if not re.fullmatch(pattern, field):
            kind = "a whole number" if pattern == _INTEGER else "a number"
            raise ValueError(f"{field.strip()!r} is not {kind}")
    values = [float(field) for field in fields]
    lasts = size if row.scale == 0 and size is not None else (row.last, row.last)
    fractions = []
    for place, value in enumerate(values[: 4 if angled else None]):
        last = lasts[place % 2]
        if value > last:
            raise ValueError(f"{value:g} is beyond the scale, which ends at {last:g}")
        fractions.append((value + row.half) / (last + 2 * row.half))
    if angled and abs(values[4]) > 360:
        raise ValueError(f"{values[4]:g} degrees are more than a turn")
    coords = tuple(row.meaning([*fractions, *values[4:5]] if angled else fractions))
    return ParsedBox(label, coords, BoxKind.HBB if len(coords) == 4 else BoxKind.OBB)


# --------------------------------------------------------------------------------------------- writing
def write_boxes(polygons: Sequence[np.ndarray], *, box_format: str, frame: Frame, label: str = "") -> str:
    """Boxes in a foreign grammar, in their order; MMRS's own is `format_boxes`.

    Numbers are rounded to whole steps of the grammar's scale and kept on it, angles to whole degrees. Where upright
    corners are written, a box that rounding leaves without area is widened by a step.

    Raises:
        EarthGPTError: no such grammar, or one of fractions or pixels, which has no step of its own.
    """
    row = _row(box_format)
    if row.scale <= 1:
        raise EarthGPTError(f"grammar {box_format!r}: is read only; write MMRS's with `format_boxes`")
    boxes = [_steps(row, polygon, frame) for polygon in polygons]
    if row.syntax is None:
        said = {"label": label} if label else {}
        return json.dumps([{"bbox_2d": numbers, **said} for numbers in boxes])
    return row.syntax.write(label, [[str(n) for n in numbers] for numbers in boxes])


def _steps(row: BoxFormat, polygon: np.ndarray, frame: Frame) -> list[int]:
    numbers = row.numbers(frame.to_fractions(polygon))
    places, degrees = (numbers[:4], numbers[4:]) if len(numbers) == 5 else (numbers, ())
    end = int(row.last)
    steps = [min(max(math.floor(n * row.scale + 0.5 - row.half), 0), end) for n in places]
    if row.numbers in _FROM_RECT:
        steps = widen(steps, end=end)
    return [*steps, *map(round, degrees)]
