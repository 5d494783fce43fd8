"""Read recipes into frozen dataclasses. A recipe is validated once, and all its errors are reported together.

A recipe is a Python file with `get_config(argument) -> ConfigDict`. The option `--config` takes a name such as
`tiny:align` (the recipe `configs/tiny.py`, called with "align") or a path such as `my/recipe.py:instruct`. Any field
can be overridden, for example with `--config.optim.peak_lr=1e-4`.
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
from typing import TYPE_CHECKING, Any

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.names import did_you_mean, nearest
from earthgpt_jax.common.resources import config_path
from earthgpt_jax.config import debug
from earthgpt_jax.config.model_schema import ModelConfig
from earthgpt_jax.config.schema import Config

if TYPE_CHECKING:
    import ml_collections  # only recipes need it; configs from plain values work without the package

# Fields and values that had another name, for suggestions only: they are not accepted.
_RENAMED_FIELDS = {
    "attention": "attention_impl",
    "trained_attention": "trainable_attention",
    "model.dtype": "compute_dtype",
    "data.tokens_per_row": "seq_len",
    "data.images_per_row": "max_images",
    "data.turns": "question_context",
    "data.damaged": "on_damaged",
    "data.conversation": "chat_template",
}
_RENAMED_VALUES = {("data.augment", "flips+turns"): "flips+rotations"}


def load(name: str, overrides: Sequence[str] = ()) -> Config:
    """Return the validated config of a recipe.

    Args:
        name: recipe and argument, for example `tiny:align`. The suffix `:debug` shrinks any recipe to run on a CPU in
            seconds, for example `earthgpt_13b:align:debug`.
        overrides: `--config.field.subfield=value`, applied in order. Values are Python literals or plain text.

    Raises:
        EarthGPTError: the file is missing or raises, or a field is unknown, missing, of the wrong type or has an
            impossible value; the message lists all problems.
    """
    recipe_name = name.removesuffix(debug.SUFFIX)
    values = load_recipe(recipe_name).to_dict()
    if recipe_name != name:
        values = debug.shrink(values)
    for override in overrides:
        _apply_override(values, override)
    return from_dict(values, where=f"config {name}")


def load_recipe(name: str) -> ml_collections.ConfigDict:
    """Return what a recipe's `get_config` returns, without validation, so that another recipe can build on it.

    Raises:
        EarthGPTError: the file is missing, or running it raises.
    """
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
    """Return the config that nested plain values describe; the inverse of `to_dict`.

    Args:
        where: origin of the values, for the error message.

    Raises:
        EarthGPTError: as for `build`.
    """
    return build(Config, values, where=where)


def model_from_dict(values: Mapping[str, Any], *, where: str = "model config") -> ModelConfig:
    """Return the model config that nested plain values describe; like `from_dict`."""
    return build(ModelConfig, values, where=where)


def to_dict(config: Any) -> dict[str, Any]:
    """Return a config dataclass as plain values for JSON: enums become strings, tuples become lists."""
    return _plain(dataclasses.asdict(config))


def build(cls: type, values: Mapping[str, Any], *, where: str) -> Any:
    """Return an instance of the dataclass `cls`, built from nested plain values and validated.

    Types are checked against the annotations, and every dataclass's `check()` is called.

    Args:
        cls: frozen dataclass whose fields are plain values, enums, tuples, dicts or such dataclasses.
        where: origin of the values, for the error message.

    Raises:
        EarthGPTError: a field is unknown, missing, of the wrong type or has an impossible value; the message lists
            all problems.
    """
    errors: list[str] = []
    built = _build(cls, values, "", errors)
    if len(errors) == 1:
        raise EarthGPTError(f"{where}: {errors[0]}")
    if errors:
        raise EarthGPTError(f"{where}: {len(errors)} problems\n" + "\n".join(f"  - {error}" for error in errors))
    return built


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
    recipes = sorted(path.stem for path in config_path().glob("*.py"))
    raise EarthGPTError(
        f"config {name!r}: expected a file or the name of a recipe{did_you_mean(Path(name).stem, recipes)} "
        f"Recipes: {', '.join(recipes)}."
    )


def _apply_override(values: dict[str, Any], override: str) -> None:
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
            raise EarthGPTError(f"override {override!r}: {parent} is a value and has no field {last!r}")
        node = child
    node[last] = value


def _build(cls: type, values: Any, path: str, errors: list[str]) -> Any:
    """Return `cls(**values)`, recursively; or None, with the problems and their paths appended to `errors`."""
    if not isinstance(values, Mapping):
        errors.append(f"{path or 'config'}: expected a group of fields, got {values!r}")
        return None
    before = len(errors)
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name in values:
        if name not in fields:
            match = _RENAMED_FIELDS.get(f"{path}{name}") or nearest(name, fields)
            hint = f"did you mean {match!r}?" if match in fields else f"fields here: {', '.join(fields)}"
            errors.append(f"{path}{name}: unknown field; {hint}")
    arguments = {}
    for name, field in fields.items():
        if name in values:
            arguments[name] = _value(hints[name], values[name], f"{path}{name}", errors)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            errors.append(f"{path}{name}: missing; expected {_type_name(hints[name])}")
    if len(errors) > before:
        return None
    built = cls(**arguments)
    errors.extend(f"{path}{error}" for error in built.check())
    return built


def _value(hint: Any, value: Any, path: str, errors: list[str]) -> Any:
    """Return `value` as the type `hint`; or None, with the problem appended to `errors`."""
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
        return _enum_member(hint, value, path, errors)
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif (hint is int and isinstance(value, int) and not isinstance(value, bool)) or (
        hint in (str, bool) and isinstance(value, hint)
    ):
        return value
    errors.append(f"{path}: expected {_type_name(hint)}, got {value!r} ({type(value).__name__})")
    return None


def _enum_member(cls: type[enum.Enum], value: Any, path: str, errors: list[str]) -> enum.Enum | None:
    try:
        return cls(value)
    except ValueError:
        choices = [member.value for member in cls]
        match = _RENAMED_VALUES.get((path, str(value))) or nearest(str(value), choices)
        hint = f"; did you mean {match!r}?" if match else ""
        errors.append(f"{path}: expected one of {', '.join(choices)}, got {value!r}{hint}")
        return None


def _type_name(hint: Any) -> str:
    if isinstance(hint, types.GenericAlias):
        return str(hint)
    return getattr(hint, "__name__", str(hint))
