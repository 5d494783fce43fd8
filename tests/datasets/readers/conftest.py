"""Fixtures of the tests of readers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.native_datasets import Native


@pytest.fixture
def native(tmp_path: Path) -> Native:
    return Native(tmp_path)
