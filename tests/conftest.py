"""What every test finds: eight CPU devices, a compilation cache, the folders of real and of golden data."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import jaxtyping
import pytest

from tests.support.devices import xla_flags

if TYPE_CHECKING:
    from earthgpt_jax.common.buckets import BucketPath
    from tests.support.buckets import FaultyBucket, Stores

ROOT = Path(__file__).resolve().parents[1]
DEVICES = 8
# Folders whose modules take longest. They run first: the last module of a parallel run otherwise keeps one core idle.
FIRST = ("multiprocess", "e2e", "aot", "models", "inference")


def _prepare_environment() -> None:
    """Must have happened before anything imports jax, numpy or torch; child processes inherit it."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = xla_flags(DEVICES)

    # Most of the suite's time is compilation, and the programs are the same from run to run.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

    # Each xdist worker takes its share of the cores; otherwise every one starts a thread a core.
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NPROC"):  # NPROC: XLA's
        os.environ.setdefault(name, threads)

    # libtpu allows one process at a time unless told that these only compile.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "true")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("MPLBACKEND", "agg")


_prepare_environment()

# Arguments and results of these modules are checked against their annotations, shapes included.
CHECKED = ("earthgpt_jax.ops", "earthgpt_jax.models", "earthgpt_jax.inference.decode")
jaxtyping.install_import_hook(CHECKED, "beartype.beartype")


def pytest_configure(config: pytest.Config) -> None:
    from absl import flags

    if not flags.FLAGS.is_parsed():  # Grain's worker processes read absl flags
        flags.FLAGS.mark_as_parsed()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_rank)  # stable: the order within a folder stays
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(7200))
    for marker, package in (("torch", "torch"), ("tpu_compile", "libtpu")):
        if importlib.util.find_spec(package) is None:
            skip = pytest.mark.skip(reason=f"{package} is not installed")
            for item in items:
                if item.get_closest_marker(marker):
                    item.add_marker(skip)


def _rank(item: pytest.Item) -> int:
    folder = item.path.relative_to(ROOT / "tests").parts[0]
    return FIRST.index(folder) if folder in FIRST else len(FIRST)


def _folder(variable: str, default: Path) -> Path:
    folder = Path(os.environ.get(variable, default))
    if not folder.is_dir():
        pytest.skip(f"no {folder}; set {variable} to use another folder")
    return folder


@pytest.fixture(scope="session")
def realdata() -> Path:
    """Samples of public datasets in their native formats; not part of this repository."""
    return _folder("EARTHGPT_REALDATA", ROOT.parent / "shared" / "realdata")


@pytest.fixture(scope="session")
def goldens() -> Path:
    """Arrays computed by the PyTorch code of upstream projects; not part of this repository."""
    return _folder("EARTHGPT_GOLDENS", ROOT.parent / "shared" / "goldens")


SCHEMES = ("gs", "s3")


@pytest.fixture(scope="session")
def stores() -> Iterator[Stores]:
    """The emulators of object stores, each started when it is first needed."""
    from tests.support.buckets import Stores

    with Stores() as running:
        yield running


@pytest.fixture(params=SCHEMES)
def bucket(request: pytest.FixtureRequest, stores: Stores, monkeypatch: pytest.MonkeyPatch) -> Iterator[BucketPath]:
    """An empty bucket of each object store; processes that the test starts reach it, too."""
    from tests.support.buckets import new_bucket

    with new_bucket(request.param, stores, monkeypatch) as path:
        yield path


@pytest.fixture(params=SCHEMES)
def faulty_bucket(
    request: pytest.FixtureRequest, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FaultyBucket]:
    """An empty bucket of each object store, reached through a proxy that fails on request."""
    from tests.support.buckets import FaultyBucket, FaultyProxy, new_bucket

    proxy = FaultyProxy(stores.url(request.param))
    with new_bucket(request.param, stores, monkeypatch, url=proxy.url) as path:
        yield FaultyBucket(path, proxy)
    proxy.close()
