"""One two-way table an architecture: our paths <-> foreign keys, each with a named transform.

A table is strict both ways: `entries` raises one error that lists every foreign key that is missing or
unknown, every shape that differs, and every path of ours that no row covers. Layouts and their sources
are those of the DINOv2 hub code, transformers, timm, Meta's LLaMA-2 release and LLaMA2-Accessory.
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
    """A bijection of one layer's array. `theirs(ours(x))` is x, to the bit."""

    name: str
    ours: Callable[[np.ndarray], np.ndarray]
    theirs: Callable[[np.ndarray], np.ndarray]

    def their_shape(self, shape: Shape) -> Shape:
        # All strides are 0, so every view below stays a view: nothing is allocated.
        return self.theirs(np.broadcast_to(np.zeros(()), shape)).shape


SAME = Transform("same", lambda x: x, lambda x: x)
LINEAR = Transform("linear [out, in] <-> [in, out]", lambda x: x.T, lambda x: x.T)
DEPTHWISE = Transform(
    "depthwise [C, 1, k, k] <-> [k, k, 1, C]", lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)
)


def leading(ones: int) -> Transform:
    """`ones` leading axes of size 1 in front of ours."""
    return Transform(
        f"{ones} leading axes", lambda x: x.reshape(x.shape[ones:]), lambda x: x.reshape((1,) * ones + x.shape)
    )


def patches(size: int) -> Transform:
    """A convolution whose stride is its size: [O, I, size, size] <-> [size*size*I, O]."""
    return Transform(
        f"patches of {size}",
        lambda x: x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]),
        lambda x: x.reshape(size, size, -1, x.shape[1]).transpose(3, 2, 0, 1),
    )


def rope_rows(heads: int) -> Transform:
    """Rows of q and k: Meta turns pairs (2j, 2j+1), transformers and we turn (j, j + head_dim/2)."""

    def reorder(x: np.ndarray, *, pairs_last: bool) -> np.ndarray:
        half = x.shape[0] // heads // 2
        inner = (half, 2) if pairs_last else (2, half)
        return x.reshape(heads, *inner, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)

    return Transform(
        f"rope rows of {heads} heads", lambda x: reorder(x, pairs_last=True), lambda x: reorder(x, pairs_last=False)
    )


def rope_linear(heads: int) -> Transform:
    """`rope_rows`, then `LINEAR`: for kernels and for LoRA's B."""
    rows = rope_rows(heads)
    return Transform(f"rope linear of {heads} heads", lambda x: rows.ours(x).T, lambda x: rows.theirs(x.T))


