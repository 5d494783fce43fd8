"""Open source checkpoints: find their files, recognize their layout, and choose the table that reads it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from earthgpt_jax.common import files
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.safetensors_files import (
    INDEX,
    Reader,
    SafetensorsReader,
    Shape,
    check_indexed,
    indexed_files,
)
from earthgpt_jax.config import LINEARS, AdapterConfig, AdapterKind, ModelConfig, model_from_dict
from earthgpt_jax.convert import gguf_reader, llama_configs, onnx_reader, source_config, tables, tower_configs
from earthgpt_jax.convert.export_info import read_export_info
from earthgpt_jax.convert.gguf_reader import GgufReader
from earthgpt_jax.convert.onnx_reader import OnnxReader
from earthgpt_jax.convert.source_config import SourceConfig
from earthgpt_jax.convert.tables import Table
from earthgpt_jax.convert.tensor_io import (
    CombinedReader,
    OverlayReader,
    RenamedReader,
    ShardedReader,
    TorchReader,
)
from earthgpt_jax.models import model_dir

ADAPTER_FILE = Path("adapter", "model.safetensors")  # the adapters of an export with `--adapter separate`
# The axis along which the model-parallel shards of Meta and LLaMA2-Accessory split a tensor.
SPLIT_DIMS = (
    (r"(llma\.)?tok_embeddings\.weight", 1),
    (r"(llma\.)?output\.weight", 0),
    (r"(llma\.)?layers\.\d+\.(attention\.w[qkv]|feed_forward\.w[13])\.(weight|bias|scale|lora_b\.weight)", 0),
    (r"(llma\.)?layers\.\d+\.(attention\.wo|feed_forward\.w2)\.(weight|lora_a\.weight)", 1),
)


@dataclasses.dataclass(frozen=True)
class Layout:
    """The names and shapes in which a program saves a model.

    Attributes:
        prefixes: prefixes of our parameters that such a checkpoint provides.
        signature: regex of a key that only this layout has; the group `prefix` is removed from all keys.
        table: returns the table for a model config and a checkpoint, with paths relative to the complete model.
        architecture: returns the architecture, from the name of the config file, its values (None if there is no such
            file) and the shapes of the tensors.
    """

    name: str
    prefixes: tuple[str, ...]
    signature: str
    table: Callable[[ModelConfig, Reader], Table]
    architecture: Callable[[str, Mapping[str, Any] | None, Mapping[str, Shape]], SourceConfig]


def _accessory(config: ModelConfig, reader: Reader) -> Table:
    patterns = {"vit": r"(dinov2_\w+)\.cls_token", "convnext": r"(openclip_convnext_\w+)\.stem\.0\.weight"}
    names = {
        part: [match[1] for key in reader.shapes if (match := re.fullmatch(pattern, key))]
        for part, pattern in patterns.items()
    }
    return tables.accessory(config, **{part: matches[0] for part, matches in names.items() if matches})


def _native(reader: Reader, infix: str) -> Table:
    """The table for parameters stored under our own names, stacked over layers."""
    return Table("earthgpt-jax", tuple(tables.Rule(key, key) for key in reader.shapes if infix in key))


def _gguf(config: ModelConfig, reader: Reader) -> Table:
    meta_rope = isinstance(reader, GgufReader) and reader.metadata.get("general.architecture") == "llama"
    return tables.llama_gguf(config.llm, meta_rope=meta_rope).prefixed(path="llm/")


def _own(where: str, values: Mapping[str, Any] | None, shapes: Mapping[str, Shape]) -> SourceConfig:
    """Return the architecture that an export or a model directory of ours records; nothing without its config file."""
    if values is None:
        return SourceConfig(where=where)
    info = read_export_info(files.path(where).parent)
    model = info.model if info is not None else model_from_dict(values["model"], where=where)
    return source_config.own_config(model, where=where)


ALL_PARTS = ("vit/", "convnext/", "perception/", "projector/", "image_tokens/", "llm/")
LAYOUTS = (
    Layout("EarthGPT, Hugging Face", ALL_PARTS, r"model\.language_model\.embed_tokens\.weight",
           lambda c, r: tables.hf_export(c) + _native(r, "/adapter/"), _own),
    Layout("EarthGPT, Hugging Face, without a base model", ALL_PARTS, r"language_model\.model\.embed_tokens\.weight",
           lambda c, r: tables.hf_export_old(c) + _native(r, "/adapter/"), _own),
    Layout("EarthGPT, earthgpt-jax", ALL_PARTS, r"llm/embed", lambda c, r: _native(r, "/"), _own),
    Layout("EarthGPT, LLaMA2-Accessory", ALL_PARTS, r"visual_proj\.0\.weight", _accessory, tower_configs.accessory),
    Layout("LLaMA, Meta or LLaMA2-Accessory", ("llm/",), r"tok_embeddings\.weight",
           lambda c, _: tables.llama_meta(c.llm, c.adapter).prefixed(path="llm/"), llama_configs.llama),
    Layout("LLaMA, transformers", ("llm/",), r"model\.embed_tokens\.weight",
           lambda c, _: tables.llama_hf(c.llm).prefixed(path="llm/"), llama_configs.llama),
    Layout("LLaMA, GGUF", ("llm/",), r"token_embd\.weight", _gguf, llama_configs.llama_gguf),
    Layout("DINOv2, transformers", ("vit/",), r"(?P<prefix>((dinov2|backbone)\.)?)embeddings\.cls_token",
           lambda c, _: tables.dinov2_hf(c.vit).prefixed(path="vit/"), tower_configs.dinov2_hf),
    Layout("DINOv2, hub", ("vit/",), r"cls_token", lambda c, _: tables.dinov2_hub(c.vit).prefixed(path="vit/"),
           tower_configs.dinov2_hub),
    Layout("ConvNeXt, timm", ("convnext/",), r"(?P<prefix>((visual\.)?trunk\.)?)stem\.0\.weight",
           lambda c, _: tables.convnext_timm(c.convnext).prefixed(path="convnext/"), tower_configs.convnext),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class SourceCheckpoint:
    """An opened checkpoint.

    Attributes:
        path: its files, for messages.
        layout: its layout.
        reader: its tensors.
        architecture: what its config file and its tensors say about the architecture.
        has_config: whether there is a config file.
    """

    path: str
    layout: Layout
    reader: Reader
    architecture: SourceConfig
    has_config: bool

    def with_adapters(self, model: ModelConfig) -> ModelConfig:
        """Return the config with the adapters that the checkpoint holds in Meta's layout.

        Biases without scales or LoRA tensors are adapters (bias tuning); together with LoRA they belong to the linears.
        """
        targets = {
            suffix: [name for key, name in _META_LINEARS.items() if f"layers.0.{key}.{suffix}" in self.reader.shapes]
            for suffix in _ADAPTER_KINDS
        }
        kind = next((kind for suffix, kind in _ADAPTER_KINDS.items() if targets[suffix]), None)
        if kind is None or (kind is AdapterKind.BIAS and any(map(model.llm.has_bias, LINEARS))):
            return model
        if kind is AdapterKind.LORA:
            rank = next(shape[0] for key, shape in self.reader.shapes.items() if key.endswith("lora_a.weight"))
            has_bias = bool(targets["bias"])
            llm = dataclasses.replace(
                model.llm, attention_bias=model.llm.attention_bias or has_bias, mlp_bias=model.llm.mlp_bias or has_bias
            )
            adapter = AdapterConfig(kind=kind, targets=tuple(targets["lora_a.weight"]), rank=rank)
            return dataclasses.replace(model, llm=llm, adapter=adapter)
        return dataclasses.replace(model, adapter=AdapterConfig(kind=kind, targets=tuple(targets["bias"])))

    def has_adapters(self, adapter: AdapterConfig) -> bool:
        """Return whether the checkpoint holds the tensors of `adapter`, in Meta's layout or under our own names."""
        endings = tuple(f".{suffix}" for suffix, kind in _ADAPTER_KINDS.items() if kind is adapter.kind)
        layer = "layers.0.attention.w"
        return any(
            "/adapter/" in key or (key.startswith(layer) and key.endswith(endings)) for key in self.reader.shapes
        )


