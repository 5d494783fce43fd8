"""Which question is in which row: images and their questions go in as places get free, answers come out."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from earthgpt_jax.inference.decode import NewRequests, Programs, RefillThreshold, StateShape, bucket
from earthgpt_jax.params import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizedRequest:
    """One tokenised question: the tokens behind the prefix, the longest answer, the number that decides draws."""

    name: Any
    tokens: Sequence[int]
    limit: int
    seed: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """An image, u8[S, S, 3] when it is called for, and the questions about it."""

    image: Callable[[], np.ndarray]
    requests: Sequence[TokenizedRequest]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finished:
    """`tokens` i32[n] with the end's, and their `logprobs` f32[n]."""

    name: Any
    tokens: np.ndarray
    logprobs: np.ndarray


@dataclasses.dataclass(kw_only=True)
class Counts:
    """What was computed.

    Attributes:
        images, questions: put in.
        prefill: tokens that were prefilled, padding not counted; `unshared`: had every question its own prefix.
        padded: prefilled with padding of questions and of programs that were not full.
        made: tokens of answers.
    """

    images: int = 0
    questions: int = 0
    prefill: int = 0
    unshared: int = 0
    padded: int = 0
    made: int = 0


@dataclasses.dataclass
class _Place:
    """An image in work: its questions that wait, and its free rows."""

    waiting: collections.deque[TokenizedRequest]
    free: list[int]


