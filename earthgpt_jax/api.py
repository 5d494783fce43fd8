"""The front door of the package: load a model, ask it about images, detect objects, hold a dialogue.

```python
import earthgpt_jax as eg

model = eg.load("tiny")
model.answer("scene.png", "How many ships are there?")
model.detect("scene.png", boxes="obb")
model.detect_scene("scene.tif", boxes="obb", out="boxes.gpkg")
dialogue = model.chat("scene.png")
dialogue.ask("What is this?")
dialogue.ask("Where is the largest one?")
```
"""

from __future__ import annotations

import dataclasses
import functools
import io
import itertools
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from PIL import Image

from earthgpt_jax import compilation
from earthgpt_jax.boxes import BoxKind, read_answer
from earthgpt_jax.common import files
from earthgpt_jax.common.accelerators import skip_tpu_search
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.inference.confidence import box_confidences
from earthgpt_jax.inference.decode import StateShape
from earthgpt_jax.inference.engine import Engine
from earthgpt_jax.inference.requests import Answer, ImageRequests, Request
from earthgpt_jax.inference.sampling import Sampling
from earthgpt_jax.input.images import to_square
from earthgpt_jax.input.prompts.templates import default_question
from earthgpt_jax.raster.decode import Picture, decode_picture
from earthgpt_jax.raster.policy import DEFAULT, StretchPolicy
from earthgpt_jax.raster.scene_file import read_scene
from earthgpt_jax.records import Task

if TYPE_CHECKING:
    from earthgpt_jax.scenes.detection import SceneResult

_CHUNK = 64  # images that `detect_each` holds in memory

