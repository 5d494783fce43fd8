"""What each part runs: models, stages and sizes, for a GPU and, with nano sizes, for a CPU."""

from __future__ import annotations

import dataclasses
from typing import Any

from earthgpt_jax.config import Config, from_dict

# The recipe `earthgpt_13b` without its LLM. Recipes need ml_collections, which a GPU machine may lack; a test compares
# these values with the recipes.
TOWERS: dict[str, Any] = {
    "image_size": 512,
    "compute_dtype": "bfloat16",
    "vit": {"image_size": 224, "patch_size": 14, "dim": 1024, "depth": 24, "heads": 16, "ffn_dim": 4096, "grid": 37},
    "convnext": {"image_size": 512, "depths": (3, 3, 27, 3), "dims": (192, 384, 768, 1536)},
    "perception": {"vit_layers": (5, 11, 17, 23), "cnn_stages": (0, 1, 2, 3)},
}
LLMS: dict[str, dict[str, Any]] = {
    # TinyLlama-1.1B, LLaMA-2-7B, LLaMA-2-13B.
    "1.1B": {"vocab_size": 32000, "dim": 2048, "depth": 22, "heads": 32, "kv_heads": 4, "ffn_dim": 5632},
    "7B": {"vocab_size": 32000, "dim": 4096, "depth": 32, "heads": 32, "kv_heads": 32, "ffn_dim": 11008},
    "13B": {"vocab_size": 32000, "dim": 5120, "depth": 40, "heads": 40, "kv_heads": 40, "ffn_dim": 13824},
}
_TINY_TOWERS: dict[str, Any] = {
    "image_size": 64,
    "compute_dtype": "bfloat16",
    "vit": {"image_size": 56, "patch_size": 14, "dim": 32, "depth": 2, "heads": 2, "ffn_dim": 64, "grid": 4},
    "convnext": {"image_size": 64, "depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)},
    "perception": {"vit_layers": (0, 1), "cnn_stages": (2, 3)},
}
_TINY_LLM: dict[str, Any] = {"vocab_size": 256, "dim": 32, "depth": 2, "heads": 4, "kv_heads": 2, "ffn_dim": 48}


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionCase:
    """Shapes of one comparison of attention implementations: B packed sequences of T tokens, N heads, K key heads.

    Attributes:
        timed: whether time is compared too. XLA's attention has a product per 128 queries; compiling those of long
            sequences would take minutes.
    """

    batch: int
    length: int
    heads: int
    kv_heads: int
    head_dim: int
    timed: bool = True

    @property
    def name(self) -> str:
        return f"B{self.batch} T{self.length} N{self.heads} K{self.kv_heads} H{self.head_dim}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainCase:
    """A training step to run.

    Attributes:
        name: for the table.
        config: the run; its batch size is the largest one to try.
        steps: measured steps, after one that is not measured.
    """

    name: str
    config: Config
    steps: int

    @property
    def images(self) -> int:
        """Images per packed sequence."""
        return self.config.data.max_images


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodeCase:
    """Answers to generate.

    Attributes:
        name: for the table.
        config: its model is the one that answers.
        slots: questions that are answered at a time.
        questions: questions per run.
        per_image: numbers of questions per image to compare.
        question_tokens: length of each question.
        answer_tokens: length of each answer; none ends earlier.
    """

    name: str
    config: Config
    slots: int
    questions: int
    per_image: tuple[int, ...]
    question_tokens: int
    answer_tokens: int


def attention_cases(*, tiny: bool) -> list[AttentionCase]:
    """Return the shapes of the LLMs at several lengths; TinyLlama's has grouped queries."""
    if tiny:
        return [
            AttentionCase(batch=2, length=128, heads=2, kv_heads=2, head_dim=8),
            AttentionCase(batch=1, length=256, heads=4, kv_heads=2, head_dim=16),
        ]
    return [
        AttentionCase(batch=4, length=512, heads=40, kv_heads=40, head_dim=128),
        AttentionCase(batch=4, length=2048, heads=40, kv_heads=40, head_dim=128),
        AttentionCase(batch=4, length=2048, heads=32, kv_heads=4, head_dim=64),
        AttentionCase(batch=1, length=4096, heads=32, kv_heads=32, head_dim=128, timed=False),
    ]


def train_case(size: str, stage: str, *, frozen_dtype: str = "bfloat16", tiny: bool) -> TrainCase:
    """Return the step of `stage` for an LLM of `LLMS`."""
    instruct = stage == "instruct"
    values: dict[str, Any] = {
        "recipe": f"gpu_{size}",
        "stage": stage,
        "init": "random",
        "frozen_dtype": frozen_dtype,
        "remat": "minimal",
        "model": {
            **(_TINY_TOWERS if tiny else TOWERS),
            "llm": _TINY_LLM if tiny else LLMS[size],
            "adapter": {"kind": "scale+bias" if instruct else "none"},
        },
        "data": {
            "source": "synthetic",
            "seq_len": 128 if tiny else 2048,
            "max_images": 2 if tiny else 4,
            "batch_size": 2 if tiny else 8,
            "task_weights": {"caption": 1.0},
        },
        "optim": {"steps": 100, "warmup_steps": 2, "peak_lr": 2e-5, "microbatches": 1},
    }
    name = f"{stage} {size}, frozen {frozen_dtype}"
    return TrainCase(name=name, config=from_dict(values, where=name), steps=2 if tiny else 5)


def decode_case(size: str, *, tiny: bool) -> DecodeCase:
    """Return the generation of answers with an LLM of `LLMS` and the adapters of `instruct`."""
    config = train_case(size, "instruct", tiny=tiny).config
    if tiny:
        return DecodeCase(
            name=f"decode {size}", config=config, slots=4, questions=8, per_image=(1, 4), question_tokens=6,
            answer_tokens=5,
        )  # fmt: skip
    return DecodeCase(
        name=f"decode {size}", config=config, slots=32, questions=160, per_image=(1, 20), question_tokens=24,
        answer_tokens=64,
    )  # fmt: skip
