"""Detect the objects of scenes: windows are read ahead, answered in the engine's batches, and merged.

Memory does not grow with a scene: windows are read from its file when their turn comes. Each window is answered by
exactly one process, and answers are kept as they come (see `window_log`).
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from earthgpt_jax.boxes import Square, parse
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.progress import Bar
from earthgpt_jax.inference.confidence import box_confidences
from earthgpt_jax.inference.engine import Engine
from earthgpt_jax.inference.processes import Process
from earthgpt_jax.inference.requests import Answer, ImageRequests, Request
from earthgpt_jax.input.images import to_square
from earthgpt_jax.input.prompts.templates import default_question
from earthgpt_jax.raster.policy import DEFAULT, Stretch, StretchPolicy
from earthgpt_jax.raster.scene_file import Georeference, SceneFile
from earthgpt_jax.records import Task
from earthgpt_jax.scenes.merging import MergeRule, SceneObject, merge
from earthgpt_jax.scenes.window_log import WindowAnswer, WindowLog
from earthgpt_jax.scenes.windows import Window, grid, overlap_for

INPUT_SIDES = 2  # default side of a window, in sides of the model's input
OVERLAP = 0.25  # default overlap, as share of a window's side
_CONFIDENCE_DIGITS = 6

_Item = TypeVar("_Item")


@dataclasses.dataclass(frozen=True, kw_only=True)
class WindowSizes:
    """Size of the windows of a scene, in pixels of the scene.

    Attributes:
        side: longest side of a window.
        overlap: least number of pixels that neighbours share.
    """

    side: int
    overlap: int

    @classmethod
    def choose(
        cls, *, image_size: int, side: int | None = None, overlap: int | None = None, largest: float | None = None
    ) -> WindowSizes:
        """Return the sizes for a model.

        Args:
            image_size: side of the model's input.
            side: default: `INPUT_SIDES` times the input.
            overlap: default: as `overlap_for` says for the largest object, or a quarter of the side.
            largest: longest extent of the largest object along x or y, in pixels.

        Raises:
            EarthGPTError: a size is not positive, the overlap is not smaller than the side, or the largest object does
                not fit.
        """
        side = INPUT_SIDES * image_size if side is None else side
        if side < 1:
            raise EarthGPTError(f"windows: expected a side of at least 1 pixel, got {side}")
        if overlap is None:
            overlap = int(side * OVERLAP) if largest is None else overlap_for(largest, size=side)
        if not 0 <= overlap < side:
            raise EarthGPTError(f"overlap: expected 0 to {side - 1} pixels for windows of {side}, got {overlap}")
        return cls(side=side, overlap=overlap)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SceneQuestion:
    """What is asked about each window.

    Attributes:
        text: the question.
        max_new_tokens: longest answer.
        label: the label of boxes for which the answer has none.
    """

    text: str
    max_new_tokens: int = 448
    label: str = ""

    @classmethod
    def detect(cls, boxes: str, *, max_new_tokens: int = 448) -> SceneQuestion:
        """Return the question for all objects; `boxes` is `hbb` or `obb`."""
        return cls(text=default_question(Task(boxes)), max_new_tokens=max_new_tokens)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SceneResult:
    """The objects of a scene.

    Attributes:
        path: its file.
        width, height: in pixels.
        stretch: how its pixels became 8 bits.
        georeference: None if the file has no transform.
        windows: the windows that cover it.
        answers: what the model said about each window.
        objects: the merged objects.
    """

    path: Path
    width: int
    height: int
    stretch: Stretch
    georeference: Georeference | None
    windows: tuple[Window, ...]
    answers: tuple[WindowAnswer, ...]
    objects: tuple[SceneObject, ...]

    @property
    def rejected(self) -> list[str]:
        """The parts of all answers that look like a box but cannot be read."""
        return [text for answer in self.answers for text in answer.rejected]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Scene:
    """A scene whose windows are being answered; `width` to `georeference` as in `SceneResult`."""

    path: Path
    width: int
    height: int
    stretch: Stretch
    georeference: Georeference | None
    bytes: int
    windows: tuple[Window, ...]

    @classmethod
    def of(cls, file: SceneFile, windows: Sequence[Window]) -> _Scene:
        return cls(
            path=file.path, width=file.width, height=file.height, stretch=file.stretch,
            georeference=file.georeference, bytes=file.path.stat().st_size, windows=tuple(windows),
        )  # fmt: skip

    def facts(self) -> dict[str, Any]:
        return {"bytes": self.bytes, "width": self.width, "height": self.height, "stretch": self.stretch.to_text()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Unreadable:
    """A scene that cannot be read."""

    number: int
    error: EarthGPTError


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Opened:
    """A scene whose windows follow; `missing` of this process's share."""

    number: int
    scene: _Scene
    missing: int


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Read:
    """A window that was read; `square` is None if it has no data."""

    number: int
    index: int
    square: np.ndarray | None


