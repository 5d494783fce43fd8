"""Conversion: bit-exact round trips of all kinds of tensors, strict tables, and wrong inputs."""

from __future__ import annotations

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from earthgpt_jax import params as params_lib
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.files import atomic_folder
from earthgpt_jax.common.safetensors_files import SafetensorsReader, SafetensorsWriter
from earthgpt_jax.config import AdapterConfig, AdapterKind, Fuse, Mlp, ModelConfig
from earthgpt_jax.convert import exporter, tables
from earthgpt_jax.convert.export_info import read_export_info
from earthgpt_jax.convert.importer import import_model, prepare_import
from earthgpt_jax.convert.layouts import open_source_checkpoint
from earthgpt_jax.models import earthgpt
from earthgpt_jax.models import model_dir as io
from earthgpt_jax.models.llama import PackedAttention
from earthgpt_jax.models.merge import MergedReader, merged_config
from earthgpt_jax.ops.attention import make_attention_mask
from earthgpt_jax.training.initial import load_initial_params
from tests.support import nano

ADAPTERS = {
    "none": AdapterConfig(),
    "scale+bias": AdapterConfig(kind=AdapterKind.SCALE_BIAS),
    "bias on some": AdapterConfig(kind=AdapterKind.BIAS, targets=("q", "down")),
    "lora": AdapterConfig(kind=AdapterKind.LORA, rank=3),
    "lora with alpha": AdapterConfig(kind=AdapterKind.LORA, rank=2, alpha=8.0, targets=("k", "o", "up")),
}


def _model(**changes) -> ModelConfig:
    return dataclasses.replace(nano.config("align").model, **changes)


def _random(path, model: ModelConfig, dtype: str = "float32", *, seed: int = 0):
    """A model directory in which no parameter has its initial value, so that a lost adapter or norm is noticed."""
    folder = nano.model_dir(path, model)
    rng = np.random.default_rng(seed)
    found, arrays = io.read(folder)
    io.write(
        folder, {key: (value + 0.1 * rng.standard_normal(value.shape)).astype(dtype) for key, value in arrays.items()},
        model=model, decimals=found.decimals, chat_template=found.chat_template, provenance=found.provenance,
        tokenizer=folder.with_name(f"{folder.name}.tokenizer.model"),
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return _random(tmp_path_factory.mktemp("plain") / "model", _model())


def _bytes(folder) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def _rewritten(folder, tmp_path) -> bytes:
    """The same parameters in the file layout of the converter."""
    reader = SafetensorsReader([folder / "model.safetensors"])
    (tmp_path / "rewritten").mkdir()
    writer = SafetensorsWriter(
        tmp_path / "rewritten", {k: (reader.shapes[k], reader.dtypes[k]) for k in sorted(reader.shapes)}
    )
    for key in reader.shapes:
        writer.write(key, reader.read(key))
    writer.close()
    return _bytes(tmp_path / "rewritten")


# --------------------------------------------------------------------------------------- round trips
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_hugging_face_and_back_is_bit_exact(tmp_path, dtype):
    model = _model(perception=dataclasses.replace(_model().perception, cnn_fuse=Fuse.SUM))
    folder = _random(tmp_path / "model", model, dtype)
    exporter.export_hf(folder, tmp_path / "hf", shard_bytes=40_000)
    assert (tmp_path / "hf" / "model.safetensors.index.json").is_file()  # several shards
    info = read_export_info(tmp_path / "hf")
    assert info is not None and info.model == model
    import_model(
        {"model": tmp_path / "hf"}, info.model, out=tmp_path / "back", tokenizer=tmp_path / "hf" / "tokenizer.model",
        decimals=info.decimals, chat_template=info.chat_template,
    )  # fmt: skip
    assert _bytes(tmp_path / "back") == _rewritten(folder, tmp_path)


def test_an_export_of_an_older_format_is_refused(tmp_path, plain):
    exporter.export_hf(plain, tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    values = json.loads(path.read_text())
    del values["earthgpt_jax"]["format_version"]  # as in the first version
    path.write_text(json.dumps(values))
    with pytest.raises(EarthGPTError, match=r"expected an export with format_version 2, got 1; export the model again"):
        read_export_info(tmp_path / "hf")


@pytest.mark.torch
@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("adapter", ["none", "scale+bias", "lora"])
def test_accessory_and_back_is_bit_exact(tmp_path, adapter, shards):
    swiglu = dataclasses.replace(_model().vit, mlp=Mlp.SWIGLU)
    folder = _random(tmp_path / "model", _model(adapter=ADAPTERS[adapter], vit=swiglu))
    exporter.export_accessory(folder, tmp_path / "accessory", shards=shards)
    assert len(list((tmp_path / "accessory").glob("consolidated.*.pth"))) == shards
    import_model(
        {"model": tmp_path / "accessory"}, _model(vit=swiglu), out=tmp_path / "back", decimals=2, chat_template="plain",
        tokenizer=folder / "tokenizer.model",
    )  # fmt: skip
    assert io.read_config(tmp_path / "back").model.adapter == ADAPTERS[adapter]
    assert _bytes(tmp_path / "back") == _rewritten(folder, tmp_path)


@pytest.mark.torch
def test_accessory_files_contain_lora_alpha_in_b(tmp_path):
    """LLaMA2-Accessory stores no alpha: B is multiplied by alpha / rank, which is 4 here."""
    folder = _random(tmp_path / "model", _model(adapter=ADAPTERS["lora with alpha"]))
    exporter.export_accessory(folder, tmp_path / "accessory")
    import_model(
        {"model": tmp_path / "accessory"}, _model(), out=tmp_path / "back", decimals=2, chat_template="plain",
        tokenizer=folder / "tokenizer.model",
    )  # fmt: skip
    read_back = io.read_config(tmp_path / "back").model
    assert read_back.adapter == dataclasses.replace(ADAPTERS["lora with alpha"], alpha=0.0)
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "back"))
    for path, value in after.items():
        np.testing.assert_array_equal(value, before[path] * (4 if path.endswith("adapter/b") else 1), err_msg=path)


