"""A model of 1.1B parameters: random checkpoints in published formats, and the settings of a short run from them.

The LLM has TinyLlama's shape (22 layers, D 2048, 32 heads, 4 kv heads, F 5632, V 32000). The vision towers are DINOv2
ViT-L and a ConvNeXt-B, both with fewer layers.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from earthgpt_jax.common.safetensors_files import SafetensorsWriter
from earthgpt_jax.config import load
from earthgpt_jax.convert import tables
from earthgpt_jax.convert.exporter import SHARD_BYTES, llama_config
from earthgpt_jax.input.tokenizer import train_tokenizer
from earthgpt_jax.models import earthgpt

RECIPE = "earthgpt_7b"
MODEL = (
    "model.llm.dim=2048", "model.llm.depth=22", "model.llm.heads=32", "model.llm.kv_heads=4", "model.llm.ffn_dim=5632",
    "model.vit.depth=4", "model.vit.position_rule=hf", "model.perception.vit_layers=(0,1,2,3)",
    "model.convnext.depths=(3,3,3,3)", "model.convnext.dims=(128,256,512,1024)",
)  # fmt: skip
NANO = (
    "model.llm.vocab_size=1024", "model.llm.dim=64", "model.llm.depth=4", "model.llm.heads=4", "model.llm.kv_heads=4",
    "model.llm.ffn_dim=128", "model.vit.depth=4", "model.vit.position_rule=hf",
    "model.vit.dim=64", "model.vit.heads=4", "model.vit.ffn_dim=128",
    "model.perception.vit_layers=(0,1,2,3)", "model.convnext.depths=(1,1,1,1)", "model.convnext.dims=(8,16,32,64)",
    "data.seq_len=512",  # the small vocabulary needs more tokens
)  # fmt: skip
# Few and short packed sequences: 66 tokens of an image, and a caption.
RUN = (
    "model.image_size=256", "model.vit.image_size=112", "model.convnext.image_size=256", "data.chat_template=plain",
    "data.seq_len=128", "data.batch_size=4", "model.compute_dtype=float32", "data.max_images=1",
    "data.max_questions=1", "optim.warmup_steps=0", "log_every=1",
)  # fmt: skip
# On CPUs the compiler computes in float32 what is stored in fewer bytes. The first pass would convert the kernels of
# all layers before the loop over them: twice the memory of all frozen parameters. The other two flags keep it from
# copying the optimizer's moments for the whole step, which it updates in place on accelerators.
XLA_FLAGS = (
    "--xla_disable_hlo_passes=while-loop-invariant-code-motion "
    "--xla_cpu_scheduler_type=CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED "
    "--xla_cpu_copy_insertion_use_region_analysis=true"
)
_BLOCK = 1 << 22  # random numbers, which the tensors repeat
_STD = 0.02


def write_parts(folder: Path, *, sizes: tuple[str, ...] = MODEL) -> dict[str, Path]:
    """Write random bfloat16 checkpoints of the three parts in published formats and a tokenizer; return their folders.

    Args:
        sizes: overrides of the recipe.
    """
    model = load(f"{RECIPE}:align", [f"--config.{word}" for word in sizes]).model
    ours = {path: tuple(leaf.shape) for path, leaf in earthgpt.abstract(model)[1].items()}
    parts = {
        "llm": tables.llama_hf(model.llm), "vit": tables.dinov2_hf(model.vit),
        "convnext": tables.convnext_timm(model.convnext),
    }  # fmt: skip
    for name, table in parts.items():
        shapes = {path.removeprefix(f"{name}/"): shape for path, shape in ours.items() if path.startswith(f"{name}/")}
        _write(folder / name, table.checkpoint_shapes(shapes))
    (folder / "llm" / "config.json").write_text(json.dumps(llama_config(model.llm)))
    letters = np.random.default_rng(0).integers(97, 123, (60_000, 7), dtype=np.uint8)
    texts = [" ".join(bytes(word).decode() for word in part)[:4000] for part in np.split(letters, 120)]
    train_tokenizer(texts, vocab_size=model.llm.vocab_size, path=folder / "llm" / "tokenizer.model")
    return {name: folder / name for name in parts}


def _write(folder: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Write normal numbers for matrices, and ones for vectors."""
    folder.mkdir(parents=True)
    dtype = np.dtype("bfloat16")
    random = (np.random.default_rng(0).standard_normal(_BLOCK, np.float32) * _STD).astype(dtype)
    writer = SafetensorsWriter(folder, {key: (shape, dtype) for key, shape in shapes.items()}, shard_bytes=SHARD_BYTES)
    for key, shape in shapes.items():
        count = math.prod(shape)
        value = np.resize(random, count) if len(shape) > 1 else np.ones(count, dtype)
        writer.write(key, value.reshape(shape))
    writer.close()
