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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from earthgpt_jax.common import files, typed
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.names import did_you_mean
from earthgpt_jax.common.resources import config_path
from earthgpt_jax.config import debug
from earthgpt_jax.config.model_schema import ModelConfig
from earthgpt_jax.config.schema import Config

if TYPE_CHECKING:
    import ml_collections  # only recipes need it; configs from plain values work without the package

# Fields and values that had another name, for suggestions only: they are not accepted.
_RENAMED = typed.Renamed(
    fields={
        "attention": "attention_impl",
        "trained_attention": "trainable_attention",
        "model.dtype": "compute_dtype",
        "data.tokens_per_row": "seq_len",
        "data.images_per_row": "max_images",
        "data.turns": "question_context",
        "data.damaged": "on_damaged",
        "data.conversation": "chat_template",
    },
    values={("data.augment", "flips+turns"): "flips+rotations"},
)


def load(name: str, overrides: Sequence[str] = ()) -> Config:
    """Return the validated config of a recipe.

    Args:
        name: recipe and argument, such as `tiny:align` or `my/recipe.py:align`. The suffix `:debug` shrinks any recipe
            to run on a CPU in seconds, for example `earthgpt_13b:align:debug`.
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
        config = module.get_config(argument) if argument else module.get_config()
    except EarthGPTError:
        raise
    except Exception as error:
        suggestion = did_you_mean(argument, getattr(module, "STAGES", ())).removesuffix(".")
        raise EarthGPTError(
            f"config {path}: get_config({argument!r}) failed: {type(error).__name__}: {error}{suggestion}"
        ) from error
    if not hasattr(config, "to_dict"):
        raise EarthGPTError(
            f"config {path}: expected get_config({argument!r}) to return a ConfigDict, got {type(config).__name__}"
        )
    return config


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
    """Return an instance of the dataclass `cls`, built from nested plain values and validated (`typed.check`).

    Raises:
        EarthGPTError: a field is unknown, missing, of the wrong type or has an impossible value; the message lists
            all problems.
    """
    return typed.check(cls, values, where=where, renamed=_RENAMED)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value.value if isinstance(value, enum.Enum) else value


def _find(name: str) -> Path:
    # A file of another kind that happens to be called `tiny` must not hide the recipe of that name.
    candidates = [files.path(name), config_path(name)] if name.endswith(".py") else [config_path(f"{name}.py")]
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
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = text  # also what is nested too deeply to be a value
    *parents, last = key.split(".")
    node = values
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise EarthGPTError(f"override {override!r}: {parent} is a value and has no field {last!r}")
        node = child
    node[last] = value
