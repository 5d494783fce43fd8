"""The question that is asked about each window."""

from __future__ import annotations

from earthgpt_jax.boxes import plural, singular
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.input.prompts.templates import choose_template
from earthgpt_jax.scenes.detection import SceneQuestion


def question(boxes: str, *, prompt: str | None = None, max_new_tokens: int = 448) -> SceneQuestion:
    """Return the question for all objects, or for one class.

    Args:
        boxes: `hbb` or `obb`.
        prompt: a class such as `ships`, singular or plural, or a whole question: a text that ends in `.` or `?`.
        max_new_tokens: longest answer.

    Raises:
        EarthGPTError: the prompt is empty.
    """
    if prompt is None:
        return SceneQuestion.detect(boxes, max_new_tokens=max_new_tokens)
    text = " ".join(prompt.split())
    if not text:
        raise EarthGPTError("--prompt: expected a class such as 'ships', or a question; got nothing")
    if text.endswith((".", "?")):
        return SceneQuestion(text=text, max_new_tokens=max_new_tokens)
    label = singular(text.lower())
    template = choose_template(f"class_{boxes}", None).text
    return SceneQuestion(
        text=template.format(label=label, plural=plural(label)), max_new_tokens=max_new_tokens, label=label
    )
