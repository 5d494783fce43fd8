"""A model directory: `model.safetensors` (path -> array), `config.json` and `tokenizer.model`.

Several processes write the arrays into one file each, `model-00001-of-00002.safetensors` and so on, which
`model.safetensors.index.json` lists (`model_writer`). All functions here read both layouts.

The embedded models (`tiny-base`, `tiny`) and the `model` folder that training leaves in its work directory are model
directories. `config.json` holds `format_version`, `model` (a `ModelConfig`), `decimals`, `chat_template` and
`provenance`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes  # noqa: F401  (registers bfloat16 with NumPy, which safetensors needs)
import numpy as np
from jax.sharding import NamedSharding
from safetensors import SafetensorError
from safetensors.numpy import save_file

from earthgpt_jax import params as params_lib
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.files import IfExists, atomic_folder
from earthgpt_jax.common.resources import assets_path
from earthgpt_jax.common.safetensors_files import INDEX, SINGLE, SafetensorsReader, model_files, open_model_files
from earthgpt_jax.config import ModelConfig, model_from_dict, to_dict
from earthgpt_jax.models import earthgpt
from earthgpt_jax.params import Params
from earthgpt_jax.sharding.mesh import Placement

EMBEDDED = ("tiny-base", "tiny")
FILES = (SINGLE, "config.json", "tokenizer.model")
FORMAT_VERSION = 2  # of config.json


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelDir:
    """A model directory without its arrays.

    Attributes:
        path: the directory.
        model: config of the model.
        decimals: decimals of box coordinates in the model's answers.
        chat_template: name of the chat template that the model was trained with.
        provenance: where the model comes from (recipe, stage, steps, data, and the same of its parent).
    """

    path: Path
    model: ModelConfig
    decimals: int
    chat_template: str
    provenance: dict

    @property
    def tokenizer(self) -> Path:
        """The SentencePiece model."""
        return self.path / "tokenizer.model"

    @property
    def weights(self) -> Path:
        """The file of the arrays, or the index of several files."""
        index = self.path / INDEX
        return index if index.is_file() else self.path / SINGLE

    @property
    def weight_bytes(self) -> int:
        """Size of the files of the arrays in bytes."""
        return sum(file.stat().st_size for file in model_files(self.path))


def find(name: str | Path) -> Path:
    """Return the directory of an embedded model, by name, or of a path.

    Raises:
        EarthGPTError: it is not a model directory.
    """
    path = assets_path(str(name)) if str(name) in EMBEDDED else Path(name)
    missing = [file for file in FILES if not (path / file).is_file()]
    if SINGLE in missing and (path / INDEX).is_file():
        missing.remove(SINGLE)
    if missing:
        raise EarthGPTError(
            f"model {str(name)!r}: expected a directory with {', '.join(FILES)}; {path} lacks {', '.join(missing)}. "
            f"Give the `model` folder of a training run, or an embedded model: {', '.join(EMBEDDED)}."
        )
    return path


def read_config(name: str | Path) -> ModelDir:
    """Read a model directory without its arrays.

    Raises:
        EarthGPTError: the directory lacks a file, or its config is damaged or of another format version.
    """
    path = find(name)
    file = path / "config.json"
    try:
        values = json.loads(file.read_text())
        if not isinstance(values, dict):
            raise ValueError("not a JSON object")
        _check_format_version(values, file)
        return ModelDir(
            path=path,
            model=model_from_dict(values["model"], where=f"{file}"),
            decimals=values["decimals"],
            chat_template=values["chat_template"],
            provenance=values["provenance"],
        )
    except (ValueError, KeyError) as error:
        raise EarthGPTError(
            f"{file}: expected the config of a model, got something else ({error!r}); copy the directory again from "
            "where it was trained or imported"
        ) from error


def _check_format_version(values: dict[str, Any], file: Path) -> None:
    version = values.get("format_version", 1)
    if version == FORMAT_VERSION:
        return
    if version == 1:
        advice = (
            "It was written by an older version: train or import the model again, or edit the file: rename `dtype` in "
            "`model` to `compute_dtype`, `conversation` to `chat_template` and `about` to `provenance`, and add "
            f'"format_version": {FORMAT_VERSION}.'
        )
    else:
        advice = "It was written by another version of earthgpt-jax; install that version."
    raise EarthGPTError(f"{file}: expected format_version {FORMAT_VERSION}, got {version}. {advice}")


def read(name: str | Path) -> tuple[ModelDir, dict[str, np.ndarray]]:
    """Read a model directory and its arrays, in the dtypes that they are stored in.

    Raises:
        EarthGPTError: see `read_config`; or the arrays are damaged or do not have the shapes of the config.
    """
    model = read_config(name)
    reader = open_params(model)
    with _readable(model.weights):
        return model, {path: reader.read(path) for path in sorted(reader.shapes)}


def open_params(model: ModelDir) -> SafetensorsReader:
    """Open the arrays of a model directory.

    Raises:
        EarthGPTError: the arrays are damaged or do not have the shapes of the config.
    """
    with _readable(model.weights):
        reader = open_model_files(model.path)
    _, expected = earthgpt.abstract(model.model)
    given = {path: jax.ShapeDtypeStruct(shape, reader.dtypes[path]) for path, shape in reader.shapes.items()}
    params_lib.check_same_shapes(expected, given, where=str(model.weights))
    return reader


def load_sharded(model: ModelDir, placement: Placement) -> Params:
    """Load the arrays of a model directory onto the devices of a mesh; each reads its own shards only.

    Raises:
        EarthGPTError: the arrays are damaged or do not have the shapes of the config.
    """
    reader = open_params(model)
    with _readable(model.weights):
        shapes = {path: jax.ShapeDtypeStruct(reader.shapes[path], np.uint8) for path in sorted(reader.shapes)}
        shardings = placement.shardings(shapes)
        return {path: _load_array(reader, path, shardings[path]) for path in shapes}


def _load_array(reader: SafetensorsReader, path: str, sharding: NamedSharding) -> jax.Array:
    """Read an array shard by shard."""
    shards: dict[str, np.ndarray] = {}  # several devices may hold the same shard

    def read_shard(index: tuple[slice, ...] | None) -> np.ndarray:
        if str(index) not in shards:
            shards[str(index)] = reader.read_slice(path, index or ())
        return shards[str(index)]

    return jax.make_array_from_callback(reader.shapes[path], sharding, read_shard)


@contextlib.contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError, ValueError) as error:
        raise EarthGPTError(f"{file}: cannot be read ({error}); it may be truncated, copy it again") from error


def write(
    path: Path, arrays: Mapping[str, np.ndarray], *, model: ModelConfig, decimals: int, chat_template: str,
    tokenizer: Path, provenance: dict,
) -> None:  # fmt: skip
    """Write a model directory, replacing one at `path`; it appears under its name only once it is complete."""
    with atomic_folder(path, key_file="config.json", if_exists=IfExists.REPLACE) as folder:
        save_file({key: np.ascontiguousarray(arrays[key]) for key in sorted(arrays)}, folder / "model.safetensors")
        (folder / "model.safetensors").chmod(0o644)  # the library makes it private; a package must be readable
        write_config(
            folder, model=model, decimals=decimals, chat_template=chat_template, tokenizer=tokenizer,
            provenance=provenance,
        )  # fmt: skip


def write_config(
    folder: Path, *, model: ModelConfig, decimals: int, chat_template: str, tokenizer: Path, provenance: dict
) -> None:
    """Write `config.json` and `tokenizer.model`: a model directory without its arrays."""
    values = {
        "format_version": FORMAT_VERSION,
        "model": to_dict(model),
        "decimals": decimals,
        "chat_template": chat_template,
        "provenance": provenance,
    }
    (folder / "config.json").write_text(json.dumps(values, indent=1) + "\n")
    shutil.copyfile(tokenizer, folder / "tokenizer.model")


def to_host(params: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
    """Copy arrays to the host."""
    return {path: np.asarray(value) for path, value in params.items()}
