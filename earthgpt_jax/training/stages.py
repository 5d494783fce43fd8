"""What each stage trains: one table of paths a stage; whatever no row trains is frozen."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from earthgpt_jax import params as params_lib
from earthgpt_jax.config import AdapterKind, Config, Fuse, Stage, TrainableAttention


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trainable:
    """A trained path: its learning-rate group and whether weight decay applies."""

    group: str
    decay: bool


Rows = list[tuple[str, Trainable | None]]


def table(config: Config) -> Rows:
    """`(regex, Trained or None for frozen)` rows that fit the parameters of `config` exactly."""
    return [*_TABLES[config.stage](config), (r"(vit|convnext)/.*", None)]


def _align(config: Config) -> Rows:
    """Cross-modal mutual comprehension: projector, image marks, self-attention and all RMSNorms."""
    attention = {TrainableAttention.QKVO: "[qkvo]", TrainableAttention.QKV: "[qkv]"}[config.trainable_attention]
    rows = [*_projector(config), *_attention(config, attention), _NORMS, *_others(config)]
    if config.trainable_attention is TrainableAttention.QKV:
        rows.append((r"llm/blocks/attn/o/.*", None))
    return rows


def _instruct(config: Config) -> Rows:
    """Unified instruction tuning: the adapters, nothing else."""
    decay = config.model.adapter.kind is AdapterKind.LORA
    rows: Rows = [
        (r"llm/blocks/.*/adapter/.*", Trainable(group="adapter", decay=decay)),
        (r"(projector|image_tokens)/.*", None),
        (r"llm/(blocks/(attn|mlp)_norm|norm)/scale", None),
        (r"llm/blocks/attn/[qkvo]/(kernel|bias)", None),
        *_others(config),
    ]
    if config.model.perception.cnn_fuse is Fuse.SUM:
        rows.append((r"perception/.*", None))
    return rows


def _finetune(config: Config) -> Rows:
    """Full fine-tuning: everything behind the encoders."""
    rows: Rows = [
        *_projector(config),
        *_attention(config, "[qkvo]"),
        _NORMS,
        (r"llm/embed", Trainable(group="embed", decay=True)),
        (r"llm/blocks/mlp/(gate|up|down)/kernel", Trainable(group="mlp", decay=True)),
    ]
    if config.model.llm.mlp_bias:
        rows.append((r"llm/blocks/mlp/(gate|up|down)/bias", Trainable(group="mlp", decay=False)))
    return rows if config.model.llm.tied_head else [*rows, (r"llm/head/kernel", Trainable(group="head", decay=True))]


# Decay as in LLaMA2-Accessory: on all but biases and the LLM's norms.
_NORMS: tuple[str, Trainable] = (r"llm/(blocks/(attn|mlp)_norm|norm)/scale", Trainable(group="norm", decay=False))


def _projector(config: Config) -> Rows:
    rows: Rows = [
        (r"projector/(linear/kernel|norm/scale)", Trainable(group="projector", decay=True)),
        (r"projector/.*/bias", Trainable(group="projector", decay=False)),
        (r"image_tokens/.*", Trainable(group="projector", decay=True)),
    ]
    if config.model.perception.cnn_fuse is Fuse.SUM:
        rows.append((r"perception/.*/kernel", Trainable(group="projector", decay=True)))
        rows.append((r"perception/.*/bias", Trainable(group="projector", decay=False)))
    return rows


def _attention(config: Config, linears: str) -> Rows:
    rows: Rows = [(rf"llm/blocks/attn/{linears}/kernel", Trainable(group="attention", decay=True))]
    if config.model.llm.attention_bias:
        rows.append((rf"llm/blocks/attn/{linears}/bias", Trainable(group="attention", decay=False)))
    return rows


def _others(config: Config) -> Rows:
    """Of the LLM, what only full fine-tuning trains."""
    rows: Rows = [(r"llm/embed", None), (r"llm/blocks/mlp/(gate|up|down)/(kernel|bias)", None)]
    return rows if config.model.llm.tied_head else [*rows, (r"llm/head/kernel", None)]


_TABLES = {Stage.ALIGN: _align, Stage.INSTRUCT: _instruct, Stage.FINETUNE: _finetune}


def trainable_paths(config: Config, paths: Iterable[str]) -> dict[str, Trainable]:
    """The paths that the stage trains, and how."""
    matched = params_lib.match(table(config), paths, table=f"stages.{config.stage}")
    return {path: trainable for path, trainable in matched.items() if trainable is not None}
