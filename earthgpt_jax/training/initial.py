"""The model a run starts from."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import jax

from earthgpt_jax import params as params_lib
from earthgpt_jax.common.digests import fingerprint_json, sample_digest
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.resources import assets_path
from earthgpt_jax.config import Config
from earthgpt_jax.convert import importer
from earthgpt_jax.convert.source_config import own_config
from earthgpt_jax.input.tokenizer import Tokenizer
from earthgpt_jax.models import earthgpt, loading, model_dir
from earthgpt_jax.models.merge import MergedReader, merged_config
from earthgpt_jax.params import Params
from earthgpt_jax.sharding.mesh import data_parallel

_log = logging.getLogger(__name__)
RANDOM = "random"  # config.init: random weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitialModel:
    """The model a run starts from, before its parameters are read.

    Attributes:
        source: its parameters.
        tokenizer: the first file of its tokenizer.
        about: where it comes from; recorded in checkpoints and in the finished model.
        files: its files of parameters.
        directory: its model directory, which adapters can name as their parent; None: random or imported.
    """

    source: loading.Source
    tokenizer: Path
    about: dict[str, Any]
    files: tuple[Path, ...] = ()
    directory: model_dir.ModelDir | None = None

    def sample_digest(self) -> str:
        """Return a digest of samples of the files; it shows whether all processes read the same model."""
        return fingerprint_json([sample_digest(file) for file in self.files])


def initial_model(config: Config) -> InitialModel:
    """Open the model named by `config.init` or assembled from `config.init_from`.

    `init=random` gives random weights with the embedded tokenizer.

    Adapters that the source lacks are initialised. Adapters of another kind than the config's, for example those that
    `instruct` leaves, are merged into the linear layers they belong to.

    Raises:
        EarthGPTError: the source does not exist, does not fit `config.model`, or has adapters whose merge needs biases
            that the config does not have.
    """
    _, expected = earthgpt.abstract(config.model)
    if config.init == RANDOM:
        tokenizer = assets_path("tiny-base", "tokenizer.model")
        pieces, vocab_size = Tokenizer(tokenizer).vocab_size, config.model.llm.vocab_size
        if vocab_size < pieces:
            raise EarthGPTError(
                f"init {RANDOM!r}: expected model.llm.vocab_size of at least {pieces}, the size of the embedded "
                f"tokenizer, got {vocab_size}"
            )
        source = loading.Source(reader=None, fresh=tuple(expected))
        return InitialModel(source=source, tokenizer=tokenizer, about={"recipe": RANDOM})
    if config.init:
        parent = model_dir.read_config(config.init, parent=config.init_parent or None)
        reader = model_dir.open_for_adapter(parent, config.model.adapter)
        if isinstance(reader, MergedReader):
            _check_merge(parent, config)
        fresh = tuple(path for path in expected if "/adapter/" in path and path not in reader.shapes)
        given = {path: jax.ShapeDtypeStruct(shape, reader.dtypes[path]) for path, shape in reader.shapes.items()}
        needed, _ = params_lib.split(expected, expected.keys() - set(fresh))
        params_lib.check_same_shapes(needed, given, where=f"init {config.init!r}")
        _check_architecture(parent, config)
        if jax.process_index() == 0:  # once, for all that read the same files
            model_dir.check_small(parent)
        return InitialModel(
            source=loading.Source(reader=reader, fresh=fresh), tokenizer=parent.tokenizer, about=parent.provenance,
            files=parent.files, directory=parent,
        )  # fmt: skip
    tokenizer = importer.find_tokenizer(config.init_from)
    importer.check_vocabulary(tokenizer, config.model)
    imported = importer.open_import(config.init_from, config.model)
    return InitialModel(
        source=loading.Source(reader=imported, fresh=imported.initialized), tokenizer=tokenizer,
        about={"recipe": "init_from", "parts": dict(config.init_from)},
        files=importer.weight_files(config.init_from),
    )  # fmt: skip


def load_initial_params(config: Config) -> tuple[InitialModel, Params]:
    """Return the initial model and all its parameters in fp32, on a single device."""
    initial = initial_model(config)
    _, expected = earthgpt.abstract(config.model)
    params, _ = loading.load(
        initial.source, config.model, seed=config.seed, placement=data_parallel(1), trainable=expected,
        frozen_dtype=config.frozen_dtype,
    )  # fmt: skip
    return initial, params


# Fields of a recipe that may differ from those of the model it starts from. Biases show in shapes.
_FREE = ("vit.image_size", "convnext.image_size", "llm.attention_bias", "llm.qkv_bias", "llm.mlp_bias")


def _check_architecture(parent: model_dir.ModelDir, config: Config) -> None:
    """Raise if a field that does not show in shapes, such as the base of RoPE, differs from the initial model's."""
    architecture = own_config(parent.model, where=f"init {config.init!r}").under(["vit.", "convnext.", "llm."])
    fields = {name: value for name, value in architecture.fields.items() if name not in _FREE}
    if problems := dataclasses.replace(architecture, fields=fields).problems(config.model):
        raise EarthGPTError("; ".join(problems))


def _check_merge(parent: model_dir.ModelDir, config: Config) -> None:
    """Check that the model has the biases that merging the adapters of its parent needs."""
    merged, expected = merged_config(parent.model).llm, config.model.llm
    missing = [name for name in ("attention_bias", "mlp_bias") if getattr(merged, name) and not getattr(expected, name)]
    if missing:
        raise EarthGPTError(
            f"init {config.init!r}: merging its adapters ({parent.model.adapter.kind}) into the linear layers needs "
            f"biases there; set {' '.join(f'--config.model.llm.{name}=True' for name in missing)}"
        )
    _log.info("init %s: merged its adapters (%s) into the linear layers", config.init, parent.model.adapter.kind)
