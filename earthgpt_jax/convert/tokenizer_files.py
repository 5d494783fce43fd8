"""The tokenizer of an export: a `tokenizer.json` that every program reads, and the token that stands for images.

A SentencePiece model becomes a `tokenizer.json` with the same ids; the model itself is copied too, for an import.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, processors

from earthgpt_jax.common import files, typed
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.parsing import parse_json
from earthgpt_jax.input.tokenizer import JSON, Tokenizer, copy_tokenizer

CONFIG = "tokenizer_config.json"
_SPACE = "▁"  # SentencePiece's space
_NO_TEXT_HAS_IT = "<0xFF>"  # the token of a byte that UTF-8 does not use
# Texts that tell tokenizers apart: spaces, digits, line breaks, several scripts, bytes of unknown characters.
_PROBES = (
    "There are <p>two ships</p>[0.12,0.34,0.56,0.78].\n### Human: ", "  a  b\t\tc\r\n\n", "1234567 3.14",
    "ÀÉÎõü ﬁ ½ Å Å", "船舶 корабль 🚢\u0301\ufeff", " leading and trailing ", "don't can't it's", "ＡＢＣ\u00a0\u2028",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ImageToken:
    """The token at the positions of an image: one that no text becomes and no answer has."""

    id: int
    text: str


def image_token(tokenizer: Path) -> ImageToken:
    """Return the image token of a language model: a special token that it does not use, or a byte no text has.

    Raises:
        EarthGPTError: the tokenizer has no such token.
    """
    ours = Tokenizer(tokenizer)
    used = {ours.bos_id, ours.eos_id, ours.pad_id}
    if tokenizer.suffix == ".json":
        added = _read_json(tokenizer).get_added_tokens_decoder()
        tokens = [(index, token.content) for index, token in sorted(added.items()) if token.special]
    else:
        processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.read_bytes())
        names = [(index, processor.id_to_piece(index)) for index in range(processor.vocab_size())]
        tokens = [(index, text) for index, text in names if processor.is_control(index) or text == _NO_TEXT_HAS_IT]
    used |= set(ours.encode("\U0010fffd"))  # the unknown token, where there are no bytes
    free = [ImageToken(index, text) for index, text in tokens if index not in used]
    if not free:
        raise EarthGPTError(
            f"{tokenizer}: expected a special token other than BOS, EOS and padding, which can stand for images, found "
            "none; add one to the tokenizer, such as <image>, within the vocabulary of the language model"
        )
    return next((token for token in free if "image" in token.text.lower()), free[0])


def write_tokenizer(source: Path, folder: Path, *, special: tuple[ImageToken, ...] = ()) -> None:
    """Write the files of a tokenizer for `AutoTokenizer` without remote code.

    Args:
        source: its first file, a SentencePiece model or a `tokenizer.json`.
        special: tokens to treat as special, in addition to the tokenizer's own.

    Raises:
        EarthGPTError: a SentencePiece model that cannot be converted: another one than LLaMA's kind.
    """
    copy_tokenizer(source, folder)
    ours, config = Tokenizer(source), source.parent / CONFIG
    if source.suffix == ".json":
        values = parse_json(config.read_bytes(), where=str(config)) if config.is_file() else {}
        values = typed.check(dict[str, Any], values, where=str(config))
        values.pop("auto_map", None)
        first = _read_json(source)
    else:
        first = sentencepiece_tokenizer(source, special=special)
        files.write_text(folder / JSON, first.to_str(pretty=True))
        names = {"bos": ours.bos_id, "eos": ours.eos_id, "pad": ours.pad_id}
        values = {f"{name}_token": first.id_to_token(token) for name, token in names.items() if token is not None}
        values["unk_token"] = first.model.unk_token
    # Classes named after a model rebuild parts of the tokenizer by their own rules.
    values |= {"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": "left"}
    files.write_json(folder / CONFIG, values)


def sentencepiece_tokenizer(path: Path, *, special: tuple[ImageToken, ...] = ()) -> tokenizers.Tokenizer:
    """Return a SentencePiece BPE model of LLaMA's kind as a `tokenizers.Tokenizer`, which gives the same ids.

    Raises:
        EarthGPTError: it gives other ids: the model is no BPE model, or it normalizes texts.
    """
    model = sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
    pieces = [model.id_to_piece(index) for index in range(model.vocab_size())]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    no_text = (model.is_control, model.is_unknown, model.is_unused, model.is_byte)
    texts = {piece for index, piece in enumerate(pieces) if not any(kind(index) for kind in no_text)}
    merges = [
        (-model.get_score(vocabulary[piece]), vocabulary[piece], vocabulary[piece[:cut]], piece[:cut], piece[cut:])
        for piece in texts
        for cut in range(1, len(piece))
        if piece[:cut] in texts and piece[cut:] in texts
    ]
    bpe = models.BPE(
        vocab=vocabulary, merges=[merge[-2:] for merge in sorted(merges)], unk_token=pieces[model.unk_id()],
        fuse_unk=True, byte_fallback=True,
    )  # fmt: skip
    tokenizer = tokenizers.Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)])
    strip = decoders.Strip(content=" ", left=1, right=0)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), strip]
    )
    differing = [text for text in _PROBES if tokenizer.encode(text).ids != model.encode(text)]
    if differing:
        raise EarthGPTError(
            f"{path}: expected a SentencePiece model of LLaMA's kind (BPE with byte fallback and without "
            f"normalization), got one that cannot be written as a {JSON}: ids of {differing[0]!r} differ"
        )
    control = [piece for index, piece in enumerate(pieces) if model.is_control(index) or model.is_unknown(index)]
    named = [*control, *(token.text for token in special if token.text not in control)]
    tokenizer.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in named])
    if model.bos_id() >= 0:
        begin = pieces[model.bos_id()]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", pair=f"{begin} $A {begin}:1 $B:1", special_tokens=[(begin, model.bos_id())]
        )
    return tokenizer


def _read_json(path: Path) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(path.read_text())


def special_texts(tokenizer: Path) -> dict[str, Any]:
    """Return the texts of BOS (as prompts begin, "" for none) and EOS ("" for none) of a tokenizer."""
    ours = Tokenizer(tokenizer)
    names = _read_json(tokenizer) if tokenizer.suffix == ".json" else sentencepiece_tokenizer(tokenizer)
    return {
        "bos": "" if ours.bos_id is None else names.id_to_token(ours.bos_id),
        "eos": "" if ours.eos_id is None else names.id_to_token(ours.eos_id),
    }
