"""The processor and tokenizer of EarthGPT: images and dialogues to model inputs, generated ids to answers and boxes.

A prompt is `[BOS][start_img]`, P visual tokens, `[end_img]`, the prefix of the chat template, and the turns of the
dialogue. Ids, image slots and pixels are bit-identical to those that the model was trained with.
"""

from __future__ import annotations

import io
import itertools
import re
import shutil
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from PIL import Image
from transformers import BatchFeature, PreTrainedTokenizer, ProcessorMixin

# Values of `image_slots` that are not an index into the visual tokens of the sequence.
TEXT_SLOT, START_SLOT, END_SLOT = -1, -2, -3

# --------------------------------------------------------------------------------------------- images
FILL = (122, 116, 104)  # CLIP's mean color, with which LLaMA2-Accessory pads


_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L")  # one band of more than 8 bits
_ORIENTATION, _BITS, _SAMPLE_FORMAT, _GDAL_NODATA = 274, 258, 339, 42113  # tags of Exif and TIFF
_UNSIGNED = 1
_LEAST_BORDER = 0.01
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


def read_image(image: Image.Image | np.ndarray | bytes | str | Path) -> np.ndarray:
    """Return RGB pixels uint8[h, w, 3] as they are displayed: turned by the orientation tag, black where transparent.

    One band of more than 8 bits is stretched between the 2nd and 98th percentile of its valid pixels, those that are
    finite, not the file's no-data value, and not in a border of zeros of at least 1 % of the image.

    Raises:
        ValueError: the image has several bands of more than 8 bits, of which Pillow reads only the high bytes.
            `earthgpt_jax.raster.decode.decode` returns an array that this processor takes.
    """
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
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


def load_square(image: Image.Image | np.ndarray | bytes | str | Path, size: int) -> np.ndarray:
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


# ------------------------------------------------------------------------------------------ tokenizer
class EarthGPTTokenizer(PreTrainedTokenizer):
    """LLaMA's tokenizer, run by `sentencepiece` itself, which gives the ids that the model was trained with."""

    vocab_files_names = {"vocab_file": "tokenizer.model"}  # noqa: RUF012  (transformers reads class attributes)
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012
    padding_side = "left"

    def __init__(self, vocab_file: str, **kwargs: Any) -> None:
        self.vocab_file = vocab_file
        self.sp = sentencepiece.SentencePieceProcessor(model_file=vocab_file)
        for name in ("unk", "bos", "eos"):
            kwargs.setdefault(f"{name}_token", self.sp.id_to_piece(getattr(self.sp, f"{name}_id")()))
        # LLaMA's SentencePiece model has no padding; id 0 is its unknown token, which no text has.
        kwargs.setdefault("pad_token", self.sp.id_to_piece(max(self.sp.pad_id(), 0)))
        super().__init__(**kwargs)

    @property
    def vocab_size(self) -> int:
        return self.sp.vocab_size()

    def get_vocab(self) -> dict[str, int]:
        return {self.sp.id_to_piece(i): i for i in range(self.vocab_size)}

    def text_ids(self, text: str) -> list[int]:
        """Return the ids of a plain text, without BOS; a `<s>` in it is three characters, not a special token."""
        return self.sp.encode(text)

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        return [self.bos_token_id, *token_ids_0, *(token_ids_1 or ())]

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return self.sp.encode(text, out_type=str)

    def _convert_token_to_id(self, token: str) -> int:
        return self.sp.piece_to_id(token)

    def _convert_id_to_token(self, index: int) -> str:
        return self.sp.id_to_piece(index)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return self.sp.decode(tokens)

    def ids_text(self, ids: Sequence[int]) -> str:
        """Return the text of some ids, without special tokens and ids that the tokenizer does not have."""
        special = (self.sp.is_control, self.sp.is_unknown, self.sp.is_unused)
        known = (i for i in ids if 0 <= i < self.vocab_size)
        return self.sp.decode([i for i in known if not any(is_special(i) for is_special in special)])

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        path = Path(save_directory) / f"{f'{filename_prefix}-' if filename_prefix else ''}tokenizer.model"
        if path.resolve() != Path(self.vocab_file).resolve():
            shutil.copyfile(self.vocab_file, path)
        return (str(path),)


