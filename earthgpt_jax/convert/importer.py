"""Import source checkpoints: build a model from one checkpoint per part, tensor by tensor."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import overload

import jax
import numpy as np

from earthgpt_jax.common import files
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.files import atomic_folder
from earthgpt_jax.common.progress import Bar
from earthgpt_jax.common.safetensors_files import Reader, SafetensorsWriter, Shape, row_slice
from earthgpt_jax.common.tensor_digests import TensorDigests
from earthgpt_jax.config import AdapterConfig, ModelConfig, model_from_dict, to_dict
from earthgpt_jax.convert.layouts import ALL_PARTS, SourceCheckpoint, open_source_checkpoint
from earthgpt_jax.convert.source_config import SourceConfig
from earthgpt_jax.convert.tables import ConversionStep
from earthgpt_jax.input.tokenizer import Tokenizer
from earthgpt_jax.input.tokenizer import find_tokenizer as tokenizer_in
from earthgpt_jax.models import earthgpt, model_dir

# Part of a model as the user names it -> prefixes of our parameters.
PARTS = {
    "vit": ("vit/",),
    "convnext": ("convnext/",),
    "llm": ("llm/",),
    "projector": ("perception/", "projector/", "image_tokens/"),
}
_ARCHITECTURES = ("vit", "convnext", "perception", "llm")  # groups of fields of `model`
# The head and the embedding in the layouts that may hold both.
_HEADS = (
    ("lm_head.weight", "model.embed_tokens.weight"),
    ("lm_head.weight", "model.language_model.embed_tokens.weight"),
    ("language_model.lm_head.weight", "language_model.model.embed_tokens.weight"),
    ("output.weight", "tok_embeddings.weight"),
)
_HEAD_ROWS = 4096  # compared at a time
# Small parts that are new in every EarthGPT; like adapters, they are initialized if no checkpoint provides them.
_INITIALIZED = PARTS["projector"]
Paths = str | Path | Sequence[str | Path]
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ImportStep:
    """One tensor to read: the checkpoint that holds it and how it is converted."""

    reader: Reader
    step: ConversionStep

    def read(self) -> np.ndarray:
        step = self.step
        rows = self.reader.read(step.key, step.start, step.rows)
        return step.transform.from_checkpoint(rows)


@dataclasses.dataclass(frozen=True)
class PreparedImport:
    """A checked conversion, before any tensor is read.

    Attributes:
        model: the config, with the adapters that the checkpoints hold.
        shapes, dtypes: path -> shape and dtype of every parameter.
        steps: the tensors to read, in the order of the checkpoints' files.
        initialized: paths of the parameters that no checkpoint provides.
        sources: part -> the paths of its checkpoint.
    """

    model: ModelConfig
    shapes: Mapping[str, Shape]
    dtypes: Mapping[str, np.dtype]
    steps: Sequence[ImportStep]
    initialized: Sequence[str]
    sources: Mapping[str, str]


def prepare_import(parts: Mapping[str, Paths], model: ModelConfig, *, dtype: np.dtype | None = None) -> PreparedImport:
    """Open the checkpoints and decide which tensor fills which parameter.

    Args:
        parts: "vit", "convnext", "llm", "projector" -> files or folders; or "model" -> a complete EarthGPT, whose own
            parts the others replace.
        dtype: dtype of all parameters; None keeps those of the checkpoints.

    Raises:
        EarthGPTError: a part is missing or unknown, or its checkpoint has another architecture or other shapes; the
            message lists all problems.
    """
    problems: list[str] = []
    checkpoints = _open_parts(parts, problems)
    llm_source = checkpoints.get("llm") or checkpoints.get("model")
    without_adapters = dataclasses.replace(model, adapter=AdapterConfig())
    if llm_source is not None:
        model = llm_source.with_adapters(model)
    _, abstract = earthgpt.abstract(model)
    shapes: dict[str, Shape] = {path: tuple(leaf.shape) for path, leaf in abstract.items()}
    steps: list[ImportStep] = []
    provided: set[str] = set()
    for part, checkpoint in checkpoints.items():
        prefixes = _prefixes(part)
        if differences := _architecture(part, checkpoints).problems(model):
            problems += differences  # the tensors would only show the consequences
            provided |= {path for path in shapes if path.startswith(prefixes)}
            continue
        has_adapters = checkpoint is llm_source and checkpoint.has_adapters(model.adapter)
        replaced = _replaced_prefixes(part, checkpoints)
        part_shapes = {
            path: shape
            for path, shape in shapes.items()
            if path.startswith(prefixes) and not path.startswith(replaced) and (has_adapters or "/adapter/" not in path)
        }
        try:
            table = checkpoint.layout.table(model if has_adapters else without_adapters, checkpoint.reader)
            if part == "projector":
                rules = tuple(rule for rule in table.rules if rule.path.startswith(prefixes))
                table = dataclasses.replace(table, rules=rules, ignored=(".*",))
            conversion = table.without(replaced).steps(part_shapes, checkpoint.reader.shapes, where=checkpoint.path)
            if model.llm.tied_head and checkpoint is llm_source:
                _check_tied_head(checkpoint)
            steps += [ImportStep(checkpoint.reader, step) for step in conversion]
        except EarthGPTError as error:
            problems.append(str(error))
        provided |= part_shapes.keys()
    initialized = [path for path in shapes if path not in provided]
    missing = (path for path in initialized if "/adapter/" not in path and not path.startswith(_INITIALIZED))
    if names := sorted({path.split("/")[0] for path in missing}):
        problems.append(
            f"no source for {', '.join(names)}; expected one for each of vit, convnext and llm, or a complete model"
        )
    _raise_all(problems)
    if llm_source is not None and not llm_source.has_config:
        _log.warning(
            "%s: no config.json or params.json in its folder; heads, RoPE and epsilon of the language model are taken "
            "from the recipe and cannot be checked", llm_source.path,
        )  # fmt: skip
    dtypes = dict.fromkeys(shapes, np.dtype(dtype or "float32")) | ({} if dtype else _source_dtypes(steps))
    sources = {part: checkpoint.path for part, checkpoint in checkpoints.items()}
    return PreparedImport(model, shapes, dtypes, steps, initialized, sources)


def _open_parts(parts: Mapping[str, Paths], problems: list[str]) -> dict[str, SourceCheckpoint]:
    """Open the checkpoint of each part; append what is wrong to `problems`."""
    checkpoints: dict[str, SourceCheckpoint] = {}
    for part, paths in parts.items():
        try:
            if part not in (*PARTS, "model"):
                raise EarthGPTError(f"unknown part {part!r}; parts: {', '.join((*PARTS, 'model'))}")
            checkpoints[part] = open_source_checkpoint(paths)
            _check_architecture(part, checkpoints[part])
        except EarthGPTError as error:
            problems.append(str(error))
    return checkpoints


def _prefixes(part: str) -> tuple[str, ...]:
    return ALL_PARTS if part == "model" else PARTS[part]


def _replaced_prefixes(part: str, checkpoints: Mapping[str, SourceCheckpoint]) -> tuple[str, ...]:
    """Return the prefixes of the parameters that other parts provide in place of a complete model's own."""
    others = [other for other in checkpoints if other != "model"] if part == "model" else []
    return tuple(prefix for other in others for prefix in _prefixes(other))


