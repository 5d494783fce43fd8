"""Small tokenizers of the kinds that published language models have, trained on texts of the synthetic source."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from earthgpt_jax.input.tokenizer import train_tokenizer
from tests.support import nano

KINDS = ("llama2", "smollm2", "llama3", "qwen")
# The patterns by which Llama 3 and Qwen 2 cut texts before BPE: they differ in the number of digits of a piece.
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CONFIGS = {
    "smollm2": {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>",
                "pad_token": "<|im_end|>", "tokenizer_class": "GPT2Tokenizer"},
    "llama3": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>",
               "tokenizer_class": "PreTrainedTokenizerFast"},
    "qwen": {"bos_token": None, "eos_token": {"__type": "AddedToken", "content": "<|im_end|>", "special": True},
             "pad_token": "<|endoftext|>",
             "add_bos_token": False, "tokenizer_class": "Qwen2Tokenizer"},
}  # fmt: skip
_SPECIAL = {
    "smollm2": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "llama3": ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"],
    "qwen": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
}


def build_tokenizer(kind: str, folder: Path, *, vocab_size: int = 640) -> Path:
    """Train a tokenizer of a kind of `KINDS` and return its first file; special tokens count to its `vocab_size`."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "llama2":
        train_tokenizer(nano.dialogues(), vocab_size=vocab_size, path=folder / "tokenizer.model")
        return folder / "tokenizer.model"
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == "smollm2")
    if kind == "smollm2":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    else:
        pattern = Regex(_PATTERN.replace("DIGITS", "{1,3}" if kind == "llama3" else ""))
        split = pre_tokenizers.Split(pattern, behavior="isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    if kind == "qwen":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=kind == "smollm2")
    special = _SPECIAL[kind]
    first = special if kind == "smollm2" else []  # the others add their special tokens after the vocabulary
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(special) + len(first) - 1,
        special_tokens=first,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    rng = random.Random(0)
    words = (" " + "".join(rng.choices("abdegiklmnoprstu", k=6)) for _ in range(200))
    tokenizer.train_from_iterator([*nano.dialogues(), *words], trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken("[SEG]", special=False)])
    if kind == "llama3":
        begin = special[0]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", pair=f"{begin} $A {begin} $B", special_tokens=[(begin, tokenizer.token_to_id(begin))]
        )
    assert tokenizer.get_vocab_size() == vocab_size
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(_CONFIGS[kind]))
    return folder / "tokenizer.json"
