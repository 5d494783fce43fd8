"""Write a recipe whose model has the architecture of some checkpoints."""

from __future__ import annotations

import pprint
from pathlib import Path

from earthgpt_jax.common import files
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.config import ModelConfig, to_dict

_TEMPLATE = '''"""{name}: the recipe {base} with the architecture of other checkpoints.

Written by `earthgpt convert import --derive`.
"""

from ml_collections import ConfigDict

from earthgpt_jax.config import load_recipe

MODEL = {model}


def get_config(stage: str = "align") -> ConfigDict:
    config = load_recipe(f"{base}:{{stage}}")
    config.recipe = "{name}"
    config.init = "models/{name}"
    config.model = ConfigDict({{**MODEL, "adapter": config.model.adapter.to_dict()}})
    return config
'''


def write_recipe(path: Path, *, base: str, model: ModelConfig) -> None:
    """Write a recipe: `base`, with the model replaced by `model`; the adapters of each stage are those of `base`.

    Args:
        path: the file to write.
        base: name or path of a recipe, without a stage.

    Raises:
        EarthGPTError: the file exists, or does not end in `.py`.
    """
    if path.suffix != ".py" or path.exists():
        state = "a file that exists already" if path.exists() else "another name"
        raise EarthGPTError(f"{path}: expected a new file NAME.py for the recipe, got {state}; choose another --out")
    values = {name: value for name, value in to_dict(model).items() if name != "adapter"}
    base = str(files.path(base).resolve()) if files.path(base).is_file() else base
    text = pprint.pformat(values, width=110, sort_dicts=False)
    files.write_output(path, _TEMPLATE.format(name=path.stem, base=base, model=text).encode())
