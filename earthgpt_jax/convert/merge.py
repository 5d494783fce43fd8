"""Adapters folded into the linears they sit on: the same function, without adapters.

`scale+bias`: scale * (W x + b + bias) has the kernel W * scale and the bias scale * (b + bias).
`bias`: the bias b + bias. `lora`: the kernel W + alpha/rank A B. Done in float32, layer by layer.
"""

from __future__ import annotations

import dataclasses
import re

import numpy as np

from earthgpt_jax.config import LINEARS, AdapterConfig, AdapterKind, ModelConfig
from earthgpt_jax.convert.tensor_io import Reader

_LINEAR = re.compile(r"llm/blocks/(?P<part>attn|mlp)/(?P<name>\w+)/kernel")


def folded_config(config: ModelConfig) -> ModelConfig:
    """The config of the model without adapters; a part gets biases where any of its linears needs one."""
    biased = config.adapter.kind in (AdapterKind.BIAS, AdapterKind.SCALE_BIAS)
    targets = set(config.adapter.targets) if biased else set()
    llm = dataclasses.replace(
        config.llm,
        attention_bias=config.llm.attention_bias or bool(targets & set(LINEARS[:4])),
        mlp_bias=config.llm.mlp_bias or bool(targets & set(LINEARS[4:])),
    )
    return dataclasses.replace(config, llm=llm, adapter=AdapterConfig())


class Folded:
    """A model's leaves with its adapters folded in."""

    def __init__(self, base: Reader, config: ModelConfig):
        self._base = base
        self._factor = config.adapter.factor
        plain = {path: shape for path, shape in base.shapes.items() if "/adapter/" not in path}
        llm = folded_config(config).llm
        for path in list(plain):
            if (match := _LINEAR.fullmatch(path)) and {"attn": llm.attention_bias, "mlp": llm.mlp_bias}[match["part"]]:
                depth, _, out = plain[path]
                plain[path.removesuffix("kernel") + "bias"] = (depth, out)
        self.shapes = plain
        # What is made here is a product or a sum: in a narrower type it would not be what the adapters compute.
        self.dtypes = {path: np.dtype("float32") if self._made(path) else base.dtypes[path] for path in plain}

    def _made(self, path: str) -> bool:
        linear = path.rpartition("/")[0]
        adapted = any(f"{linear}/adapter/{name}" in self._base.shapes for name in ("scale", "bias", "a"))
        return adapted or path not in self._base.shapes

    def read(self, path: str, start: int = 0, rows: int | None = None) -> np.ndarray:
        linear, _, leaf = path.rpartition("/")

        def part(name: str) -> np.ndarray | None:
            key = f"{linear}/{name}"
            return self._base.read(key, start, rows).astype(np.float32) if key in self._base.shapes else None

        if not self._made(path):
            return self._base.read(path, start, rows)
        scale = part("adapter/scale")
        if leaf == "kernel":
            value = part("kernel")
            assert value is not None
            if scale is not None:
                value *= scale[:, None, :]
            if (a := part("adapter/a")) is not None:
                value += self._factor * (a @ part("adapter/b"))
        else:
            depth = self.shapes[path][0] - start if rows is None else rows
            value = np.zeros((depth, self.shapes[path][1]), np.float32)
            for bias in (part("bias"), part("adapter/bias")):
                value += 0 if bias is None else bias
            value *= 1 if scale is None else scale
        return value


class Chosen:
    """Some leaves of a reader, as they are."""

    def __init__(self, base: Reader, *, adapters: bool):
        self.shapes = {path: shape for path, shape in base.shapes.items() if ("/adapter/" in path) == adapters}
        self.dtypes = {path: base.dtypes[path] for path in self.shapes}
        self.read = base.read


class Unscaled:
    """A model's leaves with LoRA's alpha / rank multiplied into B, for layouts that have no place for it."""

    def __init__(self, base: Reader, config: ModelConfig):
        self.shapes, self.dtypes, self._base, self._factor = base.shapes, base.dtypes, base, config.adapter.factor

    def read(self, path: str, start: int = 0, rows: int | None = None) -> np.ndarray:
        value = self._base.read(path, start, rows)
        return value * value.dtype.type(self._factor) if path.endswith("/adapter/b") else value
