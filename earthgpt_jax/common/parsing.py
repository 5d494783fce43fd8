"""Parse JSON and YAML that anybody may have written: all that can be wrong ends in one error that names its place."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

from earthgpt_jax.common.errors import EarthGPTError

# An escaped surrogate without its other half. JSON allows it, but no file can hold the character.
_LONE_SURROGATE = re.compile(
    r"""(?<!\\)((?:\\\\)*)                      # not the end of an escaped backslash
        \\u(?:[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})
          |(?<!\\u[dD][89abAB][0-9a-fA-F]{2}\\u)[dD][c-fC-F][0-9a-fA-F]{2})""",
    re.VERBOSE,
)


def parse_json(text: str | bytes, *, where: str, advice: str = "") -> Any:
    """Return the value of a JSON document. A byte order mark is skipped, a lone surrogate becomes U+FFFD.

    Args:
        where: origin of the text, for the error message.
        advice: what the user can do about a damaged document, for the error message.

    Raises:
        EarthGPTError: it is not JSON, is nested too deeply, or has a number of thousands of digits.
    """
    try:
        content = text.decode("utf-8-sig") if isinstance(text, bytes) else text.removeprefix("\ufeff")
        if "\\ud" in content or "\\uD" in content:
            content = _LONE_SURROGATE.sub(r"\1\\ufffd", content)
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _not(error, "JSON", where, advice) from error


def parse_yaml(text: str | bytes, *, where: str, advice: str = "") -> Any:
    """Return the value of a YAML document; see `parse_json`.

    Aliases are refused: with them, a few lines can stand for gigabytes.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _not(error, "YAML", where, advice) from error


def _not(error: Exception, language: str, where: str, advice: str) -> EarthGPTError:
    reason = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())[:300]
    return EarthGPTError(f"{where}: cannot be read as {language}: {reason}{f'; {advice}' if advice else ''}")


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"line {self.peek_event().start_mark.line + 1}: aliases (*name) are not supported")
        return super().compose_node(parent, index)