def test_another_language_model_replaces_that_of_a_complete_model(tmp_path):
    ours, other = _random(tmp_path / "ours", _model()), _random(tmp_path / "other", _model(), seed=7)
    exporter.export_hf(ours, tmp_path / "hf")
    exporter.export_llama(other, tmp_path / "llama")
    import_model(
        {"model": tmp_path / "hf", "llm": tmp_path / "llama"}, _model(), out=tmp_path / "joined", decimals=2,
        chat_template="plain", tokenizer=ours / "tokenizer.model",
    )  # fmt: skip
    before, replaced, joined = (load_file(path / "model.safetensors") for path in (ours, other, tmp_path / "joined"))
    assert set(joined) == set(before)
    for path, value in joined.items():
        np.testing.assert_array_equal(value, (replaced if path.startswith("llm/") else before)[path], err_msg=path)


def test_separate_adapters_are_imported_again(tmp_path):
    folder = _random(tmp_path / "model", _model(adapter=ADAPTERS["scale+bias"]))
    exporter.export_hf(folder, tmp_path / "hf", adapter="separate")
    assert not any("adapter" in key for key in SafetensorsReader([tmp_path / "hf" / "model.safetensors"]).shapes)
    info = read_export_info(tmp_path / "hf")
    assert info is not None
    import_model(
        {"model": tmp_path / "hf"}, info.model, out=tmp_path / "back", tokenizer=folder / "tokenizer.model",
        decimals=2, chat_template="plain",
    )  # fmt: skip
    assert _bytes(tmp_path / "back") == _rewritten(folder, tmp_path)


