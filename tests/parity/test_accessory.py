"""Checkpoints of Meta and LLaMA2-Accessory, imported by our converter, match the outputs of their code in fp32."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from earthgpt_jax import params as params_lib
from earthgpt_jax.config import AdapterConfig, AdapterKind, DType, LlamaConfig, ModelConfig, load
from earthgpt_jax.convert.importer import open_import, prepare_import
from earthgpt_jax.convert.layouts import open_source_checkpoint
from earthgpt_jax.convert.tables import llama_hf, llama_meta
from earthgpt_jax.input.batch import END_SLOT, START_SLOT, TEXT_SLOT
from earthgpt_jax.models import earthgpt
from earthgpt_jax.models.llama import Llama, PackedAttention
from earthgpt_jax.ops.attention import make_attention_mask
from earthgpt_jax.ops.losses import next_token_loss
from tests.support.weights import load_into

pytestmark = pytest.mark.golden
RECIPE = load("sphinx_light:align").model
# The recipe's model with the goldens' few and narrow layers; everything else is the recipe's own.
LIGHT = dataclasses.replace(
    RECIPE,
    vit=dataclasses.replace(RECIPE.vit, dim=18, depth=2, heads=3, ffn_dim=48),
    convnext=dataclasses.replace(RECIPE.convnext, depths=(1, 1, 2, 1), dims=(8, 12, 16, 32)),
    perception=dataclasses.replace(RECIPE.perception, vit_layers=(1,)),
    llm=dataclasses.replace(RECIPE.llm, vocab_size=512, dim=64, depth=3, heads=4, kv_heads=2, ffn_dim=176),
    compute_dtype=DType.FLOAT32,
)


def _leaves(parts: dict, model: ModelConfig) -> dict[str, jax.Array]:
    reader = open_import(parts, model)
    assert not reader.initialized
    return {path: jnp.asarray(reader.read(path), jnp.float32) for path in reader.shapes}


def _same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[path], b[path]) for path in a)


@pytest.fixture(scope="module")
def light(goldens):
    return _leaves({"model": goldens / "accessory" / "llama_ens_light" / "mp1"}, LIGHT)


def test_two_shards_equal_one_file(goldens, light):
    assert _same(light, _leaves({"model": goldens / "accessory" / "llama_ens_light" / "mp2"}, LIGHT))


def test_whole_model_matches_llama_ens_light(goldens, light):
    folder = goldens / "accessory" / "llama_ens_light"
    arrays, image = np.load(folder / "io.npz"), np.load(folder / "image.npz")["image_u8_nchw"]
    tokens, labels = arrays["tokens"], arrays["labels"]
    graphdef, _ = earthgpt.abstract(LIGHT)
    slots = np.array([TEXT_SLOT, START_SLOT, *range(257), END_SLOT] + [TEXT_SLOT] * (tokens.shape[1] - 1))
    ids = np.concatenate([tokens[:, :1], np.zeros((2, 259), np.int64), tokens[:, 1:]], axis=1)
    # The loss there is a mean over the supervised labels; ids of 0 cannot be supervised.
    weights = np.concatenate([np.zeros((2, 260)), (labels[:, 1:] != 0)], axis=1).astype(np.float32)

    @jax.jit
    def forward(params, images):
        model = params_lib.merge_module(graphdef, params)
        out = model(jnp.asarray(ids), image_slots=jnp.broadcast_to(slots, ids.shape), images=images)
        total, weight = next_token_loss(out.logits, jnp.asarray(ids), jnp.asarray(weights))
        return out.visual_tokens, out.logits, total / weight

    visual, logits, loss = forward(light, image.transpose(0, 2, 3, 1))
    np.testing.assert_allclose(visual, arrays["nohalf/image_tokens"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(logits[:, 259:], arrays["nohalf/logits"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(loss, arrays["nohalf/loss"][0], atol=1e-5, rtol=0)


def _llama(path, model: ModelConfig = LIGHT) -> tuple[ModelConfig, Llama]:
    """Load a LLaMA of the goldens' sizes, with the adapters of its file."""
    source = open_source_checkpoint(path)
    shapes = source.reader.shapes
    llm = LlamaConfig(
        vocab_size=320, dim=48, depth=2, heads=4, kv_heads=shapes["layers.0.attention.wk.weight"][0] // 12,
        ffn_dim=shapes["layers.0.feed_forward.w1.weight"][0],
    )  # fmt: skip
    config = source.with_adapters(dataclasses.replace(model, llm=llm))
    module = Llama(config.llm, adapter=config.adapter, rngs=nnx.Rngs(0), dtype=DType.FLOAT32)
    return config, load_into(module, path, llama_meta(config.llm, config.adapter))


