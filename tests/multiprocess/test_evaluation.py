"""Evaluation on several processes: the answers of one, each once, also where it is killed and goes on with others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import portpicker
import pytest

from earthgpt_jax.evaluation import predictions, scores
from tests import nano

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]
DEVICES = 8  # of all processes together


def _run(processes: int, *words: object, kill_after: int = -1) -> None:
    address = f"127.0.0.1:{portpicker.pick_unused_port()}"
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES // processes}", "JAX_PLATFORMS": "cpu",
    }  # fmt: skip
    command = [sys.executable, "-m", "tests.multiprocess.asking", address, str(processes)]
    started = [
        subprocess.Popen(
            [*command, str(index), *map(str, words), str(kill_after)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for index in range(processes)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=300)[0] for process in started]
    codes = [process.returncode for process in started]
    # Where one is killed, the others may be ended by the coordinator before they are.
    wanted = {0} if kill_after < 0 else {-signal.SIGKILL}
    assert wanted <= set(codes) if kill_after >= 0 else set(codes) == wanted, "\n".join(o[-1500:] for o in outputs)


def test_two_processes_then_four_then_two_answer_what_one_answers(tmp_path):
    model = nano.model_dir(tmp_path / "nano", nano.config("align").model)
    data = nano.dataset(tmp_path / "data", test=10)
    alone, several = (tmp_path / name / "predictions.jsonl" for name in ("alone", "several"))
    _run(1, model, data, alone)
    _run(2, model, data, several, kill_after=9)
    parts = sorted(path.name for path in several.parent.iterdir())
    assert parts and set(parts) <= {"predictions-0-of-2.jsonl", "predictions-1-of-2.jsonl"}
    _run(4, model, data, several, kill_after=3)
    assert len(list(several.parent.iterdir())) > len(parts)
    _run(2, model, data, several)
    assert several.read_bytes() == alone.read_bytes()
    assert [path.name for path in several.parent.iterdir()] == ["predictions.jsonl"]
    (_, one), (_, two) = predictions.read(alone), predictions.read(several)
    assert scores.score(one) == scores.score(two)
    assert len({p.prediction for p in one}) > 3