class Scheduler:
    """Runs `Programs` over any number of images.

    Every group of devices has places for images, and each place its rows. A place takes its image's questions one after
    the other into whatever row of its own is free; when all are answered, it takes the next image.
    """

    def __init__(self, programs: Programs, params: Params, *, layout: StateShape, prefix: int):
        self._programs, self._params, self._layout = programs, params, layout
        self._groups, self._prefix = programs.groups, prefix
        self.counts = Counts()

    def run(self, work: Iterable[Work]) -> Iterator[Finished]:
        """Answers in the order in which they get ready."""
        layout, source = self._layout, iter(work)
        prefixes, rows = self._programs.start()
        places = [
            [self._free_place(image) for image in range(layout.images)] for _ in range(self._groups)
        ]  # of each group
        inside: dict[tuple[int, int], TokenizedRequest] = {}
        more = True
        while True:
            if more:
                prefixes, more = self._encode(prefixes, places, source)
            rows = self._insert(prefixes, rows, places, inside)
            if not inside:
                return
            rows = self._programs.decode(self._params, prefixes, rows, self._until(places, inside, more))
            yield from self._collect(rows, places, inside)

    def _free_place(self, image: int) -> _Place:
        share = self._layout.rows_per_image
        return _Place(collections.deque(), list(range(image * share, (image + 1) * share)))

    def _encode(self, prefixes: Any, places: list[list[_Place]], source: Iterator[Work]) -> tuple[Any, bool]:
        """Images into places whose questions are all answered."""
        layout = self._layout
        while True:
            chosen: list[list[tuple[int, Work]]] = []
            more = True
            for own in places:
                taken: list[tuple[int, Work]] = []
                for image, place in enumerate(own):
                    if len(taken) == layout.encodes or not more:
                        break
                    if place.waiting or len(place.free) < layout.rows_per_image:
                        continue
                    work = next(source, None)
                    if work is None:
                        more = False
                    else:
                        place.waiting.extend(work.requests)
                        taken.append((image, work))
                chosen.append(taken)
            if not any(chosen):
                return prefixes, more
            slot = np.full((self._groups, layout.encodes), layout.images, np.int32)
            images: list[np.ndarray] = []
            blank = None
            for group, taken in enumerate(chosen):
                for at, (image, work) in enumerate(taken):
                    slot[group, at] = image
                    images.append(work.image())
                    blank = images[-1]
            assert blank is not None
            squares = np.broadcast_to(blank, (self._groups, layout.encodes, *blank.shape)).copy()
            following = iter(images)
            for group, taken in enumerate(chosen):
                for at in range(len(taken)):
                    squares[group, at] = next(following)
            images_put = jax.device_put(squares.reshape(-1, *blank.shape), self._programs.images)
            visual = self._programs.encode(self._params, images_put)
            prefixes = self._programs.prefill(self._params, prefixes, visual, self._put(slot.reshape(-1)))
            self.counts.images += len(images)
            self.counts.prefill += len(images) * self._prefix
            self.counts.padded += slot.size * self._prefix
            if not more:
                return prefixes, more

    def _insert(self, prefixes: Any, rows: Any, places: list[list[_Place]], inside: dict) -> Any:
        """Questions that wait into free rows of their image's place; those of like length together."""
        layout, share = self._layout, self._layout.rows_per_image
        queues: list[dict[int, list[tuple[int, TokenizedRequest]]]] = []
        for group, own in enumerate(places):
            queue: dict[int, list[tuple[int, TokenizedRequest]]] = collections.defaultdict(list)
            for place in own:
                while place.waiting and place.free:
                    row, request = place.free.pop(), place.waiting.popleft()
                    inside[group, row] = request
                    queue[bucket(len(request.tokens))].append((row, request))
            queues.append(queue)
        for width in sorted({width for queue in queues for width in queue}):
            while any(queue.get(width) for queue in queues):
                new = NewRequests(
                    row=np.full((self._groups, layout.inserts), layout.rows, np.int32),
                    image=np.zeros((self._groups, layout.inserts), np.int32),
                    tokens=np.zeros((self._groups, layout.inserts, width), np.int32),
                    length=np.ones((self._groups, layout.inserts), np.int32),
                    limit=np.ones((self._groups, layout.inserts), np.int32),
                    seed=np.zeros((self._groups, layout.inserts), np.uint32),
                )
                for group, queue in enumerate(queues):
                    chosen, queue[width] = queue[width][: layout.inserts], queue[width][layout.inserts :]
                    for at, (row, request) in enumerate(chosen):
                        size = len(request.tokens)
                        new.row[group, at], new.image[group, at] = row, row // share
                        new.tokens[group, at, :size] = request.tokens
                        new.length[group, at], new.limit[group, at] = size, request.limit
                        new.seed[group, at] = request.seed
                        self.counts.questions += 1
                        self.counts.prefill += size
                        self.counts.unshared += size + self._prefix
                flat = NewRequests(*(self._put(field.reshape(-1, *field.shape[2:])) for field in new))
                self.counts.padded += new.tokens.size
                rows = self._programs.insert(self._params, prefixes, rows, flat)
        return rows

    def _until(self, places: list[list[_Place]], inside: dict, more: bool) -> RefillThreshold:
        """How many rows shall be free before it is worth to stop decoding."""
        layout = self._layout
        busy = collections.Counter(group for group, _ in inside)
        useful = [more or any(place.waiting for place in own) for own in places]
        free = sum(
            min(layout.rows, layout.rows - busy[group] + layout.inserts) for group, use in enumerate(useful) if use
        )
        # Where nothing waits, until all are free.
        free = free if any(useful) else layout.rows * self._groups + 1
        whole = self._programs.placement.whole
        return RefillThreshold(self._put(np.array(useful)), jax.device_put(np.int32(free), whole))

    def _collect(self, rows: Any, places: list[list[_Place]], inside: dict) -> Iterator[Finished]:
        active, made, output, logprobs = jax.device_get((rows.active, rows.made, rows.output, rows.logprobs))
        for (group, row), request in list(inside.items()):
            at = group * self._layout.rows + row
            if not active[at]:
                del inside[group, row]
                places[group][row // self._layout.rows_per_image].free.append(row)
                self.counts.made += int(made[at])
                yield Finished(
                    name=request.name, tokens=output[at, : made[at]].copy(), logprobs=logprobs[at, : made[at]].copy()
                )

    def _put(self, values: np.ndarray) -> jax.Array:
        return jax.device_put(values, self._programs.placement.batch)
