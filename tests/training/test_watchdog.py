"""The watchdog ends a hanging process with the stacks of its threads, and leaves a running one alone."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time

import pytest

from earthgpt_jax.training.lifecycle import Watchdog

HANG = """
import sys, threading, time, ctypes
from pathlib import Path
from earthgpt_jax.training.lifecycle import Watchdog

def the_step_that_hangs():
    {hang}

with Watchdog(seconds=1, report=Path(sys.argv[1]) / "hang" / "process-0.txt", grace=0.5) as watchdog:
    for _ in range(15):  # in total longer than a single step may take
        time.sleep(0.1)
        watchdog.heartbeat()
    the_step_that_hangs()
"""


def _hung(tmp_path, hang: str) -> subprocess.CompletedProcess:
    code = textwrap.dedent(HANG).replace("{hang}", hang)
    return subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=300)


def test_a_hanging_step_ends_the_process_and_writes_the_stacks(tmp_path):
    done = _hung(tmp_path, "threading.Event().wait()")
    assert done.returncode == 75, done.stderr
    report = (tmp_path / "hang" / "process-0.txt").read_text()
    for text in (report, done.stderr):
        assert "the_step_that_hangs" in text and "after 15 steps since this start" in text
        assert text.count("most recent call first") >= 2  # the thread of the watchdog and the hanging one
    assert str(tmp_path / "hang" / "process-0.txt") in done.stderr


def test_the_process_ends_even_if_the_report_cannot_be_written(tmp_path):
    (tmp_path / "hang").write_text("a file, not a folder")
    done = _hung(tmp_path, "threading.Event().wait()")
    assert done.returncode == 75 and "could not be written" in done.stderr and "the_step_that_hangs" in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="loads libc.so.6")
def test_a_hang_that_holds_the_interpreter_lock_ends_too(tmp_path):
    done = _hung(tmp_path, "ctypes.PyDLL('libc.so.6').sleep(30)")
    assert done.returncode == 1 and "the_step_that_hangs" in done.stderr


def test_a_run_with_heartbeats_continues_and_nothing_is_watched_after_it(tmp_path):
    with Watchdog(seconds=1, report=tmp_path / "report", grace=1) as watchdog:
        for _ in range(15):
            time.sleep(0.1)
            watchdog.heartbeat()
    time.sleep(2.5)
    with Watchdog(seconds=0, report=tmp_path / "report"):
        time.sleep(0.3)
    assert not (tmp_path / "report").exists()
