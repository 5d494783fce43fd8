"""A language model of another family and tokenizer, from its published files to an export, by the commands."""

from __future__ import annotations

import json

import numpy as np
import pytest

from earthgpt_jax.cli.main import main
from earthgpt_jax.convert import exporter
from earthgpt_jax.convert.parity import check_export
from earthgpt_jax.inference.engine import Engine
from earthgpt_jax.inference.requests import ImageRequests, Request
from earthgpt_jax.input.images import load_square
from earthgpt_jax.input.tokenizer import Tokenizer
from earthgpt_jax.models import model_dir
from earthgpt_jax.synthetic import SyntheticSource
from tests.support import nano
from tests.support.tokenizers import build_tokenizer

pytestmark = [pytest.mark.torch, pytest.mark.slow]
NEW = 24
QUESTIONS = ("How many ships are there?", "Please detect all objects in this image.", "What is <|im_end|> 123?")
# Few steps at a high rate: answers must differ from those of the initial weights, not be good.
TRAINING = (
    "data.batch_size=4", "data.seq_len=192", "data.workers=0", "optim.steps=4", "optim.warmup_steps=1",
    "checkpoint.every_steps=4", "log_every=1",
)  # fmt: skip


def _run(*argv: object) -> None:
    assert main([str(word) for word in argv]) == 0


@pytest.mark.parametrize(
    ("name", "kind", "changes"),
    [
        ("Llama", "smollm2", {"tie_word_embeddings": True, "rms_norm_eps": 1e-6, "initializer_range": 0.4}),
        ("Llama", "llama3", {"head_dim": 16, "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64}}),
        ("Qwen2", "qwen", {"vocab_size": 704, "num_key_value_heads": 1}),
    ],
)  # fmt: skip
def test_from_random_weights_to_an_export_with_identical_tokens(tmp_path, monkeypatch, name, kind, changes):
    import torch
    import transformers

    monkeypatch.setenv("EARTHGPT_PROCESSES", "1")
    monkeypatch.chdir(tmp_path)
    values = {"vocab_size": 640, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
              "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2}  # fmt: skip
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**values, **changes})
    getattr(transformers, f"{name}ForCausalLM")(config).save_pretrained("llm")
    build_tokenizer(kind, tmp_path / "llm")
    exporter.export_hf(nano.model_dir(tmp_path / "nano", nano.config("align").model), tmp_path / "whole")
    nano.dataset(tmp_path / "data", train=12, test=3)

    recipe = nano.arguments("align")
    sources = ["--model", "whole", "--llm", "llm"]
    _run("convert", "import", "--derive", *recipe, *sources, "--out", "mine.py")
    _run("convert", "import", "--config", "mine.py:align", *sources, "--out", "models/mine")
    imported = model_dir.read_config("models/mine")
    padded = config.vocab_size - Tokenizer(imported.tokenizer).vocab_size
    assert imported.model.llm.tokenizer_size == (640 if padded else 0)
    data = "--config.data.source=data"
    training = [f"--config.{override}" for override in TRAINING]
    _run("train", "--config", "mine.py:align", "--workdir", "align", data, *training)
    _run("train", "--config", "mine.py:instruct", "--workdir", "instruct", data, *training,
         "--config.init=align/model", "--config.optim.peak_lr=0.02")  # fmt: skip
    _run("eval", "--model", "instruct/model", "--data", "data", "--out", "eval", "--batch-size", "8")
    scores = json.loads((tmp_path / "eval" / "scores.json").read_text())
    assert scores
    _run("convert", "export", "instruct/model", "--to", "hf", "--out", "hf")

    processor = transformers.AutoProcessor.from_pretrained("hf", trust_remote_code=True)
    model = transformers.AutoModelForImageTextToText.from_pretrained("hf", trust_remote_code=True).eval()
    images = [SyntheticSource("test", 3)[i].image for i in range(3)]
    engine = Engine.from_model_dir("instruct/model", batch_size=4)
    work = [
        ImageRequests(
            image=lambda image=image: load_square(image, engine.image_size),
            requests=[Request(id=f"{i} {question}", text=question, max_new_tokens=NEW) for question in QUESTIONS],
        )
        for i, image in enumerate(images)
    ]
    ours = {answer.id: answer for answer in engine.stream(work)}
    distinct = set()
    for i, image in enumerate(images):
        for question in QUESTIONS:
            inputs = processor(images=[image], text=[question], return_tensors="pt")
            with torch.inference_mode():
                output = model.generate(**inputs, max_new_tokens=NEW)[0, inputs["input_ids"].shape[1] :]
            answer = ours[f"{i} {question}"]
            np.testing.assert_array_equal(output.numpy(), answer.tokens)
            assert processor.decode(output) == answer.text
            distinct.add(tuple(answer.tokens.tolist()))
    assert len(distinct) > 2
    parity = check_export("instruct/model", tmp_path / "hf", [(image, QUESTIONS[0]) for image in images])
    assert parity.max_logit_difference < 1e-4 and parity.identical_answers == 3
