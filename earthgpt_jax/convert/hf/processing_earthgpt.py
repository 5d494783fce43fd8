"""EarthGPT's inputs and outputs: images to squares, dialogues to ids, ids to answers, answers to boxes.

A prompt is `[BOS][start_img] P visual [end_img]`, the conversation's prefix, the turns. Ids, image slots and
squares are those that the model was trained with, to the bit.
"""

from __future__ import annotations

import io
import itertools
import re
import shutil
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import sentencepiece
from PIL import Image
from transformers import BatchFeature, PreTrainedTokenizer, ProcessorMixin

# Values of `image_slots` that are not an index into the row's visual tokens.
TEXT_SLOT, START_SLOT, END_SLOT = -1, -2, -3
PAD_ID = 0

# --------------------------------------------------------------------------------------------- images
FILL = (122, 116, 104)  # CLIP's mean colour, as LLaMA2-Accessory pads


def read_image(image: Image.Image | np.ndarray | bytes | str | Path) -> np.ndarray:
    """uint8[h, w, 3], RGB, as it lies in the file (an EXIF orientation is not applied).

    A single band of more than 8 bits is stretched between its 2nd and 98th percentile.
    """
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
            return read_image(opened)
    if image.mode in ("I", "F", "I;16", "I;16B", "I;16L"):
        return np.repeat(_stretch(np.asarray(image, np.float32))[..., None], 3, axis=-1)
    return np.asarray(image.convert("RGB"))


def _stretch(band: np.ndarray) -> np.ndarray:
    """Pixels without a value (NaN, infinite: no data in float rasters) come out black."""
    known = np.isfinite(band)
    if not known.any():
        return np.zeros(band.shape, np.uint8)
    low, high = np.percentile(band[known], (2, 98))
    stretched = np.clip((band - low) / max(high - low, 1e-6) * 255, 0, 255)
    return np.where(known, stretched, 0).astype(np.uint8)


def padding(width: int, height: int) -> tuple[int, int, int]:
    """`(side, left, top)` of the square that an image is padded to, and where in it the image lies."""
    side = max(width, height)
    return side, (side - width) // 2, (side - height) // 2


def load_square(image: Image.Image | np.ndarray | bytes | str | Path, size: int) -> np.ndarray:
    """uint8[size, size, 3]: padded to square, the image in the middle, then bicubic (Pillow, antialiased)."""
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
    """`(label, 4 or 8 fractions of the padded square)` of every box in an answer; "" where it has no label.

    Whatever is not exactly a box is left out: other counts of numbers, values beyond 1, boxes without area,
    quadrilaterals whose sides cross.
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
    """`13 ships` -> `ship`: the count goes, the noun becomes singular where the count was not one."""
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
    """Whether no two sides of a quadrilateral with an area cross or lie on each other; exact, in rational numbers."""
    points = [(Fraction(x), Fraction(y)) for x, y in corners]

    def turn(a: tuple, b: tuple, c: tuple) -> Fraction:
        return (b[0] - a[0]) * (c[1] - b[1]) - (b[1] - a[1]) * (c[0] - b[0])

    def folds_back(a: tuple, b: tuple, c: tuple) -> bool:
        forward = (b[0] - a[0]) * (c[0] - b[0]) + (b[1] - a[1]) * (c[1] - b[1])
        return turn(a, b, c) == 0 and forward < 0

    def cross(a: tuple, b: tuple, c: tuple, d: tuple) -> bool:
        return turn(a, b, c) * turn(a, b, d) < 0 and turn(c, d, a) * turn(c, d, b) < 0

    if any(folds_back(points[i - 2], points[i - 1], points[i]) for i in range(4)):
        return False  # a corner on another side folds back at one of that side's ends
    a, b, c, d = points
    return not cross(a, b, c, d) and not cross(b, c, d, a)


def box_polygon(values: Sequence[float], image_size: tuple[int, int]) -> np.ndarray:
    """f32[8], the corners in pixels of the original (width, height) image, of 4 or 8 fractions of its square."""
    corners = np.asarray(values)
    if len(values) == 4:
        x0, y0, x1, y1 = values
        corners = np.array([x0, y0, x1, y0, x1, y1, x0, y1], np.float32)
    side, *offset = padding(*image_size)
    return (corners.astype(np.float64).reshape(-1, 2) * side - offset).reshape(-1).astype(np.float32)


# ------------------------------------------------------------------------------------------ tokenizer
class EarthGPTTokenizer(PreTrainedTokenizer):
    """LLaMA's `tokenizer.model` through `sentencepiece` itself, whose ids the model was trained with."""

    vocab_files_names = {"vocab_file": "tokenizer.model"}  # noqa: RUF012  (transformers reads class attributes)
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012
    padding_side = "left"

    def __init__(self, vocab_file: str, **kwargs):
        self.vocab_file = vocab_file
        self.sp = sentencepiece.SentencePieceProcessor(model_file=vocab_file)
        for name in ("unk", "bos", "eos"):
            kwargs.setdefault(f"{name}_token", self.sp.id_to_piece(getattr(self.sp, f"{name}_id")()))
        kwargs.setdefault("pad_token", self.sp.id_to_piece(PAD_ID))
        super().__init__(**kwargs)

    @property
    def vocab_size(self) -> int:
        return self.sp.vocab_size()

    def get_vocab(self) -> dict[str, int]:
        return {self.sp.id_to_piece(i): i for i in range(self.vocab_size)}

    def text_ids(self, text: str) -> list[int]:
        """Ids of a plain text: without BOS, and `<s>` in it is three characters and not a mark."""
        return self.sp.encode(text)

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        return [self.bos_token_id, *token_ids_0, *(token_ids_1 or ())]

    def _tokenize(self, text: str, **kwargs) -> list[str]:
        return self.sp.encode(text, out_type=str)

    def _convert_token_to_id(self, token: str) -> int:
        return self.sp.piece_to_id(token)

    def _convert_id_to_token(self, index: int) -> str:
        return self.sp.id_to_piece(index)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return self.sp.decode(tokens)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        path = Path(save_directory) / f"{f'{filename_prefix}-' if filename_prefix else ''}tokenizer.model"
        if path.resolve() != Path(self.vocab_file).resolve():
            shutil.copyfile(self.vocab_file, path)
        return (str(path),)


