"""A model of ours -> what others load: Hugging Face folders, a plain LLaMA, LLaMA2-Accessory's files."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.config import AdapterConfig, AdapterKind, LlamaConfig, ModelConfig, to_dict
from earthgpt_jax.convert import tables
from earthgpt_jax.convert.card import model_card
from earthgpt_jax.convert.layouts import ADAPTER_FILE, SPLIT_DIMS
from earthgpt_jax.convert.merge import Chosen, Folded, Unscaled, folded_config
from earthgpt_jax.convert.tables import Table
from earthgpt_jax.convert.tensor_io import Folder, Joined, Reader, Safetensors, SafetensorsWriter
from earthgpt_jax.input.prompts.chat_template import ASSISTANT, HUMAN, SEPARATOR, chat_template
from earthgpt_jax.input.tokenizer import Tokenizer
from earthgpt_jax.models import model_dir
from earthgpt_jax.models.model_dir import ModelDir

SHARD_BYTES = 5 * 10**9
ADAPTERS = ("fold", "separate")
REMOTE_CODE = Path(__file__).parent / "hf"
# LLaMA-2's context; nothing is allocated by it, but readers warn beyond it.
_MAX_POSITIONS = 4096


def export_hf(
    name: str | Path, out: Path, *, dtype: np.dtype | None = None, adapter: str = "fold",
    shard_bytes: int = SHARD_BYTES, scores: Mapping[str, Any] | None = None,
) -> Path:  # fmt: skip
    """A folder for `AutoModelForImageTextToText` and `AutoProcessor` with `trust_remote_code=True`.

    Args:
        name: an embedded model or a model directory.
        dtype: of all tensors; None keeps each leaf's, but float32 where adapters are folded.
        adapter: "fold" into kernels and biases, or "separate": the model without them, and `adapter/` beside it.
        scores: figures for the model card, as `earthgpt eval` wrote them.
    """
    model, reader, config = _opened(name, adapter)
    dtype = _dtype(dtype, reader)
    with Folder(out) as folder:
        _write(folder, tables.hf_export(config), reader, dtype=dtype, shard_bytes=shard_bytes)
        if adapter == "separate" and model.model.adapter.kind is not AdapterKind.NONE:
            (folder / ADAPTER_FILE).parent.mkdir()
            _copy((folder / ADAPTER_FILE).parent, Chosen(_leaves(model), adapters=True))
        values = hf_config(model, config, dtype=_name(dtype, reader))
        (folder / "config.json").write_text(json.dumps(values, indent=1) + "\n")
        for name_of_file, content in _around_the_model(model, config).items():
            (folder / name_of_file).write_text(json.dumps(content, indent=1) + "\n")
        for file in sorted(REMOTE_CODE.glob("*_earthgpt.py")):
            shutil.copyfile(file, folder / file.name)
        shutil.copyfile(model.tokenizer, folder / "tokenizer.model")
        (folder / "README.md").write_text(model_card(model, adapter=adapter, scores=scores))
    return out


def export_llama(name: str | Path, out: Path, *, dtype: np.dtype | None = None, shard_bytes: int = SHARD_BYTES) -> Path:
    """The language model alone, adapters folded, for `LlamaForCausalLM`: no remote code."""
    model, reader, config = _opened(name, "fold")
    dtype = _dtype(dtype, reader)
    with Folder(out) as folder:
        table = tables.llama_hf(config.llm).prefixed(path="llm/")
        _write(folder, table, reader, dtype=dtype, shard_bytes=shard_bytes)
        values = {"architectures": ["LlamaForCausalLM"], **llama_config(config.llm), "dtype": _name(dtype, reader)}
        (folder / "config.json").write_text(json.dumps(values, indent=1) + "\n")
        (folder / "generation_config.json").write_text(json.dumps(_generation(), indent=1) + "\n")
        shutil.copyfile(model.tokenizer, folder / "tokenizer.model")
    return out


def export_accessory(name: str | Path, out: Path, *, dtype: np.dtype | None = None, shards: int = 1) -> Path:
    """`consolidated.NN-of-MM.model.pth` in the layout of LLaMA2-Accessory's `llama_ens_light`, adapters as they are."""
    import torch
    from safetensors.torch import load_file

    model = model_dir.describe(name)
    reader, config = Unscaled(_leaves(model), model.model), model.model
    table = tables.accessory(config).prefixed(key="llma.")
    ours = reader.shapes
    full = table.their_shapes(ours)
    dims = {key: Joined.dim_of(key, SPLIT_DIMS) for key in full}
    odd = [key for key, dim in dims.items() if dim is not None and (shards < 1 or full[key][dim] % shards)]
    if odd:
        raise EarthGPTError(
            f"{shards} shards: expected a number that divides heads ({config.llm.heads}, {config.llm.kv_heads}), "
            f"ffn_dim {config.llm.ffn_dim} and vocab_size {config.llm.vocab_size}; it does not divide {odd[:2]}"
        )
    with Folder(out) as folder:
        for number in range(shards):
            # Laid out as safetensors first, which can be written tensor by tensor; torch.save then copies mapped pages.
            scratch = folder / "scratch"
            scratch.mkdir()
            _write(scratch, table, reader, dtype=dtype, shard=(number, shards, dims))
            state = load_file(scratch / "model.safetensors")
            torch.save({"model": state}, folder / f"consolidated.{number:02d}-of-{shards:02d}.model.pth")
            del state
            shutil.rmtree(scratch)
        llm = config.llm
        values = {
            "dim": llm.dim, "n_layers": llm.depth, "n_heads": llm.heads, "n_kv_heads": llm.kv_heads,
            "vocab_size": llm.vocab_size, "norm_eps": llm.norm_eps, "rope_theta": llm.rope_theta,
            # Upstream computes the width of the MLP from dim; these two make its formula give ours.
            **_ffn_arguments(llm), "max_seq_len": _MAX_POSITIONS,
        }  # fmt: skip
        (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n")
        (folder / "meta.json").write_text(json.dumps({"llama_type": "llama_ens_light"}, indent=2) + "\n")
        shutil.copyfile(model.tokenizer, folder / "tokenizer.model")
    return out


# ------------------------------------------------------------------------------------------ the pieces
def _leaves(model: ModelDir) -> Safetensors:
    return Safetensors([model.path / "model.safetensors"])


def _opened(name: str | Path, adapter: str) -> tuple[ModelDir, Reader, ModelConfig]:
    """A model directory, its leaves without adapters, and the config that belongs to them."""
    model = model_dir.describe(name)
    leaves = _leaves(model)
    if adapter == "separate" or model.model.adapter.kind is AdapterKind.NONE:
        return (
            model,
            Chosen(leaves, adapters=False),
            dataclasses.replace(model.model, adapter=AdapterConfig()),
        )
    return model, Folded(leaves, model.model), folded_config(model.model)


def _dtype(asked: np.dtype | None, reader: Reader) -> np.dtype | None:
    """float32 where adapters were folded in and nothing else was asked for: a narrower type would round products."""
    return np.dtype("float32") if asked is None and isinstance(reader, Folded) else asked


def _write(
    folder: Path, table: Table, reader: Reader, *, dtype: np.dtype | None, shard_bytes: int | None = None,
    shard: tuple[int, int, Mapping[str, int | None]] | None = None,
) -> None:  # fmt: skip
    """The tensors of a table as safetensors; of a model-parallel shard `(number, of, dims)`, its share of them."""
    ours = {row.path: reader.shapes[row.path] for row in table.rows if row.path in reader.shapes}
    entries = table.entries(ours, where="export")
    dtypes = {entry.key: np.dtype(dtype or reader.dtypes[entry.path]) for entry in entries}
    number, count, dims = shard or (0, 1, {})

    def share(key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        dim = dims.get(key)
        return shape if dim is None else (*shape[:dim], shape[dim] // count, *shape[dim + 1 :])

    shapes = table.their_shapes(ours)
    small = np.dtype(dtype or "float32")
    plan = {key: (share(key, shape), dtypes.get(key, small)) for key, shape in shapes.items()}
    writer = SafetensorsWriter(folder, plan, shard_bytes=shard_bytes, metadata={"format": "pt"})
    for entry in tqdm(entries, desc="export", unit="tensor"):
        rows = reader.read(entry.path) if entry.layer is None else reader.read(entry.path, entry.layer, 1)[0]
        value = entry.transform.theirs(rows)
        if (dim := dims.get(entry.key)) is not None:
            value = np.split(value, count, axis=dim)[number]
        writer.write(entry.key, value, entry.start)
    for key, shape in table.zeros.items():
        writer.write(key, np.zeros(shape))
    writer.close()


def _copy(folder: Path, reader: Reader) -> None:
    writer = SafetensorsWriter(folder, {path: (reader.shapes[path], reader.dtypes[path]) for path in reader.shapes})
    for path in reader.shapes:
        writer.write(path, reader.read(path))
    writer.close()


def _name(dtype: np.dtype | None, reader: Reader) -> str:
    return str(np.dtype(dtype or reader.dtypes["llm/embed"]))


def llama_config(config: LlamaConfig) -> dict[str, Any]:
    """transformers' `LlamaConfig`."""
    return {
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "intermediate_size": config.ffn_dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": _MAX_POSITIONS,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,  # transformers 4
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},  # transformers 5
        "tie_word_embeddings": config.tied_head,
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }


def _generation() -> dict[str, Any]:
    # transformers stops after 20 tokens where nothing is said.
    return {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "max_new_tokens": 512}


def hf_config(model: ModelDir, config: ModelConfig, *, dtype: str) -> dict[str, Any]:
    """`config.json` of the export; `earthgpt_jax` holds what brings the folder back."""
    plain = to_dict(config)
    return {
        "architectures": ["EarthGPTForConditionalGeneration"],
        "model_type": "earthgpt",
        "auto_map": {
            "AutoConfig": "configuration_earthgpt.EarthGPTConfig",
            "AutoModelForImageTextToText": "modeling_earthgpt.EarthGPTForConditionalGeneration",
        },
        "image_size": config.image_size,
        "vit": plain["vit"],
        "convnext": plain["convnext"],
        "perception": plain["perception"],
        "text_config": llama_config(config.llm),
        "decimals": model.decimals,
        "conversation": _spoken(model),
        "tie_word_embeddings": config.llm.tied_head,
        "dtype": dtype,
        "earthgpt_jax": {
            "model": to_dict(model.model), "exported": plain, "decimals": model.decimals,
            "conversation": model.chat_template, "about": model.about,
        },
    }  # fmt: skip


def _spoken(model: ModelDir) -> dict[str, Any]:
    """The conversation, as the processor builds prompts from it and generation ends by it."""
    chat = chat_template(model.chat_template)
    return {
        "name": chat.name,
        "prefix": chat.prefix,
        "roles": [HUMAN, ASSISTANT],
        "separator": SEPARATOR,
        "separator_ids": chat.separator_ids(Tokenizer(model.tokenizer)),
    }


def _around_the_model(model: ModelDir, config: ModelConfig) -> dict[str, Any]:
    """The files of the processor, the tokenizer and generation."""
    return {
        "generation_config.json": _generation(),
        "processor_config.json": {
            "processor_class": "EarthGPTProcessor",
            "auto_map": {"AutoProcessor": "processing_earthgpt.EarthGPTProcessor"},
            "image_size": config.image_size,
            "visual_tokens": config.visual_tokens,
            "conversation": _spoken(model),
        },
        "tokenizer_config.json": {
            "tokenizer_class": "EarthGPTTokenizer",
            "auto_map": {"AutoTokenizer": ["processing_earthgpt.EarthGPTTokenizer", None]},
        },
    }


def _ffn_arguments(config: LlamaConfig) -> dict[str, Any]:
    """`multiple_of` and `ffn_dim_multiplier` for which upstream's int(m * int(8 dim / 3)), rounded up, is ours."""
    base = int(2 * 4 * config.dim / 3)
    for multiple_of in (256, 16, 1):
        for multiplier in (None, config.ffn_dim / base):
            width = base if multiplier is None else int(multiplier * base)
            if multiple_of * -(-width // multiple_of) == config.ffn_dim:
                return {"multiple_of": multiple_of, "ffn_dim_multiplier": multiplier}
    return {"multiple_of": config.ffn_dim, "ffn_dim_multiplier": None}