def test_an_accessory_file_has_the_names_and_row_order_of_meta(tmp_path, plain):
    torch = pytest.importorskip("torch")
    exporter.export_accessory(plain, tmp_path / "accessory")
    state = torch.load(tmp_path / "accessory" / "consolidated.00-of-01.model.pth", weights_only=True)["model"]
    ours = load_file(plain / "model.safetensors")
    np.testing.assert_array_equal(
        state["llma.layers.1.feed_forward.w1.weight"].numpy(), ours["llm/blocks/mlp/gate/kernel"][1].T
    )
    # Head 0 of q, by hand: rows 0, 1, 2, ... of Meta are our rows 0, half, 1, half + 1, ...
    kernel, half = ours["llm/blocks/attn/q/kernel"][0].T, _model().llm.head_dim // 2
    rows = state["llma.layers.0.attention.wq.weight"].numpy()
    np.testing.assert_array_equal(rows[:4], kernel[[0, half, 1, half + 1]])
    assert state["llma.start_img"].shape == (1, 1, 32)


# -------------------------------------------------------------------------------------------- merging
def _logits(model: ModelConfig, arrays: dict) -> np.ndarray:
    graphdef, _ = earthgpt.abstract(model)
    ids = jnp.asarray([[1, 5, 9, 200, 31, 7]])

    @jax.jit
    def forward(params):
        llm = params_lib.merge_module(graphdef, params).llm
        mask = make_attention_mask(jnp.ones_like(ids), jnp.zeros_like(ids))
        out = llm(llm.embed_tokens(ids), positions=jnp.arange(6)[None], attention=PackedAttention(mask))
        return llm.logits(out.hidden)

    return np.asarray(forward({path: jnp.asarray(value, jnp.float32) for path, value in arrays.items()}))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", [name for name in ADAPTERS if name != "none"])
def test_merged_adapters_compute_the_same(tmp_path, name, dtype):
    """Also for parameters stored in bfloat16: merged values must not be rounded to bfloat16."""
    model = _model(adapter=ADAPTERS[name])
    folder = _random(tmp_path / "model", model, dtype)
    reader = SafetensorsReader([folder / "model.safetensors"])
    merged = MergedReader(reader, model)
    expected = _logits(model, {path: reader.read(path) for path in reader.shapes})
    got = _logits(merged_config(model), {path: merged.read(path) for path in merged.shapes})
    np.testing.assert_allclose(got, expected, atol=1e-5, rtol=1e-5)  # bfloat16 would be 0.05 off
    layer = merged.read("llm/blocks/attn/q/kernel", 1, 1)  # reading one layer gives that layer of the stack
    np.testing.assert_array_equal(layer[0], merged.read("llm/blocks/attn/q/kernel")[1])


# ------------------------------------------------------------------------------------------ init_from
def test_a_run_starts_from_parts(tmp_path, plain):
    """One checkpoint per part gives the same parameters as the model directory."""
    exporter.export_hf(plain, tmp_path / "hf")
    exporter.export_llama(plain, tmp_path / "llm")
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    for part, prefix in (("vit", "model.vit."), ("convnext", "model.convnext.")):
        part_tensors = {k.removeprefix(prefix): value for k, value in tensors.items() if k.startswith(prefix)}
        save_file(part_tensors, tmp_path / f"{part}.safetensors")
    parts = {"vit": tmp_path / "vit.safetensors", "convnext": tmp_path / "convnext.safetensors",
             "llm": tmp_path / "llm", "projector": tmp_path / "hf"}  # fmt: skip
    overrides = [f"init_from.{part}={path}" for part, path in parts.items()]
    start, params = load_initial_params(nano.config("instruct", "init=", *overrides))
    _, reference = load_initial_params(nano.config("instruct", f"init={plain}"))
    assert params.keys() == reference.keys()  # including newly initialized adapters
    for path, value in reference.items():
        np.testing.assert_array_equal(params[path], value, err_msg=path)
    assert start.tokenizer == tmp_path / "llm" / "tokenizer.model"


