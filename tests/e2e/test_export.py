"""The export of an embedded model gives the same 64 tokens, also in an environment without jax."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from earthgpt_jax.convert import exporter
from earthgpt_jax.inference.decode import StopCondition
from earthgpt_jax.inference.engine import Engine
from earthgpt_jax.inference.reference import Prompts, generate
from earthgpt_jax.input.images import load_square
from earthgpt_jax.models import earthgpt
from earthgpt_jax.models import model_dir as model_io
from earthgpt_jax.synthetic.source import scene_record

pytestmark = [pytest.mark.torch, pytest.mark.slow]
NEW, PROMPTS = 64, 20
QUESTIONS = (
    "Please detect all objects in this image.",
    "Please detect all objects in this image with oriented bounding boxes.",
    "Please provide a one-sentence caption for the provided remote sensing image in detail.",
    "How many ships are there in the image? Answer the question using a single word or phrase.",
)


def _pictures() -> list[bytes]:
    """Return twenty images of different sizes, shapes and sensors."""
    out = []
    for index in range(PROMPTS):
        record = scene_record(split="test", index=index, size=96 + 16 * index)
        image = Image.open(io.BytesIO(record.image))
        width, height = image.size
        image = image.crop((0, 0, width - 5 * (index % 4), height - 7 * (index % 3)))
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        out.append(buffer.getvalue())
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return exporter.export_hf("tiny", tmp_path_factory.mktemp("export") / "hf")


@pytest.mark.parametrize("batch", [1, 8])
def test_64_greedy_tokens_are_identical(folder, batch):
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    pictures = _pictures()
    questions = [QUESTIONS[i % len(QUESTIONS)] for i in range(PROMPTS)]
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True).eval()
    model.config.conversation["separator_ids"] = []  # so that every answer has 64 tokens to compare
    exported = []
    with torch.inference_mode():
        for start in range(0, PROMPTS, batch):
            rows = slice(start, start + batch)
            inputs = processor(images=pictures[rows], text=questions[rows], return_tensors="pt")
            output = model.generate(**inputs, max_new_tokens=NEW, eos_token_id=None)
            exported += output[:, inputs["input_ids"].shape[1] :].tolist()
    ours = _greedy(pictures, questions)
    assert [len(row) for row in exported] == [NEW] * PROMPTS
    assert exported == ours


def _greedy(pictures: list[bytes], questions: list[str]) -> list[list[int]]:
    """Return the tokens of our model, generated without a stop condition."""
    from earthgpt_jax.input.batch import TEXT_SLOT
    from earthgpt_jax.input.prompts.chat_template import chat_template
    from earthgpt_jax.input.sequences import generation_prompt
    from earthgpt_jax.input.tokenizer import Tokenizer

    model, arrays = model_io.read("tiny")
    tokenizer, chat = Tokenizer(model.tokenizer), chat_template(model.chat_template)
    rows = [
        generation_prompt(tokenizer, chat, question, visual_tokens=model.model.visual_tokens) for question in questions
    ]
    length = max(len(tokens) for tokens, _ in rows)

    def padded(part: int, fill: int) -> jnp.ndarray:
        return jnp.asarray([np.pad(row[part], (0, length - len(row[part])), constant_values=fill) for row in rows])

    prompts = Prompts(
        tokens=padded(0, 0), image_slots=padded(1, TEXT_SLOT), lengths=jnp.asarray([len(tokens) for tokens, _ in rows]),
        images=jnp.asarray(np.stack([load_square(picture, model.model.image_size) for picture in pictures])),
    )  # fmt: skip
    output = generate(
        earthgpt.abstract(model.model)[0], {path: jnp.asarray(value, jnp.float32) for path, value in arrays.items()},
        prompts, config=model.model, max_new_tokens=NEW, stop=StopCondition(eos_id=-1, separators=()),
    )  # fmt: skip
    return np.asarray(output).tolist()


_WITHOUT_JAX = """
import json, sys
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
folder = sys.argv[1]
for name in ("jax", "flax", "earthgpt_jax"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"expected an environment without {name}, found it")
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
inputs = processor(images=[Image.open(sys.argv[2])], text=[sys.argv[3]], return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=200)
print(json.dumps(processor.batch_decode(output[:, inputs["input_ids"].shape[1] :])))
"""


def test_answers_are_identical_in_an_environment_without_jax(folder, tmp_path):
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = environment / "bin" / "python"
    packages = ["torch==2.13.0", "transformers>=5.17,<6", "pillow", "numpy"]
    subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    picture = tmp_path / "image.png"
    picture.write_bytes(_pictures()[3])
    command = [python, "-c", _WITHOUT_JAX, str(folder), str(picture), QUESTIONS[0]]
    bare = {"PATH": "/usr/bin:/bin", "HF_HOME": str(tmp_path)}
    result = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path, env=bare)
    engine = Engine.from_model_dir("tiny", batch_size=1)
    item = (load_square(Path(picture).read_bytes(), engine.image_size), QUESTIONS[0])
    assert json.loads(result.stdout.splitlines()[-1]) == engine.answer([item], max_new_tokens=200)
