"""The processor of EarthGPT: images and dialogues to model inputs, generated ids to answers and boxes.

A prompt is BOS, P + 2 image tokens (the start vector, P visual tokens, the end vector), the prefix of the chat
template, and the turns of the dialogue. Ids and pixels are bit-identical to those that the model was trained with.
"""

from __future__ import annotations

import io
import itertools
import re
import urllib.request
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from .configuration_earthgpt import OLDEST_TRANSFORMERS  # noqa: F401  (checks the version first)

from transformers import BatchFeature, ProcessorMixin  # isort: skip
from transformers.image_processing_utils import BaseImageProcessor  # isort: skip
from transformers.processing_utils import MultiModalData  # isort: skip

# --------------------------------------------------------------------------------------------- images
FILL = (122, 116, 104)  # CLIP's mean color, with which LLaMA2-Accessory pads


_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L")  # one band of more than 8 bits
_ORIENTATION, _BITS, _SAMPLE_FORMAT, _GDAL_NODATA = 274, 258, 339, 42113  # tags of Exif and TIFF
_UNSIGNED = 1
_URL = re.compile(r"(https?|file|data):", re.IGNORECASE)
_BANDS = (1, 3, 4)
_LEAST_BORDER = 0.01
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


def read_image(image: Any) -> np.ndarray:
    """Return RGB pixels uint8[h, w, 3] as they are displayed: turned by the orientation tag, black where transparent.

    An image is a Pillow image, a path, a URL (`https:`, `data:`, `file:`), the bytes of a file, or an array or tensor
    (see `_array_image`).

    One band of more than 8 bits is stretched between the 2nd and 98th percentile of its valid pixels, those that are
    finite, not the file's no-data value, and not in a border of zeros of at least 1 % of the image.

    Raises:
        ValueError: the image has several bands of more than 8 bits, of which Pillow reads only the high bytes.
            `earthgpt_jax.raster.decode.decode` returns an array that this processor takes.
        TypeError: it is something else.
    """
    if isinstance(image, str) and _URL.match(image):
        with urllib.request.urlopen(image, timeout=60) as response:
            image = response.read()
    if hasattr(image, "__array__") and not isinstance(image, Image.Image):
        image = _array_image(np.asarray(image.detach().cpu() if hasattr(image, "detach") else image))
    if not isinstance(image, Image.Image):
        if not isinstance(image, (bytes, str, Path)):
            raise TypeError(f"image: expected a Pillow image, an array, a path, a URL or bytes, got {type(image)}")
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
            return read_image(opened)
    deep = image.mode in _DEEP_MODES
    tags = getattr(image, "tag_v2", {})
    # The decoder's arguments are gone once the pixels are loaded.
    if not deep and (";16" in str(getattr(image, "tile", "")) or max(tags.get(_BITS, (8,))) > 8):
        raise ValueError("expected 8 bits or one band; give an array of earthgpt_jax.raster.decode.decode instead")
    image.load()
    if image.format != "TIFF":  # Pillow turns TIFF files itself
        exif = Image.Exif()
        exif.load(image.info.get("exif", b""))
        turn = _TURNS.get(exif.get(_ORIENTATION, 1))
        image = image if turn is None else image.transpose(turn)
    if deep:
        band = np.asarray(image)
        if tags.get(_SAMPLE_FORMAT) == (_UNSIGNED,) and band.dtype == np.int32:
            band = band.view(np.uint32)
        nodata = float(str(tags[_GDAL_NODATA]).strip("\0 ")) if _GDAL_NODATA in tags else None
        return np.repeat(_stretch(band, nodata)[..., None], 3, axis=-1)
    if not image.has_transparency_data:
        return np.asarray(image.convert("RGB"))
    pixels = np.array(image.convert("RGBA"))
    pixels[pixels[..., 3] == 0] = 0
    return np.ascontiguousarray(pixels[..., :3])