def _check_architecture(part: str, checkpoint: SourceCheckpoint) -> None:
    """Raise if a checkpoint does not hold the part it is given for; "projector" takes a complete EarthGPT."""
    expected = ALL_PARTS if part == "projector" else _prefixes(part)
    if checkpoint.layout.prefixes != expected:
        raise EarthGPTError(f"{checkpoint.path}: expected the weights of {part}, got {checkpoint.layout.name}")


def _architecture(part: str, checkpoints: Mapping[str, SourceCheckpoint]) -> SourceConfig:
    """Return what a checkpoint says about the parts that are taken from it."""
    architecture = checkpoints[part].architecture
    if part == "projector":
        return architecture.under(["perception."])
    others = {other for other in checkpoints if other not in ("model", "projector")} if part == "model" else set()
    return architecture.under([f"{name}." for name in _ARCHITECTURES if name not in others])


def _check_tied_head(checkpoint: SourceCheckpoint) -> None:
    """Raise if a checkpoint has a head of its own, though the recipe ties it to the embedding."""
    reader = checkpoint.reader
    for head, embed in _HEADS:
        if head in reader.shapes and embed in reader.shapes and reader.shapes[head] == reader.shapes[embed]:
            total = reader.shapes[head][0]
            for start in range(0, total, _HEAD_ROWS):
                rows = min(_HEAD_ROWS, total - start)
                ours, theirs = (reader.read(key, start, rows).astype(np.float32) for key in (head, embed))
                if not np.array_equal(ours, theirs):
                    raise EarthGPTError(
                        f"{checkpoint.path}: expected a head that is tied to the embedding, as model.llm.tied_head "
                        f"says, got another one in {head}; set --config.model.llm.tied_head=False"
                    )


