"""A nano EarthGPT on disk: every part of the real one, small enough to compile in seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from earthgpt_jax import config as config_lib
from earthgpt_jax.config import Config, ModelConfig
from earthgpt_jax.datasets.build.writer import write_dataset
from earthgpt_jax.input.tokenizer import train_tokenizer
from earthgpt_jax.models import earthgpt
from earthgpt_jax.models import model_dir as io
from earthgpt_jax.synthetic import SyntheticSource

OVERRIDES = (
    "model.image_size=64", "model.vit.image_size=64", "model.vit.dim=32", "model.vit.depth=2", "model.vit.heads=2",
    "model.vit.ffn_dim=64", "model.vit.grid=4", "model.perception.vit_layers=(0,1)", "model.convnext.image_size=64",
    "model.convnext.depths=(1,1,1,1)", "model.convnext.dims=(8,8,16,16)", "model.llm.vocab_size=640",
    "model.llm.dim=32", "model.llm.depth=2", "model.llm.heads=4", "model.llm.kv_heads=2", "model.llm.ffn_dim=48",
    "data.batch_size=4", "data.seq_len=96", "data.max_questions=3", "optim.steps=6", "optim.warmup_steps=2",
    "checkpoint.every_steps=2", "log_every=1",
)  # fmt: skip


def config(stage: str, *extra: str) -> Config:
    return config_lib.load(f"tiny:{stage}", [f"--config.{item}" for item in (*OVERRIDES, *extra)])


def dialogues() -> list[str]:
    """Text for a tokenizer: words and numbers of the synthetic source."""
    source = SyntheticSource("train", 40)
    texts = [text for record in (source[i] for i in range(40)) for text in record.references]
    return [*texts, "\n\n### Human: Where is it?\n### Assistant: [0.12,0.34,0.56,0.78]\n###"] * 2


def model_dir(path: Path, model: ModelConfig, *, seed: int = 0) -> Path:
    """A model directory with random weights."""
    tokenizer = path.parent / f"{path.name}.tokenizer.model"
    train_tokenizer(dialogues(), vocab_size=model.llm.vocab_size, path=tokenizer)
    _, params = earthgpt.init(model, seed=seed)
    arrays = {key: np.asarray(value) for key, value in params.items()}
    io.write(
        path,
        arrays,
        model=model,
        decimals=2,
        chat_template="plain",
        tokenizer=tokenizer,
        about={"recipe": "nano"},
    )
    return path


def dataset(path: Path, *, train: int = 12, test: int = 4) -> Path:
    """A synthetic dataset directory."""
    splits = {"train": SyntheticSource("train", train), "test": SyntheticSource("test", test)}
    write_dataset(splits, out=path, name="synthetic")
    return path
