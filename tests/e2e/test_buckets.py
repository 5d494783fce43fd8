"""Runs in a bucket, killed at any moment, end like one on a disk; nothing that is half-written is read."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore

from earthgpt_jax.cli.main import main
from earthgpt_jax.common import json_lines
from earthgpt_jax.common.buckets import BucketPath
from earthgpt_jax.training import inspection
from earthgpt_jax.training.loop import train
from tests.support import nano
from tests.support.buckets import FaultyBucket
from tests.support.processes import Together, address

LIMIT = 600  # seconds that any process here may take on a busy machine
SEED = 20240101
STAGES = ("align", "instruct")
KILLS = 5  # of each stage


def _same_files(one: Path, other: Path, *, except_for: str = "") -> None:
    """Check that two folders have the same files, byte for byte."""
    names = sorted(path.relative_to(one).as_posix() for path in one.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(other).as_posix() for path in other.rglob("*"))
    different = [name for name in names if (one / name).read_bytes() != (other / name).read_bytes()]
    assert [name for name in different if name != except_for] == []


def _same_model(one: Path, other: Path) -> None:
    """Check that two model directories are the same, but for the path by which adapters name their parent."""
    _same_files(one, other, except_for="config.json")
    configs = [json.loads((folder / "config.json").read_text()) for folder in (one, other)]
    for config in configs:
        config.get("parent", {}).pop("path", None)
    assert configs[0] == configs[1]


def _same_log(one: Path, other: Path) -> None:
    expected, found = (json_lines.read(folder / "metrics.jsonl") for folder in (one, other))
    assert found == expected and expected


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[str, ...], Path]:
    """The settings of a short run, and its work directory on a disk."""
    root = tmp_path_factory.mktemp("alone")
    data, base = nano.dataset(root / "data"), nano.model_dir(root / "base", nano.config("align").model)
    overrides = (f"data.source={data}", f"init={base}", "optim.steps=4", "checkpoint.every_steps=2", "log_every=3")
    train(nano.config("align", *overrides), root / "run")
    return overrides, root / "run"


@pytest.mark.slow
def test_a_run_that_stops_between_two_parts_of_a_save_ends_like_one_on_a_disk(
    alone, faulty_bucket: FaultyBucket, capfd: pytest.CaptureFixture[str]
) -> None:
    overrides, expected = alone
    workdir = faulty_bucket.path / "run"
    command = ["train", "--processes", "1", "--workdir", str(workdir), *nano.arguments("align", *overrides)]

    uploads: list[str] = []  # of arrays of step 4, by TensorStore

    def deny_metadata(method: str, path: str) -> int | None:
        path = path.replace("%2F", "/")
        if method not in ("PUT", "POST") or "/checkpoints/4/state-" in path:
            uploads.extend([path] if "/checkpoints/4/state-" in path else ())
            return None
        return 403 if uploads else None  # gcsfs names the object in the body of a request

    faulty_bucket.proxy.rule = deny_metadata
    assert main(command) == 2, "a missing permission is no reason to start again"
    (error,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert f"writing {workdir}/checkpoints/4/extra/metadata: " in error and " permission s" in error
    assert inspection.checkpoint_steps(workdir / "checkpoints") == [2]
    assert [path.name for path in inspection.unfinished_checkpoints(workdir / "checkpoints")] == ["4"]
    assert not (workdir / "model").exists()
    faulty_bucket.proxy.rule = lambda method, path: None
    assert main(command) == 0
    _same_log(expected, workdir)
    _same_files(expected / "model", workdir / "model")
    assert main(["inspect", str(workdir)]) == 0
    assert (
        list((workdir / "tb").iterdir())
        and (workdir / "config.json").read_bytes() == (expected / "config.json").read_bytes()
    )


# ------------------------------------------------------------------------------------------------- kills


class World:
    """The commands of the whole way from a dataset to an export, in a folder on a disk or in a bucket."""

    def __init__(self, folder: Path, *, base: Path, scratch: Path):
        self.folder, self._base, self._output = folder, base, scratch / "output.txt"
        self.data = folder / "datasets" / "synthetic"

    def build(self) -> None:
        words = ["data", "build", "synthetic", "--count", "60", "--out", str(self.folder / "datasets")]
        assert main(words) == 0

    def training(self, stage: str, *overrides: str) -> list[str]:
        init = self._base if stage == STAGES[0] else self.folder / STAGES[0] / "model"
        settings = (
            f"data.source={self.data}", f"init={init}", "optim.steps=30", "checkpoint.every_steps=3", "log_every=5",
            *overrides,
        )  # fmt: skip
        return ["train", "--workdir", str(self.folder / stage), *nano.arguments(stage, *settings)]

    def start(self, *words: str) -> subprocess.Popen:
        with self._output.open("w") as output:  # an unread pipe would fill up
            command = [sys.executable, "-m", "earthgpt_jax", *words]
            return subprocess.Popen(command, stdout=output, stderr=output)

    def finish(self, *words: str) -> None:
        assert self.start(*words).wait(LIMIT) == 0, self.output_tail()

    def output_tail(self) -> str:
        return self._output.read_text()[-3000:]

    def evaluate(self, processes: int) -> None:
        words = ["eval", "--model", self.folder / "instruct" / "model", "--data", self.data, "--split", "test"]
        words += ["--out", self.folder / "eval", "--limit", "3", "--per-image", "1"]
        where = address()
        commands = [
            ["-m", "earthgpt_jax", *words, "--coordinator", where, "--processes", processes, "--process", index]
            for index in range(processes)
        ]
        with Together(commands, devices=1, JAX_CPU_COLLECTIVES_IMPLEMENTATION="gloo") as together:
            ended = together.ended()
        assert {result.status for result in ended} == {0}, "\n".join(result.tail() for result in ended)

    def export(self) -> None:
        words = ["convert", "export", str(self.folder / "instruct" / "model"), "--to", "llama"]
        assert main([*words, "--out", str(self.folder / "exported")]) == 0


def _orbax_arrays(folder: Path) -> dict[str, np.ndarray]:
    """Read the state of a checkpoint on a disk, without our code."""
    with ocp.PyTreeCheckpointer() as reader:
        tree = reader.restore(
            folder / "state",
            restore_args=jax.tree.map(
                lambda _: ocp.RestoreArgs(restore_type=np.ndarray), reader.metadata(folder / "state").item_metadata.tree
            ),
        )
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


def _zarr_arrays(folder: BucketPath) -> dict[str, np.ndarray]:
    """Read the state of a checkpoint in a bucket, without our code."""
    (state,) = [path for path in folder.iterdir() if path.name.startswith("state-")]
    arrays = {}
    for path in state.rglob(".zarray"):
        url = str(path.parent) + "/"
        store: object = url
        if url.startswith("s3://"):
            _, _, bucket, key = url.split("/", 3)
            store = {"driver": "s3", "bucket": bucket, "path": key, "endpoint": os.environ["AWS_ENDPOINT_URL"],
                     "aws_region": "us-east-1"}  # fmt: skip
        name = path.parent.relative_to(state).as_posix()
        arrays[name] = tensorstore.open({"driver": "zarr", "kvstore": store}).result().read().result()
    return arrays


def _check_left(folder: BucketPath, expected: Path) -> tuple[int, int]:
    """Check that each complete checkpoint of a killed run has the bytes of the undisturbed run; count both kinds."""
    complete = inspection.checkpoint_steps(folder)
    for step in complete:
        found, state = _zarr_arrays(folder / str(step)), _orbax_arrays(expected / str(step))
        assert found.keys() == state.keys() and len(found) > 10
        assert [name for name, array in found.items() if array.tobytes() != state[name].tobytes()] == []
    return len(complete), len(inspection.unfinished_checkpoints(folder))


def _moments(workdir: BucketPath, rng: np.random.Generator) -> list[Callable[[], bool]]:
    """Return conditions, at each of which the process is killed: anywhere, and while arrays are being uploaded."""
    folder = workdir / "checkpoints"

    def uploading() -> Callable[[], bool]:
        before = {str(path) for path in inspection.unfinished_checkpoints(folder)}
        return lambda: any(str(path) not in before for path in inspection.unfinished_checkpoints(folder))

    def later() -> Callable[[], bool]:
        end = time.monotonic() + rng.uniform(1, 15)
        return lambda: time.monotonic() > end

    return [uploading, uploading, uploading, later, later]  # type: ignore[return-value]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_run_killed_ten_times_in_a_bucket_ends_like_one_on_a_disk(bucket: BucketPath, tmp_path: Path) -> None:
    base = nano.model_dir(tmp_path / "base", nano.config("align").model)
    disk = World(tmp_path / "disk", base=base, scratch=tmp_path)
    disk.build()
    there = World(bucket / "world", base=base, scratch=tmp_path)
    there.build()
    _same_files(disk.data, there.data)
    rng, unfinished = np.random.default_rng(SEED), 0
    for stage in STAGES:
        disk.finish(*disk.training(stage, "checkpoint.keep=1000"))
        workdir, expected = there.folder / stage, disk.folder / stage
        for number, begin in enumerate(rng.permutation(np.array(_moments(workdir, rng), dtype=object))):
            process, end = there.start(*there.training(stage)), time.monotonic() + LIMIT
            reached = begin()
            while not reached() and process.poll() is None:
                assert time.monotonic() < end, there.output_tail()
                time.sleep(0.05)
            process.send_signal(signal.SIGKILL)
            process.wait(LIMIT)
            complete, partial = _check_left(workdir / "checkpoints", expected / "checkpoints")
            unfinished += partial
            print(f"{stage}, kill {number + 1}: {complete} complete, {partial} unfinished")  # noqa: T201
        there.finish(*there.training(stage))
        _same_log(expected, workdir)
        _same_model(expected / "model", workdir / "model")
        assert not inspection.unfinished_checkpoints(workdir / "checkpoints")
    assert unfinished, "a kill must interrupt a save"
    for world in (disk, there):
        world.evaluate(processes=2)
        world.export()
    assert (there.folder / "eval" / "scores.json").read_bytes() == (disk.folder / "eval" / "scores.json").read_bytes()
    _same_files(disk.folder / "exported", there.folder / "exported")
