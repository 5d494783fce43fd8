"""The image descriptions: what they copy exists, the extras they install exist, and the launchers name them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILES = sorted((ROOT / "scripts" / "docker").glob("*.Dockerfile"))


def test_there_is_one_for_gpus_and_one_for_tpus() -> None:
    assert [path.name for path in DOCKERFILES] == ["gpu.Dockerfile", "tpu.Dockerfile"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_an_image_installs_the_package_with_an_extra_and_runs_earthgpt(path: Path) -> None:
    text = path.read_text()
    instructions = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert {line.split()[0] for line in instructions} == {"FROM", "COPY", "RUN", "ENTRYPOINT"}
    assert instructions[0] == "FROM python:3.12-slim" and instructions[-1] == 'ENTRYPOINT ["earthgpt"]'
    copied = [name for line in instructions if line.startswith("COPY ") for name in line.split()[1:-1]]
    assert all((ROOT / name).exists() for name in copied)
    # Everything that setup.py reads.
    assert {"setup.py", "pyproject.toml", "README.md", "LICENSE", "configs", "data", "earthgpt_jax"} <= set(copied)
    (extras,) = re.findall(r'pip install --no-cache-dir "/src\[([\w,]+)\]"', text)
    accelerator, *stores = extras.split(",")
    setup = (ROOT / "setup.py").read_text()
    assert re.search(rf'^    "{accelerator}": \["jax\[', setup, flags=re.MULTILINE)
    assert stores and all(f'    "{store}": [' in setup for store in stores)  # for paths in buckets
    assert f"--file scripts/docker/{path.name}" in text  # the build command in its header


def test_the_launcher_for_gke_names_the_image() -> None:
    assert "scripts/docker/tpu.Dockerfile" in (ROOT / "scripts" / "launch" / "gke_xpk.sh").read_text()