_META_LINEARS = {
    **{f"attention.w{name}": name for name in "qkvo"},
    "feed_forward.w1": "gate", "feed_forward.w3": "up", "feed_forward.w2": "down",
}  # fmt: skip
_ADAPTER_KINDS = {"lora_a.weight": AdapterKind.LORA, "scale": AdapterKind.SCALE_BIAS, "bias": AdapterKind.BIAS}


def open_source_checkpoint(paths: str | Path | Sequence[str | Path]) -> SourceCheckpoint:
    """Open a checkpoint made of files or folders.

    Tensors of later paths replace those of earlier ones; the tensors of a `model-diff` file are added to them.

    Raises:
        EarthGPTError: a path or shard is missing, a file is truncated or holds objects other than tensors, or the
            layout is unknown.
    """
    sources = [paths] if isinstance(paths, (str, Path)) else list(paths)
    reader: Reader | None = None
    for source in sources:
        next_reader, is_diff = _reader(files.path(source))
        next_reader = _without_prefix(next_reader, "llma.")
        reader = next_reader if reader is None else OverlayReader(reader, next_reader, add=is_diff)
    if reader is None:
        raise EarthGPTError("checkpoint: expected a file or a folder, got none")
    where = " + ".join(map(str, sources))
    if registers := [key for key in reader.shapes if key.endswith("register_tokens")]:
        raise EarthGPTError(
            f"{where}: expected a DINOv2 without register tokens, got one with them ({registers[0]}); "
            "use the checkpoint without registers"
        )
    for layout in LAYOUTS:
        match = next((match for key in reader.shapes if (match := re.fullmatch(layout.signature, key))), None)
        if match:
            # With a prefix, the other tensors belong to another tower, such as CLIP's text encoder.
            reader = _without_prefix(reader, match.groupdict().get("prefix") or "")
            config_file, values = (
                (where, reader.metadata)
                if isinstance(reader, GgufReader)
                else source_config.read_config_file([files.path(source) for source in sources])
            )
            return SourceCheckpoint(
                where, layout, reader, _architecture(layout, config_file, values, reader.shapes), values is not None
            )
    known, examples = "; ".join(layout.name for layout in LAYOUTS), ", ".join(list(reader.shapes)[:4])
    raise EarthGPTError(f"{where}: expected one of the layouts {known}; got unknown tensors: {examples}, ...")


