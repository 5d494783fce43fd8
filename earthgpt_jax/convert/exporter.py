"""Export a model for other programs: a Hugging Face folder, a plain LLaMA, or LLaMA2-Accessory's files."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (registers bfloat16 with numpy)
import numpy as np

from earthgpt_jax.common import files
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.files import atomic_folder, write_json
from earthgpt_jax.common.progress import Bar
from earthgpt_jax.common.safetensors_files import Reader, SafetensorsWriter
from earthgpt_jax.config import AdapterConfig, AdapterKind, LlamaConfig, ModelConfig, to_dict
from earthgpt_jax.convert import llama_configs, tables, tokenizer_files
from earthgpt_jax.convert.card import check_push_ready, model_card
from earthgpt_jax.convert.export_info import export_info
from earthgpt_jax.convert.int8 import Quantization, Quantizer
from earthgpt_jax.convert.layouts import ADAPTER_FILE, SPLIT_DIMS
from earthgpt_jax.convert.tables import Rule, Table
from earthgpt_jax.convert.tensor_io import split_dim
from earthgpt_jax.convert.tokenizer_files import ImageToken
from earthgpt_jax.input.prompts.chat_template import ASSISTANT, HUMAN, SEPARATOR, chat_template
from earthgpt_jax.input.sequences import turn_ids
from earthgpt_jax.input.tokenizer import Tokenizer, copy_tokenizer
from earthgpt_jax.models import model_dir
from earthgpt_jax.models.merge import FilteredReader, MergedReader, ScaledLoraReader, merged_config
from earthgpt_jax.models.model_dir import ModelDir

SHARD_BYTES = 5 * 10**9
LARGE = 10**9  # parameters of a model that is exported in bfloat16
REMOTE_CODE = Path(__file__).parent / "hf"


def export_hf(
    name: str | Path, out: Path, *, dtype: np.dtype | None = None, adapter: str = "merge",
    shard_bytes: int = SHARD_BYTES, scores: Mapping[str, Any] | None = None, push_ready: bool = False,
    quantization: Quantization = Quantization.NONE, parent: str | Path | None = None,
) -> Path:  # fmt: skip
    """Write a folder for `AutoModelForImageTextToText` and `AutoProcessor` with `trust_remote_code=True`.

    Args:
        name: an embedded model or a model directory.
        out: the folder to write; it appears under its name once it is complete.
        dtype: dtype of all tensors; None: see `export_dtype`.
        adapter: "merge" adapters into kernels and biases, or "separate": leave them out of the model and write them
            to `adapter/`.
        shard_bytes: upper limit for the bytes of tensors in a file.
        scores: scores for the model card, as `earthgpt eval` writes them.
        push_ready: whether to refuse a model card that the public should not get, see `card.check_push_ready`.
        quantization: 8 bits for the linear layers of the language model; the other tensors are bfloat16 then, unless
            `dtype` is given.
        parent: see `model_dir.read_config`.

    Raises:
        EarthGPTError: there is no such model, or `out` exists already; or the card is not ready.
    """
    model, reader, config = open_model(name, adapter, parent=parent)
    if push_ready:
        check_push_ready(model, scores=scores)
    quantizer = None
    if quantization is not Quantization.NONE:
        dtype = np.dtype(dtype or "bfloat16")
        quantizer = Quantizer(quantization, dtype)
    dtype = export_dtype(dtype, reader)
    with atomic_folder(out, key_file="config.json") as folder:
        table = tables.hf_export(config)
        _write(folder, table, reader, dtype=dtype, shard_bytes=shard_bytes, quantizer=quantizer)
        if adapter == "separate" and model.model.adapter.kind is not AdapterKind.NONE:
            (folder / ADAPTER_FILE).parent.mkdir()
            _copy((folder / ADAPTER_FILE).parent, FilteredReader(model_dir.open_params(model), adapters=True))
        token = tokenizer_files.image_token(model.tokenizer)
        values = hf_config(model, config, token=token, dtype=_dtype_name(dtype, reader))
        if quantizer is not None:
            values["quantization_config"] = quantizer.config()
        write_json(folder / "config.json", values)
        for file in sorted(REMOTE_CODE.glob("*_earthgpt.py")):
            files.copy(file, folder / file.name)
        tokenizer_files.write_tokenizer(model.tokenizer, folder, special=(token,))
        for file_name, content in _processor_files(model, config, token=token).items():
            write_json(folder / file_name, content)
        files.write_text(folder / "chat_template.jinja", _jinja_template(model, token=token))
        files.write_text(folder / "README.md", model_card(model, adapter=adapter, scores=scores))
    return out


def export_llama(
    name: str | Path, out: Path, *, dtype: np.dtype | None = None, shard_bytes: int = SHARD_BYTES,
    parent: str | Path | None = None,
) -> Path:  # fmt: skip
    """Write the language model alone, with adapters merged, for `LlamaForCausalLM`; it needs no remote code.

    The arguments and errors are those of `export_hf`.
    """
    model, reader, config = open_model(name, "merge", parent=parent)
    dtype = export_dtype(dtype, reader)
    with atomic_folder(out, key_file="config.json") as folder:
        table = tables.llama_hf_export(config.llm).prefixed(path="llm/")
        _write(folder, table, reader, dtype=dtype, shard_bytes=shard_bytes)
        dtype_name = _dtype_name(dtype, reader)
        tokenizer = Tokenizer(model.tokenizer)
        values = {
            "architectures": ["LlamaForCausalLM"], **llama_config(config.llm), **_special_ids(tokenizer),
            "dtype": dtype_name,
        }  # fmt: skip
        write_json(folder / "config.json", values)
        write_json(folder / "generation_config.json", _generation_config(tokenizer))
        tokenizer_files.write_tokenizer(model.tokenizer, folder)
    return out


def export_accessory(
    name: str | Path, out: Path, *, dtype: np.dtype | None = None, shards: int = 1, parent: str | Path | None = None
) -> Path:
    """Write `consolidated.NN-of-MM.model.pth` in the layout of LLaMA2-Accessory's `llama_ens_light`.

    Adapters are kept, because LLaMA2-Accessory has the same ones.

    Args:
        shards: number of model-parallel files.
        parent: see `model_dir.read_config`.

    Raises:
        EarthGPTError: there is no such model, `out` exists already, or a tensor cannot be split into `shards`.
    """
    import torch
    from safetensors.torch import load_file

    model = model_dir.read_config(name, parent=parent)
    reader, config = ScaledLoraReader(model_dir.open_params(model), model.model), model.model
    table = tables.accessory(config)
    if config.llm.tied_head:  # LLaMA2-Accessory always has a head of its own
        table += Table("tied head", (Rule("llm/embed", "output.weight"),))
    table = table.prefixed(key="llma.")
    shapes = table.checkpoint_shapes(reader.shapes)
    dims = {key: split_dim(key, SPLIT_DIMS) for key in shapes}
    uneven = [key for key, dim in dims.items() if dim is not None and (shards < 1 or shapes[key][dim] % shards)]
    if uneven:
        raise EarthGPTError(
            f"{shards} shards: expected a number that divides heads ({config.llm.heads}, {config.llm.kv_heads}), "
            f"ffn_dim {config.llm.ffn_dim} and vocab_size {config.llm.vocab_size}; it does not divide {uneven[:2]}"
        )
    with atomic_folder(out, key_file="config.json") as folder:
        for number in range(shards):
            # torch.save takes all tensors at once. To keep them out of memory, write safetensors tensor by tensor
            # first, then save the memory-mapped file.
            scratch = folder / "scratch"
            scratch.mkdir()
            _write(scratch, table, reader, dtype=dtype, shard=(number, shards, dims))
            state = load_file(scratch / "model.safetensors")
            torch.save({"model": state}, folder / f"consolidated.{number:02d}-of-{shards:02d}.model.pth")
            del state
            files.remove_folder(scratch)
        llm = config.llm
        values = {
            "dim": llm.dim, "n_layers": llm.depth, "n_heads": llm.heads, "n_kv_heads": llm.kv_heads,
            "vocab_size": llm.vocab_size, "norm_eps": llm.norm_eps, "rope_theta": llm.rope_theta,
            # LLaMA2-Accessory computes the width of the MLP from dim; these two arguments make it equal to ours.
            **_ffn_arguments(llm), "max_seq_len": llm.max_positions,
        }  # fmt: skip
        files.write_json(folder / "config.json", values)
        files.write_json(folder / "meta.json", {"llama_type": "llama_ens_light"})
        copy_tokenizer(model.tokenizer, folder)
    return out


# -------------------------------------------------------------------------------------------- tensors
def open_model(name: str | Path, adapter: str, *, parent: str | Path | None) -> tuple[ModelDir, Reader, ModelConfig]:
    """Return a model directory, its parameters without adapters, and the config that matches these parameters."""
    model = model_dir.read_config(name, parent=parent)
    params = model_dir.open_params(model)
    if adapter == "separate" or model.model.adapter.kind is AdapterKind.NONE:
        config = dataclasses.replace(model.model, adapter=AdapterConfig())
        return model, FilteredReader(params, adapters=False), config
    return model, MergedReader(params, model.model), merged_config(model.model)


def export_dtype(dtype: np.dtype | None, reader: Reader) -> np.dtype | None:
    """Return the dtype of the tensors of an export; None keeps each parameter's.

    If none is given: bfloat16 for a model of a billion parameters or more. Otherwise float32 if adapters are merged,
    because a narrower dtype would round the products.
    """
    if dtype is None and sum(map(math.prod, reader.shapes.values())) >= LARGE:
        return np.dtype("bfloat16")
    return np.dtype("float32") if dtype is None and isinstance(reader, MergedReader) else dtype


def _write(
    folder: Path, table: Table, reader: Reader, *, dtype: np.dtype | None, shard_bytes: int | None = None,
    shard: tuple[int, int, Mapping[str, int | None]] | None = None, quantizer: Quantizer | None = None,
) -> None:  # fmt: skip
    """Write the tensors of a table as safetensors files.

    Args:
        quantizer: writes some of the tensors in 8 bits; each of them is one step of the table.
        shard: (index, count, key -> split axis) to write one model-parallel shard instead of full tensors.
    """
    shapes = {rule.path: reader.shapes[rule.path] for rule in table.rules if rule.path in reader.shapes}
    steps = table.steps(shapes, where="export")
    dtypes = {step.key: np.dtype(dtype or reader.dtypes[step.path]) for step in steps}
    index, count, dims = shard or (0, 1, {})

    def shard_shape(key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        dim = dims.get(key)
        return shape if dim is None else (*shape[:dim], shape[dim] // count, *shape[dim + 1 :])

    zeros_dtype = np.dtype(dtype or "float32")
    tensors = {
        key: (shard_shape(key, shape), dtypes.get(key, zeros_dtype))
        for key, shape in table.checkpoint_shapes(shapes).items()
    }
    if quantizer is not None:
        encoded = (quantizer.tensors(key, *layout) for key, layout in tensors.items())
        tensors = {name: layout for group in encoded for name, layout in group.items()}
    writer = SafetensorsWriter(folder, tensors, shard_bytes=shard_bytes, metadata={"format": "pt"})
    for step in Bar(steps, desc="export", unit="tensor"):
        value = reader.read(step.path) if step.layer is None else reader.read(step.path, step.layer, 1)[0]
        value = step.transform.to_checkpoint(value)
        if (dim := dims.get(step.key)) is not None:
            value = np.split(value, count, axis=dim)[index]
        for name, array in (quantizer.encode(step.key, value) if quantizer else {step.key: value}).items():
            writer.write(name, array, step.start)
    for key, shape in table.zeros.items():
        writer.write(key, np.zeros(shape))
    writer.close()


def _copy(folder: Path, reader: Reader) -> None:
    writer = SafetensorsWriter(folder, {path: (reader.shapes[path], reader.dtypes[path]) for path in reader.shapes})
    for path in reader.shapes:
        writer.write(path, reader.read(path))
    writer.close()


# --------------------------------------------------------------------------------------- config files
def _dtype_name(dtype: np.dtype | None, reader: Reader) -> str:
    return str(np.dtype(dtype or reader.dtypes["llm/embed"]))


def llama_config(config: LlamaConfig) -> dict[str, Any]:
    """Return the arguments of transformers' `LlamaConfig`, for its versions 4 (`rope_scaling`) and 5."""
    scaling = llama_configs.rope_scaling_hf(config.rope_scaling)
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
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,  # transformers 4
        "rope_scaling": scaling,
        "rope_parameters": {"rope_type": "default", **(scaling or {}), "rope_theta": config.rope_theta},
        "tie_word_embeddings": config.tied_head,
        # transformers' LLaMA has biases on all four linears or on none: o's are written as zeros (`tables`).
        "attention_bias": config.has_bias("q"),
        "mlp_bias": config.mlp_bias,
    }


