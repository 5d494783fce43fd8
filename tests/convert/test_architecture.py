"""An import reads the whole architecture: a model is imported as transformers computes it, or refused."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from safetensors.numpy import load_file, save_file

from earthgpt_jax import config as config_lib
from earthgpt_jax import params as params_lib
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.config import ModelConfig, PositionRule, RopeScaling, RopeScalingConfig
from earthgpt_jax.convert import exporter, llama_configs, tower_configs
from earthgpt_jax.convert.importer import derive_model, import_model, prepare_import, read_params
from earthgpt_jax.convert.recipe import write_recipe
from earthgpt_jax.models import earthgpt
from earthgpt_jax.models.llama import PackedAttention
from earthgpt_jax.ops.attention import make_attention_mask
from earthgpt_jax.sharding.rules import specs
from earthgpt_jax.training.initial import initial_model
from earthgpt_jax.training.stages import trainable_paths
from tests.support import nano

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
ATOL = 1e-4
LENGTH = 48


def _base() -> ModelConfig:
    return nano.config("align").model


SAME = {
    "vocab_size": 640, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "tie_word_embeddings": False,
    "initializer_range": 0.3,
}  # fmt: skip


def _rope(kind: str, **values) -> dict:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **values}}


# Name -> (class, changes to `SAME`, overrides that the refusal of the unchanged recipe names).
IMPORTED = {
    "the same": ("Llama", {}, []),
    "linear scaling": (
        "Llama", _rope("linear", factor=4.0), ["llm.rope_scaling.kind=linear", "llm.rope_scaling.factor=4.0"]
    ),
    "llama3 scaling": (
        "Llama",
        _rope(
            "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
        ),
        ["llm.rope_scaling.kind=llama3", "llm.rope_scaling.factor=8.0", "llm.rope_scaling.original_positions=64"],
    ),
    "yarn scaling": (
        "Llama", _rope("yarn", factor=4.0, original_max_position_embeddings=64),
        ["llm.rope_scaling.kind=yarn", "llm.rope_scaling.factor=4.0", "llm.rope_scaling.original_positions=64"],
    ),
    "head size": ("Llama", {"head_dim": 16}, ["llm.head_size=16"]),
    "heads of twice the size": (
        "Llama", {"num_attention_heads": 2, "num_key_value_heads": 1}, ["llm.heads=2", "llm.kv_heads=1"]
    ),
    "key and value heads": ("Llama", {"num_key_value_heads": 1}, ["llm.kv_heads=1"]),
    "theta": ("Llama", {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}, ["llm.rope_theta=1000000.0"]),
    "eps": ("Llama", {"rms_norm_eps": 1e-2}, ["llm.norm_eps=0.01"]),
    "biases": (
        "Llama", {"attention_bias": True, "mlp_bias": True}, ["llm.attention_bias=True", "llm.mlp_bias=True"]
    ),
    "biases of q, k and v": ("Qwen2", {}, ["llm.qkv_bias=True"]),
    "a tied head": ("Llama", {"tie_word_embeddings": True}, ["llm.tied_head=True"]),
    "one more token": ("Llama", {"vocab_size": 641}, ["llm.vocab_size=641"]),
    "a padded vocabulary": ("Llama", {"vocab_size": 704}, ["llm.vocab_size=704"]),
    "context length": ("Llama", {"max_position_embeddings": 8192}, ["llm.max_positions=8192"]),
    "Mistral without a window": ("Mistral", {"sliding_window": None}, []),
    "Mistral whose window covers its context": ("Mistral", {"sliding_window": 4096}, []),
}  # fmt: skip
REFUSED = {
    "activation": ("Llama", {"hidden_act": "gelu"}, "hidden_act: expected silu, got gelu"),
    "a sliding window": ("Mistral", {"sliding_window": 64}, "sliding_window: expected .* got a window of 64"),
    "dynamic scaling": ("Llama", _rope("dynamic", factor=2.0), "rope_scaling: expected .* got dynamic"),
    "Gemma": ("Gemma", {"head_dim": 8}, "'gemma' cannot be imported: its norms multiply by 1"),
    "Granite": ("Granite", {}, "'granite' cannot be imported: it multiplies embeddings"),
    "OLMo 2": ("Olmo2", {}, "'olmo2' cannot be imported: it normalizes queries and keys"),
    "Qwen 3": ("Qwen3", {"head_dim": 8}, "'qwen3' cannot be imported: it normalizes queries and keys"),
    "Phi-3": ("Phi3", {"pad_token_id": 0}, "'phi3' cannot be imported: its q, k, v"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An export of a complete model, whose language model the sources replace."""
    folder = tmp_path_factory.mktemp("whole")
    return exporter.export_hf(nano.model_dir(folder / "model", _base()), folder / "hf")


