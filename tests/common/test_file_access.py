"""Which modules open, write and move local files themselves: all others leave it to `common.files`.

A path that a user names may be in a bucket, where `open`, `os` and `shutil` do not work, and `Path("gs://...")` is a
local path. A module that calls one of them needs an entry here that says why its paths are local.
"""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "earthgpt_jax"

OWN_FOLDER = "writes to a local folder of its own, which common.files moves or uploads"
RESOURCE = "files of an installed package"
NAME = "takes names apart and opens nothing"

# module -> (why its paths are local, what it calls)
ALLOWED = {
    "api.py": (OWN_FOLDER, {"Path", "tempfile.TemporaryDirectory"}),
    "cli/evaluate.py": (NAME, {"Path"}),
    "cli/main.py": ("the null device", {"os.open"}),
    "cli/quickstart.py": ("a default", {"Path"}),
    "common/buckets.py": ("the implementation", {".write_bytes", "Path"}),
    "common/file_cache.py": ("the cache", {"os.open", "os.pwrite", "os.replace", "os.truncate", "os.utime"}),
    "common/files.py": (
        "the implementation",
        {".open", ".write_bytes", "Path", "os.fsync", "os.replace", "shutil.copyfile", "shutil.rmtree",
         "tempfile.TemporaryDirectory"},
    ),
    "common/json_lines.py": ("appends on a disk, and has objects in a bucket", {".open"}),
    "common/resources.py": (RESOURCE, {"Path"}),
    "common/safetensors_files.py": (OWN_FOLDER, {".write_text", "os.open", "os.pwrite", "os.truncate"}),
    "compilation.py": ("JAX's cache of compiled programs, and names", {".replace", "Path"}),
    "config/load.py": (NAME, {"Path"}),
    "convert/card.py": (RESOURCE, {"Path"}),
    "convert/exporter.py": (RESOURCE, {"Path"}),
    "convert/layouts.py": (NAME, {"Path"}),
    "convert/peft_export.py": (OWN_FOLDER, {".rename"}),
    "datasets/build/beam.py": (OWN_FOLDER, {"Path"}),
    "datasets/build/builder.py": (OWN_FOLDER, {".write_text", "os.utime"}),
    "datasets/build/native_files.py": (NAME, {"Path"}),
    "datasets/build/shards.py": (OWN_FOLDER, {"Path", "os.replace", "shutil.rmtree"}),
    "datasets/build/tfds_builder.py": ("folders that TFDS gives", {".rename", "Path"}),
    "datasets/build/work_folder.py": (OWN_FOLDER, {"os.open", "shutil.rmtree"}),
    "datasets/build/writer.py": (OWN_FOLDER, {".open", "Path", "tempfile.TemporaryDirectory"}),
    "datasets/readers/__init__.py": (NAME, {"Path"}),
    "datasets/readers/assemble.py": (NAME, {"Path"}),
    "datasets/readers/native_tree.py": ("walks folders on a disk only", {"Path", "os.scandir"}),
    "datasets/readers/split_lists.py": (NAME, {"Path"}),
    "datasets/store.py": (OWN_FOLDER, {"Path", "tempfile.TemporaryDirectory"}),
    "distributed.py": (RESOURCE, {"Path"}),
    "evaluation/metrics/meteor_spice.py": (RESOURCE, {"Path", "shutil.which"}),
    "evaluation/part_files.py": ("appends on a disk, and has a series of objects in a bucket", {".open"}),
    "evaluation/third_party/formats.py": (NAME, {"Path"}),
    "input/packing/mixture.py": (NAME, {"Path"}),
    "scenes/layers.py": (OWN_FOLDER, {".write_text", "Path", "tempfile.TemporaryDirectory"}),
    "scenes/quick_look.py": (OWN_FOLDER, {"Path", "tempfile.TemporaryDirectory"}),
    "training/event_files.py": (OWN_FOLDER, {"Path", "tempfile.TemporaryDirectory"}),
    "training/throughput.py": ("/proc", {"Path"}),
    "training/workdir_lock.py": ("locks work directories on disks only", {"os.open", "os.pwrite", "os.truncate"}),
    "training/lifecycle.py": ("a report that is uploaded when it is complete", {"tempfile.TemporaryFile"}),
}  # fmt: skip


def _calls(path: Path) -> set[str]:
    """Return the calls in a module that work on local files only, or write without being atomic."""
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    return {name for node in calls if (name := _local_call(node))}


def _local_call(node: ast.Call) -> str:
    """Return the name of a call if it works on local files only, otherwise ""."""
    name = ast.unparse(node.func)
    module, dot, function = name.rpartition(".")
    mode = str(node.args[0].value)[:1] if node.args and isinstance(node.args[0], ast.Constant) else ""
    if name in ("open", "Path", "pathlib.Path") or module in ("shutil", "tempfile", "mmap"):
        return name
    if module == "os":
        return name if function in _OS else ""
    writes = {
        "open": mode in ("w", "a", "x"),
        "rename": len(node.args) == 1, "replace": len(node.args) == 1 and not node.keywords,
        "write_bytes": module != "files", "write_text": module != "files",
    }  # fmt: skip
    return f".{function}" if dot and writes.get(function) else ""


_OS = {
    "chmod", "fsync", "link", "listdir", "makedirs", "mkdir", "open", "pread", "pwrite", "remove", "rename", "replace",
    "rmdir", "scandir", "stat", "symlink", "truncate", "unlink", "utime", "walk",
}  # fmt: skip


def test_local_file_access_is_where_paths_are_local() -> None:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if "_share" not in name and (calls := _calls(path)):
            found[name] = calls
    assert found == {name: calls for name, (_, calls) in ALLOWED.items()}