def _architecture(
    layout: Layout, config_file: str, values: Mapping[str, Any] | None, shapes: Mapping[str, Shape]
) -> SourceConfig:
    try:
        return layout.architecture(config_file, values, shapes)
    except (KeyError, ValueError, TypeError) as error:
        if values is None or (isinstance(error, KeyError) and error.args[0] in shapes):
            return SourceConfig(where=config_file)  # a tensor is missing: the table says which one
        raise EarthGPTError(
            f"{config_file}: expected the config of a checkpoint read as {layout.name} "
            f"({type(error).__name__}: {error}); download the file again"
        ) from error


def _without_prefix(reader: Reader, prefix: str) -> Reader:
    """Return the tensors whose names have the prefix, without it; the reader itself if there are none."""
    names = {key: key.removeprefix(prefix) for key in reader.shapes if key.startswith(prefix)}
    return RenamedReader(reader, names) if prefix and names else reader


def _reader(path: Path) -> tuple[Reader, bool]:
    """Return the tensors of a file or folder, and whether they are to be added to those of earlier paths."""
    if (path / ADAPTER_FILE).is_file():
        files = sorted(path.glob("*.safetensors"))
        base = _indexed(path / INDEX) if (path / INDEX).is_file() else SafetensorsReader(files)
        return CombinedReader([base, SafetensorsReader([path / ADAPTER_FILE])]), False
    if model_dir.holds_adapters_alone(path):
        return model_dir.open_params(model_dir.read_config(path)), False
    if path.is_file():
        return _files([path]), "model-diff" in path.name
    if not path.is_dir():
        raise EarthGPTError(f"{path}: no such file or folder")
    for index in (INDEX, "pytorch_model.bin.index.json"):
        if (path / index).is_file():
            return _indexed(path / index), False
    for pattern in (
        "model.safetensors",
        "*.safetensors",
        "pytorch_model.bin",
        "consolidated.*.pth",
        "*.bin",
        "*.pth",
        "*.pt",
        f"*{gguf_reader.SUFFIX}",
        f"*{onnx_reader.SUFFIX}",
    ):
        files = sorted(path.glob(pattern))
        if files:
            _check_complete(files)
            return _files(files), any("model-diff" in file.name for file in files)
    raise EarthGPTError(
        f"{path}: expected a folder with .safetensors, .bin, .pth, .gguf or .onnx files, found none in it"
    )


def _indexed(index: Path) -> Reader:
    files = indexed_files(index)
    reader = _files(list(dict.fromkeys(files.values())))
    check_indexed(index, files, reader)
    return reader


def _check_complete(files: Sequence[Path]) -> None:
    """Raise if the numbers in the file names show that a shard is missing."""
    pattern = re.compile(r"(.*?)(\d+)-of-(\d+).*|(consolidated\.)(\d+)\.pth")
    numbered = [match for file in files if (match := pattern.fullmatch(file.name))]
    if not numbered:
        return
    folder, present = files[0].parent, {int(match[2] or match[5]) for match in numbered}
    totals = {int(match[3]) for match in numbered if match[3]}
    if len(totals) > 1:
        raise EarthGPTError(
            f"{folder}: expected one set of shards, got files of several (of {sorted(totals)} shards); "
            "keep each set in its own folder"
        )
    first = 0 if numbered[0][0].startswith("consolidated") else 1  # Meta counts from 0, transformers from 1
    total = totals.pop() if totals else max(present) + 1
    if missing := sorted(set(range(first, first + total)) - present):
        raise EarthGPTError(
            f"{folder}: shards are missing: number {', '.join(map(str, missing))} of {total}; "
            f"found {', '.join(file.name for file in files)}"
        )


def _files(files: Sequence[Path]) -> Reader:
    if all(file.suffix == ".safetensors" for file in files):
        return SafetensorsReader(files)
    if any(file.suffix == gguf_reader.SUFFIX for file in files):
        if len(files) > 1:
            raise EarthGPTError(f"{files[0].parent}: expected one GGUF file, got {len(files)}; name one of them")
        return GgufReader(files[0])
    if any(file.suffix == onnx_reader.SUFFIX for file in files):
        return CombinedReader([OnnxReader(file) for file in files])
    shards = [TorchReader(file) for file in files]
    if len(shards) > 1 and all(file.name.startswith("consolidated.") for file in files):
        return ShardedReader(shards, SPLIT_DIMS)
    return shards[0] if len(shards) == 1 else CombinedReader(shards)