# ------------------------------------------------------------------------------------------ processor
class EarthGPTProcessor(ProcessorMixin):
    """Questions or dialogues and their images -> what the model takes; what it generates -> answers and boxes.

    Args:
        tokenizer: `EarthGPTTokenizer`.
        image_size: S, side of the square that the model takes.
        visual_tokens: P, an image's tokens.
        conversation: prefix, roles and separator of the dialogues that the model was trained with.
    """

    def __init__(self, tokenizer=None, image_size: int = 0, visual_tokens: int = 0, conversation: dict | None = None):
        self.image_size = image_size
        self.visual_tokens = visual_tokens
        self.conversation = conversation or {}
        super().__init__(tokenizer)

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "image_slots", "pixel_values"]

    def __call__(self, images=None, text=None, return_tensors: str | None = None, **kwargs) -> BatchFeature:
        """Rows to generate from, padded on the left.

        Args:
            images: None, or one image a row: Pillow's, u8[h, w, 3], a file's bytes or path; None for a row without.
            text: a question, or several; or whole dialogues as `apply_chat_template` writes them.
            return_tensors: "pt", or None for numpy.
            **kwargs: what other processors know (`padding`, ...) is accepted and changes nothing.

        Returns:
            input_ids, attention_mask and image_slots i64[B, T]; with images pixel_values u8[B, 3, S, S].
        """
        texts = [text] if isinstance(text, str) else list(text or ())
        if not texts:
            raise ValueError("text: expected a question or a dialogue, got none")
        images = _one_a_row(images, len(texts))
        rows = [self._row(text, image is not None) for text, image in zip(texts, images, strict=True)]
        length = max(len(ids) for ids, _ in rows)

        def padded(values: list[int], fill: int) -> list[int]:
            return [fill] * (length - len(values)) + values

        data = {
            "input_ids": np.array([padded(ids, PAD_ID) for ids, _ in rows]),
            "attention_mask": np.array([padded([1] * len(ids), 0) for ids, _ in rows]),
            "image_slots": np.array([padded(slots, TEXT_SLOT) for _, slots in rows]),
        }
        if any(image is not None for image in images):
            blank = np.zeros((self.image_size, self.image_size, 3), np.uint8)  # of a row whose slots never ask for it
            squares = [blank if image is None else load_square(image, self.image_size) for image in images]
            data["pixel_values"] = np.stack(squares).transpose(0, 3, 1, 2)
        return BatchFeature(data, tensor_type=return_tensors)

    def _row(self, text: str, has_image: bool) -> tuple[list[int], list[int]]:
        """Ids and image slots of one prompt."""
        prefix = self.conversation["prefix"]
        if not text.startswith(prefix):
            text = self.dialogue([text]) + self._opening()
        shared = self.tokenizer.text_ids(prefix)
        # As in training: the prefix by itself, the turns as they come out behind it in a joint tokenisation.
        ids = [*shared, *self.tokenizer.text_ids(text)[len(shared) :]]
        image = [START_SLOT, *range(self.visual_tokens), END_SLOT] if has_image else []
        slots = [TEXT_SLOT, *image, *([TEXT_SLOT] * len(ids))]
        return [self.tokenizer.bos_token_id, *([0] * len(image)), *ids], slots

    def dialogue(self, messages: Sequence[str]) -> str:
        """The text of a dialogue: what the human and the assistant say in turn, the human first."""
        roles, separator = self.conversation["roles"], self.conversation["separator"]
        turns = (f" {roles[i % 2]}: {message}{separator}" for i, message in enumerate(messages))
        return self.conversation["prefix"] + "".join(turns)

    def _opening(self) -> str:
        """How an answer begins that is to be generated."""
        return f" {self.conversation['roles'][1]}:"

    def apply_chat_template(  # type: ignore[override]  # there is no template but the model's own
        self,
        conversation: list,
        *,
        add_generation_prompt: bool = False,
        tokenize: bool = False,
        return_dict: bool = True,
        return_tensors: str | None = None,
        **kwargs,
    ) -> str | list[str] | BatchFeature | np.ndarray:
        """Messages (`role` user or assistant, `content` a text or a list of image and text items) -> a prompt.

        The image stands behind BOS, wherever in the dialogue its item is; there is one at most. It is the item's
        "image" or "path", or is given to the processor beside the text.

        Args:
            conversation: the messages of a dialogue, or several dialogues' messages.
            add_generation_prompt: end with the beginning of an answer.
            tokenize: return the processor's output, or with `return_dict=False` its ids, instead of text.
        """
        several = bool(conversation) and not isinstance(conversation[0], dict)
        texts, images = [], []
        for messages in conversation if several else [conversation]:
            contents, found = _read_messages(messages)
            texts.append(self.dialogue(contents) + (self._opening() if add_generation_prompt else ""))
            images.append(found)
        if not tokenize:
            return texts if several else texts[0]
        if any(image is None for found in images for image in found):
            raise ValueError('messages: expected an image item to hold "image" or "path" where ids are asked for')
        output = self(images=images, text=texts, return_tensors=return_tensors)
        return output if return_dict else output["input_ids"]

    def decode(self, token_ids, **kwargs) -> str:
        """The answer in generated ids (without the prompt's): up to EOS or the separator, whichever is first."""
        ids = np.asarray(token_ids).reshape(-1).tolist()
        kept = itertools.takewhile(lambda token: token != self.tokenizer.eos_token_id, ids)
        text = self.tokenizer.sp.decode([token for token in kept if token != PAD_ID])
        return text.split(self.conversation["separator"])[0].strip()

    def batch_decode(self, sequences, **kwargs) -> list[str]:
        """An answer a row of generated ids: `model.generate(**inputs)[:, inputs["input_ids"].shape[1]:]`."""
        return [self.decode(row) for row in sequences]

    def post_process_image_text_to_text(self, generated_outputs, skip_special_tokens=True, **kwargs) -> list[str]:
        """Everything in each row, prompt included, but the separator at its end: what pipelines ask for."""
        rows = ([token for token in np.asarray(row).tolist() if token != PAD_ID] for row in generated_outputs)
        return [self.tokenizer.sp.decode(row).removesuffix(self.conversation["separator"]) for row in rows]

    def post_process_boxes(self, text: str, image_size: tuple[int, int]) -> list[dict]:
        """The boxes in an answer about a (width, height) image.

        Returns:
            For each `label` ("" where it has none), `kind` ("hbb" or "obb") and `polygon`: f32[8], x1,y1,...,x4,y4
            in pixels of the original image.
        """
        return [
            {"label": label, "kind": "hbb" if len(values) == 4 else "obb", "polygon": box_polygon(values, image_size)}
            for label, values in parse_boxes(text)
        ]


def _one_a_row(images, rows: int) -> list:
    """One image or None a row; a row may hold its image in a list of its own."""
    if images is None:
        return [None] * rows
    images = list(images) if isinstance(images, (list, tuple)) else [images]
    if len(images) != rows:
        raise ValueError(f"images: expected one a text (None for none), got {len(images)} for {rows} texts")
    images = [image if isinstance(image, (list, tuple)) else [image] for image in images]
    if max(map(len, images)) > 1:
        raise ValueError("images: expected one a dialogue at most, as the model was trained; got several")
    return [image[0] if image else None for image in images]


def _read_messages(messages: list[dict]) -> tuple[list[str], list]:
    """What is said in turn, and the images."""
    contents, images = [], []
    for message, role in zip(messages, itertools.cycle(("user", "assistant"))):
        if message["role"] != role:
            raise ValueError(f"messages: expected user and assistant in turn, user first; got {message['role']!r}")
        content = message["content"]
        items = [{"type": "text", "text": content}] if isinstance(content, str) else content
        contents.append("\n".join(item["text"] for item in items if item["type"] == "text"))
        images += [item.get("image", item.get("path")) for item in items if item["type"] == "image"]
    return contents, images