# ---------------------------------------------------------------------------------------------- tables
@dataclasses.dataclass(frozen=True)
class Row:
    """One leaf of ours.

    Attributes:
        path: ours.
        key: theirs; `{i}` is the layer of a stacked leaf.
        layers: length of our leading axis L; 0 where ours is not stacked.
        part: (k, n): ours is the k-th of n equal blocks of rows of theirs, as in a fused qkv.
    """

    path: str
    key: str
    transform: Transform = SAME
    layers: int = 0
    part: tuple[int, int] = (0, 1)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One step of a conversion: rows `start:start+rows` of their tensor <-> our leaf, or layer `layer` of it."""

    path: str
    layer: int | None
    key: str
    start: int
    rows: int
    transform: Transform


@dataclasses.dataclass(frozen=True)
class Table:
    """An architecture's rows.

    Attributes:
        ignored: regexes of foreign keys that the model has no use for.
        zeros: foreign tensors that another reader insists on although nobody uses them: key -> shape.
    """

    name: str
    rows: tuple[Row, ...]
    ignored: tuple[str, ...] = ()
    zeros: Mapping[str, Shape] = dataclasses.field(default_factory=dict)

    def prefixed(self, *, path: str = "", key: str = "") -> Table:
        """The same table inside a larger model on either side."""
        return dataclasses.replace(
            self,
            rows=tuple(dataclasses.replace(row, path=path + row.path, key=key + row.key) for row in self.rows),
            ignored=tuple(re.escape(key) + pattern for pattern in self.ignored),
            zeros={key + name: shape for name, shape in self.zeros.items()},
        )

    def __add__(self, other: Table) -> Table:
        return Table(
            f"{self.name} + {other.name}",
            self.rows + other.rows,
            self.ignored + other.ignored,
            {**self.zeros, **other.zeros},
        )

    def their_shapes(self, ours: Mapping[str, Shape]) -> dict[str, Shape]:
        """Every foreign tensor's shape, in the order of the rows, layer by layer; `zeros` last."""
        shapes: dict[str, Shape] = {}
        for layer in range(max(max((row.layers for row in self.rows), default=0), 1)):
            for row in self.rows:
                if layer < max(row.layers, 1):
                    shape = row.transform.their_shape(ours[row.path][1:] if row.layers else ours[row.path])
                    shapes[row.key.format(i=layer)] = (shape[0] * row.part[1], *shape[1:])
        return shapes | dict(self.zeros)

    def entries(
        self, ours: Mapping[str, Shape], theirs: Mapping[str, Shape] | None = None, *, where: str
    ) -> list[Entry]:
        """The conversion, step by step, in the order of their keys.

        Args:
            ours: path -> shape, exactly the leaves that the rows speak of.
            theirs: key -> shape as found in a foreign checkpoint; None when we are going to write it.
            where: names the checkpoint in the message.

        Raises:
            EarthGPTError: all that does not match, together.
        """
        paths = {row.path for row in self.rows}
        expected = self.their_shapes(ours) if paths <= ours.keys() else {}
        problems = {"not in the table": sorted(ours.keys() - paths), "not in the model": sorted(paths - ours.keys())}
        if theirs is not None and expected:
            wanted = expected.keys() - self.zeros.keys()
            problems |= {
                "missing": [key for key in expected if key in wanted and key not in theirs],
                "unknown": [key for key in theirs if key not in wanted and not self.ignores(key)],
                "wrong shape": [
                    f"{key}: expected {expected[key]}, got {tuple(theirs[key])}"
                    for key in expected
                    if key in wanted and key in theirs and tuple(theirs[key]) != expected[key]
                ],
            }
        if any(problems.values()):
            raise EarthGPTError(
                f"{where}: the tensors do not fit the model's config, read as {self.name}. "
                + "; ".join(f"{what} ({len(names)}): {_some(names)}" for what, names in problems.items() if names)
                + ". Use the config of these weights, or the weights of this config."
            )
        steps = []
        for row in self.rows:
            index, count = row.part
            for layer in range(max(row.layers, 1)):
                key = row.key.format(i=layer)
                rows = expected[key][0] // count if expected[key] else 1
                steps.append(Entry(row.path, layer if row.layers else None, key, index * rows, rows, row.transform))
        order = {key: number for number, key in enumerate(expected)}
        return sorted(steps, key=lambda step: (order[step.key], step.start))

    def ignores(self, key: str) -> bool:
        return key in self.zeros or any(re.fullmatch(pattern, key) for pattern in self.ignored)


