"""A model directory: `model.safetensors` (path -> array), `config.json`, `tokenizer.model`.

The embedded models (`tiny-base`, `tiny`) and what training leaves in a work directory have this form.
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
import jax.numpy as jnp
import ml_dtypes  # noqa: F401  (teaches numpy, and with it safetensors, bfloat16)
import numpy as np
from jax.sharding import NamedSharding
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from earthgpt_jax import params as params_lib
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.files import IfExists, atomic_folder
from earthgpt_jax.common.resources import assets_path
from earthgpt_jax.config import ModelConfig, model_from_dict, to_dict
from earthgpt_jax.models import earthgpt
from earthgpt_jax.params import Params
from earthgpt_jax.sharding.mesh import Placement

EMBEDDED = ("tiny-base", "tiny")
FILES = ("model.safetensors", "config.json", "tokenizer.model")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelDir:
    """What a model directory says besides its arrays.

    Attributes:
        decimals, conversation: how the model was taught to write boxes and to take turns.
        about: where it comes from (recipe, stage, steps, data, parent's fingerprint).
    """

    path: Path
    model: ModelConfig
    decimals: int
    chat_template: str
    about: dict

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer.model"

    @property
    def weights(self) -> Path:
        return self.path / "model.safetensors"


def find(name: str | Path) -> Path:
    """The directory of an embedded model's name or of a path."""
    path = assets_path(str(name)) if str(name) in EMBEDDED else Path(name)
    missing = [file for file in FILES if not (path / file).is_file()]
    if missing:
        raise EarthGPTError(
            f"model {str(name)!r}: expected a directory with {', '.join(FILES)}; {path} lacks {', '.join(missing)}. "
            f"Give the `model` folder of a training run, or an embedded model: {', '.join(EMBEDDED)}."
        )
    return path


def read_config(name: str | Path) -> ModelDir:
    """A model directory without its arrays."""
    path = find(name)
    try:
        values = json.loads((path / "config.json").read_text())
        return ModelDir(
            path=path,
            model=model_from_dict(values["model"], where=f"{path / 'config.json'}"),
            decimals=values["decimals"],
            chat_template=values["chat_template"],
            about=values["about"],
        )
    except (ValueError, KeyError) as error:
        raise EarthGPTError(f"{path / 'config.json'}: not a model's config ({error}); take the folder anew") from error


def read(name: str | Path) -> tuple[ModelDir, dict[str, np.ndarray]]:
    """A model directory with its arrays, in the dtypes they were written in, checked against its config."""
    model = read_config(name)
    with _readable(model.weights):
        arrays = load_file(model.weights)
    _, expected = earthgpt.abstract(model.model)
    params_lib.check_same_shapes(expected, arrays, where=str(model.weights))
    return model, arrays


def load_sharded(model: ModelDir, place: Placement) -> Params:
    """A model directory's arrays as `read` has them, but on the devices of a mesh: each reads its own parts only."""
    _, expected = earthgpt.abstract(model.model)
    with _readable(model.weights), safe_open(model.weights, framework="numpy") as file:
        stored = {path: file.get_slice(path) for path in sorted(file.keys())}
        shapes = {path: jax.ShapeDtypeStruct(part.get_shape(), np.uint8) for path, part in stored.items()}
        params_lib.check_same_shapes(expected, shapes, where=str(model.weights))
        shardings = place.shardings(shapes)
        return {path: _placed(part, shapes[path].shape, shardings[path]) for path, part in stored.items()}


def _placed(stored: Any, shape: tuple[int, ...], sharding: NamedSharding) -> jax.Array:
    parts: dict[str, np.ndarray] = {}  # several devices may hold the same

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        if str(index) not in parts:
            parts[str(index)] = stored[index] if index else stored[:]
        return parts[str(index)]

    return jax.make_array_from_callback(shape, sharding, part)


def size(model: ModelDir) -> int:
    """Bytes of a model's arrays."""
    return model.weights.stat().st_size


@contextlib.contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError, ValueError) as error:
        raise EarthGPTError(f"{file}: cannot be read ({error}); it may be truncated, take it anew") from error


def write(
    path: Path, arrays: Mapping[str, np.ndarray], *, model: ModelConfig, decimals: int, chat_template: str,
    tokenizer: Path, about: dict,
) -> None:  # fmt: skip
    """Writes a model directory; it appears under its name only once it is complete."""
    with atomic_folder(path, if_exists=IfExists.REPLACE) as folder:
        save_file({key: np.ascontiguousarray(arrays[key]) for key in sorted(arrays)}, folder / "model.safetensors")
        (folder / "model.safetensors").chmod(0o644)  # the library makes it private; a package must be readable
        write_config(
            folder, model=model, decimals=decimals, chat_template=chat_template, tokenizer=tokenizer, about=about
        )


def write_config(
    folder: Path, *, model: ModelConfig, decimals: int, chat_template: str, tokenizer: Path, about: dict
) -> None:
    """Everything of a model directory but its arrays."""
    values = {"model": to_dict(model), "decimals": decimals, "chat_template": chat_template, "about": about}
    (folder / "config.json").write_text(json.dumps(values, indent=1) + "\n")
    shutil.copyfile(tokenizer, folder / "tokenizer.model")


def with_fresh_adapters(arrays: Mapping[str, np.ndarray], model: ModelConfig, *, seed: int, where: str) -> Params:
    """fp32 parameters of `model` from `arrays`; adapters not among them start fresh, the rest must be there."""
    _, expected = earthgpt.abstract(model)
    fresh = [path for path in expected if "/adapter/" in path and path not in arrays]
    if fresh:
        _, random = earthgpt.init(model, seed=seed)
        arrays = {**arrays, **{path: np.asarray(random[path]) for path in fresh}}
    params_lib.check_same_shapes(expected, arrays, where=where)
    return {path: jnp.asarray(arrays[path], jnp.float32) for path in sorted(arrays)}


def load_initial_params(name: str | Path, model: ModelConfig, *, seed: int) -> tuple[ModelDir, Params]:
    """A model directory, and parameters of `model` that start from it; see `completed`."""
    source, arrays = read(name)
    return source, with_fresh_adapters(arrays, model, seed=seed, where=f"init {str(name)!r}")


def to_host(params: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
    """Arrays on the host."""
    return {path: np.asarray(value) for path, value in params.items()}
