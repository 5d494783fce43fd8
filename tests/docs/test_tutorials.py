"""Every command of the tutorials runs as written, in an empty folder, at a smaller size."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TUTORIALS = ROOT / "docs" / "tutorials"

# What makes a tutorial small. Each rule must apply somewhere, so that no tutorial grows unnoticed.
SMALLER = {
    r"--count \d+": "--count 24",
    r"--config\.optim\.steps=\d+": "--config.optim.steps=4 --config.optim.warmup_steps=1 --config.data.batch_size=4",
    r"--limit \d+": "--limit 2",
    r"range\(120\)": "range(24)",
}
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, code) of every block of a page that a reader is to run, in order; ```text blocks are not."""
    return [(match[1], match[2]) for match in BLOCK.finditer(page.read_text(encoding="utf-8"))]


def smaller(code: str) -> str:
    for pattern, replacement in SMALLER.items():
        code = re.sub(pattern, replacement, code)
    return code


def run(code: str, language: str, folder: Path) -> None:
    command = ["bash", "-euo", "pipefail", "-c", code] if language == "bash" else [sys.executable, "-c", code]
    environment = {
        **os.environ,
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", "").replace("--xla_force_host_platform_device_count=8", ""),
    }
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{code}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """An empty folder, with programs `earthgpt` and `python` that run this checkout."""
    (tmp_path / "bin").mkdir()
    for name, arguments in {"earthgpt": "-m earthgpt_jax", "python": ""}.items():
        program = tmp_path / "bin" / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n')
        program.chmod(0o755)
    yield tmp_path
    for file in tmp_path.glob("*.pid"):  # of servers that a failed block left
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(file.read_text()), signal.SIGKILL)


PAGES = sorted(path for path in TUTORIALS.glob("*.md") if blocks(path))


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_each_block_of_a_tutorial_runs(page: Path, folder: Path) -> None:
    for language, code in blocks(page):
        run(smaller(code), language, folder)


@pytest.mark.slow
def test_the_python_of_the_readme_runs(folder: Path) -> None:
    python = [code for language, code in blocks(ROOT / "README.md") if language == "python"]
    assert len(python) == 1
    run(python[0], "python", folder)


def test_each_rule_that_makes_tutorials_smaller_applies() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [pattern for pattern in SMALLER if not re.search(pattern, text)] == []


def test_the_tutorials_are_all_there() -> None:
    index = (TUTORIALS / "index.md").read_text(encoding="utf-8")
    assert [page.name for page in PAGES if f"({page.name})" not in index] == []
