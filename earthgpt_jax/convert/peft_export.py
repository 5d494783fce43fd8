"""Write LoRA adapters as a folder of PEFT, for the model that `export_hf(..., adapter="separate")` writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.files import atomic_folder, write_json
from earthgpt_jax.common.safetensors_files import SINGLE, SafetensorsWriter
from earthgpt_jax.config import AdapterKind
from earthgpt_jax.convert import tables
from earthgpt_jax.models import model_dir
from earthgpt_jax.models.merge import FilteredReader

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def export_peft(
    name: str | Path, out: Path, *, dtype: np.dtype | None = None, parent: str | Path | None = None
) -> Path:
    """Write the LoRA adapters of a model for `PeftModel.from_pretrained(base, out)`.

    Args:
        name: a model directory.
        out: the folder to write; it appears under its name once it is complete.
        dtype: dtype of the tensors; None keeps the model's.
        parent: see `model_dir.read_config`.

    Raises:
        EarthGPTError: there is no such model, `out` exists already, or the model has other adapters than LoRA.
    """
    model = model_dir.read_config(name, parent=parent)
    adapter = model.model.adapter
    if adapter.kind is not AdapterKind.LORA:
        raise EarthGPTError(
            f"{name}: expected LoRA adapters, which PEFT has, got {adapter.kind.value}; merge them instead: "
            "earthgpt convert export --to hf"
        )
    reader = FilteredReader(model_dir.open_params(model), adapters=True)
    table = tables.lora_peft(model.model.llm, adapter).prefixed(path="llm/")
    shapes = {rule.path: reader.shapes[rule.path] for rule in table.rules}
    with atomic_folder(out, key_file=CONFIG) as folder:
        steps = table.steps(shapes, where="export")
        dtypes = {step.key: np.dtype(dtype or reader.dtypes[step.path]) for step in steps}
        tensors = {key: (shape, dtypes[key]) for key, shape in table.checkpoint_shapes(shapes).items()}
        writer = SafetensorsWriter(folder, tensors, metadata={"format": "pt"})
        for step in steps:
            value = reader.read(step.path, step.layer or 0, 1)[0]
            writer.write(step.key, step.transform.to_checkpoint(value))
        writer.close()
        (folder / SINGLE).rename(folder / WEIGHTS)
        values = {
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": None, "r": adapter.rank,
            "lora_alpha": adapter.alpha or adapter.rank, "lora_dropout": 0.0, "bias": "none",
            "target_modules": [f"{name}_proj" for name in adapter.targets], "inference_mode": True,
        }  # fmt: skip
        write_json(folder / CONFIG, values)
    return out