def _special_ids(tokenizer: Tokenizer) -> dict[str, int | None]:
    return {
        "bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id
    }  # fmt: skip


def _generation_config(tokenizer: Tokenizer) -> dict[str, Any]:
    # Without max_new_tokens, transformers stops after 20 tokens.
    return {**_special_ids(tokenizer), "max_new_tokens": 512}


def hf_config(model: ModelDir, config: ModelConfig, *, token: ImageToken, dtype: str) -> dict[str, Any]:
    """Return the contents of the export's `config.json`; its entry `earthgpt_jax` is what an import needs."""
    plain = to_dict(config)
    return {
        "architectures": ["EarthGPTForConditionalGeneration"],
        "model_type": "earthgpt",
        "auto_map": {
            "AutoConfig": "configuration_earthgpt.EarthGPTConfig",
            "AutoModel": "modeling_earthgpt.EarthGPTModel",
            "AutoModelForImageTextToText": "modeling_earthgpt.EarthGPTForConditionalGeneration",
        },
        "image_size": config.image_size,
        "vit": plain["vit"],
        "convnext": plain["convnext"],
        "perception": plain["perception"],
        "text_config": llama_config(config.llm) | _special_ids(Tokenizer(model.tokenizer)),
        "image_token_id": token.id,
        "decimals": model.decimals,
        "conversation": _conversation(model),
        "tie_word_embeddings": config.llm.tied_head,
        "dtype": dtype,
        "earthgpt_jax": export_info(model, config),
    }


