"""The table of box formats: how boxes look in text, what their numbers stand for, how they are read and written.

Parsing is strict: text that begins like a box but is not one is rejected with the reason. Several formats share one
syntax and mean different boxes, so the caller names the format; `AUTO` detects it where the text is unambiguous.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from earthgpt_jax.boxes import parameterizations
from earthgpt_jax.boxes.frames import Frame, FullImage, Square
from earthgpt_jax.boxes.parsing import Parsed, ParsedBox, parse_mmrs
from earthgpt_jax.boxes.polygons import BoxKind
from earthgpt_jax.boxes.syntaxes import BRACES, BRACKETS, DOUBLE, INTERNVL, LINES, QWEN2, Syntax, florence
from earthgpt_jax.boxes.writing import CORNER_KEYS, JsonStyle, widen
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.names import did_you_mean

MMRS, AUTO = "mmrs", "auto"

_INTEGER, _DECIMAL, _DEGREES = r"\s*[0-9]+\s*", r"\s*[0-9]+(\.[0-9]+)?\s*", r"\s*-?[0-9]+(\.[0-9]+)?\s*"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoxFormat:
    """One box format, a row of `BOX_FORMATS`.

    Attributes:
        name: name of the format, as in `parse(text, box_format=name)`.
        owner: project that writes it.
        scale: number that stands for the far edge of the frame; 0: numbers are pixels of an image whose size the
            caller gives.
        pattern: found in every text of this format; for `AUTO`.
        syntax: how boxes and numbers are delimited; None for JSON, and for formats with a `reader`.
        lengths: allowed counts of numbers per box; the fifth of five is an angle in degrees.
        number: pattern of a number that is not an angle.
        decode: the numbers of a box as fractions -> 4 or 8 fractions (`parameterizations`).
        encode: the inverse, of a polygon in fractions.
        half_bin: 0.5 if numbers are indices of bins and mean their centres; else 0.
        keys: JSON only: the keys that give a box, in each way that it can be given. One key has a list of numbers,
            several have one number each.
        reader: parses a complete text, where `syntax` cannot describe the format.
    """

    name: str
    owner: str
    scale: float
    pattern: re.Pattern[str]
    syntax: Syntax | None = None
    lengths: tuple[int, ...] = (4,)
    number: str = _INTEGER
    decode: Callable[[parameterizations.Numbers], parameterizations.Numbers] = parameterizations.axis_aligned
    encode: Callable[[np.ndarray], parameterizations.Numbers] = parameterizations.to_axis_aligned
    half_bin: float = 0.0
    keys: tuple[tuple[str, ...], ...] = ()
    reader: Callable[[str], Parsed] | None = None

    @property
    def largest(self) -> float:
        """The largest valid number: the far edge, or the last bin."""
        return self.scale - 2 * self.half_bin


_INT_BRACKET = re.compile(r"(?<!\[)\[\s*\d+\s*,")
_QWEN_KEYS, _KEYS, _CORNER_KEYS = (("bbox_2d",),), (("bbox",), ("polygon",)), (CORNER_KEYS,)
_FRACTION = r"0(\.[0-9]+)?|1(\.0+)?"
_BRACE = re.compile(r"\{<")


def _json_pattern(keys: Sequence[Sequence[str]]) -> re.Pattern[str]:
    """Return the pattern of the first key of any way to give a box."""
    return re.compile("|".join(f'"{first}"' for first, *_ in keys))


_CLOCKWISE, _TO_CLOCKWISE = (
    functools.partial(parameterizations.rotated_rect, sign=1),
    functools.partial(parameterizations.to_rotated_rect, sign=1),
)
_COUNTER, _TO_COUNTER = (
    functools.partial(parameterizations.rotated_rect, sign=-1),
    functools.partial(parameterizations.to_rotated_rect, sign=-1),
)
_RECT_ENCODERS = (
    parameterizations.to_axis_aligned,
    _TO_CLOCKWISE,
    _TO_COUNTER,
)  # the first four numbers are x0, y0, x1, y1

BOX_FORMATS: Mapping[str, BoxFormat] = {
    item.name: item
    for item in (
        BoxFormat(name=MMRS, owner="MMRS-1M, EarthGPT-JAX", scale=1, reader=parse_mmrs,
                   pattern=re.compile(r"<p>[^<>]*</p>\s*\[|(?<!\[)\[\s*\d*\.\d+\s*,")),
        BoxFormat(name="lhrs", owner="LHRS-Bot", scale=1, syntax=BRACKETS, number=_DECIMAL,
                   pattern=re.compile(r"(?<![\[>])\[\s*\d*\.\d+\s*,")),
        BoxFormat(name="vhm", owner="VHM", scale=999, syntax=BRACKETS, pattern=_INT_BRACKET),
        BoxFormat(name="qwen", owner="Qwen style", scale=1000, syntax=BRACKETS, pattern=_INT_BRACKET),
        BoxFormat(name="internvl", owner="InternVL", scale=1000, syntax=INTERNVL, pattern=re.compile(r"<box>\s*\[")),
        BoxFormat(name="earthdial", owner="EarthDial", scale=100, syntax=DOUBLE, lengths=(4, 5),
                   decode=_COUNTER, encode=_TO_COUNTER, pattern=re.compile(r"(?<!<box>)\[\[")),
        BoxFormat(name="qwen2", owner="Qwen2-VL", scale=1000, syntax=QWEN2, pattern=re.compile(r"<\|box_start\|>")),
        BoxFormat(name="qwen2_5", owner="Qwen2.5-VL", scale=0, keys=_QWEN_KEYS, pattern=_json_pattern(_QWEN_KEYS)),
        BoxFormat(name="qwen3", owner="Qwen3-VL", scale=1000, keys=_QWEN_KEYS, pattern=_json_pattern(_QWEN_KEYS)),
        # JSON as EarthGPT-JAX writes it when it is asked for (`format_json`); fractions and pixels of the image.
        BoxFormat(name="json", owner="EarthGPT-JAX: `bbox` or `polygon`", scale=1, keys=_KEYS, lengths=(4, 8),
                   number=_FRACTION, decode=parameterizations.by_length, pattern=_json_pattern(_KEYS)),
        BoxFormat(name="json_pixels", owner="EarthGPT-JAX: `bbox` or `polygon`, in pixels", scale=0, keys=_KEYS,
                   lengths=(4, 8), decode=parameterizations.by_length, pattern=_json_pattern(_KEYS)),
        BoxFormat(name="json_corners", owner="EarthGPT-JAX, geoai: `x_min` to `y_max`", scale=1, keys=_CORNER_KEYS,
                   number=_FRACTION, pattern=_json_pattern(_CORNER_KEYS)),
        # These four share one syntax: a box rotated clockwise on screen (as geochat_demo.py computes corners) or
        # counter-clockwise (as it draws them), and the two parameterizations of VRSBench.
        BoxFormat(name="geochat", owner="GeoChat, VRSBench", scale=100, syntax=BRACES, lengths=(4, 5),
                   decode=_CLOCKWISE, encode=_TO_CLOCKWISE, pattern=_BRACE),
        BoxFormat(name="geochat_ccw", owner="GeoChat, as drawn", scale=100, syntax=BRACES, lengths=(4, 5),
                   decode=_COUNTER, encode=_TO_COUNTER, pattern=_BRACE),
        BoxFormat(name="vrsbench_obb_v1", owner="VRSBench: cx, cy, w, h, degrees", scale=100, syntax=BRACES,
                   lengths=(5,), decode=parameterizations.center_size_angle,
                   encode=parameterizations.to_center_size_angle, pattern=_BRACE),
        BoxFormat(name="vrsbench_obb_v2", owner="VRSBench: nearest and farthest corner, degrees", scale=100,
                   syntax=BRACES, lengths=(5,), decode=parameterizations.diagonal_angle,
                   encode=parameterizations.to_diagonal_angle, pattern=_BRACE),
        BoxFormat(name="falcon", owner="Falcon", scale=1000, syntax=florence("box"), half_bin=0.5,
                   pattern=re.compile(r"<box>\s*<\d")),
        BoxFormat(name="falcon_quad", owner="Falcon, oriented", scale=1000, syntax=florence("quad"), half_bin=0.5,
                   lengths=(8,), decode=parameterizations.corners, encode=parameterizations.to_corners,
                   pattern=re.compile(r"<quad>")),
        BoxFormat(name="rscovlm", owner="RSCoVLM, LMMRotate: a line `x1,y1,...,x4,y4 label` per object, in pixels",
                   scale=0, syntax=LINES, lengths=(8,), number=_DECIMAL, decode=parameterizations.corners,
                   encode=parameterizations.to_corners,
                   pattern=re.compile(r"(?m)^\s*\d+(?:\.\d+)?(?:\s*,\s*\d+(?:\.\d+)?){7}[ \t]+\S")),
    )
}  # fmt: skip


# --------------------------------------------------------------------------------------------- reading
def parse(text: str, *, box_format: str = MMRS, size: tuple[float, float] | None = None) -> Parsed:
    """Parse the boxes of an answer strictly: everything that is not exactly a box is rejected with the reason.

    Args:
        box_format: a name of `BOX_FORMATS`; or `AUTO`, which returns the boxes if all formats that match the text agree
            on them, with the names of these formats, and otherwise rejects the text as ambiguous.
        size: (width, height) of the image in whose pixels boxes are written, for a format of scale 0.

    Raises:
        EarthGPTError: there is no such format, or it is in pixels and `size` is missing. No text raises.
    """
    if box_format == AUTO:
        return _parse_any(text, size)
    chosen = _lookup(box_format)
    if chosen.scale == 0 and size is None:
        raise EarthGPTError(f"box format {box_format!r}: its numbers are pixels; give the size of the image")
    if chosen.name == MMRS and "[" not in text:
        return Parsed("", (), ())
    if chosen.reader is not None:
        return chosen.reader(text)
    return _parse_items(text, chosen, size) if chosen.syntax else _parse_json(text, chosen, size)


def read_answer(text: str, *, width: int, height: int) -> tuple[Parsed, Frame]:
    """Parse an answer of a model of this project, JSON or MMRS's format, and return the frame of its coordinates.

    JSON is in pixels if it cannot be in fractions.

    Args:
        width, height: size of the image, in pixels.
    """
    if text.strip() == "[]":
        return Parsed(JsonStyle.FRACTIONS.value, (), ()), FullImage(width, height)
    styles = [style.value for style in JsonStyle if BOX_FORMATS[style.value].pattern.search(text)]
    if not styles:
        return parse(text), Square(width, height)
    results = [parse(text, box_format=name, size=(width, height)) for name in styles]
    complete = [result for result in results if not result.rejections]
    return (complete or results)[0], FullImage(width, height)


def _lookup(name: str) -> BoxFormat:
    if name not in BOX_FORMATS:
        raise EarthGPTError(
            f"box format {name!r}: unknown{did_you_mean(name, BOX_FORMATS)} Box formats: {', '.join(BOX_FORMATS)}"
        )
    return BOX_FORMATS[name]


def _parse_any(text: str, size: tuple[float, float] | None) -> Parsed:
    matching = [item.name for item in BOX_FORMATS.values() if item.pattern.search(text)]
    if not matching:
        return Parsed("", (), ())
    results = {name: parse(text, box_format=name, size=size) for name in matching if BOX_FORMATS[name].scale or size}
    complete = {name: result for name, result in results.items() if not result.rejections}
    considered = complete or results
    agree = len({result.boxes for result in considered.values()}) == 1
    if agree and (len(results) == len(matching) or not complete):
        first = next(iter(considered.values()))
        return Parsed("|".join(considered), first.boxes, first.rejections)
    reason = f"ambiguous: the text fits {', '.join(matching)}, which mean different boxes; name one"
    return Parsed("", (), (reason,))


def _parse_items(text: str, chosen: BoxFormat, size: tuple[float, float] | None) -> Parsed:
    assert chosen.syntax
    boxes, rejections = [], []
    for label, part in chosen.syntax.items(text):
        if part is None:
            rejections.append(f"{label!r}: begins like a box of {chosen.name!r} but is not one")
            continue
        try:
            boxes.append(_parse_box(chosen, label, chosen.syntax.numbers.split(part), size))
        except ValueError as error:
            rejections.append(f"{part.strip()!r}: {error}")
    return Parsed(chosen.name, tuple(boxes), tuple(rejections))


_OBJECT = re.compile(r"\{[^{}]*\}")


def _parse_json(text: str, chosen: BoxFormat, size: tuple[float, float] | None) -> Parsed:
    """Parse objects with the keys of a box and optionally `label`, alone or in a list, with or without a code fence."""
    boxes, rejections = [], []
    objects = [match[0] for match in _OBJECT.finditer(text) if chosen.pattern.search(match[0])]
    for part in objects:
        try:
            value = json.loads(part, parse_constant=str)
            fields = [json.dumps(number).strip('"') for number in _json_numbers(value, chosen)]
            boxes.append(_parse_box(chosen, str(value.get("label", "")).strip().lower(), fields, size))
        except ValueError as error:
            rejections.append(f"{part!r}: {error}")
    opened = len(chosen.pattern.findall(text)) - sum(len(chosen.pattern.findall(part)) for part in objects)
    rejections += [f"{chosen.keys[0][0]!r}: its object is not closed"] * opened
    return Parsed(chosen.name, tuple(boxes), tuple(rejections))


def _json_numbers(value: Mapping[str, Any], chosen: BoxFormat) -> Sequence[Any]:
    """Return the numbers of a box from its JSON object."""
    keys = next((keys for keys in chosen.keys if keys[0] in value), chosen.keys[0])
    if len(keys) > 1:
        if missing := [key for key in keys if key not in value]:
            raise ValueError(f"expected a number under {missing[0]!r}")
        return [value[key] for key in keys]
    numbers = value.get(keys[0])
    if not isinstance(numbers, list):
        raise ValueError(f"expected a list of numbers under {keys[0]!r}")
    return numbers


def _parse_box(chosen: BoxFormat, label: str, fields: Sequence[str], size: tuple[float, float] | None) -> ParsedBox:
    """Return the box of the numbers in `fields`; raise ValueError with the reason if they do not describe one."""
    if len(fields) not in chosen.lengths:
        raise ValueError(f"expected {' or '.join(map(str, chosen.lengths))} numbers, got {len(fields)}")
    has_angle = len(fields) == 5
    for position, field in enumerate(fields):
        pattern = _DEGREES if has_angle and position == 4 else chosen.number
        if not re.fullmatch(pattern, field):
            expected = "an integer" if pattern == _INTEGER else "a number"
            raise ValueError(f"{field.strip()!r} is not {expected}")
    values = [float(field) for field in fields]
    limits = size if chosen.scale == 0 and size is not None else (chosen.largest, chosen.largest)
    fractions = []
    for position, value in enumerate(values[: 4 if has_angle else None]):
        limit = limits[position % 2]
        if value > limit:
            raise ValueError(f"{value:g} exceeds the scale, which ends at {limit:g}")
        fractions.append((value + chosen.half_bin) / (limit + 2 * chosen.half_bin))
    if has_angle and abs(values[4]) > 360:
        raise ValueError(f"{values[4]:g} degrees are more than a full rotation")
    coords = tuple(chosen.decode([*fractions, *values[4:5]] if has_angle else fractions))
    return ParsedBox(label, coords, BoxKind.HBB if len(coords) == 4 else BoxKind.OBB)


# --------------------------------------------------------------------------------------------- writing
def write_boxes(polygons: Sequence[np.ndarray], *, box_format: str, frame: Frame, label: str = "") -> str:
    """Write boxes in another project's format, in the given order; `format_boxes` writes MMRS's.

    Numbers are rounded to whole steps of the format's scale and clipped to it, angles to whole degrees. An
    axis-aligned box whose area is lost to rounding is widened by one step.

    Args:
        polygons: f32[8] each, in pixels of the original image.
        frame: what the numbers are fractions of: the padded square or the full image.

    Raises:
        EarthGPTError: there is no such format, or it can only be read, because its numbers are fractions or pixels.
    """
    chosen = _lookup(box_format)
    if chosen.scale <= 1:
        raise EarthGPTError(f"box format {box_format!r}: can only be read; `format_boxes` writes MMRS's")
    boxes = [_steps(chosen, polygon, frame) for polygon in polygons]
    if chosen.syntax is None:
        entry = {"label": label} if label else {}
        return json.dumps([{"bbox_2d": numbers, **entry} for numbers in boxes])
    return chosen.syntax.write(label, [[str(n) for n in numbers] for numbers in boxes])


def _steps(chosen: BoxFormat, polygon: np.ndarray, frame: Frame) -> list[int]:
    """Return the numbers of a box, rounded to steps of the scale."""
    numbers = chosen.encode(frame.to_fractions(polygon))
    coordinates, degrees = (numbers[:4], numbers[4:]) if len(numbers) == 5 else (numbers, ())
    end = int(chosen.largest)
    steps = [min(max(math.floor(n * chosen.scale + 0.5 - chosen.half_bin), 0), end) for n in coordinates]
    if chosen.encode in _RECT_ENCODERS:
        steps = widen(steps, ends=(end, end))
    return [*steps, *map(round, degrees)]
