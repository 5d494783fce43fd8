"""What a folder that we exported says of the model it came from."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.config import ModelConfig, model_from_dict


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """As in a model directory's config.json; `model` is without adapters if they were folded."""

    model: ModelConfig
    decimals: int
    chat_template: str
    about: dict


def described(folder: Path) -> Description | None:
    """The description in a folder's config.json; None where there is none of ours."""
    path = folder / "config.json"
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text()).get("earthgpt_jax")
        if values is None:
            return None
        has_adapters = (folder / "adapter").is_dir()
        return Description(
            model=model_from_dict(values["model" if has_adapters else "exported"], where=str(path)),
            decimals=values["decimals"],
            chat_template=values["conversation"],
            about=values["about"],
        )
    except (ValueError, KeyError) as error:
        raise EarthGPTError(f"{path}: not the config of an export ({error}); take the folder anew") from error
