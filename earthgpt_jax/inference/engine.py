"""The engine: answers questions about images with a model directory."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from earthgpt_jax import params as params_lib
from earthgpt_jax.common.digests import fingerprint, sha256
from earthgpt_jax.config import MeshConfig
from earthgpt_jax.inference.decode import NO_TOKEN, ImagePrefix, StateShape, StopCondition
from earthgpt_jax.inference.mesh import build_mesh, default_mesh
from earthgpt_jax.inference.programs import build_programs, placement
from earthgpt_jax.inference.requests import Answer, ImageRequests, Request
from earthgpt_jax.inference.sampling import GREEDY, Sampling
from earthgpt_jax.inference.scheduler import Counts, Scheduler
from earthgpt_jax.input.prompts.chat_template import SEPARATOR, chat_template
from earthgpt_jax.input.sequences import image_prefix, open_turn_ids
from earthgpt_jax.input.tokenizer import Tokenizer
from earthgpt_jax.models import earthgpt, model_dir
from earthgpt_jax.params import Params


class Engine:
    """Answers questions about images; an image is encoded and prefilled once for all its questions.

    The answer to a question depends on the model, the image and the question alone, not on what it is batched with.

    Attributes:
        model: the model directory's metadata.
        mesh: the devices that share the work, see `inference.mesh`.
        params: the parameters, sharded over the mesh.
        graphdef: structure of the model.
        tokenizer: the model's tokenizer.
        chat_template: the model's chat template.
        prefix: tokens and image slots in front of every question.
        stop: when an answer ends.
        counts: work done by the last call.
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
        """Create an engine from parameters in memory.

        Args:
            model: metadata of the model.
            params: its parameters.
            batch_size: number of questions generated at a time, on all devices together.
            sampling: how tokens are chosen.
            mesh: default: data parallelism over all devices of this process.
        """
        self.model = model
        self.mesh = build_mesh(MeshConfig(), batch_size=batch_size) if mesh is None else mesh
        self.counts = Counts()
        self.params: Params = placement(model.model, self.mesh).put(dict(params))
        self.graphdef: nnx.GraphDef = earthgpt.abstract(model.model)[0]
        self.tokenizer = Tokenizer(model.tokenizer)
        self.chat_template = chat_template(model.chat_template)
        self.stop = StopCondition(
            eos_id=NO_TOKEN if self.tokenizer.eos_id is None else self.tokenizer.eos_id,
            separators=self.chat_template.separator_ids(self.tokenizer),
        )
        tokens, slots = image_prefix(self.tokenizer, self.chat_template, visual_tokens=model.model.visual_tokens)
        self.prefix = ImagePrefix(tuple(tokens.tolist()), tuple(slots.tolist()))
        self._batch_size = batch_size
        self._sampling = sampling

    @classmethod
    def from_model_dir(
        cls,
        name: str | Path,
        *,
        batch_size: int = 32,
        sampling: Sampling = GREEDY,
        mesh: MeshConfig | None = None,
        devices: Sequence[jax.Device] | None = None,
        parent: str | Path | None = None,
    ) -> Engine:
        """Load an embedded model, by name, or a model directory, by path.

        Every device reads its own shard of the weights from the file; no device or process holds all weights unless
        the mesh replicates them.

        Args:
            name: `tiny`, `tiny-base` or a path.
            batch_size: number of questions generated at a time, on all devices together.
            sampling: how tokens are chosen.
            mesh: how the devices share the work; default: `default_mesh`.
            devices: default: all devices of this process.
            parent: see `model_dir.read_config`.

        Raises:
            EarthGPTError: the directory is missing or damaged, or its parent is not found; the mesh does not fit the
                devices or the model.
        """
        model = model_dir.read_config(name, parent=parent)
        devices = jax.local_devices() if devices is None else devices
        config = mesh or default_mesh(model.model, weights=model.weight_bytes, devices=devices)
        built = build_mesh(config, batch_size=batch_size, devices=devices)
        params = model_dir.load_sharded(model, placement(model.model, built))
        return cls(model, params, batch_size=batch_size, sampling=sampling, mesh=built)

    @property
    def batch_size(self) -> int:
        """Number of questions generated at a time, on all devices together."""
        return self._batch_size

    @property
    def image_size(self) -> int:
        """Side of the square images that the engine takes, in pixels."""
        return self.model.model.image_size

    @property
    def seen_size(self) -> int:
        """Side in pixels of the largest image that an encoder sees, which may be smaller than `image_size`."""
        model = self.model.model
        return min(model.image_size, max(model.vit.image_size, model.convnext.image_size))

    @property
    def decimals(self) -> int:
        """Decimals of the box coordinates that the model was trained to write."""
        return self.model.decimals

    def describe(self) -> dict:
        """Return all that determines the answers, for the header of a predictions file; long values as digests."""
        return {
            "model": str(self.model.path.name),
            "params": params_lib.fingerprint(self.params),
            "tokenizer": self.tokenizer.fingerprint,
            "prompt": self._describe_prompt(),
            "decode": self._sampling.describe(),
            **{key: self.model.provenance[key] for key in ("recipe", "stage", "steps") if key in self.model.provenance},
        }

    def _describe_prompt(self) -> str:
        """Return the chat template's name and a digest of all other input of the model than image and question."""
        surroundings = open_turn_ids(self.tokenizer, self.chat_template, "?"), self.stop.eos_id, self.stop.separators
        parts = repr((tuple(self.prefix), surroundings, self.model.decimals, self.image_size))
        return f"{self.model.chat_template} {fingerprint(parts)}"

    def answer(self, items: Sequence[tuple[np.ndarray, str]], *, max_new_tokens: int) -> list[str]:
        """Return the answer to each item, in order; equal images are encoded once.

        Args:
            items: `(u8[S, S, 3] image, question)`.
            max_new_tokens: answers are cut off after this number of tokens.
        """
        by_image: dict[str, tuple[np.ndarray, list[Request]]] = {}
        for number, (image, text) in enumerate(items):
            _, requests = by_image.setdefault(sha256(image.tobytes()), (image, []))
            requests.append(Request(id=str(number), text=text, max_new_tokens=max_new_tokens))
        work = [
            ImageRequests(image=lambda image=image: image, requests=requests)  # type: ignore[misc]
            for image, requests in by_image.values()
        ]
        texts = {answer.id: answer.text for answer in self.stream(work)}
        return [texts[str(number)] for number in range(len(items))]

    def state_shape(self, work: Iterable[ImageRequests]) -> StateShape:
        """Return the sizes that `stream` chooses for `work`.

        Passed to several calls of `stream` with parts of `work`, they make all of them run the same programs.
        """
        work = list(work)
        requests = [request for item in work for request in item.requests]
        return StateShape.of(
            [len(item.requests) for item in work],
            longest_question=max(len(self._tokenize(request)) for request in requests),
            longest_answer=max(request.max_new_tokens for request in requests),
            batch_size=self._batch_size,
            groups=self.mesh.shape["data"] * self.mesh.shape["fsdp"],
            tensor=self.mesh.shape["tensor"],
        )

    def stream(self, work: Iterable[ImageRequests], *, state_shape: StateShape | None = None) -> Iterator[Answer]:
        """Yield the answers to all requests, in the order in which they finish.

        Args:
            work: images, each with at least one request. With `state_shape`, they are taken as there are places free.
            state_shape: result of `state_shape` for this work or for more.
        """
        if state_shape is None:
            work = list(work)
            if not work:
                return
        shape = state_shape or self.state_shape(work)
        programs = build_programs(
            self.graphdef,
            config=self.model.model,
            prefix=self.prefix,
            shape=shape,
            stop=self.stop,
            sampling=self._sampling,
            mesh=self.mesh,
        )
        scheduler = Scheduler(
            programs,
            self.params,
            shape=shape,
            prefix_length=len(self.prefix.tokens),
            tokenize=self._tokenize,
            to_answer=self._to_answer,
        )
        self.counts = scheduler.counts
        yield from scheduler.run(work)

    def _tokenize(self, request: Request) -> list[int]:
        return open_turn_ids(self.tokenizer, self.chat_template, request.text, history=request.history)

    def _to_answer(self, request: Request, tokens: np.ndarray, logprobs: np.ndarray) -> Answer:
        text, token_lengths = self.decode_tokens(tokens)
        return Answer(id=request.id, text=text, tokens=tokens, logprobs=logprobs, token_lengths=token_lengths)

    def decode_tokens(self, ids: np.ndarray) -> tuple[str, tuple[int, ...]]:
        """Return the text of an answer up to its stop sequence, and the characters that each token contributes.

        An answer that was cut off is returned as it is. Surrounding white space is removed.
        """
        kept = list(itertools.takewhile(lambda token: token != self.stop.eos_id, ids.tolist()))
        decoded, spans = self.tokenizer.decode_with_spans(kept)
        text = decoded.split(SEPARATOR)[0]
        start, end = len(text) - len(text.lstrip()), len(text.rstrip())
        ends = [0]
        for _, last in spans:
            if ends[-1] >= end - start:
                break
            ends.append(min(max(last, start), end) - start)
        return text.strip(), tuple(np.diff(ends).tolist())
