"""`earthgpt quickstart` runs from data to report and export, and a second start uses what is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from earthgpt_jax.cli.main import main


@pytest.mark.slow
@pytest.mark.torch
def test_quickstart_runs_from_data_to_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--train-images", "40", "--test-images", "6", "--steps", "3"]
    argv = ["quickstart", "--workdir", str(tmp_path / "run"), *sizes]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "8 of 8 answers are identical" in out or "6 of 6 answers are identical" in out
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert scores["classification"]["all"]["n"] == 6
    assert scores["trained"]["classification"]["all"]["n"] == 6
    assert "trained just now (3 + 3 steps)" in (tmp_path / "run" / "report.html").read_text()
    assert main(argv) == 0  # nothing is trained or answered again
    assert json.loads((tmp_path / "run" / "scores.json").read_text()) == scores
