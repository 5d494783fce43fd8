"""Test builds: same bytes for any number of workers, with Beam and after a kill; quarantine; changed native files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.files import explain_write_errors, write_bytes
from earthgpt_jax.common.parallel import LocalEngine
from earthgpt_jax.datasets.build import builder as building
from earthgpt_jax.datasets.build import chunks, native_files, shards
from earthgpt_jax.datasets.build.builder import build, build_synthetic
from earthgpt_jax.datasets.build.work_folder import work_folder
from earthgpt_jax.datasets.cards import Card
from earthgpt_jax.datasets.manifest import read_manifest
from earthgpt_jax.datasets.store import RecordSource
from tests.support.native_datasets import card

IMAGES = 14


def native(root: Path) -> Card:
    """Write images with YOLO labels to `root/d`: one image is truncated, one has an invalid box next to a valid one."""
    (root / "d").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(IMAGES):
        path = root / "d" / f"{number:02d}.png"
        Image.fromarray(rng.integers(0, 255, (12, 16, 3), np.uint8)).save(path)
        path.with_suffix(".txt").write_text(f"{number % 2} 0.5 0.5 0.5 0.{number + 1:02d}\n")
    with (root / "d" / "03.txt").open("a") as file:
        file.write("0 0.5 0.5 nan 0.1\n")
    (root / "d" / "07.png").write_bytes((root / "d" / "07.png").read_bytes()[:100])
    return card("yolo", {"annotations": ".", "images": "."})


@pytest.fixture
def yolo_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Card:
    monkeypatch.setattr(building, "_JOB_ENTRIES", 3)  # makes several jobs
    return native(tmp_path / "native")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def _build(tmp_path: Path, yolo_card: Card, name: str, **options: Any) -> dict[str, bytes]:
    summary = build([yolo_card], root=tmp_path / "native", out=tmp_path / name, max_quarantine=0.2, **options)
    assert summary.quarantined == 3
    assert [path.name for path in (tmp_path / name).iterdir()] == ["s"]  # the work folder is gone
    return contents(tmp_path / name / "s")


def test_neither_workers_nor_paths_nor_times_change_the_bytes(tmp_path: Path, yolo_card: Card) -> None:
    one = _build(tmp_path, yolo_card, "one")
    with LocalEngine(2) as engine:
        assert _build(tmp_path, yolo_card, "two", engine=engine) == one
    shutil.move(tmp_path / "native", tmp_path / "moved")  # with other modification times
    shutil.copytree(tmp_path / "moved", tmp_path / "native", copy_function=shutil.copyfile)
    assert _build(tmp_path, yolo_card, "three") == one
    values = read_manifest(tmp_path / "one" / "s")
    assert values["native_files"]["files"] == 2 * IMAGES  # the truncated image was read, too
    assert values["native"]["image"] == {"native": IMAGES, "kept": IMAGES - 1, "quarantined": 1, "dropped": 0}
    assert values["quarantined"]["object: bad number '...'"] == 1
    assert sum(values["quarantined"].values()) == 3


def test_beam_gives_the_same_bytes(tmp_path: Path, yolo_card: Card) -> None:
    pytest.importorskip("apache_beam")
    from earthgpt_jax.datasets.build.beam import Beam

    engine = Beam(["--runner=DirectRunner"])
    assert _build(tmp_path, yolo_card, "beam", engine=engine) == _build(tmp_path, yolo_card, "one")
    with pytest.raises(EarthGPTError, match=r"^an error of the user$"):
        list(engine.run(_raises, [tmp_path / "job"]))


# Kills a build at its first, second, third, ... rename, until a build is not killed any more; resumes each killed one.
# Forking is safe in this script, because nothing has started threads yet.
_KILLED = """
import os, signal, sys
from pathlib import Path
from earthgpt_jax.datasets.build import builder as building
from tests.datasets.build.test_builder import contents, native
building._JOB_ENTRIES = 5
root = Path(sys.argv[1])
card = native(root / "native")
rename = os.replace

