"""Answers questions about images with a model directory: tokenise, batch, generate, decode."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

from earthgpt_jax import params as params_lib
from earthgpt_jax.inference.generate import Prompts, Stop, generate
from earthgpt_jax.input.batch import TEXT_SLOT
from earthgpt_jax.input.conversation import SEPARATOR, conversation
from earthgpt_jax.input.rows import prompt
from earthgpt_jax.input.tokenizer import Tokenizer
from earthgpt_jax.models import earthgpt, io
from earthgpt_jax.params import Params

_LENGTH_STEP = 32  # prompts are padded to a multiple, so that few shapes are ever compiled


class Engine:
    """Greedy answers, the same whatever they are batched with.

    Attributes:
        model: what the model directory says of itself.
    """

    def __init__(self, model: io.ModelDir, params: Params, *, batch_size: int):
        self.model = model
        self._params = params
        self._graphdef: nnx.GraphDef = earthgpt.abstract(model.model)[0]
        self._batch_size = batch_size
        self._tokenizer = Tokenizer(model.tokenizer)
        self._conversation = conversation(model.conversation)
        self._stop = Stop(eos_id=self._tokenizer.eos_id, separators=self._conversation.separator_ids(self._tokenizer))

    @classmethod
    def from_model_dir(cls, name: str | Path, *, batch_size: int = 32) -> Engine:
        """An engine for an embedded model's name or a model directory."""
        model, arrays = io.read(name)
        return cls(model, {path: jnp.asarray(arrays[path]) for path in sorted(arrays)}, batch_size=batch_size)

    @property
    def image_size(self) -> int:
        return self.model.model.image_size

    @property
    def decimals(self) -> int:
        return self.model.decimals

    def describe(self) -> dict:
        """What identifies this model in predictions and reports."""
        return {
            "model": str(self.model.path.name),
            "params": params_lib.fingerprint(self._params),
            "tokenizer": self._tokenizer.fingerprint,
            "decode": "greedy",
            **{key: self.model.about[key] for key in ("recipe", "stage", "steps") if key in self.model.about},
        }

    def answer(self, items: Sequence[tuple[np.ndarray, str]], *, max_new_tokens: int) -> list[str]:
        """One answer an item.

        Args:
            items: `(u8[S, S, 3] image, question)`.
            max_new_tokens: an answer that is longer is cut there.
        """
        return [
            text
            for start in range(0, len(items), self._batch_size)
            for text in self._answer_batch(items[start : start + self._batch_size], max_new_tokens)
        ]

    def _answer_batch(self, items: Sequence[tuple[np.ndarray, str]], max_new_tokens: int) -> list[str]:
        rows = [
            prompt(
                self._tokenizer,
                self._conversation,
                question,
                visual_tokens=self.model.model.visual_tokens,
            )
            for _, question in items
        ]
        longest = max(len(tokens) for tokens, _ in rows)
        length = -(-longest // _LENGTH_STEP) * _LENGTH_STEP
        # A short last batch is filled up with copies of its first row: one compiled shape serves all.
        index = [i if i < len(items) else 0 for i in range(self._batch_size)]
        prompts = Prompts(
            tokens=jnp.asarray(np.stack([_pad(rows[i][0], length, 0) for i in index])),
            image_slots=jnp.asarray(np.stack([_pad(rows[i][1], length, TEXT_SLOT) for i in index])),
            lengths=jnp.asarray([len(rows[i][0]) for i in index], jnp.int32),
            images=jnp.asarray(np.stack([items[i][0] for i in index])),
        )
        output = generate(
            self._graphdef,
            self._params,
            prompts,
            config=self.model.model,
            max_new_tokens=max_new_tokens,
            stop=self._stop,
        )
        return [self._text(ids) for ids in np.asarray(output)[: len(items)]]

    def _text(self, ids: np.ndarray) -> str:
        """The answer up to its end; an answer that ran into the limit stays as it is."""
        kept = list(itertools.takewhile(lambda token: token != self._stop.eos_id, ids.tolist()))
        return self._tokenizer.decode([token for token in kept if token]).split(SEPARATOR)[0].strip()


def _pad(values: np.ndarray, length: int, fill: int) -> np.ndarray:
    return np.pad(np.asarray(values, np.int32), (0, length - len(values)), constant_values=fill)
