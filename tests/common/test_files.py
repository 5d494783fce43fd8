"""Files and folders are complete or absent, whatever interrupts the writer."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from earthgpt_jax.common import files
from earthgpt_jax.common.errors import EarthGPTError, find_full_disk
from earthgpt_jax.common.files import IfExists


def test_files_hold_what_was_written(tmp_path: Path) -> None:
    files.write_bytes(tmp_path / "a", b"1", durable=True)
    files.write_text(tmp_path / "b", "ö\n")
    files.write_json(tmp_path / "c", {"x": [1]})
    with files.atomic_path(tmp_path / "d") as path:
        assert path.parent == tmp_path and path.suffix == ".partial"
        path.write_text("d")
    assert (tmp_path / "a").read_bytes() == b"1" and (tmp_path / "b").read_bytes() == "ö\n".encode()
    assert (tmp_path / "c").read_text() == json.dumps({"x": [1]}, indent=1) + "\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c", "d"]


def test_files_get_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    files.write_text(tmp_path / "file", "x")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_failure_keeps_the_previous_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    def interrupted() -> None:
        with files.atomic_open(tmp_path / "file") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    (tmp_path / "file").write_text("before")
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / "file").read_text() == "before" and len(list(tmp_path.iterdir())) == 1


def test_a_durable_file_is_on_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda number: (calls.append("fsync"), fsync(number)))
    monkeypatch.setattr(os, "replace", lambda *paths: (calls.append("replace"), replace(*paths)))
    files.write_bytes(tmp_path / "file", b"x", durable=True)
    files.write_bytes(tmp_path / "file", b"y")
    assert calls == ["fsync", "replace", "replace"]


_KILLED = """
import os, signal, sys
from pathlib import Path
from earthgpt_jax.common import files
target = Path(sys.argv[1])
with files.atomic_folder(target / "folder", key_file="half") as folder, files.atomic_open(target / "file") as file:
    (folder / "half").write_text("x")
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_leaves_only_partial_names(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2 and all(path.suffix == ".partial" for path in tmp_path.iterdir())
    with files.atomic_folder(tmp_path / "folder", key_file="complete") as folder:
        (folder / "complete").touch()
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["complete"]
    assert not (tmp_path / "folder.partial").exists()


def test_an_existing_folder_is_refused_or_replaced(tmp_path: Path) -> None:
    target = tmp_path / "parent" / "folder"
    with files.atomic_folder(target, key_file="a") as folder:
        (folder / "a").touch()
        assert not target.exists()
    with (
        pytest.raises(EarthGPTError, match="folder: exists already; choose"),
        files.atomic_folder(target, key_file="a"),
    ):
        pytest.fail("the block must not run")
    with files.atomic_folder(target, key_file="b", if_exists=IfExists.REPLACE) as folder:
        (folder / "b").touch()
    assert [path.name for path in target.iterdir()] == ["b"]
    (tmp_path / "file").touch()
    with (
        pytest.raises(EarthGPTError, match="file: exists already"),
        files.atomic_folder(tmp_path / "file", key_file="c"),
    ):
        pytest.fail("the block must not run")
    (tmp_path / "empty").mkdir()
    with files.atomic_folder(tmp_path / "empty", key_file="c") as folder:
        (folder / "c").touch()
    assert [path.name for path in (tmp_path / "empty").iterdir()] == ["c"]


def test_a_folder_that_another_process_fills_meanwhile_is_kept(tmp_path: Path) -> None:
    def overtaken() -> None:
        with files.atomic_folder(tmp_path / "folder", key_file="ours") as folder:
            (folder / "ours").touch()
            (tmp_path / "folder").mkdir()
            (tmp_path / "folder" / "theirs").touch()

    with pytest.raises(OSError, match="not empty"):
        overtaken()
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["folder", "folder/theirs"]


def test_a_failure_removes_the_partial_folder_and_keeps_the_previous_one(tmp_path: Path) -> None:
    def failing() -> None:
        with files.atomic_folder(tmp_path / "folder", key_file="half", if_exists=IfExists.REPLACE) as folder:
            (folder / "half").touch()
            raise RuntimeError("half")

    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "before").touch()
    with pytest.raises(RuntimeError, match="half"):
        failing()
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["folder", "folder/before"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "full"), "writing x: the disk is full; no partial files remain. Please free some space"),
        (RuntimeError("write(): No space left on device"), "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "x/y"), r"Permission denied \(x/y\); no .* permissions"),
    ],
)
def test_errors_of_the_file_system_are_explained(error: Exception, message: str) -> None:
    with pytest.raises(EarthGPTError, match=message), files.explain_write_errors(Path("x")):
        raise error


def test_other_errors_pass_through() -> None:
    with pytest.raises(RuntimeError, match="shapes differ"), files.explain_write_errors(Path("x")):
        raise RuntimeError("shapes differ")


def test_output_that_cannot_be_written_is_a_user_error(tmp_path: Path) -> None:
    files.write_output(tmp_path / "new" / "file", b"x")
    assert (tmp_path / "new" / "file").read_bytes() == b"x"
    with pytest.raises(EarthGPTError, match=r"Not a directory|File exists"):
        files.write_output(tmp_path / "new" / "file" / "below", b"x")


def test_a_full_disk_is_found_in_causes_groups_and_messages() -> None:
    full = OSError(errno.EDQUOT, "Disk quota exceeded", "file")
    wrapped = ValueError("save failed")
    wrapped.__cause__ = full
    assert find_full_disk(full) is full and find_full_disk(wrapped) is full
    assert find_full_disk(ExceptionGroup("save", [ValueError("a"), wrapped])) is full
    quoted = RuntimeError("write() failed: No space left on device")
    assert find_full_disk(quoted) is quoted
    first, second = ValueError("a"), ValueError("b")
    first.__context__, second.__context__ = second, first
    assert find_full_disk(first) is find_full_disk(None) is find_full_disk(OSError(errno.EIO, "I/O error")) is None
