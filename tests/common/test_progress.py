"""Progress bars: in place on a terminal, lines elsewhere."""

from __future__ import annotations

import io
import sys
import time

import pytest

from earthgpt_jax.common import progress
from earthgpt_jax.common.progress import Bar


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("leave", [True, False])
def test_a_log_file_gets_whole_lines_without_carriage_returns(monkeypatch, leave):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.05)
    for _ in Bar(range(8), desc="work", unit="item", leave=leave):
        time.sleep(0.03)
    lines = log.getvalue().splitlines()
    assert 2 <= len(lines) <= 8
    assert "\r" not in log.getvalue()
    assert all(
        line.startswith("work: ") and "/8 [" in line and ("item/s" in line or "s/item" in line) for line in lines
    )
    assert not leave or "100%" in lines[-1]


def test_short_work_leaves_no_line_in_a_log_file(monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    assert list(Bar(range(1000), desc="work")) == list(range(1000))
    assert log.getvalue() == ""


def test_a_terminal_gets_a_bar_in_place(monkeypatch):
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    list(Bar(range(3), desc="work"))
    assert "\r" in terminal.getvalue()
    assert "3/3" in terminal.getvalue()