def test_a_run_starts_from_a_model_with_other_adapters(tmp_path):
    """LoRA and full fine-tuning start from the merged scales and biases that `instruct` trained."""
    model = _model(adapter=ADAPTERS["scale+bias"])
    folder = _random(tmp_path / "model", model)
    with pytest.raises(EarthGPTError, match=r"attention_bias=True --config.model.llm.mlp_bias=True"):
        load_initial_params(nano.config("finetune", f"init={folder}"))
    biases = ("model.llm.attention_bias=True", "model.llm.mlp_bias=True")
    expected = _logits(model, load_file(folder / "model.safetensors"))
    for stage in ("finetune", "lora"):
        config = nano.config(stage, f"init={folder}", *biases)
        _, params = load_initial_params(config)
        np.testing.assert_allclose(_logits(config.model, params), expected, atol=1e-5, rtol=1e-5)
    assert any("/adapter/b" in path for path in params)  # a new LoRA, whose B is zero


def test_every_encoder_needs_a_source(tmp_path, plain):
    exporter.export_hf(plain, tmp_path / "hf")
    exporter.export_llama(plain, tmp_path / "llm")
    prepared = prepare_import({"llm": tmp_path / "llm", "model": tmp_path / "hf"}, _model())
    assert not prepared.initialized
    with pytest.raises(EarthGPTError, match="no source for convnext, vit"):
        prepare_import({"llm": tmp_path / "llm"}, _model())


# ------------------------------------------------------------------------------------------ wrong input
def _import(parts, tmp_path, model=None):
    import_model(
        parts, model or _model(), out=tmp_path / "out", tokenizer=tmp_path / "hf" / "tokenizer.model", decimals=2,
        chat_template="plain",
    )  # fmt: skip


@pytest.fixture
def exported(tmp_path, plain):
    exporter.export_hf(plain, tmp_path / "hf", shard_bytes=100_000)
    return tmp_path / "hf"