def _some(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def join(tables: Iterable[Table], *, name: str) -> Table:
    """Several tables as one."""
    total = Table(name, ())
    for table in tables:
        total = total + table
    return dataclasses.replace(total, name=name)


def _linear(path: str, key: str, *, layers: int = 0, bias: bool = True, transform: Transform = LINEAR) -> list[Row]:
    rows = [Row(f"{path}/kernel", f"{key}.weight", transform, layers)]
    return rows + ([Row(f"{path}/bias", f"{key}.bias", SAME, layers)] if bias else [])


def _norm(path: str, key: str, *, layers: int = 0, bias: bool = True) -> list[Row]:
    rows = [Row(f"{path}/scale", f"{key}.weight", SAME, layers)]
    return rows + ([Row(f"{path}/bias", f"{key}.bias", SAME, layers)] if bias else [])


# ---------------------------------------------------------------------------------------------- DINOv2
_HUB_MLP = {Mlp.GELU: {"fc1": "fc1", "fc2": "fc2"}, Mlp.SWIGLU: {"fc12": "w12", "fc3": "w3"}}
_HF_MLP = {Mlp.GELU: {"fc1": "fc1", "fc2": "fc2"}, Mlp.SWIGLU: {"fc12": "weights_in", "fc3": "weights_out"}}


def dinov2_hub(config: ViTConfig) -> Table:
    """facebookresearch/dinov2's own names: one fused qkv a block."""
    depth, block = config.depth, "blocks.{i}"
    rows = [
        Row("cls", "cls_token", leading(2)),
        Row("position", "pos_embed", leading(1)),
        *_linear("patch", "patch_embed.proj", transform=patches(config.patch_size)),
        *_norm("blocks/norm1", f"{block}.norm1", layers=depth),
    ]
    for index, name in enumerate("qkv"):
        rows += [
            dataclasses.replace(row, part=(index, 3))
            for row in _linear(f"blocks/attn/{name}", f"{block}.attn.qkv", layers=depth)
        ]
    rows += [
        *_linear("blocks/attn/o", f"{block}.attn.proj", layers=depth),
        Row("blocks/ls1", f"{block}.ls1.gamma", SAME, depth),
        *_norm("blocks/norm2", f"{block}.norm2", layers=depth),
        *(row for ours, theirs in _HUB_MLP[config.mlp].items()
          for row in _linear(f"blocks/mlp/{ours}", f"{block}.mlp.{theirs}", layers=depth)),
        Row("blocks/ls2", f"{block}.ls2.gamma", SAME, depth),
        *_norm("norm", "norm"),
    ]  # fmt: skip
    return Table("DINOv2 (hub)", tuple(rows), zeros={"mask_token": (1, config.dim)})


def dinov2_hf(config: ViTConfig) -> Table:
    """transformers' `Dinov2Model`."""
    depth, block = config.depth, "encoder.layer.{i}"
    rows = [
        Row("cls", "embeddings.cls_token", leading(2)),
        Row("position", "embeddings.position_embeddings", leading(1)),
        *_linear("patch", "embeddings.patch_embeddings.projection", transform=patches(config.patch_size)),
        *_norm("blocks/norm1", f"{block}.norm1", layers=depth),
        *(row for ours, theirs in {"q": "query", "k": "key", "v": "value"}.items()
          for row in _linear(f"blocks/attn/{ours}", f"{block}.attention.attention.{theirs}", layers=depth)),
        *_linear("blocks/attn/o", f"{block}.attention.output.dense", layers=depth),
        Row("blocks/ls1", f"{block}.layer_scale1.lambda1", SAME, depth),
        *_norm("blocks/norm2", f"{block}.norm2", layers=depth),
        *(row for ours, theirs in _HF_MLP[config.mlp].items()
          for row in _linear(f"blocks/mlp/{ours}", f"{block}.mlp.{theirs}", layers=depth)),
        Row("blocks/ls2", f"{block}.layer_scale2.lambda1", SAME, depth),
        *_norm("norm", "layernorm"),
    ]  # fmt: skip
    return Table("DINOv2 (transformers)", tuple(rows), zeros={"embeddings.mask_token": (1, config.dim)})


# -------------------------------------------------------------------------------------------- ConvNeXt
def convnext_timm(config: ConvNeXtConfig) -> Table:
    """timm's trunk, as in open_clip's `visual.trunk.` and in SPHINX files; heads behind the norm are unused."""
    rows = [*_linear("stem/linear", "stem.0", transform=patches(4)), *_norm("stem_norm", "stem.1")]
    for stage, depth in enumerate(config.depths):
        ours, theirs = f"stages/{stage}", f"stages.{stage}"
        if stage:
            rows += _norm(f"{ours}/down_norm", f"{theirs}.downsample.0")
            rows += _linear(f"{ours}/down/linear", f"{theirs}.downsample.1", transform=patches(2))
        ours, theirs = f"{ours}/blocks", f"{theirs}.blocks.{{i}}"
        rows += [
            Row(f"{ours}/gamma", f"{theirs}.gamma", SAME, depth),
            Row(f"{ours}/dw_kernel", f"{theirs}.conv_dw.weight", DEPTHWISE, depth),
            Row(f"{ours}/dw_bias", f"{theirs}.conv_dw.bias", SAME, depth),
            *_norm(f"{ours}/norm", f"{theirs}.norm", layers=depth),
            *_linear(f"{ours}/fc1", f"{theirs}.mlp.fc1", layers=depth),
            *_linear(f"{ours}/fc2", f"{theirs}.mlp.fc2", layers=depth),
        ]
    rows += _norm("norm", "head.norm")
    return Table("ConvNeXt (timm)", tuple(rows), ignored=(r"head\.(fc|pre_logits)\..*", r"head\.(proj|mlp)\..*"))


# ----------------------------------------------------------------------------------------------- LLaMA
@dataclasses.dataclass(frozen=True)
class _LlamaNames:
    """What differs between the layouts of one and the same LLaMA."""

    name: str
    embed: str
    norm: str
    head: str
    block: str
    attn_norm: str
    mlp_norm: str
    linears: Mapping[str, str]  # ours -> theirs, below a block
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


def llama_hf(config: LlamaConfig) -> Table:
    """transformers' `LlamaForCausalLM`. A tied head may be in the file; it is the embedding."""
    return _llama(_HF, config, AdapterConfig())


def llama_meta(config: LlamaConfig, adapter: AdapterConfig) -> Table:
    """Meta's and LLaMA2-Accessory's names, adapters included (`wq.bias`, `wq.scale`, `wq.lora_a.weight`)."""
    return _llama(_META, config, adapter)


def _llama(names: _LlamaNames, config: LlamaConfig, adapter: AdapterConfig) -> Table:
    depth = config.depth
    rows = [Row("embed", f"{names.embed}.weight")]
    rows += _norm("blocks/attn_norm", f"{names.block}.{names.attn_norm}", layers=depth, bias=False)
    for ours, theirs in names.linears.items():
        part, linear = ours.split("/")
        heads = {"q": config.heads, "k": config.kv_heads}.get(linear, 0) if names.meta_rope else 0
        vector, matrix = (rope_rows(heads), rope_linear(heads)) if heads else (SAME, LINEAR)
        path, key = f"blocks/{ours}", f"{names.block}.{theirs}"
        rows.append(Row(f"{path}/kernel", f"{key}.weight", matrix, depth))
        if {"attn": config.attention_bias, "mlp": config.mlp_bias}[part]:
            rows.append(Row(f"{path}/bias", f"{key}.bias", vector, depth))
        if linear in adapter.targets:
            for leaf, suffix, transform in _ADAPTERS[adapter.kind]:
                # What has one number an output row follows the rows of the kernel.
                chosen = {"vector": vector, "matrix": matrix, "input": LINEAR}[transform]
                rows.append(Row(f"{path}/adapter/{leaf}", f"{key}.{suffix}", chosen, depth))
    rows += _norm("blocks/mlp_norm", f"{names.block}.{names.mlp_norm}", layers=depth, bias=False)
    rows += _norm("norm", names.norm, bias=False)
    ignored = names.ignored
    if config.tied_head:
        ignored += (re.escape(f"{names.head}.weight"),)
    else:
        rows.append(Row("head/kernel", f"{names.head}.weight", LINEAR))
    return Table(names.name, tuple(rows), ignored)


_ADAPTERS = {
    AdapterKind.NONE: (),
    AdapterKind.BIAS: (("bias", "bias", "vector"),),
    AdapterKind.SCALE_BIAS: (("scale", "scale", "vector"), ("bias", "bias", "vector")),
    AdapterKind.LORA: (("a", "lora_a.weight", "input"), ("b", "lora_b.weight", "matrix")),
}


# -------------------------------------------------------------------------------------- whole EarthGPT
def _laterals(config: ModelConfig, key: str) -> Table:
    stages = config.perception.cnn_stages if config.perception.cnn_fuse is Fuse.SUM else ()
    rows = [row for j in range(len(stages)) for row in _linear(f"perception/lateral/{j}", f"{key}.{j}")]
    return Table("perception", tuple(rows))


def hf_export(config: ModelConfig) -> Table:
    """Our Hugging Face folder; adapters must have been folded, or taken away, before."""
    rows = (
        *_linear("projector/linear", "projector.linear"),
        *_norm("projector/norm", "projector.norm"),
        Row("image_tokens/start", "image_tokens.start"),
        Row("image_tokens/end", "image_tokens.end"),
    )
    return join(
        (
            dataclasses.replace(dinov2_hub(config.vit), zeros={}).prefixed(path="vit/", key="vit."),
            dataclasses.replace(convnext_timm(config.convnext), ignored=()).prefixed(path="convnext/", key="convnext."),
            _laterals(config, "perception.lateral"),
            Table("projector", rows),
            llama_hf(config.llm).prefixed(path="llm/", key="language_model."),
        ),
        name="EarthGPT (Hugging Face)",
    )


def accessory(config: ModelConfig, *, vit: str = "dinov2_vitl14", convnext: str = "openclip_convnext_l") -> Table:
    """LLaMA2-Accessory's `llama_ens_light`, below its prefix `llma.`, with the encoders under these names."""
    rows = (
        *_linear("projector/linear", "visual_proj.0"),
        *_norm("projector/norm", "visual_proj.1"),
        Row("image_tokens/start", "start_img", leading(2)),
        Row("image_tokens/end", "end_img", leading(2)),
    )
    parts = (
        llama_meta(config.llm, config.adapter).prefixed(path="llm/"),
        dinov2_hub(config.vit).prefixed(path="vit/", key=f"{vit}."),
        convnext_timm(config.convnext).prefixed(path="convnext/", key=f"{convnext}."),
        _laterals(config, "perception.lateral"),
        Table("projector", rows),
    )
    return join(parts, name="EarthGPT (LLaMA2-Accessory)")
