"""What users of transformers do with an export: caches, added tokens, offloading, training, adapters, compilation.

`PYTHONPATH=OLD python -m pytest tests/parity/test_hf_model.py tests/parity/test_hf_users.py` runs the tests with the
oldest release, from `pip install --target OLD "transformers==5.0.0"`.
"""

from __future__ import annotations

import inspect
import json
import sys

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from earthgpt_jax.config import LlamaConfig
from earthgpt_jax.convert import exporter
from earthgpt_jax.convert.export_info import read_export_info
from earthgpt_jax.convert.importer import import_model
from earthgpt_jax.input import images as our_images
from tests.parity.test_hf_model import FILES

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("one_thread")]
NEW = 6


def _image(pair) -> np.ndarray:
    size = pair.config.image_size
    return np.random.default_rng(0).integers(0, 256, (size, size, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def inputs(adapted):
    return adapted.processor()(images=_image(adapted), text="How many ships?", return_tensors="pt")


def _new(model, inputs, **kwargs) -> list:
    output = model.generate(**inputs, max_new_tokens=NEW, **kwargs)
    return output[:, inputs["input_ids"].shape[1] :].tolist()


def _cache(output):
    return output["cache"] if "cache" in output else output["past_key_values"]


# ---------------------------------------------------------------------------------------------- generation
def test_several_turns_share_one_cache(adapted_model, inputs):
    import torch
    from transformers import DynamicCache

    whole = _new(adapted_model, inputs)
    assert _new(adapted_model, inputs, past_key_values=DynamicCache()) == whole
    first = adapted_model.generate(
        **inputs, max_new_tokens=NEW, past_key_values=DynamicCache(), return_dict_in_generate=True
    )
    later = torch.cat([first.sequences, torch.tensor([[7, 8, 9]])], dim=1)
    second = dict(inputs) | {"input_ids": later, "attention_mask": torch.ones_like(later)}
    assert _new(adapted_model, second, past_key_values=_cache(first)) == _new(adapted_model, second)
    del second["pixel_values"]  # the image is in the cache
    again = adapted_model.generate(
        **inputs, max_new_tokens=NEW, past_key_values=DynamicCache(), return_dict_in_generate=True
    )
    third = _new(adapted_model, second | {"pixel_values": None}, past_key_values=_cache(again))
    assert third == _new(adapted_model, second | {"pixel_values": inputs["pixel_values"]})


def test_assisted_decoding_gives_the_same_tokens(adapted, adapted_model, inputs):
    expected = _new(adapted_model, inputs)
    assert _new(adapted_model, inputs, assistant_model=adapted.model()) == expected
    assert _new(adapted_model, inputs, prompt_lookup_num_tokens=2) == expected


def test_an_image_token_that_the_model_generates_is_a_token_like_any_other(adapted, inputs):
    import torch

    model = adapted.model()
    token = model.config.image_token_id
    with torch.no_grad():  # so that the model always generates the image token
        model.lm_head.weight[token] = 0
        scores = model(**inputs).logits[0, -1]
        best = int(scores.argmax())
        model.lm_head.weight[token] = 2 * model.lm_head.weight[best]
    (tokens,) = _new(model, inputs)
    assert tokens[0] == token
    assert _new(model, inputs, use_cache=False) == [tokens]


def test_beams_and_several_samples_repeat_the_image(adapted_model, inputs):
    import torch

    assert len(_new(adapted_model, inputs, num_beams=2, num_return_sequences=2)) == 2
    torch.manual_seed(0)
    assert len(_new(adapted_model, inputs, do_sample=True, num_return_sequences=3)) == 3


def test_a_tuple_and_the_last_logits_alone(adapted_model, inputs):
    import torch

    with torch.no_grad():
        full = adapted_model(**inputs)
        assert torch.equal(adapted_model(**inputs, return_dict=False)[0], full.logits)
        last = adapted_model(**inputs, logits_to_keep=1, output_hidden_states=True)
    np.testing.assert_allclose(last.logits[:, 0], full.logits[:, -1], atol=1e-5)
    assert len(last.hidden_states) == adapted_model.config.text_config.num_hidden_layers + 1


def test_the_base_model_alone(adapted, adapted_model, inputs):
    import torch
    from transformers import AutoModel

    base = AutoModel.from_pretrained(adapted.folder, trust_remote_code=True).eval()
    assert type(base).__name__ == "EarthGPTModel"
    with torch.no_grad():
        hidden = base(**inputs).last_hidden_state
        assert torch.equal(adapted_model.lm_head(hidden), adapted_model(**inputs).logits)


def test_compilation_gives_the_same_logits(adapted_model, inputs):
    import torch

    compiled = torch.compile(adapted_model, backend="eager", dynamic=False)
    with torch.no_grad():
        got, expected = compiled(**inputs, use_cache=False).logits, adapted_model(**inputs).logits
    np.testing.assert_allclose(got, expected, atol=1e-5)


# ----------------------------------------------------------------------------------- tokens, images, devices
def test_added_tokens(adapted):
    import torch

    processor, model = adapted.processor(), adapted.model()
    text = processor(text="What?", return_tensors="pt")
    with torch.no_grad():
        before = model(**text).logits
    assert processor.tokenizer.add_tokens(["[SEG]"]) == 1
    size = len(processor.tokenizer)
    assert size == 641
    model.resize_token_embeddings(size)
    assert model.get_input_embeddings().weight.shape[0] == model.lm_head.weight.shape[0] == size
    with torch.no_grad():
        assert torch.equal(model(**text).logits[..., :640], before)
    marked = processor(images=_image(adapted), text="Where is [SEG]?", return_tensors="pt")
    assert (marked["input_ids"] == 640).sum() == 1
    assert model(**marked, labels=marked["input_ids"]).loss.isfinite()
    assert "[SEG]" in processor.ids_text([640])


@pytest.mark.parametrize(
    "part", ["vit", "convnext", "projector", "image_tokens", "language_model.embed_tokens", "language_model.layers.0"]
)
def test_any_part_may_lie_on_disk(adapted, adapted_model, inputs, tmp_path, part):
    parts = {f"model.{name}": "cpu" for name in ("vit", "convnext", "perception", "projector", "image_tokens")}
    parts |= {f"model.language_model.{name}": "cpu" for name in ("embed_tokens", "norm", "rotary_emb")}
    layers = adapted.config.llm.depth
    parts |= {f"model.language_model.layers.{layer}": "cpu" for layer in range(layers)} | {"lm_head": "cpu"}
    device_map = parts | {f"model.{part}": "disk"}
    model = adapted.model(device_map=device_map, offload_folder=str(tmp_path))
    assert _new(model, inputs) == _new(adapted_model, inputs)


@pytest.mark.parametrize("variant", ["adapted", "swiglu_hf"])
def test_linear_layers_get_inputs_that_those_of_others_take(make_pair, variant):
    """Those of bitsandbytes take at most three axes on a CPU, and those of vLLM a contiguous last one."""
    import torch

    pair = make_pair(variant)
    model, seen = pair.model(), []
    linears = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    for module in linears:
        module.register_forward_pre_hook(lambda _, args: seen.append((args[0].ndim, args[0].stride(-1))))
    with torch.no_grad():
        model(**pair.processor()(images=_image(pair), text="How many ships?", return_tensors="pt"))
    assert len(seen) >= len(linears)
    assert max(axes for axes, _ in seen) == 3 and {stride for _, stride in seen} == {1}


def test_images_in_any_form(adapted, tmp_path):
    import torch

    processor = adapted.processor()
    pixels = np.random.default_rng(1).integers(0, 256, (40, 57, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    grey = np.random.default_rng(2).integers(100, 4000, (40, 57)).astype(np.uint16)

    def square(image):
        return processor(images=image, text="What?")["pixel_values"][0].transpose(1, 2, 0)

    expected = our_images.load_square((tmp_path / "image.png").read_bytes(), adapted.config.image_size)
    tensor = torch.from_numpy(pixels)
    alpha = np.dstack([pixels, np.full((40, 57), 255, np.uint8)])
    for image in (
        pixels, pixels.transpose(2, 0, 1), tensor, tensor.permute(2, 0, 1), tensor.permute(2, 0, 1).float() / 255,
        (pixels / 255).astype(np.float64), alpha, Image.fromarray(pixels), str(tmp_path / "image.png"),
        (tmp_path / "image.png").as_uri(), (tmp_path / "image.png").read_bytes(),
    ):  # fmt: skip
        np.testing.assert_array_equal(square(image), expected)
    for image in (grey, grey[None], grey[..., None], torch.from_numpy(grey.astype(np.int32))):
        np.testing.assert_array_equal(square(image), square(Image.fromarray(grey)))
    with pytest.raises(ValueError, match="expected uint8, or floats"):
        square(pixels.astype(np.uint16))
    with pytest.raises(ValueError, match="floats from 0 to 1"):
        square(pixels.astype(np.float32))
    with pytest.raises(ValueError, match="1, 3 or 4 bands"):
        square(np.zeros((5, 8, 9), np.uint8))
    with pytest.raises(TypeError, match="got <class 'int'>"):
        square(3)


# ------------------------------------------------------------------------------------- training and adapters
def _examples(pair, count: int) -> list[dict]:
    processor = pair.processor()
    item = processor(images=_image(pair), text="How many ships?", return_tensors="pt")
    labels = item["input_ids"].clone()
    labels[labels == processor.image_token_id] = -100
    return [{key: value[0] for key, value in item.items()} | {"labels": labels[0]} for _ in range(count)]


def test_the_trainer_of_transformers(adapted, tmp_path):
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        tmp_path, max_steps=4, per_device_train_batch_size=2, learning_rate=1e-3, report_to=[], logging_steps=1,
        save_strategy="no", gradient_checkpointing=True, use_cpu=True, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = Trainer(adapted.model().train(), arguments, train_dataset=_examples(adapted, 8))
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 4 and losses[-1] < losses[0]


def test_an_adapter_of_peft_comes_back_into_our_model(adapted, tmp_path):
    import torch

    peft = pytest.importorskip("peft")
    model = adapted.model()
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=r".*language_model.*\.[qv]_proj"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in tuned.named_parameters():
            if "lora_" in name:
                value.copy_(0.1 * torch.randn(value.shape, generator=generator))
    (item,) = _examples(adapted, 1)
    batch = {key: value[None] for key, value in item.items()}
    assert tuned(**batch).loss.isfinite()
    merged = tuned.merge_and_unload().eval()
    with torch.no_grad():
        expected = merged(**batch).logits
    merged.save_pretrained(tmp_path / "merged")
    adapted.processor().save_pretrained(tmp_path / "merged")
    info = read_export_info(tmp_path / "merged")
    assert info is not None
    import_model(
        {"model": tmp_path / "merged"}, info.model, out=tmp_path / "back", tokenizer=adapted.ours.tokenizer, decimals=2,
        chat_template="plain",
    )  # fmt: skip
    again = exporter.export_hf(tmp_path / "back", tmp_path / "hf")
    from transformers import AutoModelForImageTextToText

    loaded = AutoModelForImageTextToText.from_pretrained(again, trust_remote_code=True).eval()
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, expected)


# ------------------------------------------------------------------------------------------- the files
def test_an_older_transformers_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr("transformers.__version__", "4.57.1")
    with pytest.raises(ImportError, match=r"expected transformers 5.0 or later, got 4.57.1; run: pip install"):
        exec((FILES / "configuration_earthgpt.py").read_text(), {"__name__": "configuration_earthgpt"})


def test_the_plain_language_model_has_a_tokenizer_that_needs_no_other_package(adapted, tmp_path, monkeypatch):
    from transformers import AutoTokenizer

    folder = exporter.export_llama(adapted.ours.path, tmp_path / "llm")
    for package in ("sentencepiece", "tiktoken"):
        monkeypatch.setitem(sys.modules, package, None)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.is_fast
    assert tokenizer("two ships")["input_ids"] == [1, *adapted.tokenizer.encode("two ships")]


def test_llama2_accessory_gets_the_head_that_is_tied(make_pair, tmp_path):
    import torch

    pair = make_pair("swiglu_hf")
    folder = exporter.export_accessory(pair.ours.path, tmp_path / "accessory", shards=2)
    shards = [torch.load(file, weights_only=True)["model"] for file in sorted(folder.glob("*.pth"))]
    heads = torch.cat([shard["llma.output.weight"] for shard in shards])
    np.testing.assert_array_equal(heads, pair.params["llm/embed"])
    embeddings = torch.cat([shard["llma.tok_embeddings.weight"] for shard in shards], dim=1)
    assert torch.equal(heads, embeddings)


def test_folders_without_a_base_model_are_still_read(adapted, tmp_path):
    """Exports had other names of tensors before."""
    from safetensors.numpy import save_file

    def old(key: str) -> str:
        key = key.replace("model.language_model.", "language_model.model.").removeprefix("model.")
        return key.replace("lm_head.", "language_model.lm_head.")

    (tmp_path / "old").mkdir()
    tensors = load_file(adapted.folder / "model.safetensors")
    save_file({old(key): value for key, value in tensors.items()}, tmp_path / "old" / "model.safetensors")
    (tmp_path / "old" / "config.json").write_text((adapted.folder / "config.json").read_text())
    info = read_export_info(tmp_path / "old")
    assert info is not None
    import_model(
        {"model": tmp_path / "old"}, info.model, out=tmp_path / "back", tokenizer=adapted.ours.tokenizer, decimals=2,
        chat_template="plain",
    )  # fmt: skip
    again = exporter.export_hf(tmp_path / "back", tmp_path / "hf")
    got = load_file(again / "model.safetensors")
    assert got.keys() == tensors.keys()
    assert all(np.array_equal(got[key], value) for key, value in tensors.items())


def test_the_config_names_what_servers_read(adapted, adapted_model):
    config = json.loads((adapted.folder / "config.json").read_text())
    assert config["text_config"]["model_type"] == "llama" and config["image_token_id"] < adapted.config.llm.vocab_size
    assert {"AutoConfig", "AutoModel", "AutoModelForImageTextToText"} == set(config["auto_map"])
    plan = adapted_model.model._tp_plan
    assert plan["language_model.layers.*.self_attn.q_proj"] == "colwise"
    assert plan["language_model.layers.*.mlp.down_proj"] == "rowwise"
    assert LlamaConfig.__name__ == type(adapted_model.config.text_config).__name__
    assert "cache" in inspect.signature(adapted_model.forward).parameters
