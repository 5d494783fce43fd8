"""Conversion tables, one per architecture: our parameter paths <-> checkpoint keys, each with a named transform.

A table works in both directions and is strict in both: `Table.steps` raises one error that lists every checkpoint
key that is missing or unknown, every shape that differs, and every path of ours that no rule covers. For example,
in `dinov2_hub` our `blocks/attn/q/kernel` [L, D, D] is the first third of the rows of `blocks.{i}.attn.qkv.weight`
[3 D, D], transposed, for each layer i.

The layouts are those of the DINOv2 hub code, transformers, timm, Meta's LLaMA-2 release and LLaMA2-Accessory.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.config import (
    AdapterConfig,
    AdapterKind,
    ConvNeXtConfig,
    Fuse,
    LlamaConfig,
    Mlp,
    ModelConfig,
    ViTConfig,
)

Shape = tuple[int, ...]


# ------------------------------------------------------------------------------------------ transforms
@dataclasses.dataclass(frozen=True)
class Transform:
    """A bijection between one layer's array in a checkpoint and in our model.

    `to_checkpoint(from_checkpoint(x))` equals x bit for bit.
    """

    name: str
    from_checkpoint: Callable[[np.ndarray], np.ndarray]
    to_checkpoint: Callable[[np.ndarray], np.ndarray]

    def checkpoint_shape(self, shape: Shape) -> Shape:
        """Return the checkpoint's shape of an array that has `shape` in our model."""
        # All strides are 0, so every transform returns a view and nothing is allocated.
        return self.to_checkpoint(np.broadcast_to(np.zeros(()), shape)).shape


SAME = Transform("same", lambda x: x, lambda x: x)
LINEAR = Transform("linear [out, in] <-> [in, out]", lambda x: x.T, lambda x: x.T)
DEPTHWISE = Transform(
    "depthwise [C, 1, k, k] <-> [k, k, 1, C]", lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)
)


def leading(ones: int) -> Transform:
    """Return the transform for a checkpoint array with `ones` extra leading axes of size 1."""
    return Transform(
        f"{ones} leading axes", lambda x: x.reshape(x.shape[ones:]), lambda x: x.reshape((1,) * ones + x.shape)
    )


def patches(size: int) -> Transform:
    """Return the transform for a convolution whose stride is its size: [O, I, size, size] <-> [size*size*I, O]."""
    return Transform(
        f"patches of {size}",
        lambda x: x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]),
        lambda x: x.reshape(size, size, -1, x.shape[1]).transpose(3, 2, 0, 1),
    )


def rope_rows(heads: int) -> Transform:
    """Return the transform between the two orders of the rows of q and k.

    RoPE rotates the pairs (2j, 2j + 1) in Meta's code, and (j, j + head_dim / 2) in transformers and here.
    """

    def reorder(x: np.ndarray, *, pairs_last: bool) -> np.ndarray:
        half = x.shape[0] // heads // 2
        inner = (half, 2) if pairs_last else (2, half)
        return x.reshape(heads, *inner, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)

    return Transform(
        f"rope rows of {heads} heads", lambda x: reorder(x, pairs_last=True), lambda x: reorder(x, pairs_last=False)
    )


def rope_linear(heads: int) -> Transform:
    """Return `rope_rows` followed by `LINEAR`: for the kernels of q and k and for their LoRA B matrices."""
    rows = rope_rows(heads)
    return Transform(
        f"rope linear of {heads} heads", lambda x: rows.from_checkpoint(x).T, lambda x: rows.to_checkpoint(x.T)
    )


# ---------------------------------------------------------------------------------------------- tables
@dataclasses.dataclass(frozen=True)
class Rule:
    """How one of our parameters corresponds to the tensors of a checkpoint.

    Attributes:
        path: our parameter.
        key: the checkpoint's tensor; `{i}` stands for the layer of a stacked parameter.
        layers: length of our leading axis L; 0 if the parameter is not stacked.
        part: (k, n): our parameter is block k of n equal blocks of the tensor's rows, as in a fused qkv.
    """

    path: str
    key: str
    transform: Transform = SAME
    layers: int = 0
    part: tuple[int, int] = (0, 1)


