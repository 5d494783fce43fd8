"""What a start costs: a resumed run reads its programs from the cache in its work directory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

SETTINGS = ("optim.steps=3", "checkpoint.every_steps=1", "checkpoint.keep=3")
WORDS = ["--config", "tiny:align:debug", *(f"--config.{setting}" for setting in SETTINGS)]


def _train(workdir: Path, *, hash_seed: int) -> tuple[list[dict], str]:
    """Run `earthgpt train`; return the lines of throughput.jsonl about starts, and standard error.

    Args:
        hash_seed: determines the order of sets, which may not change a program.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMPILATION")}
    environment["PYTHONHASHSEED"] = str(hash_seed)
    command = [sys.executable, "-m", "earthgpt_jax", "train", *WORDS, "--workdir", str(workdir)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = map(json.loads, (workdir / "throughput.jsonl").read_text().splitlines())
    return [line for line in lines if "startup" in line], done.stderr


def test_a_resumed_run_compiles_nothing_and_says_what_its_start_cost(tmp_path):
    starts, said = _train(tmp_path, hash_seed=1)
    phases = ["imports", "data", "weights", "state", "compile", "first step", "other"]
    assert list(starts[0]["startup"]) == phases
    assert all(seconds >= 0 for seconds in starts[0]["startup"].values())
    assert starts[0]["cached_programs"] < starts[0]["programs"]
    assert said.count("until the end of the first step (imports ") == 1
    shutil.rmtree(tmp_path / "model")
    for step in ("2", "3"):  # the run was killed after its first checkpoint
        shutil.rmtree(tmp_path / "checkpoints" / step)
    starts, _ = _train(tmp_path, hash_seed=2)
    assert len(starts) == 2
    assert starts[1]["cached_programs"] == starts[1]["programs"] > 0
    assert starts[1]["startup"]["compile"] < starts[0]["startup"]["compile"]
    losses = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert losses == [1, 2, 3]
