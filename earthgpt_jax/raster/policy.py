"""Stretch policies and stretches: how pixels become 8 bits, as data that cards, records and reports can hold.

A policy says how (percentiles, fixed range, bands, decibels). A stretch is what a policy gives for one scene, with its
numbers. It is computed once, so that the tiles of a scene and every later reader agree.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.parsing import parse_yaml
from earthgpt_jax.common.typed import show
from earthgpt_jax.records import Sensor

PERCENTILES = (2.0, 98.0)


class Values(enum.StrEnum):
    """What the pixels of a SAR image are. `amplitude` and `intensity` are converted to decibels."""

    AS_STORED = "as_stored"
    AMPLITUDE = "amplitude"
    INTENSITY = "intensity"
    DB = "db"


class Speckle(enum.StrEnum):
    """Filter of SAR images, applied before the conversion to decibels (Lee, 1980, in a window of 7 x 7 pixels)."""

    NONE = "none"
    LEE = "lee"


class ZeroBorder(enum.StrEnum):
    """Whether a border of zeros counts for the percentiles (see `stretch.zero_border`)."""

    EXCLUDE = "exclude"
    INCLUDE = "include"


@dataclasses.dataclass(frozen=True, kw_only=True)
class StretchPolicy:
    """How images become 8 bits: the entry `stretch` of a data card, or the option `--stretch`.

    Images of 8 bits are shown as they are, unless there is a `range`, `percentiles`, `values` or `speckle`.

    Attributes:
        bands: one band (grey) or three (red, green, blue), by number from 1 or by the name that the file gives them; ()
            for those that the file itself calls red, green and blue, or its only band.
        values: what the pixels of a SAR image are.
        percentiles: of the valid pixels of each band; they become 0 and 255. None for 2 and 98.
        range: values that become 0 and 255, in place of percentiles; in the unit of the file, such as kelvin, or in
            decibels if `values` is not `as_stored`.
        nodata: value of pixels without data, for files that do not say so themselves.
        zero_border: whether a border of zeros counts for the percentiles.
        speckle: filter of SAR images.
    """

    bands: tuple[int | str, ...] = ()
    values: Values = Values.AS_STORED
    percentiles: tuple[float, float] | None = None
    range: tuple[float, float] | None = None
    nodata: float | None = None
    zero_border: ZeroBorder = ZeroBorder.EXCLUDE
    speckle: Speckle = Speckle.NONE

    @classmethod
    def of(cls, entries: Any, *, where: str, sensor: Sensor | None = None) -> StretchPolicy:
        """Return the policy of a mapping with the attributes of this class.

        Args:
            where: named in errors.
            sensor: sensor of the images; None if unknown.

        Raises:
            EarthGPTError: an entry is unknown, has an impossible value, or does not apply to the sensor.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(entries, Mapping) or not set(entries) <= set(known):
            raise EarthGPTError(f"{where}: expected a mapping with entries of {', '.join(known)}; got {show(entries)}")
        try:
            policy = cls(**{name: _PARSERS[name](value) for name, value in entries.items()})
        except (TypeError, ValueError, OverflowError) as error:
            raise EarthGPTError(f"{where}: {error}") from error
        if policy.range and policy.percentiles:
            raise EarthGPTError(f"{where}: expected `range` or `percentiles`, got both; remove one")
        if sensor not in (None, Sensor.SAR) and {"values", "speckle"} & set(entries):
            raise EarthGPTError(f"{where}: `values` and `speckle` apply to SAR images; these are {sensor}")
        return policy

    @classmethod
    def parse(cls, text: str) -> StretchPolicy:
        """Return the policy of a command-line option: `bands: [4, 3, 2]`, `{values: intensity, range: [-25, 0]}`.

        Raises:
            EarthGPTError: as for `of`.
        """
        where = f"--stretch {show(text)}"
        return cls.of(parse_yaml(text, where=where), where=where)

    def to_dict(self) -> dict[str, Any]:
        """Return the entries that differ from their defaults, as JSON values."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value != getattr(DEFAULT, name)}

    def keeps_eight_bits(self) -> bool:
        """Return whether images of 8 bits are shown as they are."""
        return (self.range, self.percentiles, self.values, self.speckle) == (None, None, Values.AS_STORED, Speckle.NONE)


DEFAULT = StretchPolicy()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stretch:
    """How the pixels of one scene become 8 bits.

    Attributes:
        bands: numbers of the bands, from 1; () for those that the file itself names.
        low, high: for each band, the values that become 0 and 255; () for 8 bits as they are.
        percentiles: of which `low` and `high` are the values; None for fixed values.
        values, nodata, speckle: as in the policy.
        zero_border: share of the scene that did not count for the percentiles because it is a border of zeros.
    """

    bands: tuple[int, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    percentiles: tuple[float, float] | None = None
    values: Values = Values.AS_STORED
    nodata: float | None = None
    speckle: Speckle = Speckle.NONE
    zero_border: float = 0.0

    def to_text(self) -> str:
        """Return the stretch as JSON with the entries that differ from their defaults; "" if none does."""
        values = dataclasses.asdict(self)
        changed = {name: value for name, value in values.items() if value != getattr(_UNCHANGED, name)}
        return json.dumps(changed) if changed else ""

    @classmethod
    def from_text(cls, text: str) -> Stretch:
        """Return the stretch that `to_text` gave this text for.

        Raises:
            EarthGPTError: it is another text.
        """
        try:
            values = json.loads(text) if text else {}
            stretch = cls(**{name: _RESTORED.get(name, _PARSERS[name])(value) for name, value in values.items()})
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise EarthGPTError(f"stretch: expected the text of a stretch, got {show(text)}: {error}") from error
        bands = (0, len(stretch.bands)) if stretch.bands else (0, 1, 3)
        if len(stretch.low) != len(stretch.high) or len(stretch.low) not in bands:
            raise EarthGPTError(f"stretch: expected `low` and `high` for each of its bands, got {show(text)}")
        return stretch

    def rule(self) -> str:
        """Return the stretch in words, without the numbers of the scene: `percentiles 2 to 98 of bands 4, 3, 2`."""
        bands = f" of band{'s' * (len(self.bands) > 1)} {', '.join(map(str, self.bands))}" if self.bands else ""
        if not self.low:
            return f"8 bits as stored{bands}"
        unit = {Values.AS_STORED: "", Values.DB: " dB"}.get(self.values, f" dB from {self.values}")
        pair = self.percentiles or (self.low[0], self.high[0])
        numbers = f"{'percentiles ' if self.percentiles else ''}{pair[0]:g} to {pair[1]:g}"
        return f"{numbers}{unit}{bands}{', Lee filter' if self.speckle is Speckle.LEE else ''}"


_UNCHANGED = Stretch()


def _numbers(value: Any) -> tuple[float, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(item, int | float) for item in value):
        raise ValueError(f"expected a list of numbers, got {show(value)}")
    numbers = tuple(map(float, value))
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"expected finite numbers, got {show(value)}")
    return numbers


def _pair(value: Any) -> tuple[float, float]:
    numbers = _numbers(value)
    if len(numbers) != 2 or not numbers[0] < numbers[1]:
        raise ValueError(f"expected two numbers, the first one less than the second, got {show(value)}")
    return numbers[0], numbers[1]


def _percentiles(value: Any) -> tuple[float, float]:
    low, high = _pair(value)
    if low < 0 or high > 100:
        raise ValueError(f"percentiles: expected numbers from 0 to 100, got {show(value)}")
    return low, high


def _bands(value: Any) -> tuple[int | str, ...]:
    bands = tuple(value) if isinstance(value, list | tuple) else (value,)
    if len(bands) not in (1, 3) or not all(isinstance(band, int | str) for band in bands):
        raise ValueError(f"bands: expected one band, or three for red, green and blue; got {show(value)}")
    return bands


_PARSERS: Mapping[str, Callable[[Any], Any]] = {
    "bands": _bands, "values": Values, "percentiles": _percentiles, "range": _pair, "nodata": float,
    "zero_border": ZeroBorder, "speckle": Speckle, "low": _numbers, "high": _numbers,
}  # fmt: skip
_RESTORED: Mapping[str, Callable[[Any], Any]] = {"zero_border": float}  # differs between a policy and a stretch
