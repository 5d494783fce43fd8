"""What an exported folder records about its model, so that it can be imported again."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, TypedDict

from earthgpt_jax.common import typed
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.parsing import parse_json
from earthgpt_jax.config import ModelConfig, model_from_dict, to_dict
from earthgpt_jax.models.model_dir import ModelDir

_KEY = "earthgpt_jax"
_ADVICE = "export the model again with this version of earthgpt-jax"
_FORMAT_VERSION = 2  # of the entry `earthgpt_jax` in config.json; raised when its keys change


class _Entry(TypedDict):
    model: dict[str, Any]
    exported: dict[str, Any]
    decimals: int
    chat_template: str
    provenance: dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportInfo:
    """The settings of an exported model, as in a model directory's config.json.

    `model` has no adapters if the export merged them.
    """

    model: ModelConfig
    decimals: int
    chat_template: str
    provenance: dict[str, Any]


def export_info(model: ModelDir, exported: ModelConfig) -> dict[str, Any]:
    """Return the entry `earthgpt_jax` of an export's config.json, from which the model can be imported again.

    Args:
        model: the model directory that is exported.
        exported: the config of the exported weights, without adapters.
    """
    return {
        "format_version": _FORMAT_VERSION, "model": to_dict(model.model), "exported": to_dict(exported),
        "decimals": model.decimals, "chat_template": model.chat_template, "provenance": model.provenance,
    }  # fmt: skip


def read_export_info(folder: Path) -> ExportInfo | None:
    """Return what `export_info` wrote to a folder's config.json; None if the folder is not an export of ours.

    Raises:
        EarthGPTError: config.json is damaged, or has another format version.
    """
    path = folder / "config.json"
    if not path.is_file():
        return None
    config = parse_json(path.read_bytes(), where=str(path), advice=_ADVICE)
    values = config.get(_KEY) if isinstance(config, dict) else None
    if values is None:
        return None
    if "quantization_config" in config:
        raise EarthGPTError(
            f"{path}: expected an export with all bits, got one with weights of 8 bits; import the model from which it "
            "was made"
        )
    version = values.get("format_version", 1) if isinstance(values, dict) else None
    if version != _FORMAT_VERSION:
        raise EarthGPTError(
            f"{path}: expected an export with format_version {_FORMAT_VERSION}, got {typed.show(version)}; {_ADVICE}"
        )
    values = typed.check(_Entry, values, where=f"{path}: {_KEY}", further=True)
    has_adapters = (folder / "adapter").is_dir()
    return ExportInfo(
        model=model_from_dict(values["model" if has_adapters else "exported"], where=str(path)),
        decimals=values["decimals"],
        chat_template=values["chat_template"],
        provenance=values["provenance"],
    )