# ------------------------------------------------------------------------------------------ processor
class EarthGPTProcessor(ProcessorMixin):
    """Turns questions or dialogues and their images into model inputs, and generated ids into answers and boxes.

    Args:
        tokenizer: an `EarthGPTTokenizer`, or a `PreTrainedTokenizerFast` if the model has a `tokenizer.json`.
        image_size: S, side of the square image that the model takes, in pixels.
        visual_tokens: P, number of visual tokens per image.
        conversation: the chat template that the model was trained with: prefix, roles and separator, and
            `start_ids`, the ids that every prompt begins with.
    """

    def __init__(
        self,
        tokenizer: Any = None,
        image_size: int = 0,
        visual_tokens: int = 0,
        conversation: dict | None = None,
    ) -> None:
        self.image_size = image_size
        self.visual_tokens = visual_tokens
        self.conversation = conversation or {}
        super().__init__(tokenizer)

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "image_slots", "pixel_values"]

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        return_tensors: str | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Return the inputs for a batch of prompts, padded on the left.

        Args:
            images: one image per text, or None for a text without one. An image is a Pillow image, an array
                u8[h, w, 3], the bytes of a file, or a path.
            text: one or several questions, or complete dialogues as `apply_chat_template` returns them.
            return_tensors: "pt" for PyTorch; None for numpy.
            **kwargs: arguments of other processors, such as `padding`, are accepted and ignored.

        Returns:
            input_ids, attention_mask and image_slots, each i64[B, T], and with images pixel_values u8[B, 3, S, S].
        """
        texts = [text] if isinstance(text, str) else list(text or ())
        if not texts:
            raise ValueError("text: expected a question or a dialogue, got none")
        images = _one_image_per_text(images, len(texts))
        prompts = [self._prompt(text, image is not None) for text, image in zip(texts, images, strict=True)]
        length = max(len(ids) for ids, _ in prompts)

        def padded(values: list[int], fill: int) -> list[int]:
            return [fill] * (length - len(values)) + values

        data = {
            "input_ids": np.array([padded(ids, self.pad_id) for ids, _ in prompts]),
            "attention_mask": np.array([padded([1] * len(ids), 0) for ids, _ in prompts]),
            "image_slots": np.array([padded(slots, TEXT_SLOT) for _, slots in prompts]),
        }
        if any(image is not None for image in images):
            blank = np.zeros((self.image_size, self.image_size, 3), np.uint8)  # for texts without an image; never read
            squares = [blank if image is None else load_square(image, self.image_size) for image in images]
            data["pixel_values"] = np.stack(squares).transpose(0, 3, 1, 2)
        return BatchFeature(data, tensor_type=return_tensors)

    def _prompt(self, text: str, has_image: bool) -> tuple[list[int], list[int]]:
        """Return the ids and image slots of one prompt."""
        prefix = self.conversation["prefix"]
        if not text.startswith(prefix):
            text = self.dialogue([text]) + self._opening()
        shared = self.text_ids(prefix)
        # As in training: the prefix is tokenized alone, and the turns together with the prefix before them.
        ids = [*shared, *self.text_ids(text)[len(shared) :]]
        image = [START_SLOT, *range(self.visual_tokens), END_SLOT] if has_image else []
        start = self.conversation["start_ids"]  # BOS, or nothing
        slots = [*([TEXT_SLOT] * len(start)), *image, *([TEXT_SLOT] * len(ids))]
        return [*start, *([0] * len(image)), *ids], slots

    @property
    def pad_id(self) -> int:
        """The id on the left of shorter prompts, which the attention mask hides."""
        ids = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)
        return next((token for token in ids if token is not None), 0)

    def text_ids(self, text: str) -> list[int]:
        """Return the ids of a text; a special token in it is its characters."""
        if isinstance(self.tokenizer, EarthGPTTokenizer):
            return self.tokenizer.text_ids(text)
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def ids_text(self, ids: Sequence[int]) -> str:
        """Return the text of some ids, without special tokens and ids that the tokenizer does not have."""
        if isinstance(self.tokenizer, EarthGPTTokenizer):
            return self.tokenizer.ids_text(ids)
        known = [i for i in ids if i < len(self.tokenizer)]
        return self.tokenizer.decode(known, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def dialogue(self, messages: Sequence[str]) -> str:
        """Return the text of a dialogue whose messages alternate between the user and the assistant, user first."""
        roles, separator = self.conversation["roles"], self.conversation["separator"]
        turns = (f" {roles[i % 2]}: {message}{separator}" for i, message in enumerate(messages))
        return self.conversation["prefix"] + "".join(turns)

    def _opening(self) -> str:
        """Return the text at the end of a prompt, after which the answer is generated."""
        return f" {self.conversation['roles'][1]}:"

    def apply_chat_template(  # type: ignore[override]  # the model has one fixed template
        self,
        conversation: list,
        *,
        add_generation_prompt: bool = False,
        tokenize: bool = False,
        return_dict: bool = True,
        return_tensors: str | None = None,
        **kwargs: Any,
    ) -> str | list[str] | BatchFeature | np.ndarray:
        """Return the prompt of a dialogue.

        A message has a `role`, user or assistant, and a `content`: a text, or a list of text and image items. A
        dialogue has at most one image, which always comes directly after BOS in the prompt. Give it as "image" or
        "path" of its item, or pass it to the processor together with the text.

        Args:
            conversation: the messages of one dialogue, or a list of the messages of several.
            add_generation_prompt: whether the prompt ends with the beginning of an answer.
            tokenize: whether to return the processor's output instead of text.
            return_dict: with `tokenize`, False returns only the ids.

        Raises:
            ValueError: the roles do not alternate, or `tokenize` needs an image that is not given.
        """
        several = bool(conversation) and not isinstance(conversation[0], dict)
        texts, images = [], []
        for messages in conversation if several else [conversation]:
            contents, message_images = _read_messages(messages)
            texts.append(self.dialogue(contents) + (self._opening() if add_generation_prompt else ""))
            images.append(message_images)
        if not tokenize:
            return texts if several else texts[0]
        if any(image is None for message_images in images for image in message_images):
            raise ValueError('messages: expected "image" or "path" in every image item, as tokenize=True needs it')
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


def _one_image_per_text(images: Any, texts: int) -> list:
    """Return one image or None per text; the image of a text may be given in a list."""
    if images is None:
        return [None] * texts
    images = list(images) if isinstance(images, (list, tuple)) else [images]
    if len(images) != texts:
        raise ValueError(f"images: expected one per text (None for no image), got {len(images)} for {texts} texts")
    images = [image if isinstance(image, (list, tuple)) else [image] for image in images]
    if max(map(len, images)) > 1:
        raise ValueError("images: expected at most one per dialogue, as in training; got several")
    return [image[0] if image else None for image in images]


def _read_messages(messages: list[dict]) -> tuple[list[str], list]:
    """Return the texts of the messages and the images in them."""
    contents, images = [], []
    for message, role in zip(messages, itertools.cycle(("user", "assistant"))):
        if message["role"] != role:
            raise ValueError(f"messages: expected user and assistant to alternate, user first; got {message['role']!r}")
        content = message["content"]
        items = [{"type": "text", "text": content}] if isinstance(content, str) else content
        contents.append("\n".join(item["text"] for item in items if item["type"] == "text"))
        images += [item.get("image", item.get("path")) for item in items if item["type"] == "image"]
    return contents, images
