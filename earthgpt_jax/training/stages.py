"""What each stage trains: one table of paths a stage; whatever no row trains is frozen."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from earthgpt_jax import params as params_lib
from earthgpt_jax.config import AdapterKind, Config, Fuse, Stage, TrainedAttention


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained path: its learning-rate group and whether weight decay applies."""

    group: str
    decay: bool


def table(config: Config) -> list[tuple[str, Trained | None]]:
    """`(regex, Trained or None for frozen)` rows that fit the parameters of `config` exactly."""
    return _TABLES[config.stage](config) + _frozen(config)


def _align(config: Config) -> list[tuple[str, Trained | None]]:
    """Cross-modal mutual comprehension: projector, image marks, self-attention and all RMSNorms."""
    attention = {TrainedAttention.QKVO: "[qkvo]", TrainedAttention.QKV: "[qkv]"}[config.trained_attention]
    rows: list[tuple[str, Trained | None]] = [
        (r"projector/(linear/kernel|norm/scale)", Trained(group="projector", decay=True)),
        (r"projector/.*/bias", Trained(group="projector", decay=False)),
        (r"image_tokens/.*", Trained(group="projector", decay=True)),
        (rf"llm/blocks/attn/{attention}/kernel", Trained(group="attention", decay=True)),
        (r"llm/(blocks/(attn|mlp)_norm|norm)/scale", Trained(group="norm", decay=False)),
    ]
    if config.model.perception.cnn_fuse is Fuse.SUM:
        rows.append((r"perception/.*/kernel", Trained(group="projector", decay=True)))
        rows.append((r"perception/.*/bias", Trained(group="projector", decay=False)))
    if config.model.llm.attention_bias:
        rows.append((rf"llm/blocks/attn/{attention}/bias", Trained(group="attention", decay=False)))
    if config.trained_attention is TrainedAttention.QKV:
        rows.append((r"llm/blocks/attn/o/.*", None))
    return rows


def _instruct(config: Config) -> list[tuple[str, Trained | None]]:
    """Unified instruction tuning: the adapters, nothing else."""
    decay = config.model.adapter.kind is AdapterKind.LORA
    rows: list[tuple[str, Trained | None]] = [
        (r"llm/blocks/.*/adapter/.*", Trained(group="adapter", decay=decay)),
        (r"(projector|image_tokens)/.*", None),
        (r"llm/(blocks/(attn|mlp)_norm|norm)/scale", None),
        (r"llm/blocks/attn/[qkvo]/(kernel|bias)", None),
    ]
    if config.model.perception.cnn_fuse is Fuse.SUM:
        rows.append((r"perception/.*", None))
    return rows


def _frozen(config: Config) -> list[tuple[str, Trained | None]]:
    """Frozen in both stages."""
    rows: list[tuple[str, Trained | None]] = [
        (r"(vit|convnext)/.*", None),
        (r"llm/embed", None),
        (r"llm/blocks/mlp/(gate|up|down)/(kernel|bias)", None),
    ]
    return rows if config.model.llm.tied_head else [*rows, (r"llm/head/kernel", None)]


_TABLES = {Stage.ALIGN: _align, Stage.INSTRUCT: _instruct}


def trained_paths(config: Config, paths: Iterable[str]) -> dict[str, Trained]:
    """The paths that the stage trains, and how."""
    matched = params_lib.match(table(config), paths, table=f"stages.{config.stage}")
    return {path: trained for path, trained in matched.items() if trained is not None}
