"""A second run in a work directory is refused as long as the first one lives."""

from __future__ import annotations

import subprocess
import sys

import pytest

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.training.workdir_lock import hold

# Holds a work directory; a child, as a data worker, survives it.
HOLDER = """
import os, sys, time
from pathlib import Path
from earthgpt_jax.training.workdir_lock import hold
with hold(Path(sys.argv[1])):
    if os.fork() == 0:
        os.close(1)
        time.sleep(20)
        os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_run_is_refused_until_the_first_process_has_ended(tmp_path):
    workdir = tmp_path / "runs" / "first"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(workdir)], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline() == "held\n"
            refused = rf"another run uses this work directory \(process {holder.pid} on .*choose another --workdir"
            with pytest.raises(EarthGPTError, match=refused), hold(workdir):
                pass
        finally:
            holder.kill()
    with hold(workdir):
        pass


def test_a_work_directory_that_is_a_file_is_named(tmp_path):
    path = tmp_path / "run"
    path.write_text("")
    with pytest.raises(EarthGPTError, match=r"run: cannot be written .*choose another --workdir"), hold(path):
        pass