def _source(folder, name: str, changes: dict):
    """Save a random model of transformers, biases and norms included."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**SAME, **changes})
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


def _logits(model: ModelConfig, params, ids: np.ndarray) -> np.ndarray:
    graphdef, _ = earthgpt.abstract(model)

    ids = jnp.asarray(ids)

    @jax.jit
    def forward(params):
        llm = params_lib.merge_module(graphdef, params).llm
        positions = jnp.arange(ids.shape[1])[None]
        mask = make_attention_mask(jnp.ones_like(ids), jnp.zeros_like(ids))
        return llm.logits(llm(llm.embed_tokens(ids), positions=positions, attention=PackedAttention(mask)).hidden)

    return np.asarray(forward({path: jnp.asarray(value, jnp.float32) for path, value in params.items()}))


def _params(prepared) -> dict[str, np.ndarray]:
    arrays = {path: np.empty(shape, np.float32) for path, shape in prepared.shapes.items()}
    for path, layer, value in read_params(prepared, seed=0, progress=False):
        arrays[path][... if layer is None else layer] = value
    return arrays


@pytest.mark.parametrize("case", IMPORTED)
def test_a_language_model_is_imported_with_everything_that_it_computes(tmp_path, whole, case):
    name, changes, overrides = IMPORTED[case]
    reference = _source(tmp_path / "llm", name, changes)
    parts = {"model": whole, "llm": tmp_path / "llm"}
    if overrides:
        with pytest.raises(EarthGPTError) as caught:
            prepare_import(parts, _base())
        assert all(f"--config.model.{override}" in str(caught.value) for override in overrides)
        assert "wrong shape" not in str(caught.value) and "missing" not in str(caught.value)
    model = derive_model(parts, _base())
    prepared = prepare_import(parts, model)
    ids = np.random.default_rng(0).integers(0, 640, (1, LENGTH))
    with torch.no_grad():
        expected = reference(torch.from_numpy(ids)).logits.numpy()
    np.testing.assert_allclose(_logits(model, _params(prepared), ids), expected, atol=ATOL, rtol=0)


@pytest.mark.parametrize("case", REFUSED)
def test_what_this_model_cannot_compute_is_refused_by_name(tmp_path, whole, case):
    name, changes, message = REFUSED[case]
    _source(tmp_path / "llm", name, changes)
    for convert in (prepare_import, derive_model):
        with pytest.raises(EarthGPTError, match=message) as caught:
            convert({"model": whole, "llm": tmp_path / "llm"}, _base())
        assert "missing (" not in str(caught.value)  # why, not a list of tensors


def test_quantized_weights_and_a_second_head_are_refused(tmp_path, whole):
    _source(tmp_path / "llm", "Llama", {})
    file = tmp_path / "llm" / "config.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(EarthGPTError, match=r"weights that are not quantized, got gptq"):
        prepare_import({"model": whole, "llm": tmp_path / "llm"}, _base())
    file.unlink()  # only the tensors show that the head is not tied
    tied = dataclasses.replace(_base(), llm=dataclasses.replace(_base().llm, tied_head=True))
    with pytest.raises(EarthGPTError, match=r"expected a head that is tied.*model.llm.tied_head=False"):
        prepare_import({"model": whole, "llm": tmp_path / "llm"}, tied)


def test_the_tables_are_total_over_the_fields_that_transformers_reads():
    bookkeeping = set(transformers.PreTrainedConfig().to_dict())
    named = {*llama_configs.LLAMA_FIELDS.values(), *llama_configs.MODEL_TYPES["llama"], *llama_configs.LLAMA_IRRELEVANT}
    named |= {"head_dim", "rope_parameters"}  # read by functions
    for name in ("Llama", "Mistral", "Qwen2"):
        fields = set(getattr(transformers, f"{name}Config")().to_dict())
        assert not fields - bookkeeping - named, name
        defaults = llama_configs.MODEL_TYPES[name.lower()]
        written = getattr(transformers, f"{name}Config")().to_dict()
        compared = (defaults.keys() & written.keys()) - {
            "sliding_window",
            "layer_types",
        }  # changed on creation
        assert {key: written[key] for key in compared} == {key: defaults[key] for key in compared}


# ------------------------------------------------------------------------------------------ other sources
def test_metas_params_are_compared(tmp_path, whole):
    """Llama 3.2's params.json says only that RoPE is scaled."""
    folder = nano.model_dir(tmp_path / "model", _base())
    exporter.export_accessory(folder, tmp_path / "accessory")
    state = torch.load(tmp_path / "accessory" / "consolidated.00-of-01.model.pth", weights_only=True)["model"]
    meta = {key.removeprefix("llma."): value for key, value in state.items()}
    names = ("tok_embeddings.", "layers.", "norm.", "output.")
    (tmp_path / "meta").mkdir()
    torch.save(
        {key: value for key, value in meta.items() if key.startswith(names)}, tmp_path / "meta" / "consolidated.00.pth"
    )
    values = {"dim": 32, "n_heads": 2, "n_layers": 2, "norm_eps": 1e-6, "rope_theta": 500000.0, "vocab_size": -1}
    (tmp_path / "meta" / "params.json").write_text(json.dumps(values | {"use_scaled_rope": True}))
    parts = {"model": whole, "llm": tmp_path / "meta"}
    with pytest.raises(EarthGPTError) as caught:
        prepare_import(parts, _base())
    for override in ("heads=2", "norm_eps=1e-06", "rope_theta=500000.0", "rope_scaling.kind=llama3"):
        assert f"--config.model.llm.{override}" in str(caught.value)
    derived = derive_model(parts, _base()).llm
    assert (derived.heads, derived.kv_heads, derived.rope_scaling.factor) == (2, 1, 8.0)


