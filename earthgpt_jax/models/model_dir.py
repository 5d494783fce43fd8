"""A model directory: `model.safetensors` (path -> array), `config.json` and the tokenizer.

Several processes write the arrays into one file each, `model-00001-of-00002.safetensors` and so on, which
`model.safetensors.index.json` lists (`model_writer`). All functions here read both layouts.

The embedded models (`EMBEDDED`) and the `model` folder that training leaves in its work directory are model
directories. `config.json` holds `format_version`, `model` (a `ModelConfig`), `decimals`, `chat_template`,
`fingerprint` (of the arrays) and `provenance`.

Large arrays may be stored in 8 bits (`stored_int8`). They are read as float32.

A directory may hold adapters alone. `parent` in its `config.json` then names the model directory that has all other
parameters, by fingerprint and path (`ParentRecord`). The functions here read both together as one model. A parent may
itself hold adapters alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import jax
import ml_dtypes  # noqa: F401  (registers bfloat16 with NumPy, which safetensors needs)
import numpy as np
from jax.sharding import NamedSharding
from safetensors import SafetensorError

from earthgpt_jax import params as params_lib
from earthgpt_jax.common import files, typed
from earthgpt_jax.common.digests import fingerprint_json
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.files import IfExists, atomic_folder
from earthgpt_jax.common.names import did_you_mean
from earthgpt_jax.common.parsing import parse_json
from earthgpt_jax.common.progress import Bar
from earthgpt_jax.common.resources import assets_path
from earthgpt_jax.common.safetensors_files import (
    INDEX,
    SINGLE,
    Reader,
    SafetensorsWriter,
    model_files,
    open_model_files,
    read_part,
    row_pieces,
)
from earthgpt_jax.common.tensor_digests import TensorDigests
from earthgpt_jax.config import AdapterConfig, AdapterKind, FrozenDType, ModelConfig, model_from_dict, to_dict
from earthgpt_jax.input.tokenizer import SENTENCEPIECE, copy_tokenizer, find_tokenizer
from earthgpt_jax.models import earthgpt
from earthgpt_jax.models.adapted import AdaptedReader
from earthgpt_jax.models.merge import MergedReader
from earthgpt_jax.models.stored_int8 import DecodingReader
from earthgpt_jax.params import Params
from earthgpt_jax.sharding.mesh import Placement

CHECKED_BYTES = 4 << 30  # models up to this size are compared with their fingerprint whenever they are loaded
EMBEDDED = ("tiny-base", "tiny")
FILES = (SINGLE, "config.json", SENTENCEPIECE)
_COPY = "copy the directory again from where it was trained or imported"
FORMAT_VERSION = 3  # of config.json; version 2 has neither fingerprint nor parent, and is read too


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParentRecord:
    """What a directory of adapters records about the model that they belong to.

    Attributes:
        fingerprint: fingerprint of that model.
        path: its directory as it was given to the run, or the name of an embedded model.
        relative_path: its directory relative to that of the adapters; "" for an embedded model.
        frozen_dtype: dtype in which the run held its parameters.
    """

    fingerprint: str
    path: str
    relative_path: str = ""
    frozen_dtype: FrozenDType

    @classmethod
    def of(cls, model: ModelDir, *, adapters: Path, frozen_dtype: FrozenDType) -> ParentRecord:
        """Return the record of `model` for adapters in the directory `adapters`."""
        relative = "" if model.name in EMBEDDED else relative_path(model.path, adapters)
        return cls(
            fingerprint=fingerprint(model), path=model.name, relative_path=relative, frozen_dtype=frozen_dtype
        )  # fmt: skip


class _ConfigFile(TypedDict):
    model: dict[str, Any]
    decimals: int
    chat_template: str
    provenance: dict[str, Any]
    fingerprint: NotRequired[str]
    parent: NotRequired[ParentRecord | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelDir:
    """A model directory without its arrays.

    Attributes:
        name: the embedded model or path that it was opened by.
        path: the directory.
        model: config of the model.
        decimals: decimals of box coordinates in the model's answers.
        chat_template: name of the chat template that the model was trained with.
        provenance: where the model comes from (recipe, stage, steps, data, and the same of its parent).
        stored_fingerprint: fingerprint of its arrays when they were written; "" in format 2.
        parent_record: what it records about its parent; None if it holds all parameters.
        parent: the directory with the parameters that it lacks; None if it holds all.
    """

    name: str
    path: Path
    model: ModelConfig
    decimals: int
    chat_template: str
    provenance: dict
    stored_fingerprint: str = ""
    parent_record: ParentRecord | None = None
    parent: ModelDir | None = None

    @property
    def tokenizer(self) -> Path:
        """The first file of the tokenizer."""
        return find_tokenizer(self.path) or self.path / SENTENCEPIECE

    @property
    def weights(self) -> Path:
        """The file of the arrays, or the index of several files."""
        index = self.path / INDEX
        return index if index.is_file() else self.path / SINGLE

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of the arrays, those of its parents included."""
        return (*model_files(self.path), *(self.parent.files if self.parent else ()))

    @property
    def weight_bytes(self) -> int:
        """Size of all parameters in bytes, in the dtypes that they are read in."""
        reader = open_params(self)
        return sum(math.prod(shape) * reader.dtypes[path].itemsize for path, shape in reader.shapes.items())


