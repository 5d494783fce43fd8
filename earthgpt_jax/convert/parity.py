"""Compare an exported folder, loaded by transformers, with our own model: logits and greedy answers."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from earthgpt_jax import params as params_lib
from earthgpt_jax.inference.engine import Engine
from earthgpt_jax.input.images import load_square
from earthgpt_jax.input.prompts.chat_template import chat_template
from earthgpt_jax.input.sequences import generation_prompt
from earthgpt_jax.input.tokenizer import Tokenizer
from earthgpt_jax.models import earthgpt, model_dir


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportParity:
    """How far an export agrees with our model, both in fp32.

    Attributes:
        max_logit_difference: largest absolute difference over all positions of the first prompt.
        identical_answers: number of greedy answers that are identical.
        questions: number of questions.
    """

    max_logit_difference: float
    identical_answers: int
    questions: int


def can_check_export() -> bool:
    """Return whether PyTorch and transformers are installed."""
    return all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


def check_export(
    name: str | Path, folder: Path, items: Sequence[tuple[bytes, str]], *, max_new_tokens: int = 64
) -> ExportParity:
    """Compare a model with its export in fp32.

    Args:
        name: an embedded model or a model directory.
        folder: its export.
        items: pairs of an image file's bytes and a question.
        max_new_tokens: longest answer.
    """
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    exported = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
    images, questions = [image for image, _ in items], [question for _, question in items]
    inputs = processor(images=images, text=questions, return_tensors="pt")
    first = processor(images=images[:1], text=questions[:1], return_tensors="pt")
    with torch.inference_mode():
        logits = exported(**first).logits[0].numpy()
        output = exported.generate(**inputs, max_new_tokens=max_new_tokens)
    exported_answers = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :])

    engine = Engine.from_model_dir(name, batch_size=len(items))
    our_answers = engine.answer(
        [(load_square(image, engine.image_size), question) for image, question in items], max_new_tokens=max_new_tokens
    )
    return ExportParity(
        max_logit_difference=float(np.abs(logits - _logits(name, images[0], questions[0])).max()),
        identical_answers=sum(a == b for a, b in zip(our_answers, exported_answers, strict=True)),
        questions=len(items),
    )


def _logits(name: str | Path, image: bytes, question: str) -> np.ndarray:
    """Return our logits of one prompt, f32[T, V]."""
    model, arrays = model_dir.read(name)
    graphdef, _ = earthgpt.abstract(model.model)
    tokens, slots = generation_prompt(
        Tokenizer(model.tokenizer),
        chat_template(model.chat_template),
        question,
        visual_tokens=model.model.visual_tokens,
    )

    @jax.jit
    def forward(params: params_lib.Params, square: jax.Array) -> jax.Array:
        module = params_lib.merge_module(graphdef, params)
        out = module(jnp.asarray(tokens)[None], image_slots=jnp.asarray(slots)[None], images=square[None])
        return out.logits[0]

    params = {path: jnp.asarray(value, np.float32) for path, value in arrays.items()}
    return np.asarray(forward(params, load_square(image, model.model.image_size)))
