"""Check plain values from a file against declared types, and report all problems at once.

A reader of JSON, YAML or a recipe declares what it expects as a dataclass or a `TypedDict`. Everything else here is
untrusted input: a value of another type, a number that is not finite, text that no file can hold.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
import reprlib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, NotRequired

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.names import nearest

LONGEST = 400  # characters of a problem in a message; the values in it may be of any length
MOST = 40  # problems in a message
INT_LIMIT = 2**63  # whole numbers are stored and computed with in 64 bits

_repr = reprlib.Repr()
_repr.maxstring, _repr.maxother, _repr.maxlong = 120, 120, 40


@dataclasses.dataclass(frozen=True, kw_only=True)
class Renamed:
    """Former names, for suggestions only: they are not accepted.

    Attributes:
        fields: former path of a field -> its name today.
        values: (path of a field, former value) -> the value today.
    """

    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
    values: Mapping[tuple[str, str], str] = dataclasses.field(default_factory=dict)


def check(
    hint: Any, value: Any, *, where: str, renamed: Renamed | None = None, partial: bool = False, further: bool = False
) -> Any:  # fmt: skip
    """Return `value` as the type `hint`.

    Args:
        hint: a dataclass or `TypedDict`, an enum, `float`, `int`, `str`, `bool`, `Any`, `None`, and `tuple[X, ...]`,
            `list[X]`, `dict[str, X]`, `Mapping[str, X]` and unions of these. A method `check()` of a dataclass returns
            further problems as texts.
        value: plain values: None, bool, int, float, str, list, dict.
        where: origin of the values, for the error message.
        renamed: former names, for suggestions.
        partial: whether required fields of the outermost `TypedDict` may be missing.
        further: whether the outermost `TypedDict` may have further fields, which are kept as they are.

    Raises:
        EarthGPTError: a field is unknown, missing, of the wrong type or has an impossible value; the message lists
            all problems.
    """
    problems = _Problems(renamed or Renamed())
    if partial or further:
        result = problems.fields(hint, value, "", partial=partial, further=further)
    else:
        result = problems.value(hint, value, "")
    found = [problem if len(problem) <= LONGEST else f"{problem[:LONGEST]} ..." for problem in problems.found[:MOST]]
    if len(problems.found) > MOST:
        found.append(f"and {len(problems.found) - MOST} more")
    if len(found) == 1:
        raise EarthGPTError(f"{where}: {found[0]}")
    if found:
        raise EarthGPTError(f"{where}: {len(found)} problems\n" + "\n".join(f"  - {problem}" for problem in found))
    return result


def show(value: Any) -> str:
    """Return `repr(value)`, shortened so that it fits into a message."""
    try:
        return _repr.repr(value).encode("utf-8", "backslashreplace").decode()
    except ValueError:  # a whole number with more digits than Python prints
        return f"a {type(value).__name__}"


class _Problems:
    def __init__(self, renamed: Renamed):
        self.found: list[str] = []
        self._renamed = renamed
        self._missing = 0  # problems after which the checks of the whole are pointless

    def value(self, hint: Any, value: Any, path: str) -> Any:
        """Return `value` as the type `hint`; or None, with the problem added."""
        if hint is str and type(value) is str and value.isascii():
            return value  # as most values are, in files of a million answers
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if origin is NotRequired:
            return self.value(arguments[0], value, path)
        if hint is Any:
            return value
        if typing.is_typeddict(hint) or dataclasses.is_dataclass(hint):
            return self.fields(hint, value, path)
        if origin in (types.UnionType, typing.Union):
            return self._union(arguments, value, path)
        if origin in (tuple, list, Sequence) and isinstance(value, (list, tuple)):
            if _are_all(arguments[0], value):
                return list(value) if origin is list else tuple(value)
            items = [self.value(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(value)]
            return items if origin is list else tuple(items)
        if origin in (dict, Mapping) and isinstance(value, Mapping):
            return {str(key): self.value(arguments[1], item, f"{path}.{key}") for key, item in value.items()}
        if isinstance(hint, type) and issubclass(hint, enum.Enum):
            return self._member(hint, value, path)
        if not _is_type(hint, value):
            advice = (
                "; in YAML, quote a text that contains a colon" if hint is str and isinstance(value, Mapping) else ""
            )
            expected = f"expected {_name(hint)}, got {show(value)} ({type(value).__name__}){advice}"
            self._add(f"{path or 'content'}: {expected}")
            return None
        if problem := _range_problem(hint, value):
            report = self._add if hint is int else self.found.append  # checks continue with text and floats of any kind
            report(f"{path or 'content'}: expected {problem}, got {show(value)}")
            return value
        return float(value) if hint is float else value

    def _add(self, problem: str) -> None:
        """Add a problem after which the checks of the whole are pointless."""
        self.found.append(problem)
        self._missing += 1

    def _union(self, hints: Sequence[Any], value: Any, path: str) -> Any:
        """Return `value` as the first of the types that it fits."""
        failures = []
        for hint in hints:
            attempt = _Problems(self._renamed)
            result = attempt.value(hint, value, path)
            if not attempt.found:
                return result
            failures.append(attempt.found)
        for problem in min(failures, key=len):
            self._add(problem)
        return None

    def fields(self, cls: type, values: Any, path: str, *, partial: bool = False, further: bool = False) -> Any:
        """Return an instance of a dataclass or `TypedDict`; or None, with the problems added."""
        if not isinstance(values, Mapping):
            self._add(f"{path or 'content'}: expected a group of fields, got {show(values)}")
            return None
        missing, first = self._missing, len(self.found)
        prefix = f"{path}." if path else ""
        hints, required = _declared(cls)
        for name in values:
            if name not in hints and not further:
                match = self._renamed.fields.get(f"{prefix}{name}") or nearest(str(name), tuple(hints))
                hint = f"did you mean {match!r}?" if match in hints else f"fields here: {', '.join(hints)}"
                self._add(f"{prefix}{show(name)[1:-1]}: unknown field; {hint}")
        arguments = {}
        for name, hint in hints.items():
            if name in values:
                arguments[name] = self.value(hint, values[name], f"{prefix}{name}")
            elif name in required and not partial:
                self._add(f"{prefix}{name}: missing; expected {_name(hint)}")
        if self._missing > missing:
            return None
        if typing.is_typeddict(cls):
            return {**values, **arguments}
        built = cls(**arguments)
        if hasattr(built, "check"):
            known = {problem.partition(":")[0] for problem in self.found[first:]}
            impossible = (f"{prefix}{problem}" for problem in built.check())
            for problem in impossible:
                if problem.partition(":")[0] not in known:
                    self._add(problem)
        return built

    def _member(self, cls: type[enum.Enum], value: Any, path: str) -> enum.Enum | None:
        try:
            return cls(value)
        except ValueError:
            choices = [str(member.value) for member in cls]
            match = self._renamed.values.get((path, str(value))) or nearest(str(value), choices)
            hint = f"; did you mean {match!r}?" if match else ""
            self._add(f"{path}: expected one of {', '.join(choices)}, got {show(value)}{hint}")
            return None


@functools.cache
def _declared(cls: type) -> tuple[dict[str, Any], frozenset[str]]:
    """Return the types of all fields, and the names of the required ones."""
    hints = typing.get_type_hints(cls, include_extras=True)
    if typing.is_typeddict(cls):
        # `__required_keys__` is wrong where annotations are strings.
        return hints, frozenset(name for name, hint in hints.items() if typing.get_origin(hint) is not NotRequired)
    fields = [field for field in dataclasses.fields(cls) if field.init]
    missing = dataclasses.MISSING
    required = {field.name for field in fields if field.default is missing and field.default_factory is missing}
    return {field.name: hints[field.name] for field in fields}, frozenset(required)


def _are_all(hint: Any, values: Sequence[Any]) -> bool:
    """Return whether all values are valid numbers of one type: a shortcut for long sequences of them."""
    if hint is float:
        return all(type(value) is float for value in values) and math.isfinite(math.fsum(map(abs, values)))
    return hint is int and all(type(value) is int for value in values) and max(map(abs, values), default=0) < INT_LIMIT


def _is_type(hint: Any, value: Any) -> bool:
    """Return whether a single value has a type; a whole number is a float too, and a truth value is no number."""
    if hint in (None, type(None)):
        return value is None
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return hint in (str, bool) and isinstance(value, hint)


def _range_problem(hint: Any, value: Any) -> str:
    """Return what was expected of a value of the right type; "" if it can be used."""
    if hint is float and not _is_finite(value):
        return "a finite number"
    if hint is int and abs(value) >= INT_LIMIT:
        return "a number of at most 64 bits"
    if hint is str and not _is_unicode(value):
        return "valid Unicode"
    return ""


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond the largest float
        return False


def _is_unicode(text: str) -> bool:
    """Return whether text can be written to a file; lone surrogates cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _name(hint: Any) -> str:
    if hint in (None, type(None)):
        return "null"
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return " or ".join(_name(each) for each in typing.get_args(hint))
    return str(hint) if typing.get_origin(hint) else getattr(hint, "__name__", str(hint))
