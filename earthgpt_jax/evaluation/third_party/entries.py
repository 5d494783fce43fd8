"""The entries of another project's file: JSON Lines, a JSON list, or Falcon's object with a list in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.input.prompts.derived import DerivedTask
from earthgpt_jax.records import Task

Entry = dict[str, Any]

# Falcon's names of tasks.
_FALCON_TASKS: Mapping[str, str] = {
    "IMG_CLS": Task.CLASSIFICATION, "REG_CLS_HBB": Task.CLASSIFICATION, "REG_CLS_OBB": Task.CLASSIFICATION,
    "IMG_CAP": Task.CAPTION, "IMG_CAP_DETAILED": Task.CAPTION, "REG_CAP": Task.CAPTION, "IMG_VQA": Task.VQA,
    "IMG_CT": DerivedTask.COUNT, "REG_DET_HBB": Task.HBB, "REG_DET_OBB": Task.OBB, "REG_VG": Task.GROUNDING,
}  # fmt: skip


def read_document(path: Path) -> Any:
    """Return the JSON value of a file; a list for JSON Lines. A byte order mark is skipped.

    Raises:
        EarthGPTError: the file cannot be read, or is not JSON; names the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise EarthGPTError(f"predictions {path}: cannot be read ({error})") from error
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        problem = error
    # Only line feeds separate JSON Lines: U+2028 and others may occur within a text.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if len(lines) < 2 or text.lstrip()[:1] != "{":
        if not lines:
            return []
        raise EarthGPTError(f"{path}: expected a JSON list or JSON Lines ({problem})")
    values = []
    for number, line in lines:
        try:
            values.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise EarthGPTError(f"{path}, line {number}: expected a JSON list or JSON Lines ({error})") from error
    return values


def unpack(document: Any, path: Path) -> tuple[list[Entry], str | None]:
    """Return the entries of a document, and its task if it names one.

    Raises:
        EarthGPTError: there are no entries, or one is something other than an object; names the entry.
    """
    task = None
    if isinstance(document, dict) and isinstance(document.get("data"), list):
        info = document["info"] if isinstance(document.get("info"), dict) else document
        task = _FALCON_TASKS.get(str(info.get("task")))
        document = document["data"]
    entries = [document] if isinstance(document, dict) else document
    if not isinstance(entries, list):
        raise EarthGPTError(f"{path}: expected a list of entries, got {type(entries).__name__}")
    if not entries:
        raise EarthGPTError(f"{path}: expected predictions, got an empty file")
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict):
            raise EarthGPTError(f"{path}, entry {number}: expected a JSON object, got {type(entry).__name__}")
    return entries, str(task) if task else None
