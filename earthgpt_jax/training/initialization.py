"""What a run starts from: a model directory, or foreign checkpoints part by part."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import jax.numpy as jnp

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.config import AdapterKind, Config
from earthgpt_jax.convert import importer
from earthgpt_jax.convert.merge import MergedReader, merged_config
from earthgpt_jax.convert.tensor_io import SafetensorsReader
from earthgpt_jax.models import model_dir
from earthgpt_jax.params import Params

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitialModel:
    """fp32 parameters of the whole model, the tokenizer that goes with them, and where they are from."""

    params: Params
    tokenizer: Path
    about: dict


def initial_model(config: Config) -> InitialModel:
    """Reads `config.init` or `config.init_from`; adapters that are in neither start fresh.

    Adapters of another kind than the config's, as `instruct` leaves them, are folded into the linears they sit on.
    """
    if config.init:
        parent = model_dir.read_config(config.init)
        if parent.model.adapter.kind is AdapterKind.NONE or parent.model.adapter == config.model.adapter:
            _, params = model_dir.load_initial_params(config.init, config.model, seed=config.seed)
        else:
            params = _folded(parent, config)
        return InitialModel(params=params, tokenizer=parent.tokenizer, about=parent.about)
    tokenizer = importer.find_tokenizer(config.init_from)
    importer.check_vocabulary(tokenizer, config.model)
    params = importer.import_params(
        config.init_from, config.model, seed=config.seed, place=lambda _, array: jnp.asarray(array, jnp.float32)
    )
    return InitialModel(
        params=params, tokenizer=tokenizer, about={"recipe": "init_from", "parts": dict(config.init_from)}
    )


def _folded(parent: model_dir.ModelDir, config: Config) -> Params:
    plain, wanted = merged_config(parent.model).llm, config.model.llm
    missing = [name for name in ("attention_bias", "mlp_bias") if getattr(plain, name) and not getattr(wanted, name)]
    if missing:
        raise EarthGPTError(
            f"init {config.init!r}: its adapters ({parent.model.adapter.kind}), folded into its linears, need biases "
            f"there; set {' '.join(f'--config.model.llm.{name}=True' for name in missing)}"
        )
    _log.info("init %s: adapters (%s) folded into its linears", config.init, parent.model.adapter.kind)
    reader = MergedReader(SafetensorsReader([parent.path / "model.safetensors"]), parent.model)
    arrays = {path: reader.read(path) for path in reader.shapes}
    return model_dir.with_fresh_adapters(arrays, config.model, seed=config.seed, where=f"init {config.init!r}")
