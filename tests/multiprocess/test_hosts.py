"""Training on several hosts (processes) gives the batches, losses and checkpoints of a single host."""

from __future__ import annotations

import json
import signal

import numpy as np
import pytest

from earthgpt_jax.models import model_dir as io
from earthgpt_jax.training.loop import train
from tests.support import nano
from tests.support.processes import Together, address

pytestmark = pytest.mark.multiprocess
DEVICES = 8  # in total


def run_hosts(hosts: int, workdir, *overrides: str, kill_at: int = -1, workers: int = 0) -> None:
    """Train a nano model on some processes of this machine, until the end or until one is killed after a step."""
    words = [address(), hosts]
    more = [workdir, kill_at, *overrides, f"data.workers={workers}"]
    commands = [["-m", "tests.multiprocess.host", *words, host, *more] for host in range(hosts)]
    with Together(commands, devices=DEVICES // hosts, JAX_CPU_COLLECTIVES_IMPLEMENTATION="gloo") as together:
        ended = together.ended()
    expected, statuses = -signal.SIGKILL if kill_at >= 0 else 0, [result.status for result in ended]
    # If one host is killed, the coordinator may end the others first.
    correct = expected in statuses if kill_at >= 0 else set(statuses) == {0}
    assert correct, "\n".join(result.tail() for result in ended)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("hosts", [(2, 1), pytest.param((4, 2, 1), marks=pytest.mark.slow)])
def test_several_hosts_then_fewer_train_the_same_model_as_one_host(tmp_path, hosts):
    data, base = nano.dataset(tmp_path / "data"), nano.model_dir(tmp_path / "base", nano.config("align").model)
    overrides = (f"data.source={data}", f"init={base}", "data.batch_size=8", "data.seq_len=180")
    alone = train(nano.config("align", *overrides), tmp_path / "alone")
    workdir = tmp_path / "hosts"
    for number, count in enumerate(hosts):
        last = number + 1 == len(hosts)
        kill_at = -1 if last else 2 * (number + 1)  # after the checkpoint of this step
        run_hosts(count, workdir, *overrides, kill_at=kill_at, workers=number)
    one, several = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("alone", "hosts")
    )
    assert [line["data_digest"] for line in several] == [line["data_digest"] for line in one] and len(one) == 6
    for name in ("tokens", "images", "supervised_tokens"):
        assert [line[name] for line in several] == [line[name] for line in one], name
    np.testing.assert_allclose([line["loss"] for line in several], [line["loss"] for line in one], atol=1e-5)
    expected, (_, found) = io.read(alone)[1], io.read(workdir / "model")
    for path, value in expected.items():
        np.testing.assert_allclose(found[path], value, atol=2e-5, err_msg=path)
