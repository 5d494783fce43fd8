"""Recipes to frozen dataclasses: an ml_collections ConfigDict is validated once, and all errors are reported together.

A recipe is a Python file with `get_config(stage) -> ConfigDict`. `--config` names it as `tiny:align`,
`configs/tiny.py:instruct` or any path. A field is overridden as `--config.optim.peak_lr=1e-4`.
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import importlib.util
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.names import did_you_mean
from earthgpt_jax.common.resources import config_path
from earthgpt_jax.config import debug
from earthgpt_jax.config.schema import Config, ModelConfig


def load(name: str, overrides: Sequence[str] = ()) -> Config:
    """The recipe `name` with `overrides` (`--config.a.b=value`) applied, validated.

    Raises:
        EarthGPTError: the file is missing or does not run, or any field is unknown, of the wrong type
            or impossible; everything found is in the one message.
    """
    recipe_name = name.removesuffix(debug.SUFFIX)
    values = load_recipe(recipe_name).to_dict()
    if recipe_name != name:
        values = debug.shrink(values)
    for override in overrides:
        _apply(values, override)
    return from_dict(values, where=f"config {name}")


def load_recipe(name: str) -> ml_collections.ConfigDict:
    """What the file of `name` (`file:argument`) returns, not validated yet; a recipe may build on another's."""
    file_name, _, argument = name.partition(":")
    path = _find(file_name)
    spec = importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return module.get_config(argument) if argument else module.get_config()
    except EarthGPTError:
        raise
    except Exception as error:
        raise EarthGPTError(
            f"config {path}: get_config({argument!r}) failed: {type(error).__name__}: {error}"
        ) from error


def from_dict(values: Mapping[str, Any], *, where: str = "config") -> Config:
    """Frozen dataclasses from nested plain values; the inverse of `to_dict`."""
    return build(Config, values, where=where)


def model_from_dict(values: Mapping[str, Any], *, where: str = "model config") -> ModelConfig:
    """Like `resolve`, for a model's config alone."""
    return build(ModelConfig, values, where=where)


def to_dict(config: Any) -> dict[str, Any]:
    """Plain values (enums as strings, tuples as lists) of a config dataclass, for JSON."""
    return _plain(dataclasses.asdict(config))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value.value if isinstance(value, enum.Enum) else value


def _find(name: str) -> Path:
    candidates = [Path(name), config_path(name), config_path(f"{name}.py")]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    known = sorted(path.stem for path in config_path().glob("*.py"))
    raise EarthGPTError(
        f"config {name!r}: expected a file or the name of a recipe{did_you_mean(Path(name).stem, known)} "
        f"Recipes: {', '.join(known)}."
    )


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.removeprefix("--config.").partition("=")
    if not equals or not key:
        raise EarthGPTError(f"override {override!r}: expected --config.field.subfield=value")
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    *parents, last = key.split(".")
    node = values
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise EarthGPTError(f"override {override!r}: {parent} is a value, it has no field {last!r}")
        node = child
    node[last] = value


def build(cls: type, values: Mapping[str, Any], *, where: str) -> Any:
    """A frozen dataclass from plain values, its `check()` asked.

    Raises:
        EarthGPTError: any field is unknown, missing, of the wrong type or impossible; everything found is in the one
            message.
    """
    errors: list[str] = []
    built = _build(cls, values, "", errors)
    if len(errors) == 1:
        raise EarthGPTError(f"{where}: {errors[0]}")
    if errors:
        raise EarthGPTError(f"{where}: {len(errors)} problems\n" + "\n".join(f"  - {error}" for error in errors))
    return built


def _build(cls: type, values: Any, path: str, errors: list[str]) -> Any:
    """`cls(**values)`, recursively; what is wrong goes to `errors` with its path, and None comes back."""
    if not isinstance(values, Mapping):
        errors.append(f"{path or 'config'}: expected a group of fields, got {values!r}")
        return None
    before = len(errors)
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name in values:
        if name not in fields:
            errors.append(f"{path}{name}: unknown field{did_you_mean(name, fields)} Fields here: {', '.join(fields)}")
    arguments = {}
    for name, field in fields.items():
        if name in values:
            arguments[name] = _value(hints[name], values[name], f"{path}{name}", errors)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            errors.append(f"{path}{name}: missing; expected {_name(hints[name])}")
    if len(errors) > before:
        return None
    built = cls(**arguments)
    errors.extend(f"{path}{error}" for error in built.check())
    return built


def _value(hint: Any, value: Any, path: str, errors: list[str]) -> Any:
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, f"{path}.", errors)
    origin = typing.get_origin(hint)
    if origin is tuple:
        if isinstance(value, (list, tuple)):
            inner = typing.get_args(hint)[0]
            return tuple(_value(inner, item, f"{path}[{i}]", errors) for i, item in enumerate(value))
    elif origin is dict:
        if isinstance(value, Mapping):
            inner = typing.get_args(hint)[1]
            return {str(key): _value(inner, item, f"{path}.{key}", errors) for key, item in value.items()}
    elif isinstance(hint, type) and issubclass(hint, enum.Enum):
        try:
            return hint(value)
        except ValueError:
            choices = [member.value for member in hint]
            hint = did_you_mean(str(value), choices)
            errors.append(f"{path}: expected one of {', '.join(choices)}, got {value!r}{hint}")
            return None
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif (hint is int and isinstance(value, int) and not isinstance(value, bool)) or (
        hint in (str, bool) and isinstance(value, hint)
    ):
        return value
    errors.append(f"{path}: expected {_name(hint)}, got {value!r} ({type(value).__name__})")
    return None


def _name(hint: Any) -> str:
    if isinstance(hint, types.GenericAlias):
        return str(hint)
    return getattr(hint, "__name__", str(hint))
