"""The architecture of a source checkpoint, in the fields of our recipes, and its comparison with a recipe.

Names and shapes of tensors do not show everything that a model computes: two LLaMAs of equal shapes may differ in the
base of RoPE, its scaling, the number of heads, epsilon or activation. An import therefore compares the `SourceConfig`
of every checkpoint with the recipe, and refuses what this model cannot compute. `llama_configs` and `tower_configs`
read it from the files of other programs.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.parsing import parse_json
from earthgpt_jax.config import ModelConfig, RopeScaling, to_dict

Shapes = Mapping[str, tuple[int, ...]]
Values = Mapping[str, Any]


# Fields of a rope_scaling that count, by method: our field -> transformers'.
SCALING_FIELDS: dict[RopeScaling, dict[str, str]] = {
    RopeScaling.NONE: {"kind": "rope_type"},
    RopeScaling.LINEAR: {"kind": "rope_type", "factor": "factor"},
    RopeScaling.LLAMA3: {
        "kind": "rope_type", "factor": "factor", "original_positions": "original_max_position_embeddings",
        "low_freq_factor": "low_freq_factor", "high_freq_factor": "high_freq_factor",
    },
    RopeScaling.YARN: {
        "kind": "rope_type", "factor": "factor", "original_positions": "original_max_position_embeddings",
        "beta_fast": "beta_fast", "beta_slow": "beta_slow", "attention_factor": "attention_factor",
    },
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """The architecture of a checkpoint.

    Attributes:
        where: the file or folder that says so, for messages.
        fields: field of `model` -> value, for example {"llm.norm_eps": 1e-5}. A field that the source does not show is
            absent.
        unsupported: what the source computes and this model cannot, one reason each.
    """

    where: str
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    unsupported: Sequence[str] = ()

    def under(self, prefixes: Sequence[str]) -> SourceConfig:
        """Return the fields below some prefixes only, for example ["llm."]."""
        kept = {name: value for name, value in self.fields.items() if name.startswith(tuple(prefixes))}
        return dataclasses.replace(self, fields=kept)

    def problems(self, model: ModelConfig) -> list[str]:
        """Return what keeps the checkpoint from being read as `model`: one message each, empty if nothing does."""
        problems = [f"{self.where}: {reason}" for reason in self.unsupported]
        ours = flat_fields(model)
        different = {name: value for name, value in self.fields.items() if not _equal(ours[name], value)}
        if different:
            listed = ", ".join(f"{name} is {value} (the recipe has {ours[name]})" for name, value in different.items())
            overrides = " ".join(f"--config.model.{name}={_literal(value)}" for name, value in different.items())
            problems.append(
                f"{self.where}: {len(different)} field(s) differ from the recipe: {listed}; "
                f"use the recipe of these weights, or override its fields: {overrides}"
            )
        return problems


def flat_fields(model: ModelConfig) -> dict[str, Any]:
    """Return field -> value of a config in the form in which `SourceConfig.fields` has them.

    Fields with several spellings of one meaning have the shortest: a head size of dim / heads is 0.
    """
    fields = _flatten(to_dict(model))
    llm = model.llm
    fields["llm.head_size"] = head_size(llm.head_dim, dim=llm.dim, heads=llm.heads)
    fields["llm.qkv_bias"] = llm.qkv_bias and not llm.attention_bias
    return fields


def own_config(model: ModelConfig, *, where: str) -> SourceConfig:
    """Return the architecture that a model directory or an export of ours records."""
    fields = flat_fields(model)
    scaling = SCALING_FIELDS[model.llm.rope_scaling.kind]
    ignored = {"compute_dtype", "llm.tokenizer_size"}
    fields = {
        name: value
        for name, value in fields.items()
        if name not in ignored
        and not name.startswith("adapter.")
        and (not name.startswith("llm.rope_scaling.") or name.rpartition(".")[2] in scaling)
    }
    return SourceConfig(where=where, fields=fields)


def _flatten(values: Values, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _equal(ours: Any, theirs: Any) -> bool:
    if isinstance(theirs, (list, tuple)):
        return list(ours) == list(theirs)
    if isinstance(theirs, float):
        return math.isclose(ours, theirs, rel_tol=1e-9)
    return ours == theirs


def _literal(value: Any) -> str:
    return str(value).replace(" ", "") if isinstance(value, (list, tuple)) else str(value)


def head_size(head_dim: int, *, dim: int, heads: int) -> int:
    """Return the field `llm.head_size` of heads with `head_dim` channels: 0 if that is dim / heads."""
    return 0 if head_dim * heads == dim else head_dim


def depth(shapes: Shapes, pattern: str) -> int:
    """Return the number of layers, from names that match `pattern` with the layer as its group."""
    return 1 + max(int(match[1]) for key in shapes if (match := re.fullmatch(pattern, key)))


# ----------------------------------------------------------------------------------------------- files
CONFIG_FILES = ("config.json", "params.json")  # of transformers and LLaMA2-Accessory; of Meta


def read_config_file(paths: Sequence[Path]) -> tuple[str, Values | None]:
    """Return the config file in the folder of a checkpoint, and its values; None if there is none.

    Args:
        paths: files and folders of the checkpoint; the first that has a config file counts.

    Raises:
        EarthGPTError: the file is not a JSON object.
    """
    for path in paths:
        folder = path if path.is_dir() else path.parent
        for name in CONFIG_FILES:
            file = folder / name
            if not file.is_file():
                continue
            values = parse_json(file.read_bytes(), where=str(file), advice="download the file again")
            if not isinstance(values, dict):
                raise EarthGPTError(f"{file}: expected a JSON object, got {type(values).__name__}; download it again")
            return str(file), values
    return ", ".join(map(str, paths)), None
