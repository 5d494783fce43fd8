"""Merge adapters into the linear layers that they modify, which gives the same function without adapters.

`scale+bias` computes scale * (W x + b + bias): the merged kernel is W * scale, the merged bias scale * (b + bias).
`bias` gives the bias b + bias, and `lora` the kernel W + alpha/rank A B. All sums and products are in float32 and are
computed when rows are read, so that only the requested layers are in memory.
"""

from __future__ import annotations

import dataclasses
import re

import numpy as np

from earthgpt_jax.common.safetensors_files import Reader
from earthgpt_jax.config import ATTENTION_LINEARS, AdapterConfig, AdapterKind, ModelConfig

_LINEAR = re.compile(r"llm/blocks/(attn|mlp)/(?P<name>\w+)/kernel")


def merged_config(config: ModelConfig) -> ModelConfig:
    """Return the config of the model after merging.

    Attention and MLP are given biases if merging needs one in any of their linear layers.
    """
    has_bias = config.adapter.kind in (AdapterKind.BIAS, AdapterKind.SCALE_BIAS)
    targets = set(config.adapter.targets) if has_bias else set()
    llm = dataclasses.replace(
        config.llm,
        attention_bias=config.llm.attention_bias or bool(targets & set(ATTENTION_LINEARS)),
        mlp_bias=config.llm.mlp_bias or bool(targets - set(ATTENTION_LINEARS)),
    )
    return dataclasses.replace(config, llm=llm, adapter=AdapterConfig())


class MergedReader:
    """Reads the parameters of a model with its adapters merged."""

    def __init__(self, base: Reader, config: ModelConfig):
        self._base = base
        self._factor = config.adapter.factor
        shapes = {path: shape for path, shape in base.shapes.items() if "/adapter/" not in path}
        llm = merged_config(config).llm
        for path in list(shapes):
            if (match := _LINEAR.fullmatch(path)) and llm.has_bias(match["name"]):
                depth, _, out = shapes[path]
                shapes[path.removesuffix("kernel") + "bias"] = (depth, out)
        self.shapes = shapes
        # Merged values are products and sums: a narrower dtype would round them away from what the adapters compute.
        self.dtypes = {path: np.dtype("float32") if self._is_merged(path) else base.dtypes[path] for path in shapes}

    def _is_merged(self, path: str) -> bool:
        """Whether the value is computed here instead of copied."""
        linear = path.rpartition("/")[0]
        has_adapter = any(f"{linear}/adapter/{name}" in self._base.shapes for name in ("scale", "bias", "a"))
        return has_adapter or path not in self._base.shapes

    def read(self, path: str, start: int = 0, rows: int | None = None) -> np.ndarray:
        if not self._is_merged(path):
            return self._base.read(path, start, rows)
        linear, _, name = path.rpartition("/")

        def optional(suffix: str) -> np.ndarray | None:
            key = f"{linear}/{suffix}"
            return self._base.read(key, start, rows).astype(np.float32) if key in self._base.shapes else None

        scale = optional("adapter/scale")
        if name == "kernel":
            value = optional("kernel")
            assert value is not None
            if scale is not None:
                value *= scale[:, None, :]
            if (a := optional("adapter/a")) is not None:
                value += self._factor * (a @ optional("adapter/b"))
        else:
            depth = self.shapes[path][0] - start if rows is None else rows
            value = np.zeros((depth, self.shapes[path][1]), np.float32)
            for bias in (optional("bias"), optional("adapter/bias")):
                value += 0 if bias is None else bias
            value *= 1 if scale is None else scale
        return value


class FilteredReader:
    """Reads only the adapters of a model, or only the other parameters."""

    def __init__(self, base: Reader, *, adapters: bool):
        self.shapes = {path: shape for path, shape in base.shapes.items() if ("/adapter/" in path) == adapters}
        self.dtypes = {path: base.dtypes[path] for path in self.shapes}
        self.read = base.read


class ScaledLoraReader:
    """Reads the parameters of a model with LoRA's alpha / rank multiplied into B.

    For layouts that do not store alpha.
    """

    def __init__(self, base: Reader, config: ModelConfig):
        self.shapes, self.dtypes, self._base, self._factor = base.shapes, base.dtypes, base, config.adapter.factor

    def read(self, path: str, start: int = 0, rows: int | None = None) -> np.ndarray:
        value = self._base.read(path, start, rows)
        return value * value.dtype.type(self._factor) if path.endswith("/adapter/b") else value
