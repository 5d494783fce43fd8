"""Tokenizers of Hugging Face's `tokenizers`: a `tokenizer.json`, and the files that name its special tokens."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import tokenizers

from earthgpt_jax.common import typed
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.parsing import parse_json

_TOKENIZER, _CONFIG, _SPECIAL = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
_UNFINISHED = "\ufffd"  # stands for bytes that are not yet a character


class TokenizerJson:
    """A tokenizer of `tokenizers`; see `tokenizer.Backend`.

    BOS is what the tokenizer itself puts before a text, unless `add_bos_token` in `tokenizer_config.json` says
    otherwise: SmolLM2 has a BOS and adds none, Qwen has none.

    Args:
        contents: file name -> content; the first is the `tokenizer.json`.
        where: the file, for messages.

    Raises:
        EarthGPTError: a file is not what its name says, or none names the special tokens.
    """

    def __init__(self, contents: Mapping[str, bytes], *, where: str):
        first = next(iter(contents))
        try:
            self._tokenizer = tokenizer = tokenizers.Tokenizer.from_str(contents[first].decode())
        except Exception as error:  # the library raises Exception itself
            raise EarthGPTError(f"tokenizer {where}: expected a {_TOKENIZER} ({error}); download it again") from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True  # special tokens in a text are its characters
        names = _special_tokens(contents, where=where)
        self.vocab_size: int = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())
        self.bos_id = self._bos(names, where=where)
        self.eos_id = self._id(names, "eos_token", where=where)
        pad = self._id(names, "pad_token", where=where)
        self.pad_id: int = next((token for token in (pad, self.eos_id) if token is not None), 0)
        added = tokenizer.get_added_tokens_decoder()
        self.skipped = frozenset(token for token, value in added.items() if value.special)

    def _id(self, names: Mapping[str, Any], name: str, *, where: str) -> int | None:
        """Return the id of a special token; None if the tokenizer has none of this name."""
        value = names.get(name)
        text = value.get("content") if isinstance(value, Mapping) else value
        if text is None:
            return None
        token = self._tokenizer.token_to_id(text)
        if token is None:
            raise EarthGPTError(f"tokenizer {where}: expected {text!r}, its {name}, in the vocabulary, found none")
        return token

    def _bos(self, names: Mapping[str, Any], *, where: str) -> int | None:
        if (added := names.get("add_bos_token")) is not None:
            return self._id(names, "bos_token", where=where) if added else None
        encoding = self._tokenizer.encode("a")
        ids = [token for token, special in zip(encoding.ids, encoding.special_tokens_mask, strict=True) if special]
        before = encoding.special_tokens_mask.index(0)
        if before > 1:
            raise EarthGPTError(
                f"tokenizer {where}: expected at most one token before a text, got {before} ({ids[:before]})"
            )
        return ids[0] if before else None

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_with_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def decode_with_spans(self, ids: list[int]) -> tuple[str, list[tuple[int, int]]]:
        text, ends = self.decode(ids), [0]
        for count in range(1, len(ids)):
            # Bytes at the end that are not yet a character belong to the token that completes it.
            complete = len(self.decode(ids[:count]).rstrip(_UNFINISHED))
            ends.append(max(ends[-1], min(complete, len(text))))
        ends += [len(text)] * bool(ids)
        return text, list(itertools.pairwise(ends))


def _special_tokens(contents: Mapping[str, bytes], *, where: str) -> dict[str, Any]:
    """Return what the files next to a tokenizer.json say about its special tokens."""
    names: dict[str, Any] = {}
    for file in (_SPECIAL, _CONFIG):
        if file in contents:
            place = f"{file} next to {where}"
            values = typed.check(dict[str, Any], parse_json(contents[file], where=place), where=place)
            names |= {key: value for key, value in values.items() if value is not None}
    if not names:
        raise EarthGPTError(
            f"tokenizer {where}: expected a {_CONFIG} or a {_SPECIAL} next to it, which names BOS and EOS; "
            "copy it there"
        )
    return names
