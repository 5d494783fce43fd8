"""Linear layers of the language model in 8 bits, in the format of compressed-tensors, which vLLM and transformers read.

Each row of a weight, which makes one output, has a scale: weight = scale * q with q from -127 to 127. All other tensors
keep their dtype.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from typing import Any

import numpy as np

from earthgpt_jax.convert.tables import Shape

_WEIGHT = re.compile(r"(?P<layer>model\.language_model\.layers\.\d+\.\w+\.\w+_proj)\.weight")
_LARGEST = 127
# Everything but the layers of the language model.
_IGNORE = ["lm_head", *(rf"re:.*\b{part}\b.*" for part in ("vit", "convnext", "perception", "projector"))]


class Quantization(enum.StrEnum):
    """The numbers of the linear layers.

    none: as they are. int8: weights of 8 bits, multiplied in the dtype of the model. w8a8: weights of 8 bits, and
    activations rounded to 8 bits, per token, when they are multiplied.
    """

    NONE = "none"
    INT8 = "int8"
    W8A8 = "w8a8"


_FORMATS = {Quantization.INT8: "pack-quantized", Quantization.W8A8: "int-quantized"}


@dataclasses.dataclass(frozen=True)
class Quantizer:
    """Turns the tensors of an export into those of a quantized one.

    Attributes:
        kind: not `none`.
        dtype: dtype of the scales, which is that of the model.
    """

    kind: Quantization
    dtype: np.dtype

    def tensors(self, key: str, shape: Shape, dtype: np.dtype) -> dict[str, tuple[Shape, np.dtype]]:
        """Return name -> (shape, dtype) of what a tensor becomes."""
        if (match := _WEIGHT.fullmatch(key)) is None:
            return {key: (shape, dtype)}
        layer, (rows, columns) = match["layer"], shape
        layouts: dict[str, tuple[Shape, np.dtype]] = {f"{layer}.weight_scale": ((rows, 1), self.dtype)}
        if self.kind is Quantization.W8A8:
            return layouts | {f"{layer}.weight": (shape, np.dtype(np.int8))}
        layouts[f"{layer}.weight_packed"] = ((rows, -(-columns // 4)), np.dtype(np.int32))
        return layouts | {f"{layer}.weight_shape": ((2,), np.dtype(np.int64))}

    def encode(self, key: str, value: np.ndarray) -> dict[str, np.ndarray]:
        """Return name -> array of what a tensor becomes."""
        if (match := _WEIGHT.fullmatch(key)) is None:
            return {key: value}
        layer, value = match["layer"], np.ascontiguousarray(value, np.float32)
        scale = np.maximum(np.abs(value).max(1, keepdims=True) / _LARGEST, np.finfo(np.float32).tiny).astype(self.dtype)
        codes = np.clip(np.rint(value / scale.astype(np.float32)), -_LARGEST, _LARGEST).astype(np.int8)
        if self.kind is Quantization.W8A8:
            return {f"{layer}.weight": codes, f"{layer}.weight_scale": scale}
        # Four numbers from 0 to 255 in each int32, the first one in its lowest bits.
        unsigned = np.pad((codes.astype(np.int16) + 128).astype(np.uint8), ((0, 0), (0, -codes.shape[1] % 4)))
        return {
            f"{layer}.weight_packed": unsigned.view("<i4"), f"{layer}.weight_shape": np.array(value.shape),
            f"{layer}.weight_scale": scale,
        }  # fmt: skip

    def config(self) -> dict[str, Any]:
        """Return the `quantization_config` of config.json."""
        weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}
        activations = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
        return {
            "quant_method": "compressed-tensors",
            "format": _FORMATS[self.kind],
            "quantization_status": "compressed",
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"], "weights": weights, "output_activations": None,
                    "input_activations": activations if self.kind is Quantization.W8A8 else None,
                }
            },
            "ignore": _IGNORE,
        }  # fmt: skip
