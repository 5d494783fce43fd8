"""Write the encoders, their fusion and the projector as an ONNX file: images in, visual tokens out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.files import atomic_folder
from earthgpt_jax.convert import tables
from earthgpt_jax.convert.exporter import hf_config, open_model
from earthgpt_jax.convert.tokenizer_files import image_token

FILE = "vision.onnx"
_OPSET = 20


def export_onnx(name: str | Path, out: Path, *, parent: str | Path | None = None) -> Path:
    """Write `vision.onnx` in a folder, for onnxruntime and others, in float32.

    Its input is `pixel_values` u8[N, 3, S, S], padded to a square and resized; its output `visual` f32[N, P + 2, D] is
    what takes the place of the images in a sequence.

    Args:
        name: an embedded model or a model directory.
        out: the folder to write; it appears under its name once it is complete.
        parent: see `model_dir.read_config`.

    Raises:
        EarthGPTError: a package is not installed; there is no such model, or `out` exists already.
    """
    try:
        import onnx  # noqa: F401  (torch's exporter needs it)
        import torch
    except ModuleNotFoundError as error:
        raise EarthGPTError("ONNX files require PyTorch and onnx: pip install 'earthgpt-jax[convert,onnx]'") from error
    from earthgpt_jax.convert.hf.configuration_earthgpt import EarthGPTConfig
    from earthgpt_jax.convert.hf.modeling_earthgpt import EarthGPTModel

    model, reader, config = open_model(name, "separate", parent=parent)
    # A language model of the same width without layers: only its width matters here.
    nothing = dataclasses.replace(config.llm, depth=0, vocab_size=1, tokenizer_size=0, tied_head=True)
    values = hf_config(
        model, dataclasses.replace(config, llm=nothing), token=image_token(model.tokenizer), dtype="float32"
    )
    vision = EarthGPTModel(EarthGPTConfig(**{key: value for key, value in values.items() if key != "model_type"}))
    state = vision.state_dict()
    table = tables.hf_export(config).without(("llm/",))
    shapes = {rule.path: reader.shapes[rule.path] for rule in table.rules}
    for step in table.steps(shapes, where="export"):
        value = reader.read(step.path) if step.layer is None else reader.read(step.path, step.layer, 1)[0]
        value = np.ascontiguousarray(step.transform.to_checkpoint(value), np.float32)
        target = state[step.key.removeprefix("model.")]
        target[step.start : step.start + step.rows].copy_(torch.from_numpy(value).reshape(-1, *target.shape[1:]))

    class Vision(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = vision

        def forward(self, pixel_values: Any) -> Any:
            return self.model.get_image_features(pixel_values).pooler_output

    example = torch.zeros((2, 3, config.image_size, config.image_size), dtype=torch.uint8)
    with atomic_folder(out, key_file=FILE) as folder, torch.no_grad():
        torch.onnx.export(
            Vision().eval(), (example,), folder / FILE, input_names=["pixel_values"], output_names=["visual"],
            dynamic_axes={"pixel_values": {0: "images"}, "visual": {0: "images"}}, opset_version=_OPSET, dynamo=False,
        )  # fmt: skip
    return out
