"""Paths of the files that are distributed with the code: recipes, dataset cards, templates, embedded models.

In a checkout, `configs/` and `data/` are next to the package; a wheel has copies of them in `earthgpt_jax/_share/`.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def _shared(folder: str) -> Path:
    installed = _PACKAGE / "_share" / folder
    return installed if installed.is_dir() else _PACKAGE.parent / folder


def config_path(*parts: str) -> Path:
    """Return a path below `configs/`."""
    return _shared("configs").joinpath(*parts)


def data_path(*parts: str) -> Path:
    """Return a path below `data/`."""
    return _shared("data").joinpath(*parts)


def assets_path(*parts: str) -> Path:
    """Return a path below the embedded models."""
    return _PACKAGE.joinpath("assets", *parts)
