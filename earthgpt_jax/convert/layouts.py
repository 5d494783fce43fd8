"""Foreign checkpoints: which files make one up, what layout they are in, and the table that reads it."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.config import AdapterConfig, AdapterKind, ModelConfig
from earthgpt_jax.convert import tables
from earthgpt_jax.convert.tables import Table
from earthgpt_jax.convert.tensor_io import INDEX, Joined, Overlay, Reader, Renamed, Safetensors, TorchFile, Union

ADAPTER_FILE = Path("adapter", "model.safetensors")  # of our exports: adapters kept apart
# Model-parallel shards: the axis a tensor is split along, in Meta's and LLaMA2-Accessory's files.
SPLIT_DIMS = (
    (r"(llma\.)?tok_embeddings\.weight", 1),
    (r"(llma\.)?output\.weight", 0),
    (r"(llma\.)?layers\.\d+\.(attention\.w[qkv]|feed_forward\.w[13])\.(weight|bias|scale|lora_b\.weight)", 0),
    (r"(llma\.)?layers\.\d+\.(attention\.wo|feed_forward\.w2)\.(weight|lora_a\.weight)", 1),
)


@dataclasses.dataclass(frozen=True)
class Layout:
    """A foreign layout.

    Attributes:
        parts: our path prefixes that such a checkpoint fills.
        signature: a key that only this layout has; the group `prefix` is taken off all keys.
        table: of a model's config, the paths as in the whole model.
    """

    name: str
    parts: tuple[str, ...]
    signature: str
    table: Callable[[ModelConfig, Reader], Table]


def _accessory(config: ModelConfig, reader: Reader) -> Table:
    names = {"vit": r"(dinov2_\w+)\.cls_token", "convnext": r"(openclip_convnext_\w+)\.stem\.0\.weight"}
    found = {part: [m[1] for key in reader.shapes if (m := re.fullmatch(name, key))] for part, name in names.items()}
    return tables.accessory(config, **{part: matches[0] for part, matches in found.items() if matches})


def _as_they_are(reader: Reader, part: str) -> Table:
    """Leaves under our own names, stacked."""
    return Table("earthgpt-jax", tuple(tables.Row(key, key) for key in reader.shapes if part in key))


WHOLE = ("vit/", "convnext/", "perception/", "projector/", "image_tokens/", "llm/")
LAYOUTS = (
    Layout("EarthGPT, Hugging Face", WHOLE, r"language_model\.model\.embed_tokens\.weight",
           lambda c, r: tables.hf_export(c) + _as_they_are(r, "/adapter/")),
    Layout("EarthGPT, earthgpt-jax", WHOLE, r"llm/embed", lambda c, r: _as_they_are(r, "/")),
    Layout("EarthGPT, LLaMA2-Accessory", WHOLE, r"visual_proj\.0\.weight", _accessory),
    Layout("LLaMA, Meta or LLaMA2-Accessory", ("llm/",), r"tok_embeddings\.weight",
           lambda c, _: tables.llama_meta(c.llm, c.adapter).prefixed(path="llm/")),
    Layout("LLaMA, transformers", ("llm/",), r"model\.embed_tokens\.weight",
           lambda c, _: tables.llama_hf(c.llm).prefixed(path="llm/")),
    Layout("DINOv2, transformers", ("vit/",), r"(?P<prefix>(dinov2\.)?)embeddings\.cls_token",
           lambda c, _: tables.dinov2_hf(c.vit).prefixed(path="vit/")),
    Layout("DINOv2, hub", ("vit/",), r"cls_token", lambda c, _: tables.dinov2_hub(c.vit).prefixed(path="vit/")),
    Layout("ConvNeXt, timm", ("convnext/",), r"(?P<prefix>((visual\.)?trunk\.)?)stem\.0\.weight",
           lambda c, _: tables.convnext_timm(c.convnext).prefixed(path="convnext/")),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Source:
    """An opened checkpoint."""

    path: str
    layout: Layout
    reader: Reader

    def adapted(self, model: ModelConfig) -> ModelConfig:
        """The config with the adapters whose tensors the checkpoint holds beside LLaMA's own, in Meta's layout.

        Biases alone are adapters (bias tuning); beside LoRA they are the linears' own.
        """
        found = {
            suffix: [name for key, name in _META_LINEARS.items() if f"layers.0.{key}.{suffix}" in self.reader.shapes]
            for suffix in _SUFFIXES
        }
        kind = next((kind for suffix, kind in _SUFFIXES.items() if found[suffix]), None)
        if kind is None or (kind is AdapterKind.BIAS and (model.llm.attention_bias or model.llm.mlp_bias)):
            return model
        if kind is AdapterKind.LORA:
            rank = next(shape[0] for key, shape in self.reader.shapes.items() if key.endswith("lora_a.weight"))
            biased = bool(found["bias"])
            llm = dataclasses.replace(
                model.llm, attention_bias=model.llm.attention_bias or biased, mlp_bias=model.llm.mlp_bias or biased
            )
            adapter = AdapterConfig(kind=kind, targets=tuple(found["lora_a.weight"]), rank=rank)
            return dataclasses.replace(model, llm=llm, adapter=adapter)
        return dataclasses.replace(model, adapter=AdapterConfig(kind=kind, targets=tuple(found["bias"])))

    def holds(self, adapter: AdapterConfig) -> bool:
        """Whether the adapters' tensors are in the checkpoint, in Meta's layout or under our own names."""
        endings = tuple(f".{suffix}" for suffix, kind in _SUFFIXES.items() if kind is adapter.kind)
        layer = "layers.0.attention.w"
        return any(
            "/adapter/" in key or (key.startswith(layer) and key.endswith(endings)) for key in self.reader.shapes
        )


_META_LINEARS = {
    **{f"attention.w{name}": name for name in "qkvo"},
    "feed_forward.w1": "gate", "feed_forward.w3": "up", "feed_forward.w2": "down",
}  # fmt: skip
_SUFFIXES = {"lora_a.weight": AdapterKind.LORA, "scale": AdapterKind.SCALE_BIAS, "bias": AdapterKind.BIAS}


def open_source(paths: str | Path | Sequence[str | Path]) -> Source:
    """A checkpoint of files or folders; later ones replace tensors of earlier ones, a `model-diff` is added.

    Raises:
        EarthGPTError: a path or shard is missing, a file is truncated or holds more than tensors, the
            layout is not known.
    """
    several = [paths] if isinstance(paths, (str, Path)) else list(paths)
    reader: Reader | None = None
    for path in several:
        found, is_diff = _reader(Path(path))
        found = _without_prefix(found, "llma.")
        reader = found if reader is None else Overlay(reader, found, add=is_diff)
    if reader is None:
        raise EarthGPTError("checkpoint: expected a file or a folder, got none")
    where = " + ".join(map(str, several))
    if registers := [key for key in reader.shapes if key.endswith("register_tokens")]:
        raise EarthGPTError(
            f"{where}: a DINOv2 with registers ({registers[0]}), which EarthGPT does not use; take the one without"
        )
    for layout in LAYOUTS:
        match = next((match for key in reader.shapes if (match := re.fullmatch(layout.signature, key))), None)
        if match:
            prefix = match.groupdict().get("prefix") or ""
            if prefix:
                # The other tensors belong to another tower, such as CLIP's text encoder.
                reader = Renamed(
                    reader, {key: key.removeprefix(prefix) for key in reader.shapes if key.startswith(prefix)}
                )
            return Source(where, layout, reader)
    known, some = "; ".join(layout.name for layout in LAYOUTS), ", ".join(list(reader.shapes)[:4])
    raise EarthGPTError(f"{where}: none of the layouts that are known ({known}); its tensors: {some}, ...")


def _without_prefix(reader: Reader, prefix: str) -> Reader:
    """The tensors below a prefix; the reader as it is where none is."""
    names = {key: key.removeprefix(prefix) for key in reader.shapes if key.startswith(prefix)}
    return Renamed(reader, names) if prefix and names else reader


def _reader(path: Path) -> tuple[Reader, bool]:
    """The tensors of a file or folder, and whether they are to be added to others."""
    if (path / ADAPTER_FILE).is_file():
        leaves, files = Safetensors([path / ADAPTER_FILE]), sorted(path.glob("*.safetensors"))
        return Union([_indexed(path / INDEX) if (path / INDEX).is_file() else Safetensors(files), leaves]), False
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
    ):
        files = sorted(path.glob(pattern))
        if files:
            _check_complete(files)
            return _files(files), any("model-diff" in file.name for file in files)
    raise EarthGPTError(f"{path}: expected .safetensors, .bin or .pth files in it, found none")


def _indexed(index: Path) -> Reader:
    try:
        weight_map: Mapping[str, str] = json.loads(index.read_text())["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise EarthGPTError(f"{index}: expected an index with a weight_map ({error}); take it anew") from error
    files = [index.parent / name for name in sorted(set(weight_map.values()))]
    if missing := [file.name for file in files if not file.is_file()]:
        raise EarthGPTError(f"{index.parent}: shards are missing: {', '.join(missing)}; the index names {len(files)}")
    reader = _files(files)
    if lost := sorted(weight_map.keys() - reader.shapes.keys()):
        raise EarthGPTError(f"{index}: tensors of the index are in none of its files: {', '.join(lost[:6])}")
    return reader


def _check_complete(files: Sequence[Path]) -> None:
    """Raises where a shard is missing, by the numbers in the names."""
    pattern = re.compile(r"(.*?)(\d+)-of-(\d+).*|(consolidated\.)(\d+)\.pth")
    numbered = [match for file in files if (match := pattern.fullmatch(file.name))]
    if not numbered:
        return
    folder, got = files[0].parent, {int(match[2] or match[5]) for match in numbered}
    totals = {int(match[3]) for match in numbered if match[3]}
    if len(totals) > 1:
        raise EarthGPTError(f"{folder}: files of several checkpoints (of {sorted(totals)}); keep one set in a folder")
    first = 0 if numbered[0][0].startswith("consolidated") else 1  # Meta counts from 0, transformers from 1
    total = totals.pop() if totals else max(got) + 1
    if missing := sorted(set(range(first, first + total)) - got):
        raise EarthGPTError(
            f"{folder}: shards are missing: number {', '.join(map(str, missing))} of {total}; "
            f"found {', '.join(file.name for file in files)}"
        )


def _files(files: Sequence[Path]) -> Reader:
    if all(file.suffix == ".safetensors" for file in files):
        return Safetensors(files)
    shards = [TorchFile(file) for file in files]
    if len(shards) > 1 and all(file.name.startswith("consolidated.") for file in files):
        return Joined(shards, SPLIT_DIMS)
    return shards[0] if len(shards) == 1 else Union(shards)