def _array_image(array: np.ndarray) -> Image.Image:
    """Return an array as an image.

    Args:
        array: [h, w], [h, w, C] or [C, h, w], with C = 1 (grey), 3 (RGB) or 4 (RGB and alpha). Several bands are uint8,
            or floats from 0 to 1; one band may have any type, see `read_image`.

    Raises:
        ValueError: another shape, or several bands of another type or range.
    """
    shape = array.shape
    if array.ndim == 3 and shape[-1] not in _BANDS and shape[0] in _BANDS:
        array = array.transpose(1, 2, 0)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in _BANDS) or 0 in shape:
        raise ValueError(f"image: expected an array [h, w], [h, w, C] or [C, h, w] with 1, 3 or 4 bands, got {shape}")
    array = array[..., 0] if array.shape[2:] == (1,) else array
    if array.dtype == np.float64:
        array = array.astype(np.float32)
    if array.ndim == 3 and array.dtype.kind == "f":
        if not (array.min() >= 0 and array.max() <= 1):
            raise ValueError(
                f"image: expected floats from 0 to 1 in several bands, got {array.min()} to {array.max()}; give uint8"
            )
        array = np.round(array.astype(np.float32) * 255).astype(np.uint8)
    if array.ndim == 3 and array.dtype != np.uint8:
        raise ValueError(
            f"image: expected uint8, or floats from 0 to 1, in several bands, got {array.dtype}; stretch it to 8 bits"
        )
    return Image.fromarray(np.ascontiguousarray(array))


def _stretch(band: np.ndarray, nodata: float | None) -> np.ndarray:
    """Return a band as uint8; pixels without a value are black."""
    band = band if band.dtype.kind == "f" else band.astype(np.float64)
    valid = np.isfinite(band) if nodata is None else np.isfinite(band) & (band != band.dtype.type(nodata))
    counted = valid
    if nodata is None:
        border = _zero_border(band == 0)
        counted = valid & ~border if border.mean() >= _LEAST_BORDER else valid
    if not counted.any():
        return np.zeros(band.shape, np.uint8)
    low, high = map(float, np.percentile(band[counted], (2, 98)))
    if not high > low:
        return np.zeros(band.shape, np.uint8)
    stretched = np.clip((band - low) / (high - low) * 255, 0, 255)
    return np.where(valid, stretched, 0).astype(np.uint8)


def _zero_border(zero: np.ndarray) -> np.ndarray:
    """Return the pixels in an unbroken run of zeros along a row or a column from the edge of the image."""
    border = np.zeros_like(zero)
    for axis in (0, 1):
        border |= np.logical_and.accumulate(zero, axis=axis)
        border |= np.flip(np.logical_and.accumulate(np.flip(zero, axis), axis=axis), axis)
    return border


def padding(width: int, height: int) -> tuple[int, int, int]:
    """Return the side of the square that an image is padded to, and the position (left, top) of the image in it."""
    side = max(width, height)
    return side, (side - width) // 2, (side - height) // 2


def load_square(image: Any, size: int) -> np.ndarray:
    """Return uint8[size, size, 3]: the image centered in a square and resized (Pillow's antialiased bicubic)."""
    pixels = read_image(image)
    height, width = pixels.shape[:2]
    side, left, top = padding(width, height)
    square = np.empty((side, side, 3), np.uint8)
    square[:] = FILL
    square[top : top + height, left : left + width] = pixels
    if side == size:
        return square
    return np.asarray(Image.fromarray(square).resize((size, size), Image.Resampling.BICUBIC))