def _conversation(model: ModelDir) -> dict[str, Any]:
    """Return the chat template, from which the processor builds prompts and `generate` knows where answers end."""
    chat, tokenizer = chat_template(model.chat_template), Tokenizer(model.tokenizer)
    ids, _ = turn_ids(tokenizer, chat, "Q", "A")
    ends_with_eos = ids[-1] == tokenizer.eos_id
    return {
        "start_ids": tokenizer.start_ids,
        "name": chat.name,
        "prefix": chat.prefix,
        "roles": [HUMAN, ASSISTANT],
        "separator": SEPARATOR,
        "answer_end": tokenizer_files.special_texts(model.tokenizer)["eos"] if ends_with_eos else SEPARATOR,
        "separator_ids": chat.separator_ids(tokenizer),
    }


def _processor_files(model: ModelDir, config: ModelConfig, *, token: ImageToken) -> dict[str, Any]:
    """Return file name -> content of the JSON files for the processor and generation."""
    return {
        "generation_config.json": _generation_config(Tokenizer(model.tokenizer)),
        "processor_config.json": {
            "processor_class": "EarthGPTProcessor",
            "auto_map": {"AutoProcessor": "processing_earthgpt.EarthGPTProcessor"},
            "visual_tokens": config.visual_tokens,
            "image_token": token.text,
            "conversation": _conversation(model),
        },
        "preprocessor_config.json": {
            "image_processor_type": "EarthGPTImageProcessor",
            "processor_class": "EarthGPTProcessor",
            "auto_map": {
                "AutoImageProcessor": "processing_earthgpt.EarthGPTImageProcessor",
                "AutoProcessor": "processing_earthgpt.EarthGPTProcessor",
            },
            "size": {"height": config.image_size, "width": config.image_size},
        },
    }


