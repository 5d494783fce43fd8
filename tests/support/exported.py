"""A model directory with random weights and its export for transformers, of every variant of the architecture."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from earthgpt_jax.config import ModelConfig
from earthgpt_jax.convert import exporter
from earthgpt_jax.input.prompts.chat_template import ChatTemplate, chat_template
from earthgpt_jax.input.tokenizer import Tokenizer
from earthgpt_jax.models import earthgpt, model_dir
from tests.support import nano

# Together they cover both MLPs, both position rules, every fusion, both resizes, models with and without adapters,
# grouped-query attention and a tied head.
VARIANTS = {
    "adapted": (
        "instruct",
        "model.vit.grid=3", "model.vit.norm_eps=1e-2", "model.convnext.norm_eps=1e-3", "model.llm.norm_eps=1e-3",
        "model.llm.rope_theta=100.0", "model.llm.attention_bias=True",
    ),
    "swiglu_hf": (
        "align",
        "model.image_size=48", "model.vit.mlp=swiglu", "model.vit.position_rule=hf", "model.vit.grid=5",
        "model.perception.vit_fuse=mean", "model.perception.cnn_fuse=sum", "model.llm.tied_head=True",
    ),
    "last": (
        "instruct",
        "model.perception.vit_layers=(0,)", "model.perception.vit_fuse=last", "model.perception.cnn_fuse=last",
        "model.perception.spatial_merge=2",
        "model.perception.cnn_stages=(1,2)", "model.convnext.image_size=128", "model.llm.mlp_bias=True",
    ),
}  # fmt: skip


@dataclasses.dataclass
class Pair:
    """A model directory and its export."""

    ours: model_dir.ModelDir
    params: dict[str, np.ndarray]
    folder: Path

    @property
    def config(self) -> ModelConfig:
        return self.ours.model

    @property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.ours.tokenizer)

    @property
    def chat_template(self) -> ChatTemplate:
        return chat_template(self.ours.chat_template)

    def model(self, **kwargs):
        from transformers import AutoModelForImageTextToText

        return AutoModelForImageTextToText.from_pretrained(self.folder, trust_remote_code=True, **kwargs).eval()

    def processor(self):
        from transformers import AutoProcessor

        return AutoProcessor.from_pretrained(self.folder, trust_remote_code=True)


def write_pair(path: Path, variant: str, *, tokenizer: Path, chat: str = "plain") -> Pair:
    """Write a variant of `VARIANTS` with random weights, and its export."""
    stage, *overrides = VARIANTS[variant]
    config = nano.config(stage, *overrides).model
    rng = np.random.default_rng(0)
    _, initialized = earthgpt.init(config)
    # Initial parameters contain many zeros and ones, which would hide a wrong mapping.
    params = {
        name: np.asarray(value) + rng.normal(0, 0.1, value.shape).astype(np.float32)
        for name, value in initialized.items()
    }
    model_dir.write(
        path / "ours", params, model=config, decimals=2, chat_template=chat, tokenizer=tokenizer, provenance={}
    )
    return Pair(model_dir.read_config(path / "ours"), params, exporter.export_hf(path / "ours", path / "hf"))
