"""Every option that names an output is checked before the work begins, and missing folders are made."""

import pytest

from earthgpt_jax.cli.main import main
from earthgpt_jax.common import files
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.files import output_path, write_output

COMMANDS = (
    ["chat", "a.png", "--question", "?", "--out", "{}.csv"],
    ["detect", "a.png", "--out", "{}.gpkg"],
    ["detect", "a.png", "--draw", "{}.png"],
    ["eval", "--data", "d", "--out", "{}"],
    ["score", "p.jsonl", "--json", "{}.json"],
    ["score", "p.jsonl", "--report", "{}"],
    ["train", "--config", "tiny:align", "--workdir", "{}"],
    ["quickstart", "--workdir", "{}"],
    ["data", "build", "dota", "--root", "r", "--out", "{}"],
    ["data", "stats", "d", "--json", "{}.json"],
    ["data", "stats", "d", "--html", "{}.html"],
    ["data", "preview", "d", "--out", "{}.html"],
    ["data", "check", "dota", "--root", "r", "--write-hashes", "{}"],
    ["convert", "import", "--config", "tiny:align", "--vit", "v", "--out", "{}"],
    ["convert", "export", "tiny", "--out", "{}"],
    ["convert", "merge", "tiny", "--out", "{}"],
)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: " ".join(words))
def test_an_output_below_a_file_is_refused_before_anything_is_read(tmp_path, capsys, command):
    (tmp_path / "taken").write_text("")
    words = [word.format(tmp_path / "taken" / "new" / "out") for word in command]
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert "taken" in err and "expected a path in a folder" in err and err.count("error:") == 1 and not out


def test_an_output_in_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files.os, "access", lambda path, mode: False)
    with pytest.raises(EarthGPTError, match="expected a folder that can be written"):
        output_path(tmp_path / "new" / "out.csv")


def test_missing_folders_are_made_when_the_output_is_written(tmp_path):
    target = output_path(tmp_path / "a" / "b" / "out.csv")
    assert list(tmp_path.iterdir()) == []
    write_output(target, b"1")
    assert target.read_bytes() == b"1"