def test_a_truncated_shard(tmp_path, exported):
    shard = sorted(exported.glob("model-*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-1000])
    with pytest.raises(EarthGPTError, match=rf"{shard.name}: expected a complete safetensors file"):
        _import({"model": exported}, tmp_path)
    assert not list(tmp_path.glob("out*"))


def test_a_missing_shard(tmp_path, exported):
    shard = sorted(exported.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(EarthGPTError, match=rf"shards are missing: {shard.name}"):
        _import({"model": exported}, tmp_path)


@pytest.mark.torch
def test_a_missing_model_parallel_shard(tmp_path, plain, exported):
    exporter.export_accessory(plain, tmp_path / "accessory", shards=2)
    (tmp_path / "accessory" / "consolidated.01-of-02.model.pth").unlink()
    with pytest.raises(EarthGPTError, match=r"shards are missing: number 1 of 2"):
        _import({"model": tmp_path / "accessory"}, tmp_path)


@pytest.mark.torch
def test_a_truncated_torch_file_and_one_that_would_run_code(tmp_path, plain, exported):
    import torch

    exporter.export_accessory(plain, tmp_path / "accessory")
    file = tmp_path / "accessory" / "consolidated.00-of-01.model.pth"
    file.write_bytes(file.read_bytes()[:-5000])
    with pytest.raises(EarthGPTError, match=r"expected a complete file written by torch\.save"):
        _import({"model": file}, tmp_path)
    torch.save({"model": {"tok_embeddings.weight": _RunsCode()}}, file)
    with pytest.raises(EarthGPTError, match="got objects other than tensors"):
        _import({"model": file}, tmp_path)
    torch.save({"model": {"tok_embeddings.weight": "text"}}, file)
    with pytest.raises(EarthGPTError, match=r"expected a dict of tensors, got .*tok_embeddings\.weight: str"):
        _import({"model": file}, tmp_path)
    assert not list(tmp_path.glob("out*"))


class _RunsCode:
    def __reduce__(self):
        return print, ("must not be printed",)


def test_a_model_of_another_size_is_reported_completely(tmp_path, exported):
    other = _model(llm=dataclasses.replace(_model().llm, dim=64, ffn_dim=96, depth=3))
    with pytest.raises(EarthGPTError) as caught:
        _import({"model": exported}, tmp_path, other)
    assert "--config.model.llm.dim=32 --config.model.llm.depth=2 --config.model.llm.ffn_dim=48" in str(caught.value)
    (exported / "config.json").unlink()  # only the tensors are left to compare
    with pytest.raises(EarthGPTError) as caught:
        _import({"model": exported}, tmp_path, other)
    text = str(caught.value)
    assert "missing" in text and "wrong shape" in text
    assert "model.language_model.embed_tokens.weight: expected (640, 64), got (640, 32)" in text
    assert not list(tmp_path.glob("out*"))


def test_a_tokenizer_of_another_model(tmp_path, exported):
    from earthgpt_jax.input.tokenizer import train_tokenizer

    train_tokenizer(nano.dialogues(), vocab_size=600, path=exported / "tokenizer.model")
    with pytest.raises(EarthGPTError, match=r"expected a tokenizer of 640 pieces.*got 600"):
        _import({"model": exported}, tmp_path)


def test_unknown_keys_and_unknown_layouts(tmp_path, exported):
    shutil.copyfile(sorted(exported.glob("*.safetensors"))[0], tmp_path / "one.safetensors")
    tensors = load_file(tmp_path / "one.safetensors")
    save_file({"a.b": np.zeros(2, np.float32)}, tmp_path / "odd.safetensors")
    with pytest.raises(EarthGPTError, match="expected one of the layouts"):
        open_source_checkpoint(tmp_path / "odd.safetensors")
    save_file(tensors | {"vit.extra": np.zeros(2, np.float32)}, sorted(exported.glob("*.safetensors"))[0])
    with pytest.raises(EarthGPTError, match=r"unknown \(1\): vit.extra"):
        _import({"model": exported}, tmp_path)


def test_a_dinov2_with_registers(tmp_path):
    save_file({"cls_token": np.zeros((1, 1, 4), np.float32), "register_tokens": np.zeros((1, 4, 4), np.float32)},
              tmp_path / "dino.safetensors")  # fmt: skip
    with pytest.raises(EarthGPTError, match="without registers"):
        open_source_checkpoint(tmp_path / "dino.safetensors")


def test_a_checkpoint_of_another_architecture(tmp_path, plain):
    exporter.export_llama(plain, tmp_path / "llm")
    with pytest.raises(EarthGPTError, match="expected the weights of vit, got LLaMA, transformers"):
        prepare_import({"vit": tmp_path / "llm", "llm": tmp_path / "llm", "convnext": tmp_path / "nowhere"}, _model())


def test_an_export_does_not_overwrite_and_a_failure_leaves_nothing(tmp_path, plain):
    def fail():
        with atomic_folder(tmp_path / "out", key_file="half") as folder:
            (folder / "half").write_text("x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not list(tmp_path.iterdir())
    exporter.export_llama(plain, tmp_path / "llm")
    with pytest.raises(EarthGPTError, match="exists already"):
        exporter.export_llama(plain, tmp_path / "llm")


def test_shards_that_do_not_divide(tmp_path, plain):
    pytest.importorskip("torch")
    with pytest.raises(EarthGPTError, match="3 shards: expected a number that divides"):
        exporter.export_accessory(plain, tmp_path / "out", shards=3)
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------------------------- tables
def test_every_transform_is_a_bijection():
    rng = np.random.default_rng(0)
    cases = {
        tables.LINEAR: (6, 4), tables.DEPTHWISE: (7, 7, 1, 5), tables.leading(2): (3,), tables.patches(4): (48, 5),
        tables.rope_rows(2): (12,), tables.rope_linear(3): (5, 12),
    }  # fmt: skip
    for transform, shape in cases.items():
        ours = rng.standard_normal(shape)
        theirs = transform.to_checkpoint(ours)
        assert theirs.shape == transform.checkpoint_shape(shape)
        np.testing.assert_array_equal(transform.from_checkpoint(theirs), ours, err_msg=transform.name)


def test_the_writer_requires_every_byte(tmp_path):
    writer = SafetensorsWriter(tmp_path, {"a": ((4, 2), np.dtype("float32"))})
    writer.write("a", np.ones((2, 2), np.float32), start=2)
    with pytest.raises(ValueError, match="rows"):
        writer.write("a", np.ones((3, 2), np.float32), start=2)
    with pytest.raises(ValueError, match="not written completely"):
        writer.close()


def test_the_model_card_lists_all_runs(tmp_path, plain):
    from earthgpt_jax.convert.card import model_card

    model = io.read_config(plain)
    parent = {"recipe": "tiny", "stage": "align", "steps": 7, "source": "synthetic", "data": "def"}
    provenance = {"recipe": "tiny", "stage": "instruct", "steps": 9, "source": "ssdd", "data": "abc", "parent": parent}
    text = model_card(
        dataclasses.replace(model, provenance=provenance),
        adapter="merge",
        scores={"optical": {"vqa": {"accuracy": 0.5}}},
    )
    assert text.index("| align | tiny | 7 |") < text.index("| instruct | tiny | 9 | ssdd | abc |")
    assert "| optical, vqa, accuracy | 0.500 |" in text
    assert "- synthetic" in text and "SSDD" in text
    assert json.loads((plain / "config.json").read_text())["provenance"] == {"recipe": "nano"}


def test_an_export_for_the_public_needs_licences_and_scores_with_baselines(tmp_path, plain):
    """The card is read by the library of the Hub."""
    hub = pytest.importorskip("huggingface_hub")
    plain = shutil.copytree(plain, tmp_path / "model")
    config = json.loads((plain / "config.json").read_text())
    with pytest.raises(EarthGPTError, match=r"2 problems\n  - scores: expected --scores FILE.*\n  - training data"):
        exporter.export_hf(plain, tmp_path / "hf", push_ready=True)
    run = {"recipe": "tiny", "stage": "instruct", "steps": 9, "source": "ssdd, nobodys", "data": "abc"}
    (plain / "config.json").write_text(json.dumps(config | {"provenance": run}))
    cell = {"accuracy": 0.9, "questions": 10, "intervals": {"accuracy": [0.8, 1.0]}}
    with pytest.raises(EarthGPTError, match=r"found no constant, random, blind\n.*licence for nobodys"):
        exporter.export_hf(plain, tmp_path / "hf", push_ready=True, scores={"vqa": {"all": cell}})
    assert not (tmp_path / "hf").exists()
    (plain / "config.json").write_text(json.dumps(config | {"provenance": run | {"source": "ssdd"}}))
    others = {"constant": {"accuracy": 0.4}, "random": {"accuracy": 0.3}, "blind": {"accuracy": 0.5}}
    scores = {"vqa": {"all": cell | others}}
    folder = exporter.export_hf(plain, tmp_path / "hf", push_ready=True, scores=scores)
    card = hub.ModelCard.load(folder / "README.md")
    assert card.data.license == "other" and card.data.pipeline_tag == "image-text-to-text"
    assert "| vqa, all, accuracy | 0.900 | 0.400 | 0.300 | 0.500 |" in card.text
    assert all(
        f"## {title}" in card.text for title in ("Intended use", "Limits", "Scores", "Training data and licences")
    )
    assert "sar sensors" in card.text and "[0.8" not in card.text


def test_large_models_are_exported_in_bfloat16(plain, monkeypatch, tmp_path):
    monkeypatch.setattr(exporter, "LARGE", 1000)
    exporter.export_llama(plain, tmp_path / "llm")
    assert set(SafetensorsReader([tmp_path / "llm" / "model.safetensors"]).dtypes.values()) == {np.dtype("bfloat16")}
    exporter.export_llama(plain, tmp_path / "exact", dtype=np.dtype("float32"))
    assert set(SafetensorsReader([tmp_path / "exact" / "model.safetensors"]).dtypes.values()) == {np.dtype("float32")}
