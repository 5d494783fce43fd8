"""Read back what an exported folder records about the model it was made from."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.config import ModelConfig, model_from_dict


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportInfo:
    """The settings of an exported model, as in a model directory's config.json.

    `model` has no adapters if the export merged them.
    """

    model: ModelConfig
    decimals: int
    chat_template: str
    about: dict[str, Any]


def read_export_info(folder: Path) -> ExportInfo | None:
    """Return what a folder's config.json records; None if the folder is not an export of ours.

    Raises:
        EarthGPTError: config.json is damaged.
    """
    path = folder / "config.json"
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text()).get("earthgpt_jax")
        if values is None:
            return None
        has_adapters = (folder / "adapter").is_dir()
        return ExportInfo(
            model=model_from_dict(values["model" if has_adapters else "exported"], where=str(path)),
            decimals=values["decimals"],
            chat_template=values["conversation"],
            about=values["about"],
        )
    except (ValueError, KeyError) as error:
        raise EarthGPTError(
            f"{path}: expected the config.json of an export ({type(error).__name__}: {error}); export the model again"
        ) from error