def find(name: str | Path) -> Path:
    """Return the directory of an embedded model, by name, or of a path.

    Raises:
        EarthGPTError: it is not a model directory.
    """
    path = assets_path(str(name)) if str(name) in EMBEDDED else files.path(name)
    missing = [file for file in FILES if not (path / file).is_file()]
    if SINGLE in missing and (path / INDEX).is_file():
        missing.remove(SINGLE)
    if SENTENCEPIECE in missing and find_tokenizer(path) is not None:
        missing.remove(SENTENCEPIECE)
    if missing:
        if (path / "model" / "config.json").is_file():
            advice = f"It is a training run: give {path / 'model'}."
        else:
            advice = (
                f"Give the `model` folder of a training run, or an embedded model: {', '.join(EMBEDDED)}"
                f"{did_you_mean(str(name), EMBEDDED)}"
            )
        raise EarthGPTError(
            f"model {str(name)!r}: expected a directory with {', '.join(FILES)}; {path} lacks {', '.join(missing)}. "
            f"{advice}"
        )
    return path


def holds_adapters_alone(path: Path) -> bool:
    """Return whether a path is a model directory that has a parent."""
    try:
        values = parse_json((path / "config.json").read_bytes(), where=str(path))
    except (OSError, EarthGPTError):
        return False
    return isinstance(values, dict) and "chat_template" in values and "parent" in values


def read_config(name: str | Path, *, parent: str | Path | None = None) -> ModelDir:
    """Read a model directory, and those of its parents, without their arrays.

    A parent is looked for under its recorded path and then relative to the directory. It must have the recorded
    fingerprint; its arrays are not read for this.

    Args:
        name: an embedded model or a path.
        parent: where the parent is instead, if the directory holds adapters alone.

    Raises:
        EarthGPTError: the directory lacks a file; its config is damaged or of another format version; its parent is not
            found, or there is another model in its place; or `parent` is given for a directory without one.
    """
    return _read_config(name, parent=parent, children=())


def _read_config(name: str | Path, *, parent: str | Path | None, children: tuple[Path, ...]) -> ModelDir:
    path = find(name)
    file = path / "config.json"
    resolved = path.resolve()
    if resolved in children:
        cycle = " -> ".join(map(str, (*children[children.index(resolved) :], resolved)))
        raise EarthGPTError(f"{file}: expected a parent that has other parents, got a cycle: {cycle}")
    values = parse_json(file.read_bytes(), where=str(file), advice=_COPY)
    if not isinstance(values, dict):
        raise EarthGPTError(f"{file}: expected the config of a model, got {typed.show(values)}; {_COPY}")
    _check_format_version(values, file)
    values = typed.check(_ConfigFile, values, where=str(file), further=True)
    record = values.get("parent")
    model = ModelDir(
        name=str(name),
        path=path,
        model=model_from_dict(values["model"], where=f"{file}"),
        decimals=values["decimals"],
        chat_template=values["chat_template"],
        provenance=values["provenance"],
        stored_fingerprint=values.get("fingerprint", ""),
        parent_record=record,
    )
    if record is not None:
        return dataclasses.replace(model, parent=_find_parent(model, record, parent, (*children, resolved)))
    if parent is not None:
        raise EarthGPTError(f"{path}: holds all parameters and has no parent, got parent {parent}; leave it out")
    return model


def _find_parent(
    model: ModelDir, record: ParentRecord, given: str | Path | None, children: tuple[Path, ...]
) -> ModelDir:
    """Return the model directory with the recorded fingerprint."""
    candidates: list[str | Path] = [record.path] if given is None else [given]
    if given is None and record.relative_path:
        candidates.append(join_relative(model.path, record.relative_path))
    found: list[str] = []
    different = {files.path(each).resolve(): each for each in reversed(candidates)}
    for candidate in reversed(different.values()):
        if str(candidate) not in EMBEDDED and not (files.path(candidate) / "config.json").is_file():
            found.append(f"no model in {candidate}")
            continue
        try:
            parent = _read_config(candidate, parent=None, children=children)
        except EarthGPTError as error:
            found.append(f"an error in {candidate}: {error}")
            continue
        if (got := fingerprint(parent)) == record.fingerprint:
            return parent
        found.append(f"another model in {candidate} (fingerprint {got}, {_describe(parent.provenance)})")
    raise EarthGPTError(
        f"{model.path}: holds adapters alone; expected the model that they were trained on (fingerprint "
        f"{record.fingerprint}, {_describe(model.provenance.get('parent') or {})}), got {'; '.join(found)}. Give its "
        "directory: --parent on the command line, init_parent in a recipe, parent= in Python; or train the adapters "
        "again on the model that is there"
    )


