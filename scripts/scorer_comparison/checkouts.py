"""Run the code of a checkout of another project, or parts of it."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import math
import os
import re
import runpy
import sys
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from scorer_comparison.answers import Entries


def functions(path: Path, *names: str, **given: Any) -> types.SimpleNamespace:
    """Return functions, classes and constants of a Python file or notebook, without running the rest of it."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
        text = "\n".join("".join(cell["source"]) for cell in cells)
    nodes = [node for node in ast.parse(text).body if _name(node) in names]
    namespace: dict[str, Any] = {"np": np, "re": re, "json": json, "os": os, "math": math, **given}
    exec(compile(ast.Module(body=nodes, type_ignores=[]), str(path), "exec"), namespace)
    return types.SimpleNamespace(**namespace)


def _name(node: ast.stmt) -> str:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return node.name
    return node.targets[0].id if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) else ""


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """Change to a temporary folder, and silence what their code prints."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
        os.chdir(name)
        try:
            yield Path(name)
        finally:
            os.chdir(before)


def run(path: Path, *arguments: str, **replaced: Any) -> dict[str, Any]:
    """Run a program of theirs in the current folder; return its global variables."""
    with mock.patch.object(sys, "argv", [str(path), *arguments]):
        return runpy.run_path(str(path), init_globals=replaced, run_name="__main__")


def write_lines(path: Path, entries: Entries) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return path


def without_sentences() -> None:
    """Let nltk tokenize without its model of sentences: their texts have no spaces, so they are single sentences."""
    import nltk.tokenize

    nltk.tokenize.sent_tokenize = lambda text, language="english": [text]
