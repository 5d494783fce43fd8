"""Conversation templates: the text of a dialogue, and which characters of it are supervised."""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Sequence

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.names import did_you_mean
from earthgpt_jax.input.tokenizer import Tokenizer

SEPARATOR = "\n###"
HUMAN, ASSISTANT = "Human", "Assistant"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """LLaMA2-Accessory's `conv_v1_2`: system, then ` Human: Q\\n###` and ` Assistant: A\\n###` in turn.

    An answer and the separator behind it are supervised; everything else is not.
    """

    name: str
    system: str

    @property
    def prefix(self) -> str:
        """What stands before the first turn; shared by all questions about an image."""
        return f"{self.system}\n\n###"

    def turn(self, question: str, answer: str) -> str:
        return f" {HUMAN}: {question}{SEPARATOR} {ASSISTANT}: {answer}{SEPARATOR}"

    def open_turn(self, question: str) -> str:
        """A turn whose answer is to be generated."""
        return f" {HUMAN}: {question}{SEPARATOR} {ASSISTANT}:"

    def dialogue(self, turns: Sequence[tuple[str, str]]) -> tuple[str, list[tuple[int, int]]]:
        """The whole text, and the supervised `(start, end)` character spans."""
        text, spans = self.prefix, []
        for question, answer in turns:
            text += self.turn(question, answer)
            # From behind "Assistant:", because the answer's first token takes the space in.
            spans.append((len(text) - len(answer) - len(SEPARATOR) - 1, len(text)))
        return text, spans

    def separator_ids(self, tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
        """Every id sequence that ends an answer.

        LLaMA's tokenizer has one, [13, 2277, 29937]; one that merges a full stop with what follows
        has another for answers that end in a full stop. So they are looked up behind each character.
        """
        endings = set()
        for last in string.ascii_letters + string.digits + string.punctuation:
            ids = tokenizer.encode(last + SEPARATOR)
            length = next(n for n in range(1, len(ids) + 1) if SEPARATOR in tokenizer.decode(ids[-n:]))
            endings.add(tuple(ids[-length:]))
        return tuple(sorted(endings))


_V1 = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
_ALL = {name: ChatTemplate(name=name, system=system) for name, system in (("v1", _V1), ("plain", ""))}


def chat_template(name: str) -> ChatTemplate:
    """A template by name: `v1` has SPHINX's system prompt, `plain` has none."""
    if name not in _ALL:
        raise EarthGPTError(f"chat template {name!r}: expected one of {', '.join(_ALL)}{did_you_mean(name, _ALL)}")
    return _ALL[name]