def _describe(provenance: Mapping[str, Any]) -> str:
    return f"recipe {provenance.get('recipe', 'unknown')}, stage {provenance.get('stage', 'unknown')}"


def _check_format_version(values: dict[str, Any], file: Path) -> None:
    version = values.get("format_version", 1)
    if version in (2, FORMAT_VERSION):
        return
    if version == 1:
        advice = (
            "It was written by an older version: train or import the model again, or edit the file: rename `dtype` in "
            "`model` to `compute_dtype`, `conversation` to `chat_template` and `about` to `provenance`, and add "
            '"format_version": 2.'
        )
    else:
        advice = "It was written by another version of earthgpt-jax; install that version."
    raise EarthGPTError(f"{file}: expected format_version {FORMAT_VERSION} or 2, got {typed.show(version)}. {advice}")


def read(name: str | Path, *, parent: str | Path | None = None) -> tuple[ModelDir, dict[str, np.ndarray]]:
    """Read a model directory and all parameters of its model, in the dtypes that they are stored in.

    Raises:
        EarthGPTError: see `read_config`; or the arrays are damaged or do not have the shapes of the config.
    """
    model = read_config(name, parent=parent)
    reader = open_params(model)
    check_small(model)
    with _readable(model.weights):
        return model, {path: reader.read(path) for path in sorted(reader.shapes)}


def open_params(model: ModelDir) -> Reader:
    """Open all parameters of a model directory, those of its parents included.

    Raises:
        EarthGPTError: the arrays are damaged or do not have the shapes of the config.
    """
    with _readable(model.weights):
        reader: Reader = DecodingReader(open_model_files(model.path))
    if model.parent is not None and model.parent_record is not None:
        reader = AdaptedReader(
            open_for_adapter(model.parent, model.model.adapter), reader,
            frozen_dtype=model.parent_record.frozen_dtype, compute_dtype=model.model.compute_dtype,
        )  # fmt: skip
    _, expected = earthgpt.abstract(model.model)
    given = {path: jax.ShapeDtypeStruct(shape, reader.dtypes[path]) for path, shape in reader.shapes.items()}
    params_lib.check_same_shapes(expected, given, where=str(model.weights))
    return reader


def open_for_adapter(model: ModelDir, adapter: AdapterConfig) -> Reader:
    """Open all parameters of a model, with its adapters merged into the linear layers if they are not `adapter`.

    Raises:
        EarthGPTError: see `open_params`.
    """
    reader = open_params(model)
    if model.model.adapter.kind is AdapterKind.NONE or model.model.adapter == adapter:
        return reader
    return MergedReader(reader, model.model)


def load_sharded(model: ModelDir, placement: Placement) -> Params:
    """Load all parameters of a model directory onto the devices of a mesh; each reads its own shards only.

    Raises:
        EarthGPTError: the arrays are damaged or do not have the shapes of the config.
    """
    reader = open_params(model)
    check_small(model)
    with _readable(model.weights):
        shapes = {path: jax.ShapeDtypeStruct(reader.shapes[path], np.uint8) for path in sorted(reader.shapes)}
        shardings = placement.shardings(shapes)
        return {path: _load_array(reader, path, shardings[path]) for path in shapes}


def _load_array(reader: Reader, path: str, sharding: NamedSharding) -> jax.Array:
    """Read an array shard by shard."""
    shards: dict[str, np.ndarray] = {}  # several devices may hold the same shard

    def read_shard(index: tuple[slice, ...] | None) -> np.ndarray:
        if str(index) not in shards:
            shards[str(index)] = read_part(reader, path, index or ())
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
    digests = TensorDigests()
    with atomic_folder(path, key_file="config.json", if_exists=IfExists.REPLACE) as folder:
        tensors = {key: (tuple(arrays[key].shape), np.dtype(arrays[key].dtype)) for key in sorted(arrays)}
        writer = SafetensorsWriter(folder, tensors, digests=digests)
        for key in tensors:
            writer.write(key, np.asarray(arrays[key]))
        writer.close()
        write_config(
            folder, path, model=model, decimals=decimals, chat_template=chat_template, tokenizer=tokenizer,
            provenance=provenance, digests=digests.values(),
        )  # fmt: skip


