"""Where the files that travel with the code lie: recipes, data cards and templates, embedded models.

In a checkout `configs/` and `data/` stand beside the package; a wheel carries copies of them in
`earthgpt_jax/_share/`.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def _shared(folder: str) -> Path:
    installed = _PACKAGE / "_share" / folder
    return installed if installed.is_dir() else _PACKAGE.parent / folder


def config_path(*parts: str) -> Path:
    """A path below `configs/`."""
    return _shared("configs").joinpath(*parts)


def data_path(*parts: str) -> Path:
    """A path below `data/`."""
    return _shared("data").joinpath(*parts)


def assets_path(*parts: str) -> Path:
    """A path below the embedded models."""
    return _PACKAGE.joinpath("assets", *parts)
