"""Build samples and packed sequences: an image with its questions becomes tokens, and samples share a sequence.

A sample is `[BOS][start_img] P visual tokens [end_img] system text`, followed by its turns; a tokenizer that starts no
text with BOS leaves it out. Turns are either
independent questions, each of which continues from the shared prefix, or one dialogue. A packed sequence concatenates
samples, one segment per sample.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int32, UInt8, UInt16

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.config import QuestionContext
from earthgpt_jax.input.batch import END_SLOT, START_SLOT, TEXT_SLOT, Batch
from earthgpt_jax.input.prompts.chat_template import ChatTemplate
from earthgpt_jax.input.prompts.questions import Question
from earthgpt_jax.input.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """One image and its turns as L tokens.

    Attributes:
        tokens, positions, question_index, loss_weights: As in `Batch`.
        image_slots: As in `Batch`, with visual tokens counted from 0.
        id: The questions, as in `Batch.ids`.
        unlisted: Objects that the answers count without listing.
    """

    tokens: Int32[np.ndarray, " L"]
    positions: Int32[np.ndarray, " L"]
    question_index: Int32[np.ndarray, " L"]
    loss_weights: Float32[np.ndarray, " L"]
    image_slots: Int32[np.ndarray, " L"]
    id: str = ""
    unlisted: int = 0

    def __len__(self) -> int:
        return len(self.tokens)


@functools.lru_cache(maxsize=16)
def _prefix_ids(tokenizer: Tokenizer, chat_template: ChatTemplate) -> tuple[int, ...]:
    return tuple(tokenizer.encode(chat_template.prefix))


def image_prefix(
    tokenizer: Tokenizer, chat_template: ChatTemplate, *, visual_tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return `(tokens, image_slots)`, each i32[n], of the shared prefix: BOS, the image's slots, the system text."""
    text = _prefix_ids(tokenizer, chat_template)
    start = tokenizer.start_ids
    image = [START_SLOT, *range(visual_tokens), END_SLOT]
    slots = [*([TEXT_SLOT] * len(start)), *image, *([TEXT_SLOT] * len(text))]
    tokens = [*start, *([0] * len(image)), *text]  # ids in the image's slots are not read
    return np.array(tokens, np.int32), np.array(slots, np.int32)


def turn_ids(
    tokenizer: Tokenizer, chat_template: ChatTemplate, question: str, answer: str
) -> tuple[list[int], list[float]]:
    """Return the token ids of one turn and their loss weights.

    The ids are those that the turn has after the prefix when both are tokenized together, and then the token at which
    the answer ends, if the chat template has one.
    """
    shared = len(_prefix_ids(tokenizer, chat_template))
    text, ((start, _),) = chat_template.dialogue([(question, answer)])
    ids, spans = tokenizer.encode_with_spans(text)
    end = chat_template.end_ids(tokenizer)
    return [*ids[shared:], *end], [
        *(1.0 if begin >= start else 0.0 for begin, _ in spans[shared:]),
        *([1.0] * len(end)),
    ]


def open_turn_ids(
    tokenizer: Tokenizer, chat_template: ChatTemplate, question: str, *, history: Sequence[tuple[str, str]] = ()
) -> list[int]:
    """Return the token ids of a turn up to where its answer begins, after those of earlier (question, answer) turns.

    Earlier turns are tokenized one by one, as in training with `data.question_context=dialogue`.
    """
    shared = len(_prefix_ids(tokenizer, chat_template))
    earlier = [token for turn in history for token in turn_ids(tokenizer, chat_template, *turn)[0]]
    return earlier + tokenizer.encode(chat_template.prefix + chat_template.open_turn(question))[shared:]


