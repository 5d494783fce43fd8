"""What a run starts from: a model directory, or foreign checkpoints part by part."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax.numpy as jnp

from earthgpt_jax.config import Config
from earthgpt_jax.convert import importer
from earthgpt_jax.models import io
from earthgpt_jax.params import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Initial:
    """fp32 parameters of the whole model, the tokenizer that goes with them, and where they are from."""

    params: Params
    tokenizer: Path
    about: dict


def initial(config: Config) -> Initial:
    """Reads `config.init` or `config.init_from`; adapters that are in neither start fresh."""
    if config.init:
        parent, params = io.initial_params(config.init, config.model, seed=config.seed)
        return Initial(params=params, tokenizer=parent.tokenizer, about=parent.about)
    tokenizer = importer.find_tokenizer(config.init_from)
    importer.check_vocabulary(tokenizer, config.model)
    params = importer.initial_arrays(
        config.init_from, config.model, seed=config.seed, place=lambda _, array: jnp.asarray(array, jnp.float32)
    )
    return Initial(params=params, tokenizer=tokenizer, about={"recipe": "init_from", "parts": dict(config.init_from)})
