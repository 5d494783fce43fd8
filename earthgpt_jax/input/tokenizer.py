"""SentencePiece tokenizers of LLaMA's layout: unk 0, bos 1, eos 2, byte fallback, single digits."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece

from earthgpt_jax.common import files
from earthgpt_jax.common.digests import fingerprint
from earthgpt_jax.common.errors import EarthGPTError


class Tokenizer:
    """A SentencePiece tokenizer. Padding is 0, as in LLaMA2-Accessory. Pickled by its path.

    Raises:
        EarthGPTError: The file is not a SentencePiece model.
    """

    pad_id = 0

    def __init__(self, path: Path | str):
        self._path = files.path(path)
        try:
            data = self._path.read_bytes()
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=data)
        except (OSError, RuntimeError) as error:
            raise EarthGPTError(
                f"tokenizer {self._path}: expected a SentencePiece model file ({error}); "
                "LLaMA's is called tokenizer.model"
            ) from error
        self.fingerprint = fingerprint(data)
        self.vocab_size: int = self._processor.vocab_size()
        self.bos_id: int = self._processor.bos_id()
        self.eos_id: int = self._processor.eos_id()

    def __reduce__(self) -> tuple:
        return Tokenizer, (self._path,)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without BOS and EOS."""
        return self._processor.encode(text)

    def encode_with_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the ids of a text, and the `(start, end)` of each in characters of the text."""
        mapping = self._processor.encode(text, return_type="offset_mapping")
        return mapping["ids"], mapping["offsets"]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of some ids."""
        return self._processor.decode(list(ids))

    def decode_with_spans(self, ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
        """Return the text of some ids, and the `(start, end)` of each in characters of the text.

        If several byte tokens form one character, one of them has its span and the others have empty spans.
        """
        mapping = self._processor.decode(list(ids), return_type="offset_mapping")
        return mapping["text"], mapping["offsets"]


def train_tokenizer(texts: Iterable[str], *, vocab_size: int, path: Path) -> None:
    """Train a BPE model with LLaMA's layout and write it to `path`; the same texts give the same file."""
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
