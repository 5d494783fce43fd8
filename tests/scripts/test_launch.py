"""The launchers: the commands they would run, and when they restart a run."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).resolve().parents[2] / "scripts" / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
TRAIN = ["--config", "earthgpt_13b:instruct", "--workdir", "/mnt/a run", "--config.data.source=/mnt/D'ATA"]


def _printed(script: str, *words: str, **environment: str) -> list[list[str]]:
    """Return the commands of a dry run, split as by a shell."""
    done = subprocess.run(
        ["bash", LAUNCH / script, "--dry-run", *words],
        env=os.environ | environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [shlex.split(line) for line in done.stdout.replace("\n  ", " ").splitlines()]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_launcher_is_valid_bash_and_short(script):
    subprocess.run(["bash", "-n", script], check=True)
    assert len(script.read_text().splitlines()) < 60  # short enough to read in a minute


def test_tpu_vm_copies_the_code_and_starts_every_host():
    archive, copy, install, start, *hints = _printed("tpu_vm.sh", "my-tpu", "us-west4-a", *TRAIN)
    assert archive[:2] == ["git", "-C"] and archive[-1] == "HEAD"
    package = archive[-2].removeprefix("--output=")
    on_all = ["--zone=us-west4-a", "--worker=all"]
    assert copy == ["gcloud", "compute", "tpus", "tpu-vm", "scp", package, "my-tpu:", *on_all]
    for ssh in (install, start):
        assert ssh[:-1] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "my-tpu", *on_all, "--command"]
    assert install[-1].endswith('source earthgpt/scripts/_venv.sh && install "[tpu,gcs]"')
    words = shlex.split(start[-1])
    assert words[:4] == ["nohup", "setsid", "bash", "earthgpt/scripts/launch/restart.sh"]
    train = words[4 : words.index(">train.log")]
    assert train == ["earthgpt/.venv/bin/earthgpt", "train", *TRAIN]
    assert [hint[0] for hint in hints] == ["look:", "stop:"]


def test_xpk_restarts_on_the_documented_statuses():
    (command,) = _printed("gke_xpk.sh", "cluster", "run-1", "v5litepod-16", "2", "image:1", *TRAIN)
    assert command[:3] == ["xpk", "workload", "create"]
    options = dict(word.removeprefix("--").split("=", 1) for word in command[3:])
    assert shlex.split(options.pop("command")) == ["earthgpt", "train", *TRAIN]
    assert options == {
        "cluster": "cluster", "workload": "run-1", "tpu-type": "v5litepod-16", "num-slices": "2",
        "docker-image": "image:1", "max-restarts": "20", "restart-on-exit-codes": "1,75",
        "termination-grace-period-seconds": "120",
    }  # fmt: skip


def test_slurm_assigns_all_gpus_of_a_node_to_its_process():
    devices, command = _printed("slurm.sh", *TRAIN, SLURM_GPUS_ON_NODE="4", SLURM_SUBMIT_DIR="/repo")
    assert devices == ["JAX_LOCAL_DEVICE_IDS=0,1,2,3"]
    assert command == [
        "bash", "/repo/scripts/launch/restart.sh", "srun", "--kill-on-bad-exit=0", "--wait=300", "earthgpt", "train",
        *TRAIN,
    ]  # fmt: skip
    assert "#SBATCH --ntasks-per-node=1" in (LAUNCH / "slurm.sh").read_text().splitlines()


@pytest.mark.parametrize("script", ["tpu_vm.sh", "gke_xpk.sh"])
def test_without_arguments_a_launcher_prints_its_usage(script):
    done = subprocess.run(["bash", LAUNCH / script], capture_output=True, text=True)
    assert done.returncode == 2 and f"scripts/launch/{script} [--dry-run]" in done.stderr


@pytest.fixture
def earthgpt(tmp_path):
    """A program that ends with the next of the given statuses at each start, and records its starts."""
    path = tmp_path / "earthgpt"
    path.write_text(
        f'#!/usr/bin/env bash\ncd {tmp_path}\necho "$*" >>starts\nstatuses=(${{STATUSES}})\n'
        'n=$(wc -l <starts)\nif [[ "${statuses[n - 1]}" == sleep ]]; then\n'
        "  trap 'kill $!; exit 143' TERM; touch asleep; sleep 30 & wait\nfi\nexit \"${statuses[n - 1]}\"\n"
    )
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("statuses", "starts", "status"),
    [
        ("0", 1, 0),
        ("2", 1, 2),
        ("130", 1, 130),
        ("75 70", 2, 70),
        ("75 134 1 0", 4, 0),
        ("75 2", 2, 2),
        ("75 75 75 75 75", 4, 75),
    ],
)
def test_restart_depends_on_the_status(earthgpt, statuses, starts, status):
    done = subprocess.run(
        ["bash", LAUNCH / "restart.sh", earthgpt, "train", "a b"],
        env=os.environ | {"STATUSES": statuses, "PAUSE": "0", "MAX_RESTARTS": "3"},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    assert (earthgpt.parent / "starts").read_text() == "train a b\n" * starts


@pytest.mark.parametrize("script", ["restart.sh", "slurm.sh"])
def test_sigterm_reaches_the_run_and_prevents_a_restart(earthgpt, script, tmp_path):
    """Through all layers: SLURM's batch script, restart.sh, srun."""
    for name, text in (("srun", 'shift 2; exec "$@"'), ("scontrol", f"echo $* >{tmp_path}/requeued")):
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {
        "STATUSES": "sleep 0", "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "17",
        "SLURM_SUBMIT_DIR": str(LAUNCH.parents[1]),
    }  # fmt: skip
    words = ["earthgpt", "train"] if script == "restart.sh" else []
    process = subprocess.Popen(["bash", LAUNCH / script, *words], env=environment)
    for _ in range(600):
        if (tmp_path / "asleep").exists():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 143
    assert len((tmp_path / "starts").read_text().splitlines()) == 1
    assert (tmp_path / "requeued").exists() == (script == "slurm.sh")
    if script == "slurm.sh":
        assert (tmp_path / "requeued").read_text() == "requeue 17\n"
