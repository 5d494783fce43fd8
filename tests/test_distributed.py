"""How processes are found, and what they say where they differ; with real processes in tests/multiprocess."""

from __future__ import annotations

import subprocess
import sys

import jax
import pytest

from earthgpt_jax import distributed as hosts
from earthgpt_jax.common.errors import EarthGPTError


def test_differences_name_the_fact_the_values_and_the_processes():
    facts = [{"config": {"optim": {"peak_lr": 0.1, "steps": 5}, "mesh": {}}, "code": "a"} for _ in range(7)]
    assert hosts.inconsistencies(facts) == []
    facts[3] = {"config": {"optim": {"peak_lr": 0.2, "steps": 5}, "mesh": {"fsdp": 2}}, "code": "a"}
    facts[5] = facts[6] = {"config": {"optim": {"peak_lr": 0.1, "steps": 5}, "mesh": {}}, "code": "b", "more": [1]}
    assert hosts.inconsistencies(facts) == [
        "code: 'a' on processes 0-4, 'b' on processes 5-6",
        "config.mesh: {} on processes 0-2, 4-6, nothing on process 3",
        "config.mesh.fsdp: nothing on processes 0-2, 4-6, 2 on process 3",
        "config.optim.peak_lr: 0.1 on processes 0-2, 4-6, 0.2 on process 3",
        "more: nothing on processes 0-4, [1] on processes 5-6",
    ]


def test_code_is_what_the_files_hold(monkeypatch, tmp_path):
    before = hosts.code_version()
    assert before == hosts.code_version() and before["jax"] == jax.__version__
    package = tmp_path / "earthgpt_jax"
    package.mkdir()
    for name in ("hosts.py", "a.py"):
        (package / name).write_text("x = 1\n")
    monkeypatch.setattr(hosts, "__file__", str(package / "hosts.py"))
    one = hosts.code_version()["sources"]
    (package / "a.py").write_text("x = 2\n")
    assert len({before["sources"], one, hosts.code_version()["sources"]}) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"coordinator": "a:1"}, "number of processes and which one"),
        ({"coordinator": "a:1", "processes": 2, "process": 2}, r"0 to N-1.*process=2"),
        ({"process": 1, "processes": 2}, "expected a coordinator"),
        ({"processes": 4}, "expected 4 processes, found 1"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message, monkeypatch):
    def nothing_around(**_):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", nothing_around)
    with pytest.raises(EarthGPTError, match=message):
        hosts.start(**arguments)


def test_where_jax_has_computed_others_are_not_looked_for():
    jax.devices()
    with pytest.raises(EarthGPTError, match="fresh process, or with processes=1"):
        hosts.start()
    hosts.start(processes=1)


def test_alone_there_is_nothing_to_wait_for():
    assert hosts.gather_texts("x") == ["x"] and hosts.describe() == ""
    hosts.check_consistent({"a": 1})
    with pytest.raises(EarthGPTError, match="as it was"), hosts.fail_together("a test"):
        raise EarthGPTError("as it was")


FOUND = """
import jax
from earthgpt_jax import distributed as hosts
hosts.start({arguments})
print(jax.process_count(), jax.distributed.is_initialized())
"""
SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NTASKS": "1", "SLURM_PROCID": "0",
         "SLURM_LOCALID": "0"}  # fmt: skip


@pytest.mark.parametrize(
    ("surroundings", "arguments", "expected"),
    [({}, "", "1 False"), (SLURM, "", "1 True"), (SLURM, "processes=1", "1 False")],
)
def test_what_surrounds_the_process_is_found_unless_it_shall_not_be(surroundings, arguments, expected, monkeypatch):
    for name, value in surroundings.items():
        monkeypatch.setenv(name, value)
    code = FOUND.replace("{arguments}", arguments)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == expected, done.stderr[-1500:]
