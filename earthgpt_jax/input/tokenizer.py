"""Tokenizers: one interface for SentencePiece models and for the `tokenizer.json` of Hugging Face's `tokenizers`.

A tokenizer is its files. SentencePiece has one, `tokenizer.model`. The other kind has `tokenizer.json`, and next to it
`tokenizer_config.json`, which names the special tokens.

Text never becomes a special token: a user who types `<s>` or `<|im_end|>` gets its characters, as with
`split_special_tokens=True` in transformers. No id is special by its number.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import sentencepiece

from earthgpt_jax.common import files
from earthgpt_jax.common.digests import fingerprint
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.input.tokenizer_json import TokenizerJson

SENTENCEPIECE, JSON = "tokenizer.model", "tokenizer.json"
# The files that may belong to a tokenizer, by the name of the first.
_FILES = {SENTENCEPIECE: (SENTENCEPIECE,), JSON: (JSON, "tokenizer_config.json", "special_tokens_map.json")}
Spans = list[tuple[int, int]]


class Backend(Protocol):
    """A library's tokenizer.

    Attributes:
        vocab_size: number of token ids.
        bos_id: the token that texts begin with; None if they begin with none.
        eos_id: the token that ends a text; None if there is none.
        pad_id: the token that fills sequences; its value has no effect on results.
        skipped: ids that are no part of a text: special tokens.
    """

    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    pad_id: int
    skipped: frozenset[int]

    def encode(self, text: str) -> list[int]: ...

    def encode_with_spans(self, text: str) -> tuple[list[int], Spans]: ...

    def decode(self, ids: list[int]) -> str: ...

    def decode_with_spans(self, ids: list[int]) -> tuple[str, Spans]: ...


class Tokenizer:
    """A tokenizer of either kind. Pickled by its path.

    Attributes:
        fingerprint: digest of its files.
        vocab_size, bos_id, eos_id, pad_id: see `Backend`.

    Raises:
        EarthGPTError: the file is neither a SentencePiece model nor a `tokenizer.json` with its special tokens.
    """

    def __init__(self, path: Path | str):
        self._path = files.path(path)
        backend, parts = _open(self._path)
        self._backend: Backend = backend
        self.fingerprint = fingerprint(*parts)
        self.vocab_size, self.pad_id = backend.vocab_size, backend.pad_id
        self.bos_id, self.eos_id = backend.bos_id, backend.eos_id

    def __reduce__(self) -> tuple:
        return Tokenizer, (self._path,)

    @property
    def start_ids(self) -> list[int]:
        """The ids that every sequence begins with: BOS, or none."""
        return [] if self.bos_id is None else [self.bos_id]

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without BOS and EOS."""
        return self._backend.encode(text)

    def encode_with_spans(self, text: str) -> tuple[list[int], Spans]:
        """Return the ids of a text, and the `(start, end)` of each in characters of the text."""
        return self._backend.encode_with_spans(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of some ids, without special tokens and ids that the tokenizer does not have."""
        return self._backend.decode([token for token in map(int, ids) if self._is_text(token)])

    def decode_with_spans(self, ids: Sequence[int]) -> tuple[str, Spans]:
        """Return the text of some ids, and the `(start, end)` of each in characters of the text.

        If several tokens form one character, one of them has its span and the others have empty spans. So do those that
        `decode` leaves out.
        """
        text, spans = self._backend.decode_with_spans([token for token in map(int, ids) if self._is_text(token)])
        remaining, ends = iter(spans), 0
        result = []
        for token in ids:
            start, ends = next(remaining) if self._is_text(int(token)) else (ends, ends)
            result.append((start, ends))
        return text, result

    def _is_text(self, token: int) -> bool:
        return 0 <= token < self.vocab_size and token not in self._backend.skipped


def _open(path: Path) -> tuple[Backend, list[bytes]]:
    """Return the backend of a file, and the contents of all files of the tokenizer."""
    if path.suffix == ".json":
        contents = {file.name: file.read_bytes() for file in tokenizer_files(path)}
        return TokenizerJson(contents, where=str(path)), list(contents.values())
    try:
        data = path.read_bytes()
        return _SentencePiece(data), [data]
    except (OSError, RuntimeError, ValueError) as error:
        raise EarthGPTError(
            f"tokenizer {path}: expected a SentencePiece model file or a {JSON} ({error}); LLaMA 2's is called "
            f"{SENTENCEPIECE}, and where that is a list of tokens, as in Llama 3, use the {JSON} of the same model"
        ) from error


def tokenizer_files(path: Path) -> tuple[Path, ...]:
    """Return the files of a tokenizer, from the path of the first.

    Raises:
        EarthGPTError: the first does not exist.
    """
    if not path.is_file():
        raise EarthGPTError(f"tokenizer {path}: no such file; expected a {SENTENCEPIECE} or a {JSON}")
    names = _FILES[JSON][1:] if path.suffix == ".json" else ()
    return (path, *(path.parent / name for name in names if (path.parent / name).is_file()))


def find_tokenizer(folder: Path) -> Path | None:
    """Return the tokenizer in a folder; None if there is none.

    A folder with both kinds has two versions of one tokenizer; the SentencePiece model is preferred.
    """
    model = folder / SENTENCEPIECE
    if model.is_file() and (not (folder / JSON).is_file() or _is_sentencepiece(model)):
        return model
    return folder / JSON if (folder / JSON).is_file() else None


def _is_sentencepiece(path: Path) -> bool:
    """Return whether a file begins like a SentencePiece model, and not like Llama 3's list of tokens."""
    return path.read_bytes()[:1] == b"\x0a"


def copy_tokenizer(path: Path, folder: Path) -> Path:
    """Copy the files of a tokenizer into a folder, under their usual names, and return the path of the first."""
    names = _FILES[JSON if path.suffix == ".json" else SENTENCEPIECE]
    for file in tokenizer_files(path):
        files.copy(file, folder / (names[0] if file == path else file.name))
    return folder / names[0]


class _SentencePiece:
    """A SentencePiece model. Padding is 0 if the model has no padding, as in LLaMA2-Accessory."""

    def __init__(self, data: bytes):
        self._processor = processor = sentencepiece.SentencePieceProcessor(model_proto=data)
        self.vocab_size = processor.vocab_size()
        if not self.vocab_size:
            raise ValueError("it has no tokens")
        processor.id_to_piece(list(range(self.vocab_size)))  # raises here, not later, if a token is not UTF-8
        self.bos_id, self.eos_id = (None if token < 0 else token for token in (processor.bos_id(), processor.eos_id()))
        self.pad_id = max(processor.pad_id(), 0)
        special = (processor.is_control, processor.is_unknown, processor.is_unused)
        self.skipped = frozenset(i for i in range(self.vocab_size) if any(is_special(i) for is_special in special))

    def encode(self, text: str) -> list[int]:
        return self._processor.encode(text)

    def encode_with_spans(self, text: str) -> tuple[list[int], Spans]:
        mapping = self._processor.encode(text, return_type="offset_mapping")
        return mapping["ids"], mapping["offsets"]

    def decode(self, ids: list[int]) -> str:
        return self._processor.decode(ids)

    def decode_with_spans(self, ids: list[int]) -> tuple[str, Spans]:
        mapping = self._processor.decode(ids, return_type="offset_mapping")
        return mapping["text"], mapping["offsets"]


def train_tokenizer(texts: Iterable[str], *, vocab_size: int, path: Path) -> None:
    """Train a SentencePiece BPE model with LLaMA's layout and write it to `path`.

    Its unk, BOS and EOS are 0, 1 and 2; it has byte fallback and single digits. The same texts give the same file.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        character_coverage=1.0,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(path, model.getvalue())