@dataclasses.dataclass(frozen=True)
class ConversionStep:
    """One copy of a conversion: rows `start:start+rows` of the tensor `key` <-> our parameter `path`.

    `layer` is the index into the leading axis of a stacked parameter; None if the parameter is not stacked.
    """

    path: str
    layer: int | None
    key: str
    start: int
    rows: int
    transform: Transform


@dataclasses.dataclass(frozen=True)
class Table:
    """The rules of an architecture.

    Attributes:
        ignored: regexes of checkpoint keys that the model does not use.
        zeros: key -> shape of tensors that other programs require although none of them uses the values;
            they are written as zeros and ignored when read.
    """

    name: str
    rules: tuple[Rule, ...]
    ignored: tuple[str, ...] = ()
    zeros: Mapping[str, Shape] = dataclasses.field(default_factory=dict)

    def prefixed(self, *, path: str = "", key: str = "") -> Table:
        """Return the same table for a part of a larger model, with prefixes for our paths and for the keys."""
        return dataclasses.replace(
            self,
            rules=tuple(dataclasses.replace(rule, path=path + rule.path, key=key + rule.key) for rule in self.rules),
            ignored=tuple(re.escape(key) + pattern for pattern in self.ignored),
            zeros={key + name: shape for name, shape in self.zeros.items()},
        )

    def without(self, paths: tuple[str, ...]) -> Table:
        """Return the table without the rules of the parameters below some paths; their tensors are ignored."""
        dropped = [rule for rule in self.rules if rule.path.startswith(paths)]
        names = sorted({match[0] for rule in dropped if (match := re.match(r"(model\.)?[^./]+", rule.key))})
        return dataclasses.replace(
            self,
            rules=tuple(rule for rule in self.rules if rule not in dropped),
            ignored=(*self.ignored, *(rf"{re.escape(name)}[./].*" for name in names)),
        )

    def __add__(self, other: Table) -> Table:
        return Table(
            f"{self.name} + {other.name}",
            self.rules + other.rules,
            self.ignored + other.ignored,
            {**self.zeros, **other.zeros},
        )

    def checkpoint_shapes(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """Return key -> shape of every tensor of the checkpoint.

        The order is that of the rules, layer by layer, with `zeros` last.

        Args:
            shapes: path -> shape of our parameters.
        """
        result: dict[str, Shape] = {}
        for layer in range(max(max((rule.layers for rule in self.rules), default=0), 1)):
            for rule in self.rules:
                if layer < max(rule.layers, 1):
                    shape = shapes[rule.path][1:] if rule.layers else shapes[rule.path]
                    shape = rule.transform.checkpoint_shape(shape)
                    result[rule.key.format(i=layer)] = (shape[0] * rule.part[1], *shape[1:])
        return result | dict(self.zeros)

    def steps(
        self, shapes: Mapping[str, Shape], checkpoint: Mapping[str, Shape] | None = None, *, where: str
    ) -> list[ConversionStep]:
        """Return the steps of the conversion, in the order of the checkpoint's keys.

        Args:
            shapes: path -> shape of our parameters; exactly those that the rules cover.
            checkpoint: key -> shape of the tensors in a checkpoint to read; None for a checkpoint to write.
            where: name of the checkpoint, for the error message.

        Raises:
            EarthGPTError: paths, keys or shapes do not match; the message lists all of them.
        """
        paths = {rule.path for rule in self.rules}
        expected = self.checkpoint_shapes(shapes) if paths <= shapes.keys() else {}
        problems = {
            "not in the table": sorted(shapes.keys() - paths),
            "not in the model": sorted(paths - shapes.keys()),
        }
        if checkpoint is not None and expected:
            required = expected.keys() - self.zeros.keys()
            problems |= {
                "missing": [key for key in expected if key in required and key not in checkpoint],
                "unknown": [key for key in checkpoint if key not in required and not self.ignores(key)],
                "wrong shape": [
                    f"{key}: expected {expected[key]}, got {tuple(checkpoint[key])}"
                    for key in expected
                    if key in required and key in checkpoint and tuple(checkpoint[key]) != expected[key]
                ],
            }
        if any(problems.values()):
            raise EarthGPTError(
                f"{where}: the tensors do not match the model's config, read as {self.name}. "
                + "; ".join(f"{what} ({len(names)}): {_first(names)}" for what, names in problems.items() if names)
                + ". Use the config that belongs to these weights, or the weights that belong to this config."
            )
        steps = []
        for rule in self.rules:
            index, count = rule.part
            for layer in range(max(rule.layers, 1)):
                key = rule.key.format(i=layer)
                rows = expected[key][0] // count if expected[key] else 1
                steps.append(
                    ConversionStep(rule.path, layer if rule.layers else None, key, index * rows, rows, rule.transform)
                )
        order = {key: number for number, key in enumerate(expected)}
        return sorted(steps, key=lambda step: (order[step.key], step.start))

    def ignores(self, key: str) -> bool:
        """Return whether a tensor of a checkpoint is left unread."""
        return key in self.zeros or any(re.fullmatch(pattern, key) for pattern in self.ignored)


def _first(names: Sequence[str], limit: int = 8) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


def join(tables: Iterable[Table], *, name: str) -> Table:
    """Return the tables of a model's parts as one table."""
    total = Table(name, ())
    for table in tables:
        total = total + table
    return dataclasses.replace(total, name=name)


def _linear(path: str, key: str, *, layers: int = 0, bias: bool = True, transform: Transform = LINEAR) -> list[Rule]:
    rules = [Rule(f"{path}/kernel", f"{key}.weight", transform, layers)]
    return rules + ([Rule(f"{path}/bias", f"{key}.bias", SAME, layers)] if bias else [])


def _norm(path: str, key: str, *, layers: int = 0, bias: bool = True) -> list[Rule]:
    rules = [Rule(f"{path}/scale", f"{key}.weight", SAME, layers)]
    return rules + ([Rule(f"{path}/bias", f"{key}.bias", SAME, layers)] if bias else [])


# ---------------------------------------------------------------------------------------------- DINOv2
_HUB_MLP = {Mlp.GELU: {"fc1": "fc1", "fc2": "fc2"}, Mlp.SWIGLU: {"fc12": "w12", "fc3": "w3"}}
_HF_MLP = {Mlp.GELU: {"fc1": "fc1", "fc2": "fc2"}, Mlp.SWIGLU: {"fc12": "weights_in", "fc3": "weights_out"}}


def dinov2_hub(config: ViTConfig) -> Table:
    """Return the table for facebookresearch/dinov2: one fused qkv per block."""
    depth, block = config.depth, "blocks.{i}"
    rules = [
        Rule("cls", "cls_token", leading(2)),
        Rule("position", "pos_embed", leading(1)),
        *_linear("patch", "patch_embed.proj", transform=patches(config.patch_size)),
        *_norm("blocks/norm1", f"{block}.norm1", layers=depth),
    ]
    for index, name in enumerate("qkv"):
        rules += [
            dataclasses.replace(rule, part=(index, 3))
            for rule in _linear(f"blocks/attn/{name}", f"{block}.attn.qkv", layers=depth)
        ]
    rules += [
        *_linear("blocks/attn/o", f"{block}.attn.proj", layers=depth),
        Rule("blocks/ls1", f"{block}.ls1.gamma", SAME, depth),
        *_norm("blocks/norm2", f"{block}.norm2", layers=depth),
        *(rule for path, key in _HUB_MLP[config.mlp].items()
          for rule in _linear(f"blocks/mlp/{path}", f"{block}.mlp.{key}", layers=depth)),
        Rule("blocks/ls2", f"{block}.ls2.gamma", SAME, depth),
        *_norm("norm", "norm"),
    ]  # fmt: skip
    return Table("DINOv2 (hub)", tuple(rules), zeros={"mask_token": (1, config.dim)})


def dinov2_hf(config: ViTConfig) -> Table:
    """Return the table for transformers' `Dinov2Model`."""
    depth, block = config.depth, "encoder.layer.{i}"
    rules = [
        Rule("cls", "embeddings.cls_token", leading(2)),
        Rule("position", "embeddings.position_embeddings", leading(1)),
        *_linear("patch", "embeddings.patch_embeddings.projection", transform=patches(config.patch_size)),
        *_norm("blocks/norm1", f"{block}.norm1", layers=depth),
        *(rule for path, key in {"q": "query", "k": "key", "v": "value"}.items()
          for rule in _linear(f"blocks/attn/{path}", f"{block}.attention.attention.{key}", layers=depth)),
        *_linear("blocks/attn/o", f"{block}.attention.output.dense", layers=depth),
        Rule("blocks/ls1", f"{block}.layer_scale1.lambda1", SAME, depth),
        *_norm("blocks/norm2", f"{block}.norm2", layers=depth),
        *(rule for path, key in _HF_MLP[config.mlp].items()
          for rule in _linear(f"blocks/mlp/{path}", f"{block}.mlp.{key}", layers=depth)),
        Rule("blocks/ls2", f"{block}.layer_scale2.lambda1", SAME, depth),
        *_norm("norm", "layernorm"),
    ]  # fmt: skip
    return Table("DINOv2 (transformers)", tuple(rules), zeros={"embeddings.mask_token": (1, config.dim)})


# -------------------------------------------------------------------------------------------- ConvNeXt
def convnext_timm(config: ConvNeXtConfig) -> Table:
    """Return the table for timm's trunk, as in open_clip's `visual.trunk.` and in SPHINX files.

    Heads after the final norm are ignored.
    """
    rules = [*_linear("stem/linear", "stem.0", transform=patches(4)), *_norm("stem_norm", "stem.1")]
    for stage, depth in enumerate(config.depths):
        path, key = f"stages/{stage}", f"stages.{stage}"
        if stage:
            rules += _norm(f"{path}/down_norm", f"{key}.downsample.0")
            rules += _linear(f"{path}/down/linear", f"{key}.downsample.1", transform=patches(2))
        path, key = f"{path}/blocks", f"{key}.blocks.{{i}}"
        rules += [
            Rule(f"{path}/gamma", f"{key}.gamma", SAME, depth),
            Rule(f"{path}/dw_kernel", f"{key}.conv_dw.weight", DEPTHWISE, depth),
            Rule(f"{path}/dw_bias", f"{key}.conv_dw.bias", SAME, depth),
            *_norm(f"{path}/norm", f"{key}.norm", layers=depth),
            *_linear(f"{path}/fc1", f"{key}.mlp.fc1", layers=depth),
            *_linear(f"{path}/fc2", f"{key}.mlp.fc2", layers=depth),
        ]
    rules += _norm("norm", "head.norm")
    return Table("ConvNeXt (timm)", tuple(rules), ignored=(r"head\.(fc|pre_logits)\..*", r"head\.(proj|mlp)\..*"))


# ----------------------------------------------------------------------------------------------- LLaMA
@dataclasses.dataclass(frozen=True)
class _LlamaNames:
    """The names by which the layouts of LLaMA differ."""

    name: str
    embed: str
    norm: str
    head: str
    block: str
    attn_norm: str
    mlp_norm: str
    linears: Mapping[str, str]  # our path -> key, both relative to the block
    meta_rope: bool
    ignored: tuple[str, ...]


_HF = _LlamaNames(
    name="LLaMA (transformers)", embed="model.embed_tokens", norm="model.norm", head="lm_head",
    block="model.layers.{i}", attn_norm="input_layernorm", mlp_norm="post_attention_layernorm",
    linears={**{f"attn/{n}": f"self_attn.{n}_proj" for n in "qkvo"},
             **{f"mlp/{n}": f"mlp.{n}_proj" for n in ("gate", "up", "down")}},
    meta_rope=False, ignored=(r".*\.rotary_emb\.inv_freq",),
)  # fmt: skip
_META = _LlamaNames(
    name="LLaMA (Meta)", embed="tok_embeddings", norm="norm", head="output",
    block="layers.{i}", attn_norm="attention_norm", mlp_norm="ffn_norm",
    linears={**{f"attn/{n}": f"attention.w{n}" for n in "qkvo"},
             "mlp/gate": "feed_forward.w1", "mlp/up": "feed_forward.w3", "mlp/down": "feed_forward.w2"},
    meta_rope=True, ignored=(r"rope\.freqs",),
)  # fmt: skip


_GGUF = _LlamaNames(
    name="LLaMA (GGUF)", embed="token_embd", norm="output_norm", head="output",
    block="blk.{i}", attn_norm="attn_norm", mlp_norm="ffn_norm",
    linears={**{f"attn/{n}": f"attn_{n}" for n in "qkv"}, "attn/o": "attn_output",
             **{f"mlp/{n}": f"ffn_{n}" for n in ("gate", "up", "down")}},
    meta_rope=True, ignored=(r"rope_freqs\.weight",),
)  # fmt: skip


def llama_gguf(config: LlamaConfig, *, meta_rope: bool) -> Table:
    """Return the table for llama.cpp's names.

    Args:
        meta_rope: whether q and k have Meta's order of rows, as in files of the architecture `llama`.
    """
    return _llama(dataclasses.replace(_GGUF, meta_rope=meta_rope), config, AdapterConfig())


# Inside `EarthGPTForConditionalGeneration`, with a base model and, as exported before, without one.
_HF_NESTED = dataclasses.replace(
    _HF, embed="model.language_model.embed_tokens", norm="model.language_model.norm",
    block="model.language_model.layers.{i}",
)  # fmt: skip
_HF_NESTED_OLD = dataclasses.replace(
    _HF, embed="language_model.model.embed_tokens", norm="language_model.model.norm", head="language_model.lm_head",
    block="language_model.model.layers.{i}",
)  # fmt: skip


def llama_hf(config: LlamaConfig) -> Table:
    """Return the table for transformers' `LlamaForCausalLM`; a tied head in the file is ignored."""
    return _llama(_HF, config, AdapterConfig())


def llama_hf_export(config: LlamaConfig) -> Table:
    """Return the table to write a `LlamaForCausalLM`.

    Its o has a bias if q, k and v have one: zeros, if ours has none.
    """
    return _llama_hf_export(_HF, config)


def _llama_hf_export(names: _LlamaNames, config: LlamaConfig) -> Table:
    keys = [f"{names.block.format(i=layer)}.self_attn.o_proj.bias" for layer in range(config.depth)]
    missing = config.has_bias("q") and not config.has_bias("o")
    table = _llama(names, config, AdapterConfig())
    return dataclasses.replace(table, zeros=dict.fromkeys(keys, (config.dim,)) if missing else {})


def lora_peft(config: LlamaConfig, adapter: AdapterConfig) -> Table:
    """Return the table for PEFT's LoRA adapters of our Hugging Face folder."""
    block = f"base_model.model.{_HF_NESTED.block}"
    rules = [
        Rule(f"blocks/{path}/adapter/{ours}", f"{block}.{key}.lora_{theirs}.weight", LINEAR, config.depth)
        for path, key in _HF_NESTED.linears.items()
        if path.split("/")[1] in adapter.targets
        for ours, theirs in (("a", "A"), ("b", "B"))
    ]
    return Table("LoRA (PEFT)", tuple(rules))


def llama_meta(config: LlamaConfig, adapter: AdapterConfig) -> Table:
    """Return the table for Meta's and LLaMA2-Accessory's names.

    Adapters are included: `wq.bias`, `wq.scale`, `wq.lora_a.weight`.
    """
    return _llama(_META, config, adapter)


def _llama(names: _LlamaNames, config: LlamaConfig, adapter: AdapterConfig) -> Table:
    depth = config.depth
    rules = [Rule("embed", f"{names.embed}.weight")]
    rules += _norm("blocks/attn_norm", f"{names.block}.{names.attn_norm}", layers=depth, bias=False)
    for linear_path, linear_key in names.linears.items():
        linear = linear_path.split("/")[1]
        heads = {"q": config.heads, "k": config.kv_heads}.get(linear, 0) if names.meta_rope else 0
        vector, matrix = (rope_rows(heads), rope_linear(heads)) if heads else (SAME, LINEAR)
        path, key = f"blocks/{linear_path}", f"{names.block}.{linear_key}"
        rules.append(Rule(f"{path}/kernel", f"{key}.weight", matrix, depth))
        if config.has_bias(linear):
            rules.append(Rule(f"{path}/bias", f"{key}.bias", vector, depth))
        if linear in adapter.targets:
            for name, suffix, transform in _ADAPTERS[adapter.kind]:
                # Vectors with one number per output follow the order of the kernel's rows.
                chosen = {"vector": vector, "matrix": matrix, "input": LINEAR}[transform]
                rules.append(Rule(f"{path}/adapter/{name}", f"{key}.{suffix}", chosen, depth))
    rules += _norm("blocks/mlp_norm", f"{names.block}.{names.mlp_norm}", layers=depth, bias=False)
    rules += _norm("norm", names.norm, bias=False)
    ignored = names.ignored
    if config.tied_head:
        ignored += (re.escape(f"{names.head}.weight"),)
    else:
        rules.append(Rule("head/kernel", f"{names.head}.weight", LINEAR))
    return Table(names.name, tuple(rules), ignored)


_ADAPTERS = {
    AdapterKind.NONE: (),
    AdapterKind.BIAS: (("bias", "bias", "vector"),),
    AdapterKind.SCALE_BIAS: (("scale", "scale", "vector"), ("bias", "bias", "vector")),
    AdapterKind.LORA: (("a", "lora_a.weight", "input"), ("b", "lora_b.weight", "matrix")),
}


# -------------------------------------------------------------------------------------- whole EarthGPT
def _lateral_linears(config: ModelConfig, key: str) -> Table:
    stages = config.perception.cnn_stages if config.perception.cnn_fuse is Fuse.SUM else ()
    rules = [rule for j in range(len(stages)) for rule in _linear(f"perception/lateral/{j}", f"{key}.{j}")]
    return Table("perception", tuple(rules))


def hf_export(config: ModelConfig) -> Table:
    """Return the table for our Hugging Face folder, of a model whose adapters were merged or removed."""
    return _hf_export(config, _HF_NESTED, prefix="model.")


def hf_export_old(config: ModelConfig) -> Table:
    """Return the table for Hugging Face folders whose model has no base model, as they were exported before."""
    return _hf_export(config, _HF_NESTED_OLD, prefix="")


def _hf_export(config: ModelConfig, llama: _LlamaNames, *, prefix: str) -> Table:
    rules = (
        *_linear("projector/linear", "projector.linear"),
        *_norm("projector/norm", "projector.norm"),
        Rule("image_tokens/start", "image_tokens.start"),
        Rule("image_tokens/end", "image_tokens.end"),
    )
    parts = (
        dataclasses.replace(dinov2_hub(config.vit), zeros={}).prefixed(path="vit/", key="vit."),
        dataclasses.replace(convnext_timm(config.convnext), ignored=()).prefixed(path="convnext/", key="convnext."),
        _lateral_linears(config, "perception.lateral"),
        Table("projector", rules),
    )
    return join(
        (*(part.prefixed(key=prefix) for part in parts), _llama_hf_export(llama, config.llm).prefixed(path="llm/")),
        name="EarthGPT (Hugging Face)",
    )


def accessory(config: ModelConfig, *, vit: str = "dinov2_vitl14", convnext: str = "openclip_convnext_l") -> Table:
    """Return the table for LLaMA2-Accessory's `llama_ens_light`, without its prefix `llma.`.

    Args:
        vit, convnext: names of the encoders in the checkpoint.
    """
    rules = (
        *_linear("projector/linear", "visual_proj.0"),
        *_norm("projector/norm", "visual_proj.1"),
        Rule("image_tokens/start", "start_img", leading(2)),
        Rule("image_tokens/end", "end_img", leading(2)),
    )
    parts = (
        llama_meta(config.llm, config.adapter).prefixed(path="llm/"),
        dinov2_hub(config.vit).prefixed(path="vit/", key=f"{vit}."),
        convnext_timm(config.convnext).prefixed(path="convnext/", key=f"{convnext}."),
        _lateral_linears(config, "perception.lateral"),
        Table("projector", rules),
    )
    return join(parts, name="EarthGPT (LLaMA2-Accessory)")