ImageLike = str | os.PathLike[str] | bytes | Image.Image | np.ndarray | Picture
StretchLike = StretchPolicy | Mapping[str, Any] | None
WindowLike = tuple[int, int, int, int] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Detection:
    """A detected object.

    Attributes:
        label: the class in lower case, such as `storage tank`; "" if the model named none.
        polygon: f32[4, 2], the corners (x, y) in pixels of the original image, clockwise on screen.
        kind: `hbb` (horizontal box) or `obb` (oriented box).
        confidence: in (0, 1], from the probabilities of the tokens of the box and its label. It ranks boxes; it is not
            a calibrated probability. None if the answer does not tell.
    """

    label: str
    polygon: np.ndarray
    kind: BoxKind
    confidence: float | None

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The axis-aligned bounding box x0, y0, x1, y1 in pixels of the original image."""
        (x0, y0), (x1, y1) = self.polygon.min(axis=0), self.polygon.max(axis=0)
        return float(x0), float(y0), float(x1), float(y1)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `earthgpt detect` prints them; the polygon as x1, y1, ..., x4, y4."""
        return {
            "label": self.label,
            "kind": self.kind.value,
            "polygon": [round(float(value), 2) for value in self.polygon.reshape(-1)],
            "confidence": None if self.confidence is None else round(self.confidence, 4),
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectionResult(Sequence[Detection]):
    """The objects of one image, a sequence of `Detection`.

    Attributes:
        width, height: of the image in pixels.
        detections: the objects in the order of the answer.
        rejected: the parts of the answer that look like a box but cannot be read, each with its reason.
        answer: the model's answer as text.
        stretch: how the pixels became 8 bits, in words: `percentiles 2 to 98 of bands 4, 3, 2`.
    """

    width: int
    height: int
    detections: tuple[Detection, ...]
    rejected: tuple[str, ...]
    answer: str
    stretch: str = ""

    @overload
    def __getitem__(self, index: int) -> Detection: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Detection]: ...
    def __getitem__(self, index: int | slice) -> Detection | Sequence[Detection]:
        return self.detections[index]

    def __len__(self) -> int:
        return len(self.detections)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `earthgpt detect` prints them."""
        return {
            "width": self.width,
            "height": self.height,
            "stretch": self.stretch,
            "boxes": [detection.to_dict() for detection in self.detections],
            "rejected": list(self.rejected),
            "answer": self.answer,
        }


class Model:
    """A model that answers questions about images. Made by `load`."""

    def __init__(self, engine: Engine):
        self.engine = engine

    def __repr__(self) -> str:
        return f"<earthgpt_jax.Model {self.engine.model.path.name}>"

    @overload
    def answer(
        self,
        image: ImageLike,
        question: str,
        *,
        max_new_tokens: int = 256,
        stretch: StretchLike = None,
        window: WindowLike = None,
    ) -> str: ...
    @overload
    def answer(
        self,
        image: ImageLike,
        question: list[str] | tuple[str, ...],
        *,
        max_new_tokens: int = 256,
        stretch: StretchLike = None,
        window: WindowLike = None,
    ) -> list[str]: ...
    def answer(
        self,
        image: ImageLike,
        question: str | list[str] | tuple[str, ...],
        *,
        max_new_tokens: int = 256,
        stretch: StretchLike = None,
        window: WindowLike = None,
    ) -> str | list[str]:
        """Answer one question about an image, or several; the image is encoded once for all of them.

        Args:
            image: a path, the bytes of an image file, a PIL image, or an array u8[h, w, 3] or u8[h, w].
            question: a question, or a list of questions that are independent of each other.
            max_new_tokens: the longest answer, in tokens.
            stretch: how the image becomes 8 bits, with the entries of `stretch` in a data card, for example
                `{"bands": [4, 3, 2]}`. None: 8 bits as stored, others between the 2nd and 98th percentile of each band.
            window: x, y, width and height of the part of the image to look at, in pixels; None for all. Only this part
                of a large raster is read.

        Raises:
            EarthGPTError: the image cannot be read, a question is empty, max_new_tokens is not positive, `stretch` is
                invalid, or `window` is not in the image.
        """
        questions = [question] if isinstance(question, str) else list(question)
        pixels = _picture(image, _policy(stretch), window).pixels
        square = to_square(pixels, self.engine.image_size)
        answers = [item.text for item in self._generate(square, [(q, ()) for q in questions], max_new_tokens)]
        return answers[0] if isinstance(question, str) else answers

    def detect(
        self,
        image: ImageLike,
        *,
        boxes: Literal["hbb", "obb"] = "hbb",
        question: str | None = None,
        max_new_tokens: int = 448,
        stretch: StretchLike = None,
        window: WindowLike = None,
    ) -> DetectionResult:
        """Detect all objects of an image in one look; `detect_scene` looks at a large one in windows.

        Args:
            image: as in `answer`.
            boxes: `hbb` for horizontal boxes, `obb` for oriented boxes.
            question: asked instead of the default question, for example to find one class.
            max_new_tokens, stretch, window: as in `answer`. Boxes are in pixels of the window.

        Raises:
            EarthGPTError: as in `answer`; or `boxes` is neither `hbb` nor `obb`.
        """
        picture = _picture(image, _policy(stretch), window)
        (result,) = self.detect_each([picture], boxes=boxes, question=question, max_new_tokens=max_new_tokens)
        return result

    def detect_scene(
        self,
        path: str | os.PathLike[str],
        *,
        boxes: Literal["hbb", "obb"] = "hbb",
        prompt: str | None = None,
        window_size: int | None = None,
        overlap: int | None = None,
        largest_object: float | None = None,
        max_new_tokens: int = 448,
        stretch: StretchLike = None,
        out: str | os.PathLike[str] | None = None,
    ) -> SceneResult:
        """Detect all objects of a scene of any size, in overlapping windows, whose boxes are merged.

        Args:
            path: the file; a raster is read window by window.
            boxes: `hbb` for horizontal boxes, `obb` for oriented boxes.
            prompt: a class to find instead of all, such as `ships`, or a question.
            window_size, overlap, largest_object: see `WindowSizes.choose`.
            max_new_tokens, stretch: as in `answer`.
            out: a layer to write: `.gpkg`, `.geojson`, `.fgb` or `.parquet`. Answers are kept next to it, so that an
                interrupted call continues.

        Raises:
            EarthGPTError: the scene cannot be read, an option is invalid, or `out` cannot be written.
        """
        from earthgpt_jax.raster.scene_file import find_georeference
        from earthgpt_jax.scenes import layers
        from earthgpt_jax.scenes.detection import SceneDetector, WindowSizes
        from earthgpt_jax.scenes.prompts import question
        from earthgpt_jax.scenes.provenance import provenance

        _check_boxes(boxes)
        asked = question(boxes, prompt=prompt, max_new_tokens=max_new_tokens)
        _check_request(asked.text, max_new_tokens)
        sizes = WindowSizes.choose(
            image_size=self.engine.seen_size, side=window_size, overlap=overlap, largest=largest_object
        )
        file, target = files.path(path), None if out is None else files.path(out)
        if target is not None:
            place = find_georeference(file)
            layers.check(target, [(file, place is not None, bool(place and place.crs))])
        detector = SceneDetector(self.engine, question=asked, sizes=sizes, policy=_policy(stretch))
        (result,) = detector.detect([file], out=target)
        if target is not None:
            layers.write(target, [result], provenance=provenance([result], detector))
        return result

    def detect_each(
        self,
        images: Iterable[ImageLike],
        *,
        boxes: Literal["hbb", "obb"] = "hbb",
        question: str | None = None,
        max_new_tokens: int = 448,
        stretch: StretchLike = None,
    ) -> Iterator[DetectionResult]:
        """Detect all objects of each of several images; yield the results in the order of the images.

        Images are read when their turn comes; `batch_size` of them (see `load`) are answered at a time.

        Args:
            images, boxes, question, max_new_tokens, stretch: as in `detect`.

        Raises:
            EarthGPTError: as in `detect`.
        """
        _check_boxes(boxes)
        text = default_question(Task(boxes)) if question is None else question
        _check_request(text, max_new_tokens)
        source = iter(images)
        shape: StateShape | None = None  # of the first chunk, so that all run the same programs
        policy = _policy(stretch)
        while chunk := [_picture(image, policy) for image in itertools.islice(source, _CHUNK)]:
            squares = [to_square(picture.pixels, self.engine.image_size) for picture in chunk]
            work = [
                ImageRequests(
                    image=functools.partial(np.asarray, square),
                    requests=[Request(id=str(i), text=text, max_new_tokens=max_new_tokens)],
                )
                for i, square in enumerate(squares)
            ]
            shape = shape or self.engine.state_shape(work)
            answers = {int(answer.id): answer for answer in self.engine.stream(work, state_shape=shape)}
            for i, picture in enumerate(chunk):
                yield _detections(answers[i], picture)

    def chat(
        self,
        image: ImageLike,
        *,
        max_new_tokens: int = 256,
        stretch: StretchLike = None,
        window: WindowLike = None,
    ) -> Dialogue:
        """Begin a dialogue about an image, which remembers its turns.

        Args:
            image, max_new_tokens, stretch, window: as in `answer`.

        Raises:
            EarthGPTError: the image cannot be read, `stretch` is invalid, or `window` is not in the image.
        """
        pixels = _picture(image, _policy(stretch), window).pixels
        return Dialogue(self, to_square(pixels, self.engine.image_size), max_new_tokens=max_new_tokens)

    def _generate(
        self, square: np.ndarray, prompts: Sequence[tuple[str, Sequence[tuple[str, str]]]], max_new_tokens: int
    ) -> list[Answer]:
        """Answer (question, earlier turns) pairs about one image, in order."""
        for question, _ in prompts:
            _check_request(question, max_new_tokens)
        requests = [
            Request(id=str(i), text=question, max_new_tokens=max_new_tokens, history=tuple(history))
            for i, (question, history) in enumerate(prompts)
        ]
        work = ImageRequests(image=lambda: square, requests=requests)
        answers = {answer.id: answer for answer in self.engine.stream([work])}
        return [answers[request.id] for request in requests]


class Dialogue:
    """A dialogue about one image. Each question sees the earlier questions and answers.

    Attributes:
        turns: the (question, answer) pairs so far.
    """

    def __init__(self, model: Model, square: np.ndarray, *, max_new_tokens: int):
        self.turns: list[tuple[str, str]] = []
        self._model = model
        self._square = square
        self._max_new_tokens = max_new_tokens

    def ask(self, question: str, *, max_new_tokens: int | None = None) -> str:
        """Answer a question that may refer to earlier turns, and remember both.

        Raises:
            EarthGPTError: the question is empty, or max_new_tokens is not positive.
        """
        limit = self._max_new_tokens if max_new_tokens is None else max_new_tokens
        (answer,) = self._model._generate(self._square, [(question, self.turns)], limit)
        self.turns.append((question, answer.text))
        return answer.text

    def reset(self) -> None:
        """Forget all turns; the image stays."""
        self.turns.clear()


def load(
    name: str | os.PathLike[str],
    *,
    batch_size: int = 8,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    parent: str | os.PathLike[str] | None = None,
) -> Model:
    """Load a model. Compiled programs are kept for later starts (`compilation.enable_cache`).

    Args:
        name: an embedded model (`tiny`, `tiny-base`), a model directory, or a folder that `earthgpt convert export --to
            hf` wrote.
        batch_size: the number of questions answered at once.
        temperature: 0 takes the most likely token each time; above 0 samples.
        top_p: sample from the most likely tokens whose probabilities sum up to this.
        seed: sampling seed; the same seed reproduces the same answers.
        parent: for a model directory that holds adapters alone, the model that they were trained on; default: where the
            directory records it.

    Raises:
        EarthGPTError: there is no such model, it is damaged, its parent is not found, or a sampling parameter is out
            of range.
    """
    skip_tpu_search()
    compilation.enable_cache()
    sampling = Sampling(temperature=temperature, top_p=top_p, seed=seed)
    path = files.path(name)
    if any((path / name).is_file() for name in ("processor_config.json", "preprocessor_config.json")):
        return Model(_load_exported(path, batch_size=batch_size, sampling=sampling))
    parent = None if parent is None else os.fspath(parent)
    return Model(Engine.from_model_dir(os.fspath(name), batch_size=batch_size, sampling=sampling, parent=parent))


def _load_exported(folder: Path, *, batch_size: int, sampling: Sampling) -> Engine:
    """Load a Hugging Face folder of ours by importing it into a temporary model directory."""
    from earthgpt_jax.convert.export_info import read_export_info
    from earthgpt_jax.convert.importer import find_tokenizer, import_model

    info = read_export_info(folder)
    if info is None:
        raise EarthGPTError(
            f"model {folder}: expected a model directory or a folder that `earthgpt convert export` wrote, got another "
            "Hugging Face folder; bring its parts in with `earthgpt convert import`"
        )
    parts = {"model": [folder]}
    with tempfile.TemporaryDirectory(prefix="earthgpt-") as scratch:
        out = import_model(
            parts, info.model, out=Path(scratch) / folder.name, tokenizer=find_tokenizer(parts),
            decimals=info.decimals, chat_template=info.chat_template,
        )  # fmt: skip
        return Engine.from_model_dir(out, batch_size=batch_size, sampling=sampling)


def _check_boxes(boxes: str) -> None:
    if boxes not in ("hbb", "obb"):
        raise EarthGPTError(f"boxes: expected 'hbb' or 'obb', got {boxes!r}")


def _check_request(question: str, max_new_tokens: int) -> None:
    if max_new_tokens < 1:
        raise EarthGPTError(f"max_new_tokens: expected at least 1, got {max_new_tokens}")
    if not isinstance(question, str) or not question.strip():
        raise EarthGPTError(f"question: expected text, got {question!r}")


def _detections(answer: Answer, picture: Picture) -> DetectionResult:
    """Read the boxes of an answer about an image."""
    height, width = picture.pixels.shape[:2]
    parsed, frame = read_answer(answer.text, width=width, height=height)
    confidences = box_confidences(
        answer.text, parsed.boxes, logprobs=answer.logprobs, token_lengths=answer.token_lengths
    ) or (None,) * len(parsed.boxes)
    detections = tuple(
        Detection(label=box.label, polygon=box.pixels(frame).reshape(4, 2), kind=box.kind, confidence=confidence)
        for box, confidence in zip(parsed.boxes, confidences, strict=True)
    )
    return DetectionResult(
        width=width, height=height, detections=detections, rejected=tuple(parsed.rejections), answer=answer.text,
        stretch=picture.rule,
    )  # fmt: skip


def _policy(stretch: StretchLike) -> StretchPolicy:
    if isinstance(stretch, StretchPolicy):
        return stretch
    return DEFAULT if stretch is None else StretchPolicy.of(stretch, where="stretch")


def _picture(image: ImageLike, policy: StretchPolicy, window: WindowLike = None) -> Picture:
    """Return an image, or a part of it, in any of the accepted forms as 8 bits."""
    if isinstance(image, (str, os.PathLike)):
        return read_scene(files.path(image), policy, window=window)
    picture = _whole_picture(image, policy)
    if window is None:
        return picture
    x, y, width, height = window
    part = picture.pixels[y : y + height, x : x + width]
    if min(window) < 0 or not part.size or part.shape[:2] != (height, width):
        size = f"{picture.pixels.shape[1]} x {picture.pixels.shape[0]}"
        raise EarthGPTError(f"image: expected a window inside its {size} pixels, got {window} (x, y, width, height)")
    return Picture(pixels=np.ascontiguousarray(part), stretch=picture.stretch)


def _whole_picture(image: ImageLike, policy: StretchPolicy) -> Picture:
    if isinstance(image, Picture):
        return image
    if isinstance(image, bytes):
        return decode_picture(image, policy)
    if isinstance(image, Image.Image):
        buffer = io.BytesIO()
        image.save(buffer, format="TIFF" if image.mode in ("I", "F", "I;16") else "PNG")
        return decode_picture(buffer.getvalue(), policy)
    if isinstance(image, np.ndarray):
        if image.dtype == np.uint8 and image.size and (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
            return Picture(
                pixels=np.ascontiguousarray(image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=-1))
            )
        raise EarthGPTError(f"image: expected an array u8[h, w, 3] or u8[h, w], got {image.dtype}{list(image.shape)}")
    raise EarthGPTError(f"image: expected a path, bytes, a PIL image or a NumPy array, got {type(image).__name__}")
