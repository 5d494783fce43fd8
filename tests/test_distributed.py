"""Start-up of processes and consistency checks; tests/multiprocess runs several real processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jax
import pytest

from earthgpt_jax import distributed
from earthgpt_jax.common.errors import EarthGPTError


def test_inconsistencies_name_the_fact_its_values_and_the_processes() -> None:
    facts = [{"config": {"optim": {"peak_lr": 0.1, "steps": 5}, "mesh": {}}, "code": "a"} for _ in range(7)]
    assert distributed.inconsistencies(facts) == []
    facts[3] = {"config": {"optim": {"peak_lr": 0.2, "steps": 5}, "mesh": {"fsdp": 2}}, "code": "a"}
    facts[5] = facts[6] = {"config": {"optim": {"peak_lr": 0.1, "steps": 5}, "mesh": {}}, "code": "b", "more": [1]}
    assert distributed.inconsistencies(facts) == [
        "code: 'a' on processes 0-4, 'b' on processes 5-6",
        "config.mesh: {} on processes 0-2, 4-6, nothing on process 3",
        "config.mesh.fsdp: nothing on processes 0-2, 4-6, 2 on process 3",
        "config.optim.peak_lr: 0.1 on processes 0-2, 4-6, 0.2 on process 3",
        "more: nothing on processes 0-4, [1] on processes 5-6",
    ]


def test_the_code_version_depends_on_the_source_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = distributed.code_version()
    assert before == distributed.code_version() and before["jax"] == jax.__version__
    package = tmp_path / "earthgpt_jax"
    package.mkdir()
    for name in ("distributed.py", "a.py"):
        (package / name).write_text("x = 1\n")
    monkeypatch.setattr(distributed, "__file__", str(package / "distributed.py"))
    one = distributed.code_version()["sources"]
    (package / "a.py").write_text("x = 2\n")
    assert len({before["sources"], one, distributed.code_version()["sources"]}) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *(
            ({"coordinator": junk, "processes": 2, "process": 0}, "expected HOST:PORT")
            for junk in ("a", "a:", ":1", "a:x", "a:0", "a:65536", "a:" + "9" * 5000, "http://a:1", "a b:1", "::1:1")
        ),
        ({"coordinator": "a:1"}, "number of processes and the index"),
        ({"coordinator": "a:1", "processes": 2, "process": 2}, r"0 to N-1.*process=2"),
        ({"process": 1, "processes": 2}, "expected also a coordinator"),
        ({"processes": 4}, "expected 4 processes, found 1"),
    ],
)
def test_contradictory_arguments_are_refused(arguments: dict, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_cluster(**_: object) -> None:
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", no_cluster)
    with pytest.raises(EarthGPTError, match=message):
        distributed.start(**arguments)


def test_a_process_that_has_used_jax_cannot_connect() -> None:
    jax.devices()
    with pytest.raises(EarthGPTError, match="fresh process, or pass processes=1"):
        distributed.start()
    distributed.start(processes=1)


def test_a_single_process_waits_for_nothing() -> None:
    assert distributed.gather_texts("x") == ["x"] and distributed.describe() == ""
    distributed.check_consistent({"a": 1})
    with pytest.raises(EarthGPTError, match="as it was"), distributed.fail_together("a test"):
        raise EarthGPTError("as it was")


_START = """
import jax
from earthgpt_jax import distributed
distributed.start({arguments})
print(jax.process_count(), jax.distributed.is_initialized())
"""
_SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NTASKS": "1", "SLURM_PROCID": "0",
         "SLURM_LOCALID": "0"}  # fmt: skip


@pytest.mark.parametrize(
    ("environment", "arguments", "expected"),
    [({}, "", "1 False"), (_SLURM, "", "1 True"), (_SLURM, "processes=1", "1 False")],
)
def test_a_cluster_is_detected_unless_detection_is_disabled(
    environment: dict, arguments: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    code = _START.replace("{arguments}", arguments)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == expected, done.stderr[-1500:]