def child(out, kill_at, when):
    count = 0
    def replace(source, target):
        nonlocal count
        count += 1
        if when == "after":
            rename(source, target)
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if when == "before":
            rename(source, target)
    pid = os.fork()
    if not pid:
        os.replace = replace
        building.build([card], root=root / "native", out=out, max_quarantine=0.2)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

assert child(root / "uninterrupted", 0, "before") == 0
expected = contents(root / "uninterrupted" / "s")

def killed_and_resumed(kill_at, when):
    out = root / f"{when}{kill_at}"
    if child(out, kill_at, when) != -signal.SIGKILL:
        return False
    assert (out / "s").exists() == (when == "after")
    assert child(out, 0, "before") == 0
    assert contents(out / "s") == expected, (when, kill_at)
    assert [path.name for path in out.iterdir()] == ["s"]
    return True

last = 0
while killed_and_resumed(last + 1, "before"):
    last += 1
assert killed_and_resumed(last, "after")
print(last)
"""


def test_a_build_killed_anywhere_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[3]
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    words = [sys.executable, "-c", _KILLED, str(tmp_path)]
    done = subprocess.run(words, env=environment, check=True, capture_output=True, text=True)
    # Jobs and their chunks, shards of three splits, three other files of the dataset, the dataset.
    assert int(done.stdout) == 3 * 3 + 4 * 3 + 3 + 2


def test_resuming_uses_finished_chunks_but_not_changed_ones(tmp_path: Path, yolo_card: Card) -> None:
    with pytest.raises(EarthGPTError, match="resumes the build"):  # fails after all chunks are written
        build([yolo_card], root=tmp_path / "native", out=tmp_path / "out", max_quarantine=0)
    work = tmp_path / "out" / ".s.building" / "chunks"
    before = {path.stem: path.stat().st_mtime_ns for path in work.glob("*.index")}
    assert len(before) == 5
    torn = sorted(work.glob("*.examples"))[0]
    torn.write_bytes(torn.read_bytes()[:-1])  # as after a full disk
    path = tmp_path / "native" / "d" / "13.png"
    path.write_bytes((tmp_path / "native" / "d" / "12.png").read_bytes())
    with pytest.raises(EarthGPTError):
        build([yolo_card], root=tmp_path / "native", out=tmp_path / "out", max_quarantine=0)
    after = {path.stem: path.stat().st_mtime_ns for path in work.glob("*.index")}
    assert [after.get(stem, 0) == time_ for stem, time_ in sorted(before.items())] == [False, True, True, True, True]
    assert len(after) == 6  # the last job has another digest now
    assert _build(tmp_path, yolo_card, "out") == _build(tmp_path, yolo_card, "fresh")


def test_only_one_process_builds_a_dataset(tmp_path: Path, yolo_card: Card) -> None:
    with (
        work_folder(tmp_path / "out" / "s"),
        pytest.raises(EarthGPTError, match="is being built by another process"),
    ):
        build([yolo_card], root=tmp_path / "native", out=tmp_path / "out")


def test_too_much_quarantine_fails_with_the_reasons(tmp_path: Path, yolo_card: Card) -> None:
    with pytest.raises(
        EarthGPTError, match=r"2 of 15 objects were quarantined, more than the allowed fraction of 0\.1"
    ) as caught:
        build([yolo_card], root=tmp_path / "native", out=tmp_path / "out")
    assert "1 x object: bad number '...'" in str(caught.value)
    quarantine_list = tmp_path / "out" / "s.quarantine.jsonl"
    assert str(quarantine_list) in str(caught.value)
    assert len(quarantine_list.read_text().splitlines()) == 3
    assert not (tmp_path / "out" / "s").exists()
    build([yolo_card], root=tmp_path / "native", out=tmp_path / "out", max_quarantine=2 / 15)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["s"]
    with pytest.raises(EarthGPTError, match="fraction from 0 to 1"):
        build([yolo_card], root=tmp_path / "native", out=tmp_path / "out", max_quarantine=10)


def test_native_files_are_listed_and_changes_are_found(tmp_path: Path, yolo_card: Card) -> None:
    _build(tmp_path, yolo_card, "out")
    folder = tmp_path / "native" / "d"
    sums = native_files.parse_sums((tmp_path / "out" / "s" / native_files.FILE).read_text())
    assert sums == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    again = build([yolo_card], root=tmp_path / "native", out=tmp_path / "out")
    assert again.datasets[0].unchanged
    assert again.quarantined == 3
    text = (folder / "00.txt").read_text()
    (folder / "00.txt").write_text(text.replace("0.5", "0.6", 1))  # same size, old modification time
    os.utime(folder / "00.txt", (0, 0))
    with pytest.raises(EarthGPTError, match="it contains another build"):
        build([yolo_card], root=tmp_path / "native", out=tmp_path / "out")
    (folder / "00.txt").write_text(text)
    assert build([yolo_card], root=tmp_path / "native", out=tmp_path / "out").datasets[0].unchanged


def test_synthetic_with_two_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "_JOB_ENTRIES", 2)
    with LocalEngine(2) as engine:
        build_synthetic({"train": 5, "test": 1}, size=32, seed=3, out=tmp_path / "two", engine=engine)
    build_synthetic({"train": 5, "test": 1}, size=32, seed=3, out=tmp_path / "one")
    assert contents(tmp_path / "one" / "synthetic") == contents(tmp_path / "two" / "synthetic")


def test_errors_of_workers_are_raised(tmp_path: Path) -> None:
    jobs = [tmp_path / "a.job", tmp_path / "b.job"]
    with (
        LocalEngine(2) as engine,
        pytest.raises(EarthGPTError, match="No such file"),
        explain_write_errors(tmp_path / "s", consequence="nothing is kept"),
    ):
        list(engine.run(chunks.run_job, jobs))
    with LocalEngine(2) as engine, pytest.raises(EarthGPTError, match="a worker was killed"):
        list(engine.run(_dies, jobs))
    with pytest.raises(EarthGPTError, match="at least 1"):
        LocalEngine(0)


def _raises(job: Path) -> None:
    raise EarthGPTError("an error of the user")


def _dies(job: Path) -> None:
    os._exit(9)


def test_workers_exit_when_their_parent_is_killed(tmp_path: Path) -> None:
    script = (
        "import os, sys, time\nfrom pathlib import Path\nfrom earthgpt_jax.common.parallel import LocalEngine\n"
        "from tests.datasets.build.test_builder import _sleeps\n"
        "if __name__ == '__main__':\n    list(LocalEngine(2).run(_sleeps, [Path(sys.argv[1]) / n for n in 'ab']))\n"
    )
    (tmp_path / "script.py").write_text(script)
    root = Path(__file__).resolve().parents[3]
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    parent = subprocess.Popen([sys.executable, str(tmp_path / "script.py"), str(tmp_path)], env=environment)
    _wait(lambda: (tmp_path / "a").exists() and (tmp_path / "b").exists())
    parent.kill()
    parent.wait()
    workers = [int((tmp_path / name).read_text()) for name in "ab"]
    _wait(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))


def _sleeps(job: Path) -> None:
    write_bytes(job, str(os.getpid()).encode())
    time.sleep(600)


def _wait(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_shards_are_divided_as_tfds_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards.ShardConfig, "min_shard_size", 3000)
    monkeypatch.setattr(building, "_JOB_ENTRIES", 3)
    yolo_card = native(tmp_path / "native")
    build([yolo_card], root=tmp_path / "native", out=tmp_path / "out", max_quarantine=0.2)
    folder = tmp_path / "out" / "s"
    values = read_manifest(folder)
    train = sorted(name for name in values["shards"] if "-train." in name)
    assert len(train) > 1
    described = json.loads((folder / "dataset_info.json").read_text())["splits"]
    lengths = {split["name"]: list(map(int, split["shardLengths"])) for split in described}
    assert {split: sum(of_split) for split, of_split in lengths.items()} == values["images"]
    expected = [path for path in sorted((tmp_path / "native" / "d").glob("*.png")) if path.stem != "07"]
    images = [record.image for split in values["counts"] for record in RecordSource(folder, split)]
    assert sorted(images) == sorted(path.read_bytes() for path in expected)