@pytest.mark.parametrize("swiglu", [False, True])
def test_a_dinov2_of_transformers_is_compared(tmp_path, whole, swiglu):
    config = transformers.Dinov2Config(
        hidden_size=48, num_hidden_layers=8, num_attention_heads=3, image_size=64, patch_size=8, layer_norm_eps=1e-5,
        use_swiglu_ffn=swiglu,
    )  # fmt: skip
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "vit")
    parts = {"model": whole, "vit": tmp_path / "vit"}
    with pytest.raises(EarthGPTError) as caught:
        prepare_import(parts, _base())
    for override in ("position_rule=hf", "heads=3", "norm_eps=1e-05", "patch_size=8", "grid=8", "depth=8"):
        assert f"--config.model.vit.{override}" in str(caught.value)
    del parts["model"]
    derived = derive_model(parts, _base())
    assert derived.vit.position_rule is PositionRule.HF
    taps = len(_base().perception.vit_layers)
    assert derived.perception.vit_layers == tuple((i + 1) * 8 // taps - 1 for i in range(taps))
    with pytest.raises(EarthGPTError, match="no source for convnext, llm"):  # and no other problem
        prepare_import(parts, derived)


def test_published_towers_have_known_heads_and_epsilons():
    hub = {
        "cls_token": (1, 1, 1024), "pos_embed": (1, 1370, 1024), "patch_embed.proj.weight": (1024, 3, 14, 14),
        "blocks.23.norm1.weight": (1024,), "blocks.0.mlp.fc1.weight": (4096, 1024),
    }  # fmt: skip
    vit = config_lib.load("earthgpt_13b:align").model
    assert tower_configs.dinov2_hub("x", None, hub).problems(vit) == []
    for recipe, other in (("earthgpt_13b", "sphinx_light"), ("sphinx_light", "earthgpt_13b")):
        model = config_lib.load(f"{recipe}:align").model
        shapes = {}
        for stage, (depth, dim) in enumerate(zip(model.convnext.depths, model.convnext.dims, strict=True)):
            shapes[f"stages.{stage}.blocks.0.conv_dw.weight"] = (dim, 1, 7, 7)
            shapes[f"stages.{stage}.blocks.{depth - 1}.gamma"] = shapes[f"stages.{stage}.blocks.0.gamma"] = (dim,)
        architecture = tower_configs.convnext("x", None, shapes)
        assert architecture.problems(model) == []
        assert "convnext.norm_eps" in architecture.problems(config_lib.load(f"{other}:align").model)[0]


# ------------------------------------------------------------------------------------- export and recipes
def test_an_export_keeps_what_the_language_model_computes(tmp_path):
    scaling = RopeScalingConfig(
        kind=RopeScaling.LLAMA3, factor=32.0, original_positions=64, low_freq_factor=1.0, high_freq_factor=4.0
    )
    llm = dataclasses.replace(
        _base().llm, head_size=16, rope_scaling=scaling, rope_theta=5e5, qkv_bias=True, max_positions=131072
    )
    model = dataclasses.replace(_base(), llm=llm)
    folder = nano.model_dir(tmp_path / "model", model)
    arrays = load_file(folder / "model.safetensors")
    rng = np.random.default_rng(0)
    arrays = {key: (value + 0.1 * rng.standard_normal(value.shape)).astype(np.float32) for key, value in arrays.items()}
    save_file(arrays, folder / "model.safetensors")
    exporter.export_llama(folder, tmp_path / "llama")
    ids = rng.integers(0, 640, (1, LENGTH))
    exported = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "llama", dtype=torch.float32).eval()
    assert exported.config.max_position_embeddings == 131072 and exported.config.head_dim == 16
    with torch.no_grad():
        np.testing.assert_allclose(
            exported(torch.from_numpy(ids)).logits.numpy(), _logits(model, arrays, ids), atol=ATOL, rtol=0
        )
    exporter.export_hf(folder, tmp_path / "hf")
    out = import_model(
        {"model": tmp_path / "hf"}, model, out=tmp_path / "back", tokenizer=folder / "tokenizer.model", decimals=2,
        chat_template="plain",
    )  # fmt: skip
    back = load_file(out / "model.safetensors")
    assert back.keys() == arrays.keys()
    assert all(np.array_equal(back[key], arrays[key]) for key in arrays)


