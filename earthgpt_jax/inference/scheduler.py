"""Assign images and questions to the slots of the decode state, and collect the answers."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import numpy as np

from earthgpt_jax.inference.decode import DecodeState, NewRequests, RefillThreshold, StateShape, bucket
from earthgpt_jax.inference.programs import Programs
from earthgpt_jax.inference.requests import Answer, ImageRequests, Request
from earthgpt_jax.inference.sampling import request_seed
from earthgpt_jax.ops.kv_cache import Cache
from earthgpt_jax.params import Params


@dataclasses.dataclass(kw_only=True)
class Counts:
    """Work done by one call of the engine.

    Attributes:
        images: images encoded.
        requests: questions answered.
        prefill: tokens prefilled, without padding.
        unshared: tokens that would have been prefilled if every question had prefilled its own image prefix.
        padded: tokens prefilled including padding: of short questions, and of batches that were not full.
        generated: tokens of the answers.
    """

    images: int = 0
    requests: int = 0
    prefill: int = 0
    unshared: int = 0
    padded: int = 0
    generated: int = 0


@dataclasses.dataclass
class _ImageSlots:
    """The slots that belong to one resident image: its waiting questions, and which slots are free."""

    waiting: collections.deque[Request]
    free: list[int]


class Scheduler:
    """Runs the compiled programs over any number of images.

    Each group of devices has room for `shape.images` resident images, each with `shape.slots_per_image` slots. The
    questions about an image are answered in its slots, one after the other; once all of them are answered, the next
    image takes its place.
    """

    def __init__(
        self,
        programs: Programs,
        params: Params,
        *,
        shape: StateShape,
        prefix_length: int,
        tokenize: Callable[[Request], Sequence[int]],
        to_answer: Callable[[Request, np.ndarray, np.ndarray], Answer],
    ):
        """Create a scheduler.

        Args:
            prefix_length: number of tokens of an image prefix.
            tokenize: returns the tokens of a request that follow the image prefix.
            to_answer: makes an answer of a request, its tokens i32[n] and their log-probabilities f32[n].
        """
        self._programs, self._params, self._shape = programs, params, shape
        self._groups, self._prefix_length = programs.groups, prefix_length
        self._tokenize, self._to_answer = tokenize, to_answer
        self._resident = [[self._free_image(i) for i in range(shape.images)] for _ in range(self._groups)]
        self._running: dict[tuple[int, int], Request] = {}  # (group, slot) -> the request that is generated there
        self.counts = Counts()

    def run(self, work: Iterable[ImageRequests]) -> Iterator[Answer]:
        """Yield answers in the order in which they finish."""
        source = iter(work)
        prefixes, state = self._programs.init()
        more_images = True
        while True:
            while more_images:
                claimed, more_images = self._claim(source)
                if not any(claimed):
                    break
                prefixes = self._prefill(prefixes, claimed)
            state = self._insert(prefixes, state)
            if not self._running:
                return
            threshold = self._refill_threshold(more_images)
            state = self._programs.generate(self._params, prefixes, state, threshold)
            yield from self._collect(state)

    def _free_image(self, index: int) -> _ImageSlots:
        per_image = self._shape.slots_per_image
        return _ImageSlots(collections.deque(), list(range(index * per_image, (index + 1) * per_image)))

    def _claim(self, source: Iterator[ImageRequests]) -> tuple[list[list[tuple[int, ImageRequests]]], bool]:
        """Assign the next images to places whose questions are all answered, one encoder batch per group at most.

        Returns:
            `(index of the place, image)` pairs per group, and whether `source` may have more images.
        """
        shape = self._shape
        claimed: list[list[tuple[int, ImageRequests]]] = []
        more = True
        for resident in self._resident:
            taken: list[tuple[int, ImageRequests]] = []
            for index, slots in enumerate(resident):
                if len(taken) == shape.encode_batch or not more:
                    break
                if slots.waiting or len(slots.free) < shape.slots_per_image:
                    continue
                item = next(source, None)
                if item is None:
                    more = False
                else:
                    slots.waiting.extend(item.requests)
                    taken.append((index, item))
            claimed.append(taken)
        return claimed, more

    def _prefill(self, prefixes: Cache, claimed: list[list[tuple[int, ImageRequests]]]) -> Cache:
        """Encode the claimed images and write their prefixes."""
        shape = self._shape
        index = np.full((self._groups, shape.encode_batch), shape.images, np.int32)
        images = {(group, i): item.image() for group, taken in enumerate(claimed) for i, (_, item) in enumerate(taken)}
        filler = list(images.values())[-1]  # any image will do: its prefix is written nowhere
        batch = np.broadcast_to(filler, (self._groups, shape.encode_batch, *filler.shape)).copy()
        for (group, i), image in images.items():
            index[group, i] = claimed[group][i][0]
            batch[group, i] = image
        device_images = jax.device_put(batch.reshape(-1, *filler.shape), self._programs.images)
        visual_tokens = self._programs.encode(self._params, device_images)
        self.counts.images += len(images)
        self.counts.prefill += len(images) * self._prefix_length
        self.counts.padded += index.size * self._prefix_length
        return self._programs.prefill(self._params, prefixes, visual_tokens, self._put(index.reshape(-1)))

    def _insert(self, prefixes: Cache, state: DecodeState) -> DecodeState:
        """Insert waiting questions into free slots of their images; questions of similar length go together."""
        queues = [self._assign(group) for group in range(self._groups)]
        for width in sorted({width for queue in queues for width in queue}):
            while any(queue.get(width) for queue in queues):
                new = self._next_batch(queues, width)
                self.counts.padded += new.tokens.size
                flat = NewRequests(*(self._put(field.reshape(-1, *field.shape[2:])) for field in new))
                state = self._programs.insert(self._params, prefixes, state, flat)
        return state

    def _assign(self, group: int) -> dict[int, list[tuple[int, Request, Sequence[int]]]]:
        """Give waiting requests of a group their slots: padded length -> `(slot, request, tokens)`."""
        queue: dict[int, list[tuple[int, Request, Sequence[int]]]] = collections.defaultdict(list)
        for slots in self._resident[group]:
            while slots.waiting and slots.free:
                slot, request = slots.free.pop(), slots.waiting.popleft()
                self._running[group, slot] = request
                tokens = self._tokenize(request)
                queue[bucket(len(tokens))].append((slot, request, tokens))
        return queue

    def _next_batch(self, queues: list[dict[int, list[tuple[int, Request, Sequence[int]]]]], width: int) -> NewRequests:
        """Take up to `insert_batch` requests per group from the queues; arrays are [groups, insert_batch, ...]."""
        shape = self._shape
        size = (self._groups, shape.insert_batch)
        new = NewRequests(
            slot=np.full(size, shape.slots, np.int32),
            image=np.zeros(size, np.int32),
            tokens=np.zeros((*size, width), np.int32),
            length=np.ones(size, np.int32),
            max_tokens=np.ones(size, np.int32),
            seed=np.zeros(size, np.uint32),
        )
        for group, queue in enumerate(queues):
            batch, queue[width] = queue[width][: shape.insert_batch], queue[width][shape.insert_batch :]
            for i, (slot, request, tokens) in enumerate(batch):
                new.slot[group, i], new.image[group, i] = slot, slot // shape.slots_per_image
                new.tokens[group, i, : len(tokens)] = tokens
                new.length[group, i], new.max_tokens[group, i] = len(tokens), request.max_new_tokens
                new.seed[group, i] = request_seed(request.id)
                self.counts.requests += 1
                self.counts.prefill += len(tokens)
                self.counts.unshared += len(tokens) + self._prefix_length
        return new

    def _refill_threshold(self, more_images: bool) -> RefillThreshold:
        """How many slots must be free before it pays to stop generating and insert new requests."""
        shape = self._shape
        running = collections.Counter(group for group, _ in self._running)
        refillable = [more_images or any(slots.waiting for slots in resident) for resident in self._resident]
        free = sum(
            min(shape.slots, shape.slots - running[group] + shape.insert_batch)
            for group, has_more in enumerate(refillable)
            if has_more
        )
        # With nothing left to insert, generate until every answer has ended.
        free = free if any(refillable) else shape.slots * self._groups + 1
        replicated = self._programs.placement.replicated
        return RefillThreshold(self._put(np.array(refillable)), jax.device_put(np.int32(free), replicated))

    def _collect(self, state: DecodeState) -> Iterator[Answer]:
        """Free the slots whose answers have ended, and yield these answers."""
        active, generated, tokens, logprobs = jax.device_get(
            (state.active, state.generated, state.tokens, state.logprobs)
        )
        for (group, slot), request in list(self._running.items()):
            index = group * self._shape.slots + slot
            if not active[index]:
                del self._running[group, slot]
                self._resident[group][slot // self._shape.slots_per_image].free.append(slot)
                count = int(generated[index])
                self.counts.generated += count
                yield self._to_answer(request, tokens[index, :count].copy(), logprobs[index, :count].copy())

    def _put(self, values: np.ndarray) -> jax.Array:
        return jax.device_put(values, self._programs.placement.batch)
