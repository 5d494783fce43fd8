"""SIGTERM to one host of two: both save the same step and end, and the run resumes on other hosts and meshes."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from earthgpt_jax.models import model_dir as io
from earthgpt_jax.training import inspection
from earthgpt_jax.training.loop import train
from tests.support import nano
from tests.support.processes import Together, address

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]
STEPS = 24


def _start(hosts: int, devices: int, workdir: Path, *overrides: str, pace: float = 0) -> Together:
    """Start `hosts` processes with `devices` devices in total."""
    words = [address(), hosts]
    commands = [["-m", "tests.multiprocess.host", *words, host, workdir, -1, *overrides] for host in range(hosts)]
    environment = {"JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo", "PACE": str(pace)}
    return Together(commands, devices=devices // hosts, **environment)


def _check_ended(hosts: Together, status: int) -> None:
    ended = hosts.ended()
    assert {result.status for result in ended} == {status}, "\n".join(result.tail() for result in ended)


def _log(workdir: Path) -> list[dict]:
    path = workdir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_both_hosts_save_one_step_and_the_run_resumes_on_four_devices_and_on_two_hosts(tmp_path):
    data, base = nano.dataset(tmp_path / "data"), nano.model_dir(tmp_path / "base", nano.config("align").model)
    overrides = (
        f"data.source={data}", f"init={base}", "data.batch_size=8", f"optim.steps={STEPS}",
        f"checkpoint.every_steps={10 * STEPS}",
    )  # fmt: skip
    alone = train(nano.config("align", *overrides), tmp_path / "alone")

    stopped = tmp_path / "stopped"
    with _start(2, 8, stopped, *overrides, "mesh.data=1", "mesh.fsdp=8", pace=0.25) as hosts:
        end = time.monotonic() + 300
        while len(_log(stopped)) < 3:
            assert time.monotonic() < end and hosts.are_running(), hosts.output()
            time.sleep(0.02)
        hosts.processes[1].send_signal(signal.SIGTERM)
        _check_ended(hosts, 75)
    step = len(_log(stopped))
    assert 3 <= step < STEPS and inspection.checkpoint_steps(stopped / "checkpoints") == [step]
    assert all(summary.intact for summary in inspection.inspect(stopped) or [])

    expected, lines = io.read(alone)[1], _log(tmp_path / "alone")
    for name, count, devices, mesh in (
        ("four", 1, 4, ("mesh.data=2", "mesh.fsdp=2")),
        ("two", 2, 8, ("mesh.data=2", "mesh.fsdp=4")),
    ):
        workdir = tmp_path / name
        shutil.copytree(stopped, workdir)
        with _start(count, devices, workdir, *overrides, *mesh) as hosts:
            _check_ended(hosts, 0)
        assert [line["data_digest"] for line in _log(workdir)] == [line["data_digest"] for line in lines]
        np.testing.assert_allclose([a["loss"] for a in _log(workdir)], [b["loss"] for b in lines], atol=1e-4)
        for path, value in io.read(workdir / "model")[1].items():
            np.testing.assert_allclose(value, expected[path], atol=1e-3, err_msg=path)