class SceneDetector:
    """Detects the objects of scenes, one after the other.

    Attributes:
        rule: how windows are merged.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        question: SceneQuestion,
        sizes: WindowSizes,
        policy: StretchPolicy = DEFAULT,
        rule: MergeRule | None = None,
        process: Process | None = None,
        choose_windows: Callable[[Path, Sequence[Window]], Sequence[Window]] | None = None,
        zoom: int = 1,
    ):
        """Create a detector.

        Args:
            engine: the model.
            question: what is asked about each window.
            sizes: of the windows.
            policy: how scenes become 8 bits.
            rule: how windows are merged.
            process: which process this is, of those that share the windows; default: the only one.
            choose_windows: returns the windows to look at, of all windows of the scene in a file; default: all.
            zoom: recorded in the header: how much coarser the look was that chose the windows; 1 if all are looked at.
        """
        self._engine, self._question, self._sizes, self._policy = engine, question, sizes, policy
        self.rule, self._process = rule or MergeRule(), process or Process()
        self._choose, self._zoom = choose_windows, zoom
        self._model = engine.describe()

    def header(self) -> dict[str, Any]:
        """Return all that determines the answers about a window."""
        return {
            **self._model,
            "question": self._question.text,
            "max_new_tokens": self._question.max_new_tokens,
            "window_side": self._sizes.side,
            "window_overlap": self._sizes.overlap,
            "stretch_policy": self._policy.to_dict(),
            "zoom": self._zoom,
        }

    def detect(
        self,
        paths: Sequence[Path],
        *,
        out: Path | None = None,
        progress: bool = False,
        on_error: Callable[[EarthGPTError], None] | None = None,
    ) -> Iterator[SceneResult]:
        """Yield the result of each scene, in the order of the paths.

        Args:
            out: where the run will write its results; answers are kept in files of this name, see `window_log`. With
                several processes it is needed, and only the main process yields results.
            progress: whether to show a progress bar.
            on_error: called for a scene that cannot be read; default: the error is raised.

        Raises:
            EarthGPTError: a scene cannot be read, or `out` holds the answers of another run.
        """
        process = self._process
        with process.synchronized("looking for existing answers"):
            log = WindowLog(out, self.header(), process)
        process.check_consistent(self.header())
        scenes: dict[int, _Scene | None] = {}
        left: collections.Counter[int] = collections.Counter()
        following = 0
        bar = Bar(total=0, desc="detect", unit="window", disable=not progress or not process.is_main)

        def requests() -> Iterator[ImageRequests]:
            for item in _read_ahead(self._read(paths, log), 4 * self._batch_size):
                if isinstance(item, _Unreadable):
                    scenes[item.number], left[item.number] = None, 0
                    if on_error is None:
                        raise item.error
                    on_error(item.error)
                elif isinstance(item, _Opened):
                    scenes[item.number], left[item.number] = item.scene, item.missing
                    log.add_scene(str(item.scene.path), item.scene.facts())
                    bar.total += item.missing
                    bar.refresh()
                elif item.square is None:
                    self._record(log, scenes, left, item.number, item.index, WindowAnswer())
                    bar.update()
                elif scenes[item.number] is not None:
                    yield self._request(item)

        try:
            with process.synchronized("answering") if process.count > 1 else contextlib.nullcontext():
                for answer in self._engine.stream(requests(), state_shape=self._state_shape(len(paths))):
                    number, index = map(int, answer.id.split(":"))
                    scene = scenes[number]
                    bar.update()
                    if scene is None:
                        continue
                    found = window_answer(answer, scene.windows[index], self._question)
                    self._record(log, scenes, left, number, index, found)
                    while process.count == 1 and following in scenes and not left[following]:
                        yield from self._result(log, scenes[following])
                        following += 1
            log.close()
            if process.count > 1:
                if not process.is_main:
                    return
                log.read_others()
            while following in scenes:
                yield from self._result(log, scenes[following])
                following += 1
        finally:
            bar.close()
            log.close()

    @property
    def _batch_size(self) -> int:
        return self._engine.batch_size

    def _state_shape(self, scenes: int) -> Any:
        """Return sizes that do not depend on the windows, so that a run that continues has the same."""
        request = Request(id="0", text=self._question.text, max_new_tokens=self._question.max_new_tokens)
        return self._engine.state_shape([ImageRequests(image=_no_image, requests=[request])] * self._batch_size)

    def _request(self, item: _Read) -> ImageRequests:
        square = item.square
        assert square is not None
        request = Request(
            id=f"{item.number}:{item.index}", text=self._question.text, max_new_tokens=self._question.max_new_tokens
        )
        return ImageRequests(image=lambda: square, requests=[request])

    def _read(self, paths: Sequence[Path], log: WindowLog) -> Iterator[_Unreadable | _Opened | _Read]:
        """Read the windows of this process that are not answered. Runs in a thread of its own."""
        running = itertools.count()
        for number, path in enumerate(paths):
            try:
                earlier = log.scenes.get(str(path))
                known = None if earlier is None else Stretch.from_text(earlier["stretch"])
                with SceneFile(path, self._policy, known=known) as file:
                    windows = grid(file.width, file.height, size=self._sizes.side, overlap=self._sizes.overlap)
                    if self._choose:
                        windows = list(self._choose(path, windows))
                    mine = [
                        i for i in range(len(windows)) if next(running) % self._process.count == self._process.index
                    ]
                    answered = log.answers.get(str(path), {})
                    missing = [i for i in mine if windows[i] not in answered]
                    yield _Opened(number=number, scene=_Scene.of(file, windows), missing=len(missing))
                    for i in missing:
                        yield _Read(number=number, index=i, square=self.read_square(file, windows[i]))
            except EarthGPTError as error:
                yield _Unreadable(number=number, error=error)

    def read_square(self, file: SceneFile, window: Window) -> np.ndarray | None:
        """Return a window as the model sees it, u8[S, S, 3], or None if it has no data."""
        size = self._engine.image_size
        reduce = max(1, max(window.width, window.height) // (INPUT_SIDES * size))
        patch = file.read(window.x, window.y, window.width, window.height, reduce=reduce)
        return to_square(patch.pixels, size) if patch.has_data else None

    def _record(
        self, log: WindowLog, scenes: dict[int, _Scene | None], left: collections.Counter[int], number: int, index: int,
        answer: WindowAnswer,
    ) -> None:  # fmt: skip
        scene = scenes[number]
        if scene is not None:
            left[number] -= 1
            log.add(str(scene.path), scene.windows[index], answer)

    def _result(self, log: WindowLog, scene: _Scene | None) -> Iterator[SceneResult]:
        if scene is None:
            return
        answers = log.of_scene(str(scene.path), scene.windows)
        found = [item for answer in answers for item in answer.objects]
        yield SceneResult(
            path=scene.path, width=scene.width, height=scene.height, stretch=scene.stretch,
            georeference=scene.georeference, windows=scene.windows, answers=tuple(answers),
            objects=tuple(merge(found, width=scene.width, height=scene.height, rule=self.rule)),
        )  # fmt: skip


def window_answer(answer: Answer, window: Window, question: SceneQuestion) -> WindowAnswer:
    """Return the objects of an answer about a window, in pixels of the scene."""
    parsed, frame = parse(answer.text), Square(window.width, window.height)
    confidences: Sequence[float | None] = box_confidences(
        answer.text, parsed.boxes, logprobs=answer.logprobs, token_lengths=answer.token_lengths
    ) or (None,) * len(parsed.boxes)
    objects = tuple(
        SceneObject(
            label=box.label or question.label,
            kind=box.kind,
            polygon=box.pixels(frame).astype(np.float64).reshape(4, 2) + (window.x, window.y),  # noqa: RUF005
            confidence=None if confidence is None else round(confidence, _CONFIDENCE_DIGITS),
            window=window,
        )
        for box, confidence in zip(parsed.boxes, confidences, strict=True)
    )
    return WindowAnswer(objects=objects, rejected=tuple(parsed.rejections), text=answer.text)


def _no_image() -> np.ndarray:
    raise AssertionError("only its request counts")


def _read_ahead(items: Iterable[_Item], count: int) -> Iterator[_Item]:
    """Yield items that a thread produces, up to `count` ahead."""
    source = iter(items)
    end = object()
    with concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="scenes") as thread:
        waiting = collections.deque(thread.submit(next, source, end) for _ in range(count))
        try:
            while (item := waiting.popleft().result()) is not end:
                waiting.append(thread.submit(next, source, end))
                yield item  # type: ignore[misc]
        finally:
            for future in waiting:
                future.cancel()