def write_config(
    folder: Path, path: Path, *, model: ModelConfig, decimals: int, chat_template: str, tokenizer: Path,
    provenance: dict, digests: Mapping[str, Any], parent: ModelDir | None = None,
    frozen_dtype: FrozenDType = FrozenDType.FLOAT32,
) -> None:  # fmt: skip
    """Write `config.json` and the tokenizer: a model directory without its arrays.

    Args:
        folder: local folder that becomes the directory (`files.atomic_folder`).
        path: the directory.
        digests: `TensorDigests.values` of its arrays.
        parent: the model that the adapters were trained on, if the directory holds nothing else.
        frozen_dtype: dtype in which the run held the parameters of `parent`.
    """
    record = None if parent is None else ParentRecord.of(parent, adapters=path, frozen_dtype=frozen_dtype)
    values = {
        "format_version": FORMAT_VERSION,
        "model": to_dict(model),
        "decimals": decimals,
        "chat_template": chat_template,
        "fingerprint": _fingerprint(digests, record),
        "provenance": provenance,
    }
    if record is not None:
        values["parent"] = dataclasses.asdict(record)
    files.write_json(folder / "config.json", values)
    copy_tokenizer(tokenizer, folder)


# ----------------------------------------------------------------------------------------------------- paths
def relative_path(path: Path, start: Path) -> str:
    """Return `path` relative to the folder `start`; "" if one is on a disk and the other in a bucket."""
    names, start_names = path.resolve().parts, start.resolve().parts
    pairs = zip(names, start_names, strict=False)
    common = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    return "/".join([*[".."] * (len(start_names) - common), *names[common:]]) if common else ""


def join_relative(start: Path, relative: str) -> Path:
    """Return the path that is `relative` to the folder `start`, on a disk or in a bucket."""
    start = start.resolve()
    names = list(start.parts)
    for name in relative.split("/"):
        if name == "..":
            names.pop()
        else:
            names.append(name)
    return type(start)(*names)


# --------------------------------------------------------------------------------------------- fingerprints
def fingerprint(model: ModelDir) -> str:
    """Return the fingerprint of a model: the stored one, or in format 2, one computed from all arrays."""
    return model.stored_fingerprint or compute_fingerprint(model)


def compute_fingerprint(model: ModelDir) -> str:
    """Read all arrays of a directory and return their fingerprint.

    It is a digest of names, dtypes, shapes and bytes, and of the recorded parent. It does not depend on the files that
    the arrays are in.

    Raises:
        EarthGPTError: a file cannot be read.
    """
    digests = TensorDigests()
    with _readable(model.weights):
        reader = open_model_files(model.path)
        sizes = {key: math.prod(shape) * reader.dtypes[key].itemsize for key, shape in reader.shapes.items()}
        with Bar(total=sum(sizes.values()), desc="fingerprint", unit="B", unit_scale=True, leave=False) as bar:
            for key, shape in reader.shapes.items():
                for start, rows in row_pieces(shape, reader.dtypes[key]):
                    digests.add(key, reader.read(key, start, rows), start)
                bar.update(sizes[key])
    return _fingerprint(digests.values(), model.parent_record)


def check_small(model: ModelDir) -> None:
    """Compare the arrays with their fingerprints, as `check_fingerprint`, if this takes only seconds.

    Of a model of more than `CHECKED_BYTES`, a process reads its share alone; `earthgpt inspect --check` checks it.

    Raises:
        EarthGPTError: see `check_fingerprint`.
    """
    if model.weight_bytes <= CHECKED_BYTES:
        check_fingerprint(model)


def check_fingerprint(model: ModelDir) -> None:
    """Read all arrays of a model, those of its parents included, and compare them with their stored fingerprints.

    A directory of format 2 has none. As a parent it was compared with what its adapters record (`read_config`).

    Raises:
        EarthGPTError: an array has changed since it was written, or a file cannot be read.
    """
    if model.stored_fingerprint and (got := compute_fingerprint(model)) != model.stored_fingerprint:
        raise EarthGPTError(
            f"{model.weights}: expected arrays with fingerprint {model.stored_fingerprint}, got {got}: they have "
            "changed since they were written; copy the directory again from where it was trained or imported"
        )
    if model.parent is not None:
        check_fingerprint(model.parent)


def _fingerprint(digests: Mapping[str, Any], parent: ParentRecord | None) -> str:
    return fingerprint_json([dict(digests), parent and [parent.fingerprint, parent.frozen_dtype]])


def to_host(params: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
    """Copy arrays to the host."""
    return {path: np.asarray(value) for path, value in params.items()}
