"""SIGTERM to one host of two: both save the same step and end; what they saved goes on elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import portpicker
import pytest

from earthgpt_jax.models import io
from earthgpt_jax.training import inspection
from earthgpt_jax.training.loop import train
from tests import nano

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]
STEPS, LIMIT = 24, 300


def _start(hosts: int, devices: int, workdir: Path, *overrides: str, pace: float = 0) -> list[subprocess.Popen]:
    """Processes with `devices` in all."""
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices // hosts}", "JAX_PLATFORMS": "cpu",
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo", "PACE": str(pace),
    }  # fmt: skip
    address = f"127.0.0.1:{portpicker.pick_unused_port()}"
    command = [sys.executable, "-m", "tests.multiprocess.host", address, str(hosts)]
    started = []
    for host in range(hosts):
        with (workdir.parent / f"{workdir.name}-{host}.txt").open("w") as output:
            words = [*command, str(host), str(workdir), "-1", *overrides]
            started.append(subprocess.Popen(words, env=environment, stdout=output, stderr=output))
    return started


def _end(processes: list[subprocess.Popen], workdir: Path) -> list[int]:
    codes = [process.wait(LIMIT) for process in processes]
    for host in range(len(processes)):
        text = (workdir.parent / f"{workdir.name}-{host}.txt").read_text()
        print(f"host {host} of {workdir.name}: {codes[host]}\n{text[-1500:]}")  # noqa: T201  (shown where it fails)
    return codes


def _log(workdir: Path) -> list[dict]:
    path = workdir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_both_save_one_step_and_it_goes_on_with_four_devices_and_with_two_hosts(tmp_path):
    data, base = nano.dataset(tmp_path / "data"), nano.model_dir(tmp_path / "base", nano.config("align").model)
    overrides = (
        f"data.source={data}", f"init={base}", "data.batch_size=8", f"optim.steps={STEPS}",
        f"checkpoint.every_steps={10 * STEPS}",
    )  # fmt: skip
    alone = train(nano.config("align", *overrides), tmp_path / "alone")

    stopped = tmp_path / "stopped"
    hosts = _start(2, 8, stopped, *overrides, "mesh.data=1", "mesh.fsdp=8", pace=0.25)
    end = time.monotonic() + LIMIT
    while len(_log(stopped)) < 3:
        assert time.monotonic() < end and all(host.poll() is None for host in hosts), _end(hosts, stopped)
        time.sleep(0.02)
    hosts[1].send_signal(signal.SIGTERM)
    assert _end(hosts, stopped) == [75, 75]
    step = len(_log(stopped))
    assert 3 <= step < STEPS and inspection.steps(stopped / "checkpoints") == [step]
    assert all(told.whole for told in inspection.inspect(stopped) or [])

    expected, lines = io.read(alone)[1], _log(tmp_path / "alone")
    for name, count, devices, mesh in (
        ("four", 1, 4, ("mesh.data=2", "mesh.fsdp=2")),
        ("two", 2, 8, ("mesh.data=2", "mesh.fsdp=4")),
    ):
        workdir = tmp_path / name
        shutil.copytree(stopped, workdir)
        assert set(_end(_start(count, devices, workdir, *overrides, *mesh), workdir)) == {0}
        assert [line["data"] for line in _log(workdir)] == [line["data"] for line in lines]
        np.testing.assert_allclose([a["loss"] for a in _log(workdir)], [b["loss"] for b in lines], atol=1e-4)
        for path, value in io.read(workdir / "model")[1].items():
            np.testing.assert_allclose(value, expected[path], atol=1e-3, err_msg=path)
