"""`earthgpt train` as two processes: they connect, and both refuse to start if they differ."""

from __future__ import annotations

import os

import numpy as np
import pytest

from earthgpt_jax.models import model_dir as io
from earthgpt_jax.training.loop import train
from tests.support import nano
from tests.support.processes import Ended, Together, address

pytestmark = pytest.mark.multiprocess


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    data, base = nano.dataset(root / "data"), nano.model_dir(root / "base", nano.config("align").model)
    return root, (f"data.source={data}", f"init={base}", "data.batch_size=8", "data.seq_len=180")


def _train(workdir, *overrides: tuple[str, ...]) -> list[Ended]:
    """Start one process per tuple of overrides."""
    command = ["-m", "earthgpt_jax", "train", "--workdir", workdir]
    commands = [
        [*command, "--process", index, *nano.arguments("align", *settings)] for index, settings in enumerate(overrides)
    ]
    environment = {"EARTHGPT_COORDINATOR": address(), "EARTHGPT_PROCESSES": str(len(overrides))}
    with Together(commands, devices=4, **environment) as together:
        return together.ended()


def test_processes_with_different_settings_are_both_refused(world):
    root, overrides = world
    results = _train(root / "differ", overrides, (*overrides, "optim.peak_lr=0.5", "data.decimals=3"))
    for index, (status, _, err) in enumerate(results):
        assert status == 2, err[-2000:]
        assert f"process {index} of 2: 4 of 8 devices (cpu)" in err
        assert "error: the 2 processes of this run are inconsistent" in err
        assert "config.optim.peak_lr: 0.002 on process 0, 0.5 on process 1" in err
        assert "config.data.decimals: 2 on process 0, 3 on process 1" in err
        assert "config.seed" not in err and "code." not in err
    assert not (root / "differ").exists()


def test_an_error_on_one_process_ends_both(world):
    """For example a wrong config or a missing dataset: the other process must not wait forever."""
    root, overrides = world
    alone, other = _train(root / "lacks", overrides, (*overrides, "no.such=1"))
    assert (alone.status, other.status) == (2, 2), (alone, other)
    assert "error: reading the config failed on process 1" in alone.err and "no: unknown field" in alone.err
    assert "no: unknown field" in other.err


@pytest.mark.slow
def test_processes_with_different_data_or_weights_are_refused(world, tmp_path):
    """The paths are the same, as on a host with an outdated copy; the message names the difference."""
    root, _ = world
    nano.dataset(tmp_path / "1" / "data", train=13)
    nano.model_dir(tmp_path / "1" / "base", nano.config("align").model, seed=1)
    (tmp_path / "0").symlink_to(root)
    code = (
        "import os, sys; from pathlib import Path\n"
        "from earthgpt_jax import distributed as hosts; from tests.support import nano\n"
        "from earthgpt_jax.training.loop import train; from earthgpt_jax.common.errors import EarthGPTError\n"
        "hosts.start(coordinator=sys.argv[1], processes=2, process=int(sys.argv[2])); os.chdir(sys.argv[3])\n"
        "try: train(nano.config('align', 'data.source=data', 'init=base'), Path(sys.argv[4]))\n"
        "except EarthGPTError as error: print(error)\n"
    )
    coordinator = address()
    commands = [["-c", code, coordinator, index, tmp_path / str(index), tmp_path / "work"] for index in range(2)]
    with Together(commands, devices=2, PYTHONPATH=os.getcwd()) as together:
        for _, out, trace in together.ended():
            assert "the 2 processes of this run are inconsistent" in out, out + trace[-2000:]
            assert "data.frozen weights: " in out and "data.synthetic: records: " in out


@pytest.mark.slow
def test_two_processes_train_the_same_model_as_one(world):
    root, overrides = world
    for result in _train(root / "two", overrides, overrides):
        assert result.status == 0, result.tail()
    _, found = io.read(root / "two" / "model")
    _, expected = io.read(train(nano.config("align", *overrides), root / "one"))
    for path, value in expected.items():
        np.testing.assert_allclose(found[path], value, atol=2e-5, err_msg=path)
    assert '"processes": 2' in (root / "two" / "throughput.jsonl").read_text().splitlines()[0]
