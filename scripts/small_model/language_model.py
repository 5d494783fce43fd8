"""Cut a published LLM to the size of a laptop: its first layers, and the part of its vocabulary that is used.

The rest of the model is unchanged, so its training is a start. The recipe trains it further.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.config import LlamaConfig, ModelConfig
from small_model.parts import read_part

SMOLLM2_DEPTH = 30
_CONTROL = 3  # token type in GGUF files


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """A byte-level BPE vocabulary.

    Attributes:
        tokens: the token of each id.
        merges: pairs of tokens, in order of priority.
        special: control tokens.
        eos, bos: of these.
    """

    tokens: tuple[str, ...]
    merges: tuple[tuple[str, str], ...]
    special: tuple[str, ...]
    bos: str
    eos: str

    def tokenizer(self) -> tokenizers.Tokenizer:
        """Return the tokenizer, with the pre-tokenizer of SmolLM2: single digits, then GPT-2's words."""
        ids = {token: number for number, token in enumerate(self.tokens)}
        built = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=list(self.merges)))
        digits, words = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
        built.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
        built.decoder = decoders.ByteLevel()
        built.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in self.special])
        return built

    def save(self, folder: Path) -> Path:
        """Write `tokenizer.json` and the file that names its special tokens, and return the first."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "tokenizer.json"
        self.tokenizer().save(str(path))
        names = {"bos_token": self.bos, "eos_token": self.eos, "pad_token": self.eos, "add_bos_token": False}
        (folder / "tokenizer_config.json").write_text(json.dumps(names, indent=2) + "\n")
        return path

    def cut(self, counts: Mapping[str, int], *, size: int) -> tuple[Vocabulary, np.ndarray]:
        """Return a vocabulary of `size` tokens, and their ids in this one.

        It has the control tokens, all bytes, the most frequent tokens with those that they are merged from, and then
        the tokens of the first merges, which are the most frequent ones of the language.

        Args:
            counts: token -> how often the data uses it.

        Raises:
            EarthGPTError: `size` is too small for control tokens and bytes.
        """
        made_of: dict[str, tuple[str, str]] = {}
        for left, right in self.merges:  # the first merge that gives a token is the one that is used
            made_of.setdefault(left + right, (left, right))
        kept = {*self.special, *pre_tokenizers.ByteLevel.alphabet()} & set(self.tokens)  # some bytes have no token
        if len(kept) > size:
            raise EarthGPTError(f"vocabulary: expected a size of at least {len(kept)}, got {size}")
        wanted = sorted(counts, key=lambda token: (-counts[token], token))
        for token in (*wanted, *made_of):
            parts = _with_parts(token, made_of) - kept
            if len(kept) + len(parts) <= size:
                kept |= parts
        ids = np.array([number for number, token in enumerate(self.tokens) if token in kept])
        merges = tuple(pair for pair in self.merges if {*pair, "".join(pair)} <= kept)
        return dataclasses.replace(self, tokens=tuple(self.tokens[i] for i in ids), merges=merges), ids


def _with_parts(token: str, made_of: Mapping[str, tuple[str, str]]) -> set[str]:
    """Return a token and all tokens that it is merged from."""
    found, pending = {token}, [token]
    while pending:
        new = set(made_of.get(pending.pop(), ())) - found
        found |= new
        pending += new
    return found


def read_vocabulary(path: Path) -> Vocabulary:
    """Return the vocabulary of a GGUF file."""
    fields = {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    return Vocabulary(
        tokens=tuple(tokens),
        merges=tuple((left, right) for left, right in (merge.split(" ") for merge in fields["tokenizer.ggml.merges"])),
        special=tuple(token for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL),
        bos=tokens[fields["tokenizer.ggml.bos_token_id"]],
        eos=tokens[fields["tokenizer.ggml.eos_token_id"]],
    )


def read_llm(path: Path, model: ModelConfig, *, whole: LlamaConfig, ids: np.ndarray) -> dict[str, np.ndarray]:
    """Return the parameters `llm/...` of a cut LLM.

    Args:
        path: GGUF file of the whole one.
        model: the cut model.
        whole: config of the whole LLM.
        ids: the kept token ids.
    """
    arrays, depth = read_part("llm/", path, dataclasses.replace(model, llm=whole)), model.llm.depth
    return {
        name: value[ids] if name == "llm/embed" else value[:depth] if "/blocks/" in name else value
        for name, value in arrays.items()
    }