def _jinja_template(model: ModelDir, *, token: ImageToken) -> str:
    """Return the chat template as Jinja: its texts as variables, and the rules, which all models share."""
    chat, special = chat_template(model.chat_template), tokenizer_files.special_texts(model.tokenizer)
    conversation, tokenizer = _conversation(model), Tokenizer(model.tokenizer)
    # Programs tokenize what follows EOS alone. SentencePiece begins it with a space, which must not be there twice.
    turn = chat.open_turn("Q")
    after = tokenizer.encode(chat.prefix + turn)[len(tokenizer.encode(chat.prefix)) :]
    has_space = tokenizer.encode(turn.lstrip()) != after
    values = {
        "start": special["bos"], "end": special["eos"], "image_token": token.text, "system": chat.system,
        "opening": chat.prefix.removeprefix(chat.system), "separator": SEPARATOR, "roles": [HUMAN, ASSISTANT],
        "answer_end": conversation["answer_end"],
        "next_turn": " " if has_space or conversation["answer_end"] == SEPARATOR else "",
    }  # fmt: skip
    lines = [f"{{%- set {name} = {json.dumps(value)} -%}}\n" for name, value in values.items()]
    return "".join(lines) + (REMOTE_CODE / "chat_template.jinja").read_text().removesuffix("\n")


def _ffn_arguments(config: LlamaConfig) -> dict[str, Any]:
    """Return the `multiple_of` and `ffn_dim_multiplier` that give `config.ffn_dim` in LLaMA2-Accessory.

    It computes int(multiplier * int(8 dim / 3)), rounded up to a multiple of `multiple_of`.
    """
    base = int(2 * 4 * config.dim / 3)
    for multiple_of in (256, 16, 1):
        for multiplier in (None, config.ffn_dim / base):
            width = base if multiplier is None else int(multiplier * base)
            if multiple_of * -(-width // multiple_of) == config.ffn_dim:
                return {"multiple_of": multiple_of, "ffn_dim_multiplier": multiplier}
    return {"multiple_of": config.ffn_dim, "ffn_dim_multiplier": None}