def generation_prompt(
    tokenizer: Tokenizer, chat_template: ChatTemplate, question: str, *, visual_tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return `(tokens, image_slots)`, each i32[n], to generate an answer from: the first n tokens in training."""
    tokens, slots = image_prefix(tokenizer, chat_template, visual_tokens=visual_tokens)
    turn = np.array(open_turn_ids(tokenizer, chat_template, question), np.int32)
    return np.concatenate([tokens, turn]), np.concatenate([slots, np.full_like(turn, TEXT_SLOT)])


def build_sample(
    questions: Sequence[Question],
    *,
    prefix: tuple[np.ndarray, np.ndarray],
    tokenizer: Tokenizer,
    chat_template: ChatTemplate,
    question_context: QuestionContext = QuestionContext.INDEPENDENT,
    id: str = "",
) -> Sample:
    """Build the sample of one image from its questions, in the given order.

    Args:
        prefix: Tokens and image slots of the shared prefix, from `image_prefix`.
        question_context: Whether a question attends to those before it.
        id: See `Sample.id`.
    """
    shared, slots = prefix
    turns = [turn_ids(tokenizer, chat_template, question.text, question.answer) for question in questions]
    lengths = [len(ids) for ids, _ in turns]
    tokens = np.concatenate([shared, *(ids for ids, _ in turns)]).astype(np.int32)
    if question_context is QuestionContext.DIALOGUE:
        positions, question_index = np.arange(len(tokens)), np.zeros(len(tokens))
    else:
        ranges = [np.arange(len(shared)), *(np.arange(len(shared), len(shared) + length) for length in lengths)]
        positions = np.concatenate(ranges)
        question_index = np.repeat(np.arange(1 + len(questions)), [len(shared), *lengths])
    return Sample(
        tokens=tokens,
        positions=positions.astype(np.int32),
        question_index=question_index.astype(np.int32),
        loss_weights=np.concatenate([np.zeros(len(shared)), *(weights for _, weights in turns)]).astype(np.float32),
        image_slots=np.concatenate([slots, np.full(sum(lengths), TEXT_SLOT)]).astype(np.int32),
        id=id,
        unlisted=sum(question.unlisted for question in questions),
    )


def pack_samples(
    samples: Sequence[Sample],
    *,
    seq_len: int,
    visual_tokens: int,
    images: UInt8[np.ndarray, "I S S 3"] | UInt16[np.ndarray, "I F"] | None = None,
    damaged: int = 0,
) -> Batch:
    """Pack samples into one sequence, a batch with B = 1, and pad it to T = `seq_len` tokens.

    The image of the i-th sample gets the slots i * P to i * P + P - 1.

    Args:
        images: Squares or features of the samples in order, then padding; None for I = 0.
        damaged: See `Batch.damaged`.

    Raises:
        EarthGPTError: The samples are longer than `seq_len`.
    """
    length = sum(map(len, samples))
    if length > seq_len:
        raise EarthGPTError(
            f"packed sequence: expected samples of at most {seq_len} tokens in total, got {length}; ask fewer questions"
        )

    def padded(name: str, *, fill: int = 0, dtype: type = np.int32) -> np.ndarray:
        return _padded([getattr(sample, name) for sample in samples], seq_len, fill=fill, dtype=dtype)

    segments = _padded([np.full(len(sample), number, np.int32) for number, sample in enumerate(samples, 1)], seq_len)
    slots = padded("image_slots", fill=TEXT_SLOT)
    return Batch(
        tokens=padded("tokens"),
        positions=padded("positions"),
        segments=segments,
        question_index=padded("question_index"),
        loss_weights=padded("loss_weights", dtype=np.float32),
        images=np.zeros((1, 0, 0, 0, 3), np.uint8) if images is None else images[None],
        image_slots=np.where(slots >= 0, slots + (segments - 1) * visual_tokens, slots),
        unlisted=np.array([sum(sample.unlisted for sample in samples)], np.int32),
        damaged=np.array([damaged], np.int32),
        ids=(tuple(sample.id for sample in samples),),
    )


def _padded(parts: Sequence[np.ndarray], length: int, *, fill: int = 0, dtype: type = np.int32) -> np.ndarray:
    """Concatenate parts into [1, length]."""
    values: np.ndarray = np.full((1, length), fill, dtype)
    joined = np.concatenate([*parts, np.zeros(0, dtype)])
    values[0, : len(joined)] = joined
    return values
