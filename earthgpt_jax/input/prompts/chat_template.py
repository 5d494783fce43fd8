"""Chat templates: the text of a dialogue, how its answers end, and what of it is supervised."""

from __future__ import annotations

import dataclasses
import enum
import string
from collections.abc import Sequence

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.names import did_you_mean
from earthgpt_jax.input.tokenizer import Tokenizer

SEPARATOR = "\n###"
HUMAN, ASSISTANT = "Human", "Assistant"


class AnswerEnd(enum.StrEnum):
    """What a model writes at the end of an answer.

    separator: the characters `\\n###`, as in LLaMA2-Accessory. eos: the tokenizer's EOS token, at which every program
    that generates text stops by itself.
    """

    SEPARATOR = "separator"
    EOS = "eos"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """LLaMA2-Accessory's `conv_v1_2`: the system text, then ` Human: Q\\n###` and ` Assistant: A\\n###` in turn.

    Answers and their ends are supervised. With `AnswerEnd.EOS`, the EOS token takes the place of the separator after an
    answer; it is a token, not text (`end_ids`).
    """

    name: str
    system: str
    answer_end: AnswerEnd = AnswerEnd.SEPARATOR

    @property
    def prefix(self) -> str:
        """The text before the first turn, which all questions about an image share."""
        return f"{self.system}\n\n###"

    def turn(self, question: str, answer: str) -> str:
        """Return the text of one turn."""
        return f"{self.open_turn(question)} {answer}{self._end_text}"

    @property
    def _end_text(self) -> str:
        return SEPARATOR if self.answer_end is AnswerEnd.SEPARATOR else ""

    def end_ids(self, tokenizer: Tokenizer) -> list[int]:
        """Return the supervised tokens that follow the text of a turn: EOS, or none.

        Raises:
            EarthGPTError: Answers end with EOS, and the tokenizer has none.
        """
        if self.answer_end is AnswerEnd.SEPARATOR:
            return []
        if tokenizer.eos_id is None:
            raise EarthGPTError(
                f"chat template {self.name!r}: expected a tokenizer with an EOS token, got one without; choose "
                f"{self.name.removesuffix(_EOS_SUFFIX)!r}, whose answers end with a separator"
            )
        return [tokenizer.eos_id]

    def open_turn(self, question: str) -> str:
        """Return the text of a turn up to its answer, which is to be generated."""
        return f" {HUMAN}: {question}{SEPARATOR} {ASSISTANT}:"

    def dialogue(self, turns: Sequence[tuple[str, str]]) -> tuple[str, list[tuple[int, int]]]:
        """Return the text of a dialogue, and its supervised spans as `(start, end)` in characters.

        Turns whose answers end with EOS follow each other without a separator; `sequences.turn_ids` puts EOS there.
        """
        text, spans = self.prefix, []
        for question, answer in turns:
            text += self.turn(question, answer)
            # The span begins with the space after "Assistant:", which is part of the answer's first token.
            spans.append((len(text) - len(answer) - len(self._end_text) - 1, len(text)))
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
_EOS_SUFFIX = "_eos"
_ALL = {
    template.name: template
    for name, system in (("v1", _V1), ("plain", ""))
    for template in (
        ChatTemplate(name=name, system=system),
        ChatTemplate(name=name + _EOS_SUFFIX, system=system, answer_end=AnswerEnd.EOS),
    )
}


def chat_template(name: str) -> ChatTemplate:
    """Return a template by name.

    `v1` has SPHINX's system text, `plain` has none; their answers end with the separator. In `v1_eos` and `plain_eos`
    they end with the EOS token.

    Raises:
        EarthGPTError: Unknown name; the message suggests the nearest one.
    """
    if name not in _ALL:
        raise EarthGPTError(f"chat template {name!r}: expected one of {', '.join(_ALL)}{did_you_mean(name, _ALL)}")
    return _ALL[name]