def derive_model(parts: Mapping[str, Paths], base: ModelConfig, *, tokenizer: Path | None = None) -> ModelConfig:
    """Return `base` with the architecture of the given checkpoints.

    The fields that no checkpoint shows, such as the resolution of the towers, are those of `base`. If the ViT has
    another depth, its taps are moved to the quarters of the depth.

    Args:
        parts: see `prepare_import`.
        tokenizer: tokenizer of the language model, which shows how much of the vocabulary is padding.

    Raises:
        EarthGPTError: a checkpoint cannot be opened or is not supported; the message lists all problems.
    """
    problems: list[str] = []
    checkpoints = _open_parts(parts, problems)
    values = to_dict(base)
    for part, checkpoint in checkpoints.items():
        architecture = _architecture(part, checkpoints)
        problems += [f"{architecture.where}: {reason}" for reason in architecture.unsupported]
        if part == "llm" and not checkpoint.has_config:
            problems.append(
                f"{checkpoint.path}: expected a config.json or params.json in its folder; without one, heads, RoPE and "
                "epsilon are unknown"
            )
        for name, value in architecture.fields.items():
            _set(values, name, value)
    _raise_all(problems)
    depth, taps = values["vit"]["depth"], values["perception"]["vit_layers"]
    if depth != base.vit.depth and "model" not in checkpoints:
        values["perception"]["vit_layers"] = [(i + 1) * depth // len(taps) - 1 for i in range(len(taps))]
    if tokenizer is not None:
        size, llm = Tokenizer(tokenizer).vocab_size, values["llm"]
        llm["tokenizer_size"] = 0 if size == llm["vocab_size"] else size
    return model_from_dict(values, where="the model of these checkpoints")


def _set(values: dict, name: str, value: object) -> None:
    *parents, last = name.split(".")
    for parent in parents:
        values = values[parent]
    values[last] = value


def _raise_all(problems: Sequence[str]) -> None:
    """Raise an error that lists the problems, if there are any."""
    if problems:
        listed = f"{len(problems)} problems\n" + "\n".join(f"  - {problem}" for problem in problems)
        raise EarthGPTError(problems[0] if len(problems) == 1 else listed)


def _source_dtypes(steps: Sequence[ImportStep]) -> dict[str, np.dtype]:
    """Return path -> the common dtype of the checkpoint tensors that make up the parameter."""
    dtypes: dict[str, np.dtype] = {}
    for item in steps:
        path, dtype = item.step.path, item.reader.dtypes[item.step.key]
        dtype = np.dtype("bfloat16") if dtype.itemsize == 1 else dtype  # holds all numbers of 8 bits
        dtypes[path] = np.result_type(dtypes.get(path, dtype), dtype)
    return dtypes


def read_params(
    prepared: PreparedImport, *, seed: int, progress: bool = True
) -> Iterator[tuple[str, int | None, np.ndarray]]:
    """Yield `(path, layer or None, array)` for every parameter, initialized ones first, one tensor at a time.

    Raises:
        EarthGPTError: a tensor cannot be read.
    """
    if prepared.initialized:
        names = list(prepared.initialized)

        def initialize() -> list[jax.Array]:
            # Under jit, parameters that are not returned are never computed, so their size does not matter.
            _, params = earthgpt.init(prepared.model, seed=seed)
            return [params[name] for name in names]

        for name, value in zip(names, jax.jit(initialize)(), strict=True):
            yield name, None, np.asarray(value)
    for item in Bar(prepared.steps, desc="convert", unit="tensor", disable=not progress):
        try:
            yield item.step.path, item.step.layer, item.read()
        except (RuntimeError, OSError) as error:
            raise EarthGPTError(f"{item.step.key}: cannot be read ({error}); download its file again") from error


def import_model(
    parts: Mapping[str, Paths], model: ModelConfig, *, out: Path, tokenizer: Path, decimals: int, chat_template: str,
    dtype: np.dtype | None = None, seed: int = 0,
) -> Path:  # fmt: skip
    """Import a model and write it as a model directory, which appears under its name once it is complete.

    Args:
        parts, dtype: see `prepare_import`.
        out: the model directory to write.
        tokenizer: the first file of the tokenizer that belongs to the language model.
        decimals, chat_template: how the model writes boxes and dialogues, kept in the model directory.
        seed: seed for the parameters that no checkpoint provides.

    Raises:
        EarthGPTError: see `prepare_import` and `check_vocabulary`; or `out` exists already.
    """
    prepared = prepare_import(parts, model, dtype=dtype)
    check_vocabulary(tokenizer, model)
    digests = TensorDigests()
    with atomic_folder(out, key_file="config.json") as folder:
        tensors = {path: (prepared.shapes[path], prepared.dtypes[path]) for path in sorted(prepared.shapes)}
        writer = SafetensorsWriter(folder, tensors, digests=digests)
        for path, layer, array in read_params(prepared, seed=seed):
            writer.write(path, array if layer is None else array[None], layer or 0)
        writer.close()
        model_dir.write_config(
            folder, out, model=prepared.model, decimals=decimals, chat_template=chat_template, tokenizer=tokenizer,
            provenance={
                "recipe": "earthgpt convert import", "stage": "base", "steps": 0, "parts": dict(prepared.sources),
            },
            digests=digests.values(),
        )  # fmt: skip
    return out


class ImportReader:
    """Reads the parameters that checkpoints provide, converted, by rows; several threads may read at the same time.

    Attributes:
        shapes, dtypes: path -> shape and dtype of the parameters that the checkpoints provide.
        initialized: paths of the parameters of the model that they do not provide.
    """

    def __init__(self, prepared: PreparedImport):
        self.initialized = tuple(prepared.initialized)
        self._steps: dict[str, dict[int | None, ImportStep]] = {}
        for item in prepared.steps:
            self._steps.setdefault(item.step.path, {})[item.step.layer] = item
        self.shapes = {path: prepared.shapes[path] for path in self._steps}
        self.dtypes = {path: prepared.dtypes[path] for path in self._steps}
        self._last = threading.local()  # of each thread: an unstacked tensor, of which several rows are read

    def read(self, path: str, start: int = 0, rows: int | None = None) -> np.ndarray:
        steps, shape = self._steps[path], self.shapes[path]
        if None in steps:
            if getattr(self._last, "path", None) != path:
                self._last.path, self._last.value = path, None
                self._last.value = self._convert(steps[None])
            return self._last.value[row_slice(start, rows)] if shape else self._last.value
        layers = range(shape[0])[row_slice(start, rows)]
        return np.stack([self._convert(steps[layer]).astype(self.dtypes[path], copy=False) for layer in layers])

    def _convert(self, item: ImportStep) -> np.ndarray:
        try:
            return item.read()
        except (RuntimeError, OSError) as error:
            raise EarthGPTError(f"{item.step.key}: cannot be read ({error}); download its file again") from error


def open_import(parts: Mapping[str, Paths], model: ModelConfig) -> ImportReader:
    """Open checkpoints as the parameters of a model.

    Args:
        parts: see `prepare_import`.

    Raises:
        EarthGPTError: see `prepare_import`; or the checkpoints hold other adapters than the config.
    """
    prepared = prepare_import(parts, model)
    if prepared.model != model:
        raise EarthGPTError(
            f"{', '.join(prepared.sources.values())}: expected {model.adapter.kind.value} adapters, as model.adapter "
            f"says, got {prepared.model.adapter.kind.value}; import it into a model directory, or change model.adapter"
        )
    return ImportReader(prepared)


def weight_files(parts: Mapping[str, Paths]) -> tuple[Path, ...]:
    """Return the files with tensors in the paths of `parts`."""
    sources = _paths(parts.values())
    suffixes = {".safetensors", ".bin", ".pth", ".pt", ".gguf", ".onnx"}
    return tuple(
        file
        for source in sources
        for file in _files(source)
        if file.is_file() and (file == source or file.suffix in suffixes)
    )


def _files(source: Path) -> Sequence[Path]:
    if model_dir.holds_adapters_alone(source):
        return model_dir.read_config(source).files
    return sorted(source.rglob("*")) if source.is_dir() else [source]


def _paths(sources: Iterable[Paths]) -> list[Path]:
    return [files.path(path) for value in sources for path in ([value] if isinstance(value, (str, Path)) else value)]


@overload
def find_tokenizer(parts: Mapping[str, Paths]) -> Path: ...
@overload
def find_tokenizer(parts: Mapping[str, Paths], *, required: bool) -> Path | None: ...
def find_tokenizer(parts: Mapping[str, Paths], *, required: bool = True) -> Path | None:
    """Return the path of the tokenizer in the folder of the language model, a `tokenizer.model` or a `tokenizer.json`.

    Raises:
        EarthGPTError: there is none, though it is required.
    """
    sources = [parts[part] for part in ("llm", "model") if part in parts]
    paths = _paths(sources)
    folders = [path if path.is_dir() else path.parent for path in paths]
    for folder in folders:
        if (found := tokenizer_in(folder)) is not None:
            return found
    if not required:
        return None
    where = ", ".join(map(str, folders)) or "the folder of the language model"
    raise EarthGPTError(
        f"expected a tokenizer.model or a tokenizer.json in {where}; copy the tokenizer of the language model there"
    )


def check_vocabulary(tokenizer: Path, model: ModelConfig) -> None:
    """Raise if the tokenizer has another number of pieces than `model.llm` says."""
    size, expected = Tokenizer(tokenizer).vocab_size, model.llm.tokenizer_size or model.llm.vocab_size
    if size != expected:
        field = "tokenizer_size" if model.llm.tokenizer_size else "vocab_size"
        padded = f"; if the vocabulary is padded, set --config.model.llm.tokenizer_size={size}"
        raise EarthGPTError(
            f"{tokenizer}: expected a tokenizer of {expected} pieces, as model.llm.{field} says, got {size}; use the "
            f"tokenizer that belongs to the language model{padded if size < model.llm.vocab_size else ''}"
        )
