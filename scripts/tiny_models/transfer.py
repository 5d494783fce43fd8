"""Continue from an embedded model: keep its encoders, and give its language model the vocabulary of a new tokenizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import sentencepiece

from earthgpt_jax.models import model_dir

SPACE = "\u2581"  # how SentencePiece writes a space


def encoders_of(name: str) -> dict[str, np.ndarray]:
    """Return the encoders of a model as f32, by path."""
    return _arrays(name, ("vit/", "convnext/"))


def language_model_of(name: str, *, tokenizer: Path) -> dict[str, np.ndarray]:
    """Return the language model and the image tokens of a model as f32, by path, for the pieces of `tokenizer`.

    A piece that the model's tokenizer has too keeps its embedding and its output weights. Another one gets the mean
    embedding of the old pieces of its text, and the output weights of the first of them.
    """
    arrays = _arrays(name, ("llm/", "image_tokens/"))
    old = sentencepiece.SentencePieceProcessor(model_file=str(model_dir.read_config(name).tokenizer))
    new = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
    parts = [_old_pieces(new.id_to_piece(i), old) for i in range(new.vocab_size())]
    embed, head = arrays["llm/embed"], arrays["llm/head/kernel"]
    arrays["llm/embed"] = np.stack([embed[ids].mean(axis=0) for ids in parts])
    arrays["llm/head/kernel"] = np.stack([head[:, ids[0]] for ids in parts], axis=1)
    return arrays


def _arrays(name: str, prefixes: tuple[str, ...]) -> dict[str, np.ndarray]:
    _, arrays = model_dir.read(name)
    return {path: value.astype(np.float32) for path, value in arrays.items() if path.startswith(prefixes)}


def _old_pieces(piece: str, old: sentencepiece.SentencePieceProcessor) -> list[int]:
    """Return the pieces of the old tokenizer that spell a piece."""
    known = old.piece_to_id(piece)
    if known != old.unk_id() or piece == old.id_to_piece(old.unk_id()):
        return [known]
    line = old.encode("\n")  # after it, no space is added in front of the text
    return old.encode("\n" + piece.replace(SPACE, " "))[len(line) :]
