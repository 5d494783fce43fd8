"""A nano EarthGPT: every part of the real model, small enough to compile in seconds."""

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
    "model.llm.vocab_size=640", "model.llm.kv_heads=2", "data.seq_len=96", "data.source=data/synthetic",
    "init=tiny-base",
)  # fmt: skip


def config(stage: str, *extra: str) -> Config:
    """Return a stage of `tiny` in debug mode, with an even smaller vocabulary and shorter sequences."""
    _, recipe, *overrides = arguments(stage, *extra)
    return config_lib.load(recipe, overrides)


def arguments(stage: str, *extra: str) -> list[str]:
    """Return the command-line arguments that select the recipe of `config`."""
    return ["--config", f"tiny:{stage}:debug", *(f"--config.{item}" for item in (*OVERRIDES, *extra))]


def dialogues() -> list[str]:
    """Return text to train a tokenizer on: words and numbers of the synthetic source."""
    source = SyntheticSource("train", 40)
    texts = [text for record in (source[i] for i in range(40)) for text in record.references]
    return [*texts, "\n\n### Human: Where is it?\n### Assistant: [0.12,0.34,0.56,0.78]\n###"] * 2


def model_dir(path: Path, model: ModelConfig, *, seed: int = 0) -> Path:
    """Write a model directory with random weights."""
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
        provenance={"recipe": "nano"},
    )
    return path


def dataset(path: Path, *, train: int = 12, test: int = 4, val: int = 0) -> Path:
    """Write a synthetic dataset; `val=0` leaves the validation split out."""
    splits = {"train": SyntheticSource("train", train), "test": SyntheticSource("test", test)}
    if val:
        splits["val"] = SyntheticSource("val", val)
    write_dataset(splits, out=path, name="synthetic")
    return path
