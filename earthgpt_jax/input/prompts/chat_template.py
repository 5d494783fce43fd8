"""Chat templates: the text of a dialogue, and which of its characters are supervised."""

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
    """LLaMA2-Accessory's `conv_v1_2`: the system text, then ` Human: Q\\n###` and ` Assistant: A\\n###` in turn.

    Answers and the separators that follow them are supervised.
    """

    name: str
    system: str

    @property
    def prefix(self) -> str:
        """The text before the first turn, which all questions about an image share."""
        return f"{self.system}\n\n###"

    def turn(self, question: str, answer: str) -> str:
        """Return the text of one turn."""
        return f" {HUMAN}: {question}{SEPARATOR} {ASSISTANT}: {answer}{SEPARATOR}"

    def open_turn(self, question: str) -> str:
        """Return the text of a turn up to its answer, which is to be generated."""
        return f" {HUMAN}: {question}{SEPARATOR} {ASSISTANT}:"

    def dialogue(self, turns: Sequence[tuple[str, str]]) -> tuple[str, list[tuple[int, int]]]:
        """Return the text of a dialogue, and its supervised spans as `(start, end)` in characters."""
        text, spans = self.prefix, []
        for question, answer in turns:
            text += self.turn(question, answer)
            # The span begins with the space after "Assistant:", which is part of the answer's first token.
            spans.append((len(text) - len(answer) - len(SEPARATOR) - 1, len(text)))
        return text, spans

    def separator_ids(self, tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
        """Return every sequence of ids that can end an answer.

        LLaMA's tokenizer has a single one, [13, 2277, 29937]. A tokenizer that merges a full stop with the next
        character has another one for answers that end with a full stop. So the separator is tokenized after each
        character.
        """
        endings = set()
        for last in string.ascii_letters + string.digits + string.punctuation + " \n":
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
    """Return a template by name: `v1` has SPHINX's system text, `plain` has none.

    Raises:
        EarthGPTError: Unknown name; the message suggests the nearest one.
    """
    if name not in _ALL:
        raise EarthGPTError(f"chat template {name!r}: expected one of {', '.join(_ALL)}{did_you_mean(name, _ALL)}")
    return _ALL[name]
