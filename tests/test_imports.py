"""The layers of the package: imports go one way, and worker processes never import jax."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "earthgpt_jax"

# Layers from the lowest to the highest, one part per layer. A part imports itself and lower layers only.
LAYERS = (
    "common", "params", "records", "config", "compilation", "distributed", "boxes", "raster", "synthetic", "datasets",
    "input", "sharding", "ops", "models", "inference", "scenes", "convert", "training", "aot", "evaluation", "api",
    "cli", "__main__",
)  # fmt: skip
RANK = {"": 0, **{part: layer for layer, part in enumerate(LAYERS)}}  # "": the __init__ of the package

# Parts that run in worker processes, which must not touch a device.
DEVICE_FREE = {"common", "records", "boxes", "raster", "synthetic", "datasets", "input"}
DEVICE_PACKAGES = {"jax", "jaxlib", "flax", "optax", "orbax"}
TORCH_PACKAGES = {"torch", "transformers", "timm"}


@functools.cache
def _modules() -> dict[str, Path]:
    """Return `{dotted name: file}` of every module of the package."""
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        relative = path.relative_to(ROOT)
        if "_share" in relative.parts or "assets" in relative.parts:
            continue
        parts = relative.with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def _part(module: str) -> str:
    return (module + "..").split(".")[1]


@functools.cache
def _imports(module: str) -> frozenset[tuple[str, bool]]:
    """Return (imported module, whether at import time) for every import statement of `module`, also lazy ones."""
    if module == PACKAGE:  # the front door: its names are imported from `api` when first used
        return frozenset()
    path = _modules()[module]
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    lazy = {
        inner
        for outer in ast.walk(tree)
        if isinstance(outer, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for inner in ast.walk(outer)
    }
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return frozenset((name, node not in lazy) for node in ast.walk(tree) for name in _names(node, package=package))


def _names(node: ast.AST, *, package: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            parents = package.split(".")
            base = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [base])])
        modules = [name for alias in node.names if (name := f"{base}.{alias.name}") in _modules()]
        yield from modules
        if len(modules) < len(node.names):  # a name that is defined in the package itself
            yield base


def _own(module: str) -> set[str]:
    return {name for name, _ in _imports(module) if name in _modules()}


def _closure(module: str) -> set[str]:
    """Return `module`, all modules of the package that it imports, and the packages that these imports run."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        waiting += _own(name)
        parent = name.rpartition(".")[0]
        if parent in _modules():  # a folder without __init__.py has its own test
            waiting.append(parent)
    return seen


def test_every_part_has_a_layer():
    unknown = {_part(module) for module in _modules()} - set(RANK)
    assert not unknown, f"no layer for {sorted(unknown)}; add them to LAYERS"


def test_every_folder_of_modules_is_a_package():
    folders = {path.parent for path in _modules().values()}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_imports_go_one_way():
    wrong = [
        f"{module} imports {name}"
        for module in _modules()
        for name in sorted(_own(module))
        if RANK[_part(name)] > RANK[_part(module)]
    ]
    assert wrong == []


def test_there_are_no_import_cycles():
    graph = {module: {name for name in _own(module) if name != module} for module in _modules()}
    done: set[str] = set()

    def circle(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module not in done:
            for name in sorted(graph[module]):
                if found := circle(name, [*path, module]):
                    return found
            done.add(module)
        return []

    assert [found for module in graph if (found := circle(module, []))] == []


def test_parts_for_worker_processes_never_import_jax():
    wrong = [
        f"{module} -> {reached} imports {name}"
        for module in _modules()
        if _part(module) in DEVICE_FREE
        for reached in _closure(module)
        for name, _ in _imports(reached)
        if name.split(".")[0] in DEVICE_PACKAGES
    ]
    assert wrong == []


def test_only_convert_imports_torch_and_only_inside_functions():
    wrong = [
        f"{module} imports {name}" + (" at import time" if eager else "")
        for module in _modules()
        for name, eager in _imports(module)
        if name.split(".")[0] in TORCH_PACKAGES and (eager or _part(module) != "convert")
    ]
    # The files that are copied into an export are PyTorch code that runs elsewhere.
    assert [line for line in wrong if not line.startswith(f"{PACKAGE}.convert.hf.")] == []


WITHOUT_JAX = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("jax", "jaxlib", "flax"):
            raise ModuleNotFoundError(f"no {name} in a worker process", name=name)

sys.meta_path.insert(0, Refuse())
import earthgpt_jax.input.pipeline, earthgpt_jax.datasets.store, earthgpt_jax.boxes
assert "jax" not in sys.modules
"""


def test_input_and_datasets_can_be_imported_without_jax():
    """Grain imports jax.tree_util if it is available, so jax is made unavailable here.

    Importing jax would start no device; the test shows that neither our modules nor Grain need it.
    """
    done = subprocess.run([sys.executable, "-c", WITHOUT_JAX], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


LIGHT = """
import sys
import earthgpt_jax as eg

assert "load" in dir(eg) and not {"jax", "numpy", "flax", "PIL"} & set(sys.modules), sorted(sys.modules)
"""


def test_the_front_door_imports_nothing_until_it_is_used():
    done = subprocess.run([sys.executable, "-c", LIGHT], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


STARTS_NO_DEVICE = """
import earthgpt_jax.input.pipeline, earthgpt_jax.datasets.store
from jax._src import xla_bridge
assert not xla_bridge._backends, "importing the input pipeline started a device"
"""


def test_importing_the_input_pipeline_starts_no_device():
    done = subprocess.run([sys.executable, "-c", STARTS_NO_DEVICE], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import jax.numpy as jnp", {"jax.numpy"}),
        ("from earthgpt_jax.datasets import store", {"earthgpt_jax.datasets.store"}),
        ("from .store import RecordSource", {"earthgpt_jax.datasets.store"}),
        ("from .. import params", {"earthgpt_jax.params"}),
    ],
)
def test_import_statements_are_parsed_correctly(source: str, expected: set[str]):
    node = ast.parse(source).body[0]
    assert set(_names(node, package="earthgpt_jax.datasets")) == expected
