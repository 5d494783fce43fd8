"""The compilation cache: a second start compiles nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

CODE = """
import dataclasses, functools, json, os, sys
from pathlib import Path
from earthgpt_jax import compilation
compilation.NOTICE_SECONDS = 0.1
compilation.enable_cache(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
import jax, jax.numpy as jnp
program = lambda x: functools.reduce(lambda y, i: jnp.sort(y * i, axis=0), range(1, 60), x).sum()
jax.jit(program)(jnp.ones((64, 8))).block_until_ready()
print(json.dumps(dataclasses.asdict(compilation.usage())))
"""


def _start(*arguments: object, **environment: str) -> tuple[dict, str]:
    """Compile a few programs in a process; return its usage of the cache and its standard error."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_COMP", "JAX_PERSISTENT"))}
    done = subprocess.run(
        [sys.executable, "-c", CODE, *map(str, arguments)], env=kept | environment, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    return json.loads(done.stdout), done.stderr


def test_a_second_start_compiles_nothing_and_is_silent(tmp_path):
    first, notice = _start(tmp_path / "programs")
    assert first["cached"] == 0 < first["programs"]
    assert "compiling for cpu" in notice and str(tmp_path / "programs") in notice and notice.count("\n") == 1
    # A process that was killed while it wrote leaves an entry without its time of use.
    torn = tmp_path / "programs" / "torn-cache"
    torn.write_bytes(b"half")
    os.utime(torn, (time.time() - 100,) * 2)
    second, notice = _start(tmp_path / "programs")
    assert second["cached"] == second["programs"] == first["programs"]
    assert notice == ""
    assert not torn.exists()


def test_the_folder_is_in_the_users_cache_unless_jax_is_told_another(tmp_path):
    usage, _ = _start(XDG_CACHE_HOME=str(tmp_path / "xdg"))
    assert len(list((tmp_path / "xdg/earthgpt_jax/programs").glob("*-cache"))) == usage["programs"]
    _start(tmp_path / "programs", JAX_COMPILATION_CACHE_DIR=str(tmp_path / "other"))
    assert (tmp_path / "other").is_dir() and not (tmp_path / "programs").exists()


@pytest.mark.parametrize("reason", ["disabled", "not a folder"])
def test_without_a_cache_programs_are_compiled(tmp_path, reason):
    (tmp_path / "file").write_text("")
    disabled = {"JAX_ENABLE_COMPILATION_CACHE": "0"} if reason == "disabled" else {}
    folder = tmp_path / ("programs" if disabled else "file/programs")
    usage, _ = _start(folder, **disabled)
    assert usage["cached"] == 0
    assert not Path(folder).exists()