@nnx.jit
def _logits(model: Llama, ids: jax.Array) -> jax.Array:
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    mask = make_attention_mask(jnp.ones_like(positions), jnp.zeros_like(positions))
    return model.logits(model(model.embed_tokens(ids), positions=positions, attention=PackedAttention(mask)).hidden)


def test_rows_of_meta_checkpoints_are_permuted_to_the_hf_order(goldens):
    folder = goldens / "rope_meta_vs_hf"
    config, meta = _llama(folder / "meta")
    module = Llama(config.llm, adapter=AdapterConfig(), rngs=nnx.Rngs(1), dtype=DType.FLOAT32)
    hf = load_into(module, folder / "hf", llama_hf(config.llm))
    assert _same(*(params_lib.split_module(model)[1] for model in (meta, hf)))
    arrays = np.load(folder / "io.npz")
    np.testing.assert_allclose(_logits(meta, arrays["input_ids"]), arrays["logits_meta"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("shards", ["mp1", "mp2"])
@pytest.mark.parametrize(("name", "kind"), [("bias", AdapterKind.BIAS), ("lora", AdapterKind.LORA)])
def test_adapters_match_llama_peft(goldens, name, kind, shards):
    folder = goldens / "accessory" / f"llama_peft_{name}"
    config, model = _llama(folder / shards)
    assert config.adapter.kind is kind
    arrays = np.load(folder / "io.npz")
    np.testing.assert_allclose(_logits(model, arrays["tokens"]), arrays["logits"], atol=1e-4, rtol=0)


def test_a_partial_checkpoint_is_loaded_on_top_of_its_base(goldens):
    base, top = goldens / "rope_meta_vs_hf" / "meta" / "consolidated.00.pth", goldens / "accessory" / "peft_on_base"
    arrays = np.load(top / "io.npz")
    config, model = _llama([base, top / "peft"])
    assert config.adapter.kind is AdapterKind.LORA
    assert config.llm.attention_bias  # biases next to LoRA belong to the linear layers
    np.testing.assert_allclose(_logits(model, arrays["tokens"]), arrays["logits"], atol=1e-4, rtol=0)


def test_merged_biases_match_the_hf_copy(goldens):
    """Biases of q and k are permuted like the rows of their kernels."""
    folder = goldens / "accessory" / "llama_peft_bias"
    config, model = _llama(folder / "mp1")
    biased = dataclasses.replace(config.llm, attention_bias=True, mlp_bias=True)
    module = Llama(biased, adapter=AdapterConfig(), rngs=nnx.Rngs(1), dtype=DType.FLOAT32)
    hf = load_into(module, folder / "hf", llama_hf(biased))
    ours, theirs = (params_lib.split_module(m)[1] for m in (model, hf))
    assert _same({path.replace("/adapter/bias", "/bias"): value for path, value in ours.items()}, theirs)


def test_an_import_names_everything_that_does_not_fit(goldens):
    other = dataclasses.replace(LIGHT, llm=dataclasses.replace(LIGHT.llm, dim=32, ffn_dim=96))
    named = r"llm.dim is 64 \(the recipe has 32\).*--config.model.llm.dim=64 --config.model.llm.ffn_dim=176"
    with pytest.raises(Exception, match=named):
        prepare_import({"model": goldens / "accessory" / "llama_ens_light" / "mp1"}, other)
