"""The model a run starts from."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.resources import assets_path
from earthgpt_jax.common.safetensors_files import open_model_files
from earthgpt_jax.config import AdapterKind, Config
from earthgpt_jax.convert import importer
from earthgpt_jax.convert.merge import MergedReader, merged_config
from earthgpt_jax.input.tokenizer import Tokenizer
from earthgpt_jax.models import earthgpt, model_dir
from earthgpt_jax.params import Params

_log = logging.getLogger(__name__)
RANDOM = "random"  # config.init: random weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitialModel:
    """The model a run starts from.

    Attributes:
        params: fp32 parameters of the full model.
        tokenizer: its SentencePiece file.
        about: where it comes from; recorded in checkpoints and in the finished model.
    """

    params: Params
    tokenizer: Path
    about: dict[str, Any]


def initial_model(config: Config) -> InitialModel:
    """Load the model named by `config.init` or assembled from `config.init_from`.

    `init=random` gives random weights with the embedded tokenizer.

    Adapters that the source lacks are initialised. Adapters of another kind than the config's, for example those that
    `instruct` leaves, are first merged into the linear layers they belong to.

    Raises:
        EarthGPTError: the source does not exist, does not fit `config.model`, or has adapters whose merge needs biases
            that the config does not have.
    """
    if config.init == RANDOM:
        tokenizer = assets_path("tiny-base", "tokenizer.model")
        pieces, vocab_size = Tokenizer(tokenizer).vocab_size, config.model.llm.vocab_size
        if vocab_size < pieces:
            raise EarthGPTError(
                f"init {RANDOM!r}: expected model.llm.vocab_size of at least {pieces}, the size of the embedded "
                f"tokenizer, got {vocab_size}"
            )
        _, params = earthgpt.init(config.model, seed=config.seed)
        return InitialModel(params=params, tokenizer=tokenizer, about={"recipe": RANDOM})
    if config.init:
        parent = model_dir.read_config(config.init)
        if parent.model.adapter.kind is AdapterKind.NONE or parent.model.adapter == config.model.adapter:
            _, params = model_dir.load_initial_params(config.init, config.model, seed=config.seed)
        else:
            params = _merge_adapters(parent, config)
        return InitialModel(params=params, tokenizer=parent.tokenizer, about=parent.provenance)
    tokenizer = importer.find_tokenizer(config.init_from)
    importer.check_vocabulary(tokenizer, config.model)
    params = importer.import_params(
        config.init_from, config.model, seed=config.seed, place=lambda _, array: jnp.asarray(array, jnp.float32)
    )
    about = {"recipe": "init_from", "parts": dict(config.init_from)}
    return InitialModel(params=params, tokenizer=tokenizer, about=about)


def _merge_adapters(parent: model_dir.ModelDir, config: Config) -> Params:
    merged, expected = merged_config(parent.model).llm, config.model.llm
    missing = [name for name in ("attention_bias", "mlp_bias") if getattr(merged, name) and not getattr(expected, name)]
    if missing:
        raise EarthGPTError(
            f"init {config.init!r}: merging its adapters ({parent.model.adapter.kind}) into the linear layers needs "
            f"biases there; set {' '.join(f'--config.model.llm.{name}=True' for name in missing)}"
        )
    _log.info("init %s: merged its adapters (%s) into the linear layers", config.init, parent.model.adapter.kind)
    reader = MergedReader(open_model_files(parent.path), parent.model)
    arrays = {path: reader.read(path) for path in reader.shapes}
    return model_dir.with_fresh_adapters(arrays, config.model, seed=config.seed, where=f"init {config.init!r}")
