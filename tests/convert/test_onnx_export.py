"""The ONNX file of the encoders gives onnxruntime the visual tokens that our model computes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from earthgpt_jax.convert.onnx_export import export_onnx
from earthgpt_jax.models import earthgpt, model_dir
from earthgpt_jax.params import merge_module
from tests.support import nano

pytest.importorskip("torch")
pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
VARIANTS = {
    "concat": ("model.vit.grid=3", "model.convnext.image_size=128"),
    "sum": (
        "model.image_size=48", "model.vit.mlp=swiglu", "model.vit.position_rule=hf", "model.vit.grid=5",
        "model.perception.vit_fuse=mean", "model.perception.cnn_fuse=sum", "model.perception.spatial_merge=2",
    ),
}  # fmt: skip


@pytest.mark.torch
@pytest.mark.parametrize("variant", VARIANTS)
def test_visual_tokens(tmp_path, variant):
    config = nano.config("instruct", *VARIANTS[variant]).model
    folder = nano.model_dir(tmp_path / "model", config)
    _, arrays = model_dir.read(folder)
    file = export_onnx(folder, tmp_path / "onnx") / "vision.onnx"
    size = config.image_size
    squares = np.random.default_rng(0).integers(0, 256, (3, size, size, 3)).astype(np.uint8)
    session = onnxruntime.InferenceSession(file)
    (got,) = session.run(["visual"], {"pixel_values": squares.transpose(0, 3, 1, 2)})

    @jax.jit
    def visual(params, squares):
        model = merge_module(earthgpt.abstract(config)[0], params)
        tokens = jnp.zeros((3, 1 + config.visual_tokens), jnp.int32)
        slots = jnp.broadcast_to(jnp.arange(-1, config.visual_tokens), tokens.shape)
        return model(tokens, image_slots=slots, images=squares).visual_tokens

    params = {path: jnp.asarray(value) for path, value in arrays.items()}
    expected = np.asarray(visual(params, squares)).reshape(3, -1, config.llm.dim)
    assert got.shape == (3, config.visual_tokens + 2, config.llm.dim)
    np.testing.assert_allclose(got[:, 1:-1], expected, atol=1e-5, rtol=1e-5)
    np.testing.assert_array_equal(got[0, 0], arrays["image_tokens/start"])
    np.testing.assert_array_equal(got[2, -1], arrays["image_tokens/end"])
