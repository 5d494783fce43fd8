"""Gradients of the trainable parameters of each stage match torch autograd on the exported model (fp32, 1e-4)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from earthgpt_jax import params as params_lib
from earthgpt_jax.config import ModelConfig
from earthgpt_jax.convert import exporter, tables
from earthgpt_jax.input.batch import Batch
from earthgpt_jax.input.prompts.chat_template import chat_template
from earthgpt_jax.input.prompts.questions import Question
from earthgpt_jax.input.sequences import build_sample, image_prefix, pack_samples
from earthgpt_jax.input.tokenizer import Tokenizer
from earthgpt_jax.models import earthgpt
from earthgpt_jax.models import model_dir as io
from earthgpt_jax.models.llama import PackedAttention
from earthgpt_jax.models.merge import merged_config
from earthgpt_jax.ops.attention import make_attention_mask
from earthgpt_jax.ops.losses import next_token_loss
from earthgpt_jax.training.stages import trainable_paths
from tests.support import nano

pytestmark = pytest.mark.torch
QUESTION = Question(
    id="r#vqa#0",
    record_id="r",
    task="vqa",
    question_type="",
    text="Where is it?",
    answer="[0.12,0.34,0.56,0.78]",
    references=(),
)


def _shaken(path, model: ModelConfig) -> dict[str, np.ndarray]:
    """Write a model directory with noise on every parameter; return its parameters."""
    nano.model_dir(path, model)
    rng = np.random.default_rng(0)
    file = path / "model.safetensors"
    arrays = {k: (v + 0.1 * rng.standard_normal(v.shape)).astype(np.float32) for k, v in load_file(file).items()}
    save_file(arrays, file)
    return arrays


def _batch(path, model: ModelConfig) -> Batch:
    """One image with one question: to a causal model this is a plain sequence."""
    tokenizer, chat = Tokenizer(io.read_config(path).tokenizer), chat_template("plain")
    prefix = image_prefix(tokenizer, chat, visual_tokens=model.visual_tokens)
    sample = build_sample([QUESTION], prefix=prefix, tokenizer=tokenizer, chat_template=chat)
    return pack_samples([sample], seq_len=96, visual_tokens=model.visual_tokens)


def _ours(model: ModelConfig, arrays: dict, batch: Batch, image: np.ndarray, trainable: set[str]) -> tuple[float, dict]:
    graphdef, _ = earthgpt.abstract(model)
    chosen, rest = params_lib.split({path: jnp.asarray(value) for path, value in arrays.items()}, trainable)

    batch, image = jax.tree.map(jnp.asarray, (batch, image))

    @jax.jit
    @jax.value_and_grad
    def loss(chosen):
        module = params_lib.merge_module(graphdef, params_lib.merge(chosen, rest))
        device_batch = jax.tree.map(jnp.asarray, batch)
        out = module(
            device_batch.tokens,
            image_slots=device_batch.image_slots,
            images=jnp.asarray(image)[None],
            positions=device_batch.positions,
            attention=PackedAttention(make_attention_mask(device_batch.segments, device_batch.question_index)),
        )
        total, weight = next_token_loss(out.logits, device_batch.tokens, device_batch.loss_weights)
        return total / weight

    value, gradients = loss(chosen)
    return float(value), {path: np.asarray(gradient) for path, gradient in gradients.items()}


def _theirs(folder, batch: Batch, image: np.ndarray) -> tuple[float, dict[str, np.ndarray]]:
    """Return the loss, and its gradients by the keys of the export."""
    import torch
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True).eval()
    length = int((batch.segments > 0).sum())
    tokens, slots = batch.tokens[:, :length], batch.image_slots[:, :length]
    ids = torch.from_numpy(np.where(slots == -1, tokens, model.config.image_token_id).astype(np.int64))
    pixels = torch.from_numpy(image.transpose(2, 0, 1)[None].copy())
    logits = model(input_ids=ids, pixel_values=pixels).logits
    weights = torch.from_numpy(batch.loss_weights[0, 1:length])
    each = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="none")
    value = (each * weights).sum() / weights.sum()
    value.backward()
    return value.item(), {key: p.grad.numpy() for key, p in model.named_parameters() if p.grad is not None}


def _by_path(gradients: dict[str, np.ndarray], model: ModelConfig, paths: list[str]) -> dict[str, np.ndarray]:
    """Convert torch's gradients to our paths: the transforms are linear, so they apply to gradients too."""
    shapes = {path: tuple(leaf.shape) for path, leaf in earthgpt.abstract(model)[1].items()}
    out = {path: np.zeros(shapes[path], np.float32) for path in paths}
    for step in tables.hf_export(model).steps(shapes, where="gradients"):
        if step.path in out:
            value = step.transform.from_checkpoint(gradients[step.key][step.start : step.start + step.rows])
            out[step.path][... if step.layer is None else step.layer] = value
    return out


def _compare(got: dict, expected: dict) -> None:
    assert got.keys() == expected.keys()
    for path, value in expected.items():
        scale = np.abs(value).max()
        assert scale > 0, path
        np.testing.assert_allclose(got[path] / scale, value / scale, atol=1e-4, err_msg=path)


def test_align(tmp_path):
    config = nano.config("align")
    arrays = _shaken(tmp_path / "model", config.model)
    trainable = set(trainable_paths(config, arrays))
    batch, image = _batch(tmp_path / "model", config.model), _image(config.model)
    exporter.export_hf(tmp_path / "model", tmp_path / "hf")
    loss, got = _ours(config.model, arrays, batch, image, trainable)
    their_loss, gradients = _theirs(tmp_path / "hf", batch, image)
    assert loss == pytest.approx(their_loss, abs=1e-5)
    _compare(got, _by_path(gradients, config.model, sorted(trainable)))


def test_instruct(tmp_path):
    """scale * (W x + bias) is exported as W' = scale * W and b' = scale * bias; the chain rule gives the gradients."""
    config = nano.config("instruct")
    arrays = _shaken(tmp_path / "model", config.model)
    trainable = set(trainable_paths(config, arrays))
    batch, image = _batch(tmp_path / "model", config.model), _image(config.model)
    exporter.export_hf(tmp_path / "model", tmp_path / "hf")
    loss, got = _ours(config.model, arrays, batch, image, trainable)
    their_loss, gradients = _theirs(tmp_path / "hf", batch, image)
    assert loss == pytest.approx(their_loss, abs=1e-5)
    linears = sorted({path.split("/adapter/")[0] for path in trainable})
    folded = _by_path(
        gradients,
        merged_config(config.model),
        [f"{linear}/{leaf}" for linear in linears for leaf in ("kernel", "bias")],
    )
    expected = {}
    for linear in linears:
        kernel, bias = folded[f"{linear}/kernel"], folded[f"{linear}/bias"]
        scale, shift = arrays[f"{linear}/adapter/scale"], arrays[f"{linear}/adapter/bias"]
        expected[f"{linear}/adapter/scale"] = (kernel * arrays[f"{linear}/kernel"]).sum(1) + bias * shift
        expected[f"{linear}/adapter/bias"] = bias * scale
    _compare(got, expected)


def _image(model: ModelConfig) -> np.ndarray:
    size = model.image_size
    return np.random.default_rng(1).integers(0, 256, (size, size, 3)).astype(np.uint8)
