"""The benchmark of a start at nano size: the resumed run compiles nothing if it has its cache."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench" / "restart.py"


@pytest.mark.slow
def test_a_resumed_start_reads_all_its_programs_unless_the_cache_is_disabled():
    done = subprocess.run([sys.executable, SCRIPT, "--tiny"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    header, _, new, resumed, without = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines()
    )
    assert header[0] == "start" and header[-1] == "programs from the cache"
    programs = [row[-1].split(" of ") for row in (new, resumed, without)]
    assert programs[0][0] == "0"
    assert programs[1][0] == programs[1][1] != "0"
    assert without[-1].startswith("0 of ")