class EarthGPTImageProcessor(BaseImageProcessor):
    """Pads images to a square and resizes them, `load_square`; the model does the rest.

    Args:
        size: {"height": S, "width": S}, the square that the model takes, in pixels.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012  (transformers reads class attributes)

    def __init__(self, size: dict[str, int] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.size = size or {}

    def fetch_images(self, images: Any) -> Any:
        """Return the images as they are: `preprocess` reads paths and URLs itself, at their full depth."""
        return images

    def preprocess(self, images: Any, return_tensors: str | None = None, **kwargs: Any) -> BatchFeature:
        """Return pixel_values u8[N, 3, S, S] of one image or a list of them, in any form that `read_image` takes."""
        images = images if isinstance(images, (list, tuple)) else [images]
        squares = [load_square(image, self.size["height"]) for image in images]
        return BatchFeature({"pixel_values": np.stack(squares).transpose(0, 3, 1, 2)}, tensor_type=return_tensors)


# ---------------------------------------------------------------------------------------------- boxes
_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_SINGULAR = {
    "aircraft": "aircraft", "people": "person", "buses": "bus", "gases": "gas", "series": "series",
    "lenses": "lens", "barracks": "barracks", "dontcare": "dontcare",
}  # fmt: skip
_BRACKET = re.compile(r"(?:<p>(?P<phrase>[^<>]*)</p>\s*)?\[(?P<body>[^\[\]]*)\]")
_NUMBER = re.compile(r"\s*[0-9]+(\.[0-9]+)?\s*")
_NO_AREA = 1e-9


def parse_boxes(text: str) -> list[tuple[str, tuple[float, ...]]]:
    """Return the boxes in an answer: pairs of a label and 4 (HBB) or 8 (OBB) fractions of the padded square.

    The label is "" if the box has none. Invalid boxes are left out: those with another number of coordinates, with
    coordinates above 1, without area, or with sides that cross.
    """
    boxes = []
    for match in _BRACKET.finditer(text):
        label = _label(match["phrase"] or "")
        for part in match["body"].split(";"):
            fields = part.split(",")
            if len(fields) in (4, 8) and all(_NUMBER.fullmatch(field) for field in fields):
                values = tuple(float(field) for field in fields)
                if max(values) <= 1 and _has_area(values):
                    boxes.append((label, values))
    return boxes


def _label(phrase: str) -> str:
    """Return the label of a phrase: `13 ships` -> `ship`, without the count and in the singular."""
    words = phrase.strip().lower().split()
    if words and (words[0].isdigit() or words[0] in _WORDS):
        noun = " ".join(words[1:])
        return noun if words[0] in ("1", "one") else _singular(noun)
    return " ".join(words)


def _singular(noun: str) -> str:
    start = noun.rfind(" ") + 1
    if noun[start:] in _SINGULAR:
        return noun[:start] + _SINGULAR[noun[start:]]
    if noun.endswith("ies") and len(noun) > 4:
        return noun[:-3] + "y"
    if re.search(r"(ss|x|z|ch|sh)es$", noun):
        return noun[:-2]
    return noun[:-1] if noun.endswith("s") and not noun.endswith("ss") else noun


def _has_area(values: tuple[float, ...]) -> bool:
    if len(values) == 4:
        return values[0] < values[2] and values[1] < values[3]
    xs, ys = values[0::2], values[1::2]
    area = sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(4)) / 2
    return abs(area) >= _NO_AREA and _is_simple(list(zip(xs, ys, strict=True)))


def _is_simple(corners: list[tuple[float, float]]) -> bool:
    """Return whether no two sides of a quadrilateral cross or overlap; exact, in rational numbers.

    The quadrilateral must have an area.
    """
    points = [(Fraction(x), Fraction(y)) for x, y in corners]

    def turn(a: tuple, b: tuple, c: tuple) -> Fraction:
        return (b[0] - a[0]) * (c[1] - b[1]) - (b[1] - a[1]) * (c[0] - b[0])

    def folds_back(a: tuple, b: tuple, c: tuple) -> bool:
        forward = (b[0] - a[0]) * (c[0] - b[0]) + (b[1] - a[1]) * (c[1] - b[1])
        return turn(a, b, c) == 0 and forward < 0

    def cross(a: tuple, b: tuple, c: tuple, d: tuple) -> bool:
        return turn(a, b, c) * turn(a, b, d) < 0 and turn(c, d, a) * turn(c, d, b) < 0

    if any(folds_back(points[i - 2], points[i - 1], points[i]) for i in range(4)):
        return False  # the outline turns back onto itself, as it does if a corner is on another side
    a, b, c, d = points
    return not cross(a, b, c, d) and not cross(b, c, d, a)


def box_polygon(values: Sequence[float], image_size: tuple[int, int]) -> np.ndarray:
    """Return the corners f32[8] of a box in pixels of the original image.

    Args:
        values: 4 or 8 fractions of the padded square.
        image_size: (width, height) of the original image.
    """
    corners = np.asarray(values)
    if len(values) == 4:
        x0, y0, x1, y1 = values
        corners = np.array([x0, y0, x1, y0, x1, y1, x0, y1], np.float32)
    side, *offset = padding(*image_size)
    return (corners.astype(np.float64).reshape(-1, 2) * side - offset).reshape(-1).astype(np.float32)


# ------------------------------------------------------------------------------------------ processor
class EarthGPTProcessor(ProcessorMixin):
    """Turns questions or dialogues and their images into model inputs, and generated ids into answers and boxes.

    Args:
        image_processor: an `EarthGPTImageProcessor`.
        tokenizer: the tokenizer of the language model.
        visual_tokens: P, number of visual tokens per image.
        image_token: the token of the positions of an image; a user cannot write it.
        conversation: the chat template that the model was trained with: prefix, roles and separator, and
            `start_ids`, the ids that every prompt begins with.
        chat_template: the same as a Jinja template.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        visual_tokens: int = 0,
        image_token: str = "",
        conversation: dict | None = None,
        chat_template: str | None = None,
    ) -> None:
        self.visual_tokens = visual_tokens
        self.image_token = image_token
        self.conversation = conversation or {}
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        self.image_token_ids = [self.image_token_id]

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values"]

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        return_tensors: str | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Return the inputs for a batch of prompts, padded on the left.

        Args:
            images: one image per text, or None for a text without one, in any form that `read_image` takes.
            text: one or several questions, or complete prompts as `apply_chat_template` returns them.
            return_tensors: "pt" for PyTorch; None for numpy.
            **kwargs: `return_text_replacement_offsets` and `return_mm_token_type_ids` add what servers read; arguments
                of other processors, such as `padding`, are accepted and ignored.

        Returns:
            input_ids and attention_mask, each i64[B, T], and with images pixel_values u8[N, 3, S, S].
        """
        texts = [text] if isinstance(text, str) else list(text or ())
        if not texts:
            raise ValueError("text: expected a question or a dialogue, got none")
        groups = _images_by_text(images, len(texts))
        prompts = [self._prompt(text, len(group)) for text, group in zip(texts, groups, strict=True)]
        length = max(map(len, prompts))
        padded = np.array([[self.pad_id] * (length - len(ids)) + ids for ids in prompts])
        data = {
            "input_ids": padded,
            "attention_mask": np.array([[0] * (length - len(ids)) + [1] * len(ids) for ids in prompts]),
        }
        if kwargs.get("return_mm_token_type_ids"):
            data["mm_token_type_ids"] = (padded == self.image_token_id).astype(np.int64)
        if present := list(itertools.chain(*groups)):
            data["pixel_values"] = self.image_processor(present)["pixel_values"]
        feature = BatchFeature(data, tensor_type=return_tensors)
        if kwargs.get("return_text_replacement_offsets"):
            feature["text_replacement_offsets"] = [
                self._replacements(text, len(group)) for text, group in zip(texts, groups, strict=True)
            ]
        return feature

    def replace_image_token(self, image_inputs: Any = None, image_idx: int = 0, **kwargs: Any) -> str:
        """Return what takes the place of the image token in a prompt: one token for each position of the image."""
        return self.image_token * (self.visual_tokens + 2)

    def _replacements(self, text: str, count: int) -> list[dict[str, Any]]:
        """Return where the image tokens of a prompt are, before and after their replacement; vLLM reads this."""
        token, expanded = self.image_token, self.replace_image_token()
        found = [match.start() for match in re.finditer(re.escape(token), text)][:count]
        begins = [start + i * (len(expanded) - len(token)) for i, start in enumerate(found)]
        return [
            {
                "type": "image", "text": token, "replacement": expanded, "span": (start, start + len(token)),
                "new_span": (begin, begin + len(expanded)),
            }
            for start, begin in zip(found, begins, strict=True)
        ]  # fmt: skip

    def _get_num_multimodal_tokens(self, image_sizes: Sequence | None = None, **kwargs: Any) -> MultiModalData:
        count = len(image_sizes or ())
        return MultiModalData(num_image_tokens=[self.visual_tokens + 2] * count, num_image_patches=[1] * count)

    def _prompt(self, text: str, images: int) -> list[int]:
        """Return the ids of one prompt: BOS, the image tokens, and the ids of the text."""
        start = self.conversation["start_ids"]  # BOS, or nothing
        dialogue = text.removeprefix("".join(self.tokenizer.convert_ids_to_tokens(start)))
        written = 0
        while dialogue.startswith(self.image_token):
            dialogue, written = dialogue.removeprefix(self.image_token), written + 1
        if written and written != images:
            raise ValueError(f"images: expected {written}, one per {self.image_token} of the prompt, got {images}")
        if images > 1 and not written:
            raise ValueError("images: expected at most one per dialogue, as in training; got several")
        if dialogue == text and not self._is_dialogue(text):
            role, separator = self.conversation["roles"][0], self.conversation["separator"]
            ids = self._turn_ids(f" {role}: {text}{separator}{self._opening}")
        else:
            ids = self._dialogue_ids(dialogue)
        return [*start, *[self.image_token_id] * (images * (self.visual_tokens + 2)), *ids]

    def _is_dialogue(self, text: str) -> bool:
        """Return whether a text begins like a prompt of the chat template, with its own or with another system text."""
        marker = self.conversation["prefix"][-len("\n\n###") :] + f" {self.conversation['roles'][0]}: "
        return text.startswith(self.conversation["prefix"]) or marker in text

    def _turn_ids(self, text: str) -> list[int]:
        """Return the ids of the prefix and of one or more turns.

        As in training: the prefix is tokenized alone, and the turns together with the prefix before them.
        """
        prefix = self.conversation["prefix"]
        shared = self.text_ids(prefix)
        return [*shared, *self.text_ids(prefix + text)[len(shared) :]]

    def _dialogue_ids(self, text: str) -> list[int]:
        """Return the ids of a dialogue, prefix included; a turn after an EOS is tokenized as if it were the first."""
        prefix, end = self.conversation["prefix"], self.conversation["answer_end"]
        first, *later = [text] if end == self.conversation["separator"] else text.split(end)
        ids = self._turn_ids(first.removeprefix(prefix)) if first.startswith(prefix) else self.text_ids(first)
        for turn in later:
            following = self._turn_ids(f" {turn.lstrip(' ')}")[len(self.text_ids(prefix)) :] if turn else []
            ids = [*ids, self.tokenizer.convert_tokens_to_ids(end), *following]
        return ids

    @property
    def pad_id(self) -> int:
        """The id on the left of shorter prompts, which the attention mask hides."""
        ids = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)
        return next((token for token in ids if token is not None), 0)

    def text_ids(self, text: str) -> list[int]:
        """Return the ids of a text; a special token in it is its characters."""
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] if text else []

    def ids_text(self, ids: Sequence[int]) -> str:
        """Return the text of some ids, without special tokens and ids that the tokenizer does not have."""
        known = [i for i in ids if i < len(self.tokenizer)]
        return self.tokenizer.decode(known, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    @property
    def _opening(self) -> str:
        """The text at the end of a prompt, after which the answer is generated."""
        return f" {self.conversation['roles'][1]}:"

    def apply_chat_template(  # type: ignore[override]  # fewer arguments: no tools, no documents
        self,
        conversation: list,
        chat_template: str | None = None,
        *,
        add_generation_prompt: bool = False,
        tokenize: bool = False,
        return_dict: bool = True,
        return_tensors: str | None = None,
        **kwargs: Any,
    ) -> str | list[str] | BatchFeature | np.ndarray:
        """Return the prompt of a dialogue.

        A message has a `role` and a `content`: a text, or a list of text and image items. The first message may be of
        the system; its text takes the place of the template's own. Then user and assistant alternate. A dialogue has at
        most one image, which always comes directly after BOS in the prompt. Give it as "image", "url", "path" or
        "image_url" of its item, or pass it to the processor together with the text.

        Args:
            conversation: the messages of one dialogue, or a list of the messages of several.
            chat_template: a Jinja template in place of the model's own.
            add_generation_prompt: whether the prompt ends with the beginning of an answer.
            tokenize: whether to return the processor's output instead of text.
            return_dict: with `tokenize`, False returns only the ids.

        Raises:
            ValueError: the roles do not alternate, a text holds a special token, or `tokenize` needs an image that is
                not given.
        """
        several = bool(conversation) and not isinstance(conversation[0], dict)
        dialogues = conversation if several else [conversation]
        images = [_read_images(messages) for messages in dialogues]
        options = {"chat_template": chat_template or self.chat_template, "add_generation_prompt": add_generation_prompt}
        try:
            texts = [self.tokenizer.apply_chat_template(item, tokenize=False, **options) for item in dialogues]
        except jinja2.TemplateError as error:
            raise ValueError(str(error)) from error
        if not tokenize:
            return texts if several else texts[0]
        if any(image is None for group in images for image in group):
            raise ValueError('messages: expected "image", "url" or "path" in every image item, as tokenize needs it')
        output = self(images=images, text=texts, return_tensors=return_tensors)
        return output if return_dict else output["input_ids"]

    def decode(self, token_ids: Any, **kwargs: Any) -> str:
        """Return the answer in generated ids, which end at EOS or the separator; leave out the ids of the prompt."""
        ids = np.asarray(token_ids).reshape(-1).tolist()
        kept = itertools.takewhile(lambda token: token != self.tokenizer.eos_token_id, ids)
        return self.ids_text(list(kept)).split(self.conversation["separator"])[0].strip()

    def batch_decode(self, sequences: Any, **kwargs: Any) -> list[str]:
        """Return one answer per sequence of `model.generate(**inputs)[:, inputs["input_ids"].shape[1]:]`."""
        return [self.decode(ids) for ids in sequences]

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **kwargs: Any
    ) -> list[str]:
        """Return the text of each sequence, prompt included, without a separator at the end; pipelines call this."""
        texts = (self.ids_text(np.asarray(ids).tolist()) for ids in generated_outputs)
        return [text.removesuffix(self.conversation["separator"]) for text in texts]

    def post_process_boxes(self, text: str, image_size: tuple[int, int]) -> list[dict]:
        """Return the boxes in an answer about an image of size (width, height).

        Returns:
            One dict per box: `label` ("" if it has none), `kind` ("hbb" or "obb"), and `polygon`, the corners
            x1, y1, ..., x4, y4 as f32[8] in pixels of the original image.
        """
        return [
            {"label": label, "kind": "hbb" if len(values) == 4 else "obb", "polygon": box_polygon(values, image_size)}
            for label, values in parse_boxes(text)
        ]


def _images_by_text(images: Any, texts: int) -> list[list]:
    """Return the images of each text; None is no image."""
    if images is None:
        return [[] for _ in range(texts)]
    images = list(images) if isinstance(images, (list, tuple)) else [images]
    if texts == 1 and not any(isinstance(image, (list, tuple)) for image in images):
        images = [images]
    if len(images) != texts:
        raise ValueError(f"images: expected one per text (None for no image), got {len(images)} for {texts} texts")
    groups = [image if isinstance(image, (list, tuple)) else [image] for image in images]
    return [[image for image in group if image is not None] for group in groups]


_IMAGE_KEYS = ("image", "url", "path", "base64", "image_url")


def _read_images(messages: list[dict]) -> list:
    """Return the images in messages; None for an image item without one."""
    contents = [message["content"] for message in messages if not isinstance(message["content"], str)]
    items = [item for content in contents for item in content if item["type"] in ("image", "image_url")]
    values = [next((item[key] for key in _IMAGE_KEYS if key in item), None) for item in items]
    return [value["url"] if isinstance(value, dict) else value for value in values]
