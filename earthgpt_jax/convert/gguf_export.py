"""Write the language model as a GGUF file, as llama.cpp's converter does: its names, types and order of rows."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import sentencepiece

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.files import atomic_folder
from earthgpt_jax.common.progress import Bar
from earthgpt_jax.config import LlamaConfig, RopeScaling
from earthgpt_jax.convert import tables
from earthgpt_jax.convert.exporter import export_dtype, open_model
from earthgpt_jax.input.tokenizer import Tokenizer

if TYPE_CHECKING:
    import gguf

FILE = "model.gguf"
_ROPE_FACTORS = "rope_freqs.weight"
_TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_FILE_TYPES = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16"}
# What tells the kinds of byte-level BPE apart in a tokenizer.json, and llama.cpp's name of the kind.
_KINDS_OF_BPE = (
    (r"\\p{N}{1,3}", "llama-bpe"), (r"\\p{N}", "qwen2"),
    ('"individual_digits": true', "smollm"), ("ByteLevel", "gpt-2"),
)  # fmt: skip


def export_gguf(
    name: str | Path, out: Path, *, dtype: np.dtype | None = None, parent: str | Path | None = None
) -> Path:
    """Write the language model with adapters merged, and its tokenizer, as `model.gguf` in a folder.

    Vectors are float32, which llama.cpp expects.

    Args:
        name: an embedded model or a model directory.
        out: the folder to write; it appears under its name once it is complete.
        dtype: dtype of the matrices: float32, float16 or bfloat16; None: see `exporter.export_dtype`.
        parent: see `model_dir.read_config`.

    Raises:
        EarthGPTError: the package `gguf` is not installed; there is no such model, or `out` exists already; or GGUF has
            no way to say what the model computes.
    """
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise EarthGPTError("GGUF files require the package gguf: pip install 'earthgpt-jax[gguf]'") from error

    model, reader, config = open_model(name, "merge", parent=parent)
    table = tables.llama_gguf(config.llm, meta_rope=True).prefixed(path="llm/")
    shapes = {rule.path: reader.shapes[rule.path] for rule in table.rules}
    chosen = export_dtype(dtype, reader) or reader.dtypes["llm/embed"]
    kind = gguf.GGMLQuantizationType[_TYPES[str(np.dtype(chosen))]]
    steps = table.steps(shapes, where="export")
    sizes = table.checkpoint_shapes(shapes)
    factors = _rope_factors(config.llm)
    with atomic_folder(out, key_file=FILE) as folder:
        writer = gguf.GGUFWriter(folder / FILE, "llama")
        writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[kind.name]])
        _add_architecture(writer, config.llm)
        _add_tokenizer(writer, model.tokenizer, vocab_size=config.llm.vocab_size)
        kinds = {key: kind if len(shape) == 2 else gguf.GGMLQuantizationType.F32 for key, shape in sizes.items()}
        for step in steps:
            bytes_each = 4 if kinds[step.key].name == "F32" else 2
            size = bytes_each * math.prod(sizes[step.key])
            writer.add_tensor_info(step.key, sizes[step.key], np.dtype("float32"), size, raw_dtype=kinds[step.key])
        if factors is not None:
            writer.add_tensor_info(_ROPE_FACTORS, factors.shape, factors.dtype, factors.nbytes)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for step in Bar(steps, desc="export", unit="tensor"):
            value = reader.read(step.path) if step.layer is None else reader.read(step.path, step.layer, 1)[0]
            value = np.ascontiguousarray(step.transform.to_checkpoint(value), np.float32)
            writer.write_tensor_data(gguf.quants.quantize(value, kinds[step.key]))
        if factors is not None:
            writer.write_tensor_data(factors)
        writer.close()
    return out


def _add_architecture(writer: gguf.GGUFWriter, config: LlamaConfig) -> None:
    import gguf

    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.dim)
    writer.add_block_count(config.depth)
    writer.add_feed_forward_length(config.ffn_dim)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    scaling = config.rope_scaling
    if scaling.kind is RopeScaling.LINEAR:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling.factor)
    elif scaling.kind is RopeScaling.YARN:
        raise EarthGPTError(
            "GGUF: expected RoPE scaling of kind none, linear or llama3, got yarn; export to hf or llama"
        )


def _rope_factors(config: LlamaConfig) -> np.ndarray | None:
    """Return the factors f32[H/2] by which Llama 3 stretches RoPE's wavelengths; None for another scaling."""
    scaling, size = config.rope_scaling, config.head_dim
    if scaling.kind is not RopeScaling.LLAMA3:
        return None
    rotations = scaling.original_positions * config.rope_theta ** (-np.arange(0, size, 2) / size) / (2 * np.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    kept = np.clip((rotations - scaling.low_freq_factor) / span, 0, 1)
    return (1 / (kept + (1 - kept) / scaling.factor)).astype(np.float32)


# ------------------------------------------------------------------------------------------ tokenizer
def _add_tokenizer(writer: gguf.GGUFWriter, path: Path, *, vocab_size: int) -> None:
    """Add the tokens, their types, and what llama.cpp needs to cut texts as the tokenizer does."""
    import gguf

    add = _add_bpe if path.suffix == ".json" else _add_sentencepiece
    tokens = list(add(writer, path))
    tokens += [(f"[PAD{index}]", -1000.0, gguf.TokenType.UNUSED) for index in range(len(tokens), vocab_size)]
    writer.add_token_list([text.encode() for text, _, _ in tokens])
    writer.add_token_types([kind for _, _, kind in tokens])
    if path.suffix != ".json":
        writer.add_token_scores([score for _, score, _ in tokens])
    tokenizer = Tokenizer(path)
    writer.add_add_bos_token(tokenizer.bos_id is not None)
    for token, write in (
        (tokenizer.bos_id, writer.add_bos_token_id), (tokenizer.eos_id, writer.add_eos_token_id),
        (tokenizer.pad_id, writer.add_pad_token_id),
    ):  # fmt: skip
        if token is not None:
            write(token)


def _add_sentencepiece(writer: gguf.GGUFWriter, path: Path) -> Iterator[tuple[str, float, Any]]:
    """Name the kind of tokenizer, and yield text, score and type of each token."""
    import gguf

    model = sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_unk_token_id(model.unk_id())
    kinds = (
        (model.is_unknown, "UNKNOWN"), (model.is_control, "CONTROL"), (model.is_unused, "UNUSED"),
        (model.is_byte, "BYTE"),
    )  # fmt: skip
    for index in range(model.vocab_size()):
        kind = next((name for check, name in kinds if check(index)), "NORMAL")
        yield model.id_to_piece(index), model.get_score(index), gguf.TokenType[kind]


def _add_bpe(writer: gguf.GGUFWriter, path: Path) -> Iterator[tuple[str, float, Any]]:
    """Name the kind of tokenizer, and yield text, score (none) and type of each token.

    Raises:
        EarthGPTError: it is no byte-level BPE that llama.cpp has a name for.
    """
    import gguf

    content = json.loads(path.read_text())
    before = json.dumps(content.get("pre_tokenizer") or {})
    kind = next((name for sign, name in _KINDS_OF_BPE if sign in before), None)
    if content["model"]["type"] != "BPE" or kind is None:
        raise EarthGPTError(
            f"{path}: expected a byte-level BPE tokenizer of the kind of Llama 3, Qwen 2, SmolLM or GPT-2, for which "
            "GGUF has names; export to hf or llama"
        )
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(kind)
    merges = content["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    added = {token["id"]: token for token in content["added_tokens"]}
    texts = {index: text for text, index in content["model"]["vocab"].items()}
    texts |= {index: token["content"] for index, token in added.items()}
    for index in range(max(texts) + 1):
        if index not in texts:
            yield f"[PAD{index}]", 0.0, gguf.TokenType.UNUSED
        elif index in added:
            name = "CONTROL" if added[index]["special"] else "USER_DEFINED"
            yield texts[index], 0.0, gguf.TokenType[name]
        else:
            yield texts[index], 0.0, gguf.TokenType.NORMAL
