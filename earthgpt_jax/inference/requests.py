"""What goes into the engine and what comes out: requests about an image, and their answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """One question about an image.

    Attributes:
        id: unique among the requests of one call; it also selects the random numbers of sampling.
        text: the question.
        max_new_tokens: the answer is cut off after this number of tokens.
        history: earlier turns of a dialogue as (question, answer), which precede this question.
    """

    id: str
    text: str
    max_new_tokens: int
    history: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageRequests:
    """An image and all questions about it; the image is encoded once for all of them.

    Attributes:
        image: returns the square image, u8[S, S, 3]; called only when the image is about to be encoded.
        requests: at least one.
    """

    image: Callable[[], np.ndarray]
    requests: Sequence[Request]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer to a request.

    Attributes:
        id: id of the request.
        text: the answer without its stop sequence and surrounding white space.
        tokens: i32[n], all generated tokens, including those of the stop sequence.
        logprobs: f32[n], log-probability of each token given the tokens before it.
        token_lengths: number of characters of `text` that each of the first tokens contributes; they sum to
            `len(text)`. Tokens beyond these belong to the stop sequence.
    """

    id: str
    text: str
    tokens: np.ndarray
    logprobs: np.ndarray
    token_lengths: tuple[int, ...] = ()
