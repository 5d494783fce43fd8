"""Answers questions about images with a model directory: tokenise, schedule, generate, decode."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from earthgpt_jax import params as params_lib
from earthgpt_jax.common.digests import fingerprint, sha256
from earthgpt_jax.config import MeshConfig
from earthgpt_jax.inference.decode import StateShape, build_programs, placement
from earthgpt_jax.inference.mesh import build_mesh, default_mesh
from earthgpt_jax.inference.reference import StopCondition
from earthgpt_jax.inference.sampling import GREEDY, Sampling, request_seed
from earthgpt_jax.inference.scheduler import Counts, Finished, Scheduler, TokenizedRequest, Work
from earthgpt_jax.input.prompts.chat_template import SEPARATOR, chat_template
from earthgpt_jax.input.sequences import image_prefix, open_turn_ids
from earthgpt_jax.input.tokenizer import Tokenizer
from earthgpt_jax.models import earthgpt, model_dir
from earthgpt_jax.params import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """A question about an image.

    Attributes:
        max_new_tokens: a longer answer is cut there.
        history: earlier turns of a dialogue as (question, answer), which this question sees.
    """

    id: str
    text: str
    max_new_tokens: int
    history: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageRequests:
    """An image, u8[S, S, 3] when it is called for, and what is asked about it."""

    image: Callable[[], np.ndarray]
    requests: Sequence[Request]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """Attributes:
    tokens: i32[n], the end of the answer included.
    logprobs: f32[n], of each token given those before.
    token_lengths: characters of `text` that the first tokens are, together all of it; the other tokens end it.
    """

    id: str
    text: str
    tokens: np.ndarray
    logprobs: np.ndarray
    token_lengths: tuple[int, ...] = ()


class Engine:
    """Answers, the same whatever they are batched with. An image is encoded and prefilled once for all its questions.

    Attributes:
        model: what the model directory says of itself.
        mesh: the devices that share the work, see `inference.mesh`.
        counts: what the last call computed.
    """

    def __init__(
        self,
        model: model_dir.ModelDir,
        params: Mapping[str, jax.Array | np.ndarray],
        *,
        batch_size: int,
        sampling: Sampling = GREEDY,
        mesh: Mesh | None = None,
    ):
        """Args:
        mesh: default: rows over all devices of this process.
        """
        self.model = model
        self.mesh = build_mesh(MeshConfig(), batch_size=batch_size) if mesh is None else mesh
        self.counts = Counts()
        self._params: Params = placement(model.model, self.mesh).put(dict(params))
        self._graphdef: nnx.GraphDef = earthgpt.abstract(model.model)[0]
        self._batch_size = batch_size
        self._sampling = sampling
        self._tokenizer = Tokenizer(model.tokenizer)
        self._chat_template = chat_template(model.chat_template)
        self._stop = StopCondition(
            eos_id=self._tokenizer.eos_id, separators=self._chat_template.separator_ids(self._tokenizer)
        )
        tokens, slots = image_prefix(self._tokenizer, self._chat_template, visual_tokens=model.model.visual_tokens)
        self._prefix = (tuple(tokens.tolist()), tuple(slots.tolist()))

    @classmethod
    def from_model_dir(
        cls,
        name: str | Path,
        *,
        batch_size: int = 32,
        sampling: Sampling = GREEDY,
        mesh: MeshConfig | None = None,
        devices: Sequence[jax.Device] | None = None,
    ) -> Engine:
        """An engine for an embedded model's name or a model directory.

        Every device reads its own part of the weights from the file; nobody holds them whole unless the mesh says so.

        Args:
            batch_size: questions in work at a time, of all devices together.
            mesh: how devices share the work; default: `default_mesh`.
            devices: default: all of this process.
        """
        model = model_dir.read_config(name)
        devices = jax.local_devices() if devices is None else devices
        config = mesh or default_mesh(model.model, weights=model_dir.size(model), devices=devices)
        chosen = build_mesh(config, batch_size=batch_size, devices=devices)
        params = model_dir.load_sharded(model, placement(model.model, chosen))
        return cls(model, params, batch_size=batch_size, sampling=sampling, mesh=chosen)

    @property
    def image_size(self) -> int:
        return self.model.model.image_size

    @property
    def decimals(self) -> int:
        return self.model.decimals

    def describe(self) -> dict:
        """What decides answers, for the header of predictions; digests of what is long."""
        return {
            "model": str(self.model.path.name),
            "params": params_lib.fingerprint(self._params),
            "tokenizer": self._tokenizer.fingerprint,
            "prompt": self._prompt(),
            "decode": self._sampling.describe(),
            **{key: self.model.about[key] for key in ("recipe", "stage", "steps") if key in self.model.about},
        }

    def _prompt(self) -> str:
        """Digest of everything that the model gets besides image and question, in front, around and behind."""
        around = self._question("?"), self._stop.eos_id, self._stop.separators
        parts = repr((self._prefix, around, self.model.decimals, self.image_size))
        return f"{self.model.chat_template} {fingerprint(parts)}"

    def answer(self, items: Sequence[tuple[np.ndarray, str]], *, max_new_tokens: int) -> list[str]:
        """One answer an item, in order; equal images are encoded once.

        Args:
            items: `(u8[S, S, 3] image, question)`.
            max_new_tokens: an answer that is longer is cut there.
        """
        scenes: dict[str, tuple[np.ndarray, list[Request]]] = {}
        for number, (image, text) in enumerate(items):
            _, asks = scenes.setdefault(sha256(image.tobytes()), (image, []))
            asks.append(Request(id=str(number), text=text, max_new_tokens=max_new_tokens))
        every = [ImageRequests(image=lambda image=image: image, requests=asks) for image, asks in scenes.values()]  # type: ignore[misc]
        texts = {answer.id: answer.text for answer in self.stream(every)}
        return [texts[str(number)] for number in range(len(items))]

    def state_shape(self, scenes: Iterable[ImageRequests]) -> StateShape:
        """What `stream` would choose for these; one layout for parts of them keeps its shapes the same."""
        asks = [ask for scene in scenes for ask in scene.requests]
        return StateShape.of(
            [len(scene.requests) for scene in scenes],
            longest_question=max(len(self._question(ask.text, ask.history)) for ask in asks),
            longest_answer=max(ask.max_new_tokens for ask in asks),
            batch_size=self._batch_size,
            groups=self.mesh.shape["data"] * self.mesh.shape["fsdp"],
            tensor=self.mesh.shape["tensor"],
        )

    def stream(self, scenes: Sequence[ImageRequests], *, state_shape: StateShape | None = None) -> Iterator[Answer]:
        """Answers in the order in which they get ready.

        Args:
            scenes: each with at least one question; ids are free to choose, and decide the draws of sampling.
            layout: from `layout`, of these scenes or of more.
        """
        if not scenes:
            return
        layout = state_shape or self.state_shape(scenes)
        chosen = build_programs(
            self._graphdef,
            config=self.model.model,
            prefix=self._prefix,
            layout=layout,
            stop=self._stop,
            sampling=self._sampling,
            mesh=self.mesh,
        )
        scheduler = Scheduler(chosen, self._params, layout=layout, prefix=len(self._prefix[0]))
        self.counts = scheduler.counts
        work = (Work(image=scene.image, requests=[self._request(ask) for ask in scene.requests]) for scene in scenes)
        for finished in scheduler.run(work):
            yield self._answer(finished)

    def _question(self, text: str, history: Sequence[tuple[str, str]] = ()) -> list[int]:
        return open_turn_ids(self._tokenizer, self._chat_template, text, history=history)

    def _request(self, ask: Request) -> TokenizedRequest:
        return TokenizedRequest(
            name=ask.id,
            tokens=self._question(ask.text, ask.history),
            limit=ask.max_new_tokens,
            seed=request_seed(ask.id),
        )

    def _answer(self, finished: Finished) -> Answer:
        text, lengths = self.decode_tokens(finished.tokens)
        return Answer(
            id=finished.name, text=text, tokens=finished.tokens, logprobs=finished.logprobs, token_lengths=lengths
        )

    def decode_tokens(self, ids: np.ndarray) -> tuple[str, tuple[int, ...]]:
        """The answer up to its end, and its tokens' lengths; an answer that ran into the limit stays as it is."""
        kept = list(itertools.takewhile(lambda token: token != self._stop.eos_id, ids.tolist()))
        whole, spans = self._tokenizer.decode_with_spans([token for token in kept if token])
        text = whole.split(SEPARATOR)[0]
        start, end = len(text) - len(text.lstrip()), len(text.rstrip())
        ends, following = [0], iter(spans)
        for token in kept:
            if ends[-1] >= end - start:
                break
            last = next(following)[1] if token else ends[-1] + start  # padding says nothing
            ends.append(min(max(last, start), end) - start)
        return text.strip(), tuple(np.diff(ends).tolist())
