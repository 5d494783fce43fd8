"""An installed wheel works from an empty folder, without access to the checkout."""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = (
    "setup.py",
    "pyproject.toml",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
    "earthgpt_jax",
    "configs",
    "data",
)

pytestmark = pytest.mark.slow


def _run(*words: str | Path, cwd: Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run([str(word) for word in words], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy, so that the checkout gets no build/ and no _share/."""
    folder = tmp_path_factory.mktemp("wheel")
    ignore = shutil.ignore_patterns("__pycache__", "_share", "*.egg-info")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / "source" / name, ignore=ignore)
        else:
            (folder / "source").mkdir(exist_ok=True)
            shutil.copy(ROOT / name, folder / "source" / name)
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    _run(*pip, "--wheel-dir", folder / "dist", folder / "source", cwd=folder)
    (built,) = (folder / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into a new environment and return its bin/.

    A .pth file adds the packages of the current environment as dependencies. The .pth file of an editable install in
    there is not processed, so the checkout cannot be imported.
    """
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install")
    _run(*pip, "--quiet", "--no-deps", "--no-index", wheel, cwd=folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return folder / "bin"


@pytest.fixture
def outside() -> dict[str, str]:
    """Return the environment variables without those that could lead to the checkout."""
    return {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}


def _files(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_wheel_holds_code_configs_data_and_assets(wheel: Path):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("configs", "data"):
        expected = {f"earthgpt_jax/_share/{folder}/{name}" for name in _files(ROOT / folder)}
        assert expected, f"{folder}/ is empty"
        assert expected - names == set()
    code = {f"earthgpt_jax/{name}" for name in _files(ROOT / "earthgpt_jax") if not name.startswith("_share/")}
    assert code - names == set()
    assert not [name for name in names if name.startswith(("tests/", "scripts/", "configs/", "data/"))]
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_program_runs_from_an_empty_folder(installed: Path, outside: dict[str, str], tmp_path: Path):
    assert "quickstart" in _run(installed / "earthgpt", "--help", cwd=tmp_path, env=outside)
    assert _run(installed / "python", "-m", "earthgpt_jax", "--version", cwd=tmp_path, env=outside)
    assert _run(installed / "earthgpt", "data", "list", cwd=tmp_path, env=outside)
    assert list(tmp_path.iterdir()) == []


READS = """
import json, yaml
import earthgpt_jax
from earthgpt_jax import config
from earthgpt_jax.common import resources

cards = sorted(resources.data_path("sources").glob("*.yaml"))
print(json.dumps({
    "package": earthgpt_jax.__file__,
    "configs": str(resources.config_path()),
    "cards": [card.name for card in cards],
    "named": all(yaml.safe_load(card.read_text(encoding="utf-8")) for card in cards),
    "recipe": type(config.load("tiny:align")).__name__,
    "assets": sorted(path.name for path in resources.assets_path().iterdir()),
}))
"""


def test_recipes_cards_and_models_are_read_from_the_wheel(installed: Path, outside: dict[str, str], tmp_path: Path):
    found = json.loads(_run(installed / "python", "-c", READS, cwd=tmp_path, env=outside))
    environment = installed.parent.resolve()
    assert Path(found["package"]).resolve().is_relative_to(environment)
    assert Path(found["configs"]).resolve().is_relative_to(environment)
    assert found["cards"] == sorted(path.name for path in (ROOT / "data" / "sources").glob("*.yaml"))
    assert found["cards"]
    assert found["named"]
    assert found["recipe"] == "Config"
    assert set(found["assets"]) >= {path.name for path in (ROOT / "earthgpt_jax" / "assets").iterdir()}
