"""Memory of a run of 1.1B parameters in four processes, from published files to an export, with a kill in between.

The peak of each process stays below its share of the parameters and the optimizer state plus `ALLOWANCE` in every
phase. The allowance covers the interpreter and its libraries, compiled programs, gathered layers,
activations, gradients, and buffers for files and between processes.
"""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.multiprocess import measured
from tests.support import nano
from tests.support.processes import Ended, Together, address

pytestmark = pytest.mark.multiprocess
ROOT = Path(__file__).resolve().parents[2]
PROCESSES = 4
ALLOWANCE = 3 << 29  # 1.5 GiB


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch):
    """The module `at_size.model` of `scripts/bench`."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "bench"))
    from at_size import model

    return model


def _run(folder: Path, name: str, *words: str, xla_flags: str, killed: int = -1) -> list[Ended]:
    where = address()
    commands = [
        [
            "-m",
            "tests.multiprocess.measured",
            where,
            PROCESSES,
            i,
            folder / "run",
            folder / f"{i}.json",
            killed,
            name,
            *words,
        ]
        for i in range(PROCESSES)
    ]
    environment = {"JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo", "JAX_COMPILATION_CACHE_DIR": str(folder / "programs")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", f"{xla_flags} --xla_backend_optimization_level=2")
        with Together(commands, devices=1, **environment) as together:
            return together.ended(3600)


def _check(folder: Path, phases: set[str], label: str) -> None:
    """Print and check the peaks of all processes."""
    reports = [json.loads((folder / f"{i}.json").read_text()) for i in range(PROCESSES)]
    for i, report in enumerate(reports):
        assert phases <= report["peaks"].keys()
        assert report["share"] > 0
        peaks = {phase: f"{peak['resident'] / 2**30:.2f}" for phase, peak in report["peaks"].items()}
        print(f"{label}, process {i}: share {report['share'] / 2**30:.2f} GiB, peaks {peaks}")  # noqa: T201  (to report)
    for report in reports:
        for phase, peak in report["peaks"].items():
            assert peak["resident"] <= report["share"] + ALLOWANCE, (phase, peak, report["share"])


@pytest.mark.slow
@pytest.mark.parametrize("words", [("align",), ("instruct", "frozen_dtype=int8")], ids=["align", "int8"])
def test_no_process_needs_more_than_its_share_and_an_allowance(tmp_path, model, words):
    stage, *overrides = words
    parts = model.write_parts(tmp_path / "parts")
    settings = [
        *model.MODEL, *model.RUN, *overrides, f"data.source={nano.dataset(tmp_path / 'data')}", "init=", "mesh.data=1",
        "mesh.fsdp=-1", "optim.steps=3", "checkpoint.every_steps=2",
        *(f"init_from.{part}={path}" for part, path in parts.items()),
    ]  # fmt: skip
    name = f"{model.RECIPE}:{stage}"
    ended = _run(tmp_path, name, *settings, xla_flags=model.XLA_FLAGS, killed=2)
    assert ended[2].status == -signal.SIGKILL, "\n".join(each.tail() for each in ended)
    _check(tmp_path, {"imports", "start", "step", "save"}, f"{stage}, killed")
    ended = _run(tmp_path, name, *settings, xla_flags=model.XLA_FLAGS)
    assert {each.status for each in ended} == {0}, "\n".join(each.tail() for each in ended)
    _check(tmp_path, {"imports", "start", "restore", "step", "save", "end"}, f"{stage}, resumed")

    command = ["convert", "export", str(tmp_path / "run" / "model"), "--to", "hf", "--out", str(tmp_path / "exported")]
    subprocess.run([sys.executable, "-m", "earthgpt_jax", *command], check=True)
    export = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # of the largest process so far
    print(f"{stage}: no process, the export included, was larger than {export / 2**20:.2f} GiB")  # noqa: T201
    assert (tmp_path / "exported" / "config.json").is_file()


def test_peaks_are_attributed_to_their_phase(tmp_path):
    """An allocation of 200 MB in one phase does not count in the next."""
    code = """
import json, sys
from pathlib import Path
from tests.multiprocess.measured import Peaks
peaks = Peaks(Path(sys.argv[1]))
peaks.enter("large")
block = b"x" * 200_000_000
del block
peaks.enter("small")
peaks.enter("done")
"""
    report = tmp_path / "report.json"
    subprocess.run([sys.executable, "-c", code, str(report)], check=True, cwd=ROOT)
    peaks = json.loads(report.read_text())["peaks"]
    for kind in measured.KINDS.values():
        assert peaks["large"][kind] > peaks["small"][kind] + 150_000_000 or kind == "anonymous"