def test_a_run_does_not_start_from_a_model_that_computes_something_else(tmp_path):
    llm = dataclasses.replace(_base().llm, rope_theta=1e6)
    folder = nano.model_dir(tmp_path / "model", dataclasses.replace(_base(), llm=llm))
    with pytest.raises(EarthGPTError, match=r"--config.model.llm.rope_theta=1000000.0"):
        initial_model(nano.config("align", f"init={folder}"))
    initial_model(nano.config("align", f"init={folder}", "model.llm.rope_theta=1e6"))


def test_a_derived_recipe_describes_the_checkpoints(tmp_path, whole):
    _source(tmp_path / "llm", "Llama", {"rms_norm_eps": 1e-6, **_rope("linear", factor=2.0)})
    derived = derive_model({"llm": tmp_path / "llm"}, config_lib.load("tiny:align").model)
    write_recipe(tmp_path / "mine.py", base="tiny", model=derived)
    for stage in ("align", "instruct"):
        config = config_lib.load(f"{tmp_path / 'mine.py'}:{stage}")
        assert dataclasses.replace(config.model, adapter=derived.adapter) == derived
    assert config.model.adapter.kind.value == "scale+bias" and config.recipe == "mine"
    with pytest.raises(EarthGPTError, match="exists already"):
        write_recipe(tmp_path / "mine.py", base="tiny", model=derived)


@pytest.mark.parametrize("file_format", ["safetensors", "bin", "pth"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_weights_of_8_and_16_bits_are_read_exactly(tmp_path, whole, dtype, file_format):
    from safetensors.torch import save_file as save_torch

    reference = _source(tmp_path / "llm", "Llama", {})
    (tmp_path / "llm" / "model.safetensors").unlink()
    state = {key: value.detach().to(getattr(torch, dtype)).clone() for key, value in reference.state_dict().items()}
    if file_format == "safetensors":
        save_torch(state, tmp_path / "llm" / "model.safetensors")
    else:
        torch.save(state, tmp_path / "llm" / {"bin": "pytorch_model.bin", "pth": "consolidated.00.pth"}[file_format])
    prepared = prepare_import({"model": whole, "llm": tmp_path / "llm"}, _base())
    assert str(prepared.dtypes["llm/embed"]) == (dtype if dtype == "float16" else "bfloat16")
    params = _params(prepared)
    np.testing.assert_array_equal(params["llm/embed"], state["model.embed_tokens.weight"].float().numpy())
    down = state["model.layers.1.mlp.down_proj.weight"].float().numpy()
    np.testing.assert_array_equal(params["llm/blocks/mlp/down/kernel"][1], down.T)


@pytest.mark.parametrize("stage", ["align", "instruct", "lora", "finetune"])
def test_biases_of_q_k_and_v_alone_are_covered_by_every_table(stage):
    config = nano.config(stage, "model.llm.qkv_bias=True", "model.llm.head_size=16")
    _, shapes = earthgpt.abstract(config.model)
    biases = {path for path in shapes if path.startswith("llm/blocks/attn/") and path.endswith("/bias")}
    assert {path for path in biases if "/adapter/" not in path} == {f"llm/blocks/attn/{name}/bias" for name in "qkv"}
    trained = trainable_paths(config, shapes)
    assert (biases <= trained.keys()) == (stage in ("align", "finetune"))
    chosen = specs(config.model, shapes, sizes={"data": 1, "fsdp": 2, "tensor": 2})
    assert chosen["llm/blocks/attn/q/bias"] == PartitionSpec(None, "tensor")
