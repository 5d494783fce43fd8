"""Which parameters each stage trains: one table of path patterns per stage. All other parameters are frozen."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from earthgpt_jax import params as params_lib
from earthgpt_jax.config import AdapterKind, Config, Fuse, Stage, TrainableAttention


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trainable:
    """How a trainable parameter is optimised.

    Attributes:
        group: learning-rate group; `optim.lr_scale` scales the learning rate by group.
        decay: whether weight decay applies.
    """

    group: str
    decay: bool


Rules = list[tuple[str, Trainable | None]]


def table(config: Config) -> Rules:
    """Return the `(path regex, Trainable or None for frozen)` rules of the stage of `config`.

    For example, `(r"projector/.*/bias", Trainable(group="projector", decay=False))`. The rules cover the parameters of
    `config` exactly; `params.match` raises otherwise.
    """
    return [*_TABLES[config.stage](config), (r"(vit|convnext)/.*", None)]


def _align(config: Config) -> Rules:
    """Cross-modal mutual comprehension: train the projector, image tokens, self-attention and all RMSNorms."""
    attention = {TrainableAttention.QKVO: "[qkvo]", TrainableAttention.QKV: "[qkv]"}[config.trainable_attention]
    rules = [*_projector(config), *_attention(config, attention), _NORMS, *_frozen_llm(config)]
    if config.trainable_attention is TrainableAttention.QKV:
        rules.append((r"llm/blocks/attn/o/.*", None))
    return rules


def _instruct(config: Config) -> Rules:
    """Unified instruction tuning: train the adapters only."""
    decay = config.model.adapter.kind is AdapterKind.LORA
    rules: Rules = [
        (r"llm/blocks/.*/adapter/.*", Trainable(group="adapter", decay=decay)),
        (r"(projector|image_tokens)/.*", None),
        (r"llm/(blocks/(attn|mlp)_norm|norm)/scale", None),
        (r"llm/blocks/attn/[qkvo]/(kernel|bias)", None),
        *_frozen_llm(config),
    ]
    if config.model.perception.cnn_fuse is Fuse.SUM:
        rules.append((r"perception/.*", None))
    return rules


def _finetune(config: Config) -> Rules:
    """Full fine-tuning: train everything after the encoders."""
    rules: Rules = [
        *_projector(config),
        *_attention(config, "[qkvo]"),
        _NORMS,
        (r"llm/embed", Trainable(group="embed", decay=True)),
        (r"llm/blocks/mlp/(gate|up|down)/kernel", Trainable(group="mlp", decay=True)),
    ]
    if config.model.llm.mlp_bias:
        rules.append((r"llm/blocks/mlp/(gate|up|down)/bias", Trainable(group="mlp", decay=False)))
    return rules if config.model.llm.tied_head else [*rules, (r"llm/head/kernel", Trainable(group="head", decay=True))]


# Weight decay as in LLaMA2-Accessory: on everything except biases and the norms of the LLM.
_NORMS: tuple[str, Trainable] = (r"llm/(blocks/(attn|mlp)_norm|norm)/scale", Trainable(group="norm", decay=False))


def _projector(config: Config) -> Rules:
    rules: Rules = [
        (r"projector/(linear/kernel|norm/scale)", Trainable(group="projector", decay=True)),
        (r"projector/.*/bias", Trainable(group="projector", decay=False)),
        (r"image_tokens/.*", Trainable(group="projector", decay=True)),
    ]
    if config.model.perception.cnn_fuse is Fuse.SUM:
        rules.append((r"perception/.*/kernel", Trainable(group="projector", decay=True)))
        rules.append((r"perception/.*/bias", Trainable(group="projector", decay=False)))
    return rules


def _attention(config: Config, linears: str) -> Rules:
    rules: Rules = [(rf"llm/blocks/attn/{linears}/kernel", Trainable(group="attention", decay=True))]
    if config.model.llm.has_bias("q"):
        rules.append((rf"llm/blocks/attn/{linears}/bias", Trainable(group="attention", decay=False)))
    return rules


def _frozen_llm(config: Config) -> Rules:
    """The parts of the LLM that only full fine-tuning trains."""
    rules: Rules = [(r"llm/embed", None), (r"llm/blocks/mlp/(gate|up|down)/(kernel|bias)", None)]
    return rules if config.model.llm.tied_head else [*rules, (r"llm/head/kernel", None)]


_TABLES = {Stage.ALIGN: _align, Stage.INSTRUCT: _instruct, Stage.FINETUNE: _finetune}


def trainable_paths(config: Config, paths: Iterable[str]) -> dict[str, Trainable]:
    """Return how each trainable path of the stage is optimised; frozen paths are absent.

    Raises:
        EarthGPTError: a path is not covered by the stage's table, or a rule matches no path.
    """
    matched = params_lib.match(table(config), paths, table=f"stages.{config.stage}")
    return {path: rule for path, rule in matched.items() if rule is not None}
