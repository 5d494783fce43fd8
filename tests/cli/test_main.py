"""The program `earthgpt`: help without heavy imports, overrides, one-line errors, exit statuses."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import subprocess
import sys
import types
from pathlib import Path

import jax
import pytest

from earthgpt_jax import __version__
from earthgpt_jax.cli import main as cli
from earthgpt_jax.cli.help_text import summary
from earthgpt_jax.common.errors import EarthGPTError

ROOT = Path(__file__).resolve().parents[2]


class Fake(types.ModuleType):
    """A command `fake` that records its arguments and then calls `action`."""

    OVERRIDES = True

    def __init__(self) -> None:
        super().__init__("fake_command", "Call an action.\n\nWith details.\n")
        self.args: argparse.Namespace | None = None
        self.action = lambda: 0

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--config")
        parser.add_argument("--workdir")
        subparser = parser.add_subparsers(dest="verb").add_parser("build")
        subparser.add_argument("--quarantine")

    def run(self, args: argparse.Namespace) -> int:
        self.args = args
        return self.action()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    module = Fake()
    monkeypatch.setitem(sys.modules, "fake_command", module)
    monkeypatch.setattr(cli, "COMMANDS", {"fake": "fake_command"})
    return module


def _raise(error: BaseException):
    def action() -> int:
        raise error

    return action


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_help_names_every_command(argv: list[str], capsys: pytest.CaptureFixture[str]):
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    for name, module in cli.COMMANDS.items():
        assert f"\n  {name} " in out
        assert summary(importlib.import_module(module)) in out


def test_version(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"earthgpt {__version__}\n"


@pytest.mark.parametrize("words", [["--help"], *([name, "--help"] for name in cli.COMMANDS)], ids=" ".join)
def test_help_imports_nothing_heavy(words: list[str]):
    """What is heavy is imported in `run`, so that help is printed at once."""
    code = (
        f"import sys; from earthgpt_jax.cli.main import main; main({words})\n"
        "heavy = {'jax', 'numpy', 'flax', 'absl', 'tensorflow_datasets', 'PIL', 'scipy', 'yaml'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]):
    module = importlib.import_module(cli.COMMANDS[name])
    assert cli.main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: earthgpt {name}")
    assert module.__doc__ and module.__doc__.strip() in out
    assert summary(module) and f"\n  earthgpt {name} " in module.__doc__  # a summary and an example
    assert "exit status:" in out


def test_a_command_receives_arguments_and_overrides(fake: Fake):
    words = ["--config.optim.peak_lr=1e-4", "--config.data.source=a=b c"]
    assert cli.main(["fake", "--config", "tiny", words[0], "--workdir", "w", words[1]]) == 0
    assert fake.args is not None
    assert (fake.args.config, fake.args.workdir, fake.args.overrides) == ("tiny", "w", words)


def test_no_overrides_is_an_empty_list(fake: Fake):
    fake.OVERRIDES = False
    assert cli.main(["fake"]) == 0
    assert fake.args is not None
    assert fake.args.overrides == []


def test_the_command_sets_the_exit_status(fake: Fake):
    fake.action = lambda: 1
    assert cli.main(["fake"]) == 1


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["fkae"], "unknown command 'fkae'; did you mean 'fake'?"),
        (["fake", "--wrokdir", "x"], "unknown option --wrokdir; did you mean '--workdir'?"),
        (["fake", "--wrokdir=x"], "unknown option --wrokdir; did you mean '--workdir'?"),
        (["fake", "build", "--quarantin=x"], "unknown option --quarantin; did you mean '--quarantine'?"),
        (["fake", "--work", "x"], "unknown option --work; did you mean '--workdir'?"),  # no abbreviations
        (["fake", "--config.a.b"], "--config.a.b: expected --config.a.b=VALUE"),
        (["fake", "--confg.a=1"], "unknown option --confg.a; did you mean '--config'?"),
        (["fake", "--workdir"], "argument --workdir: expected one argument (see `earthgpt fake --help`)"),
        (["fake", "build", "stray"], "unrecognized arguments: stray"),
        (["fake", "--config.a=1 2", "--wrokdir", "x"], "unknown option --wrokdir"),
        (["fake", "-x"], "unrecognized arguments: -x"),
        (["--verison"], "unknown option --verison; did you mean '--version'?"),
    ],
)
def test_unknown_words_are_refused_with_a_suggestion(
    argv: list[str], expected: str, fake: Fake, capsys: pytest.CaptureFixture[str]
):
    assert cli.main(argv) == 2
    assert fake.args is None
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {expected}")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("convert export tiny --out o --adapter fold", "invalid choice 'fold'; did you mean 'merge'? Choices: merge"),
        ("score p.jsonl --frame whole", "invalid choice 'whole'; did you mean 'image'? Choices: square, image"),
        ("score p.jsonl --grammar corner_percent", "unknown option --grammar; did you mean '--box-format'?"),
        ("data stats datasets --plan", "unknown option --plan; did you mean '--packing'?"),
        ("data stats datasets --tokens-per-row 9", "unknown option --tokens-per-row; did you mean '--seq-len'?"),
        ("data stats datasets --images-per-row 9", "unknown option --images-per-row; did you mean '--max-images'?"),
    ],
)
def test_a_renamed_word_is_refused_with_its_replacement(words: str, message: str, capsys: pytest.CaptureFixture[str]):
    assert cli.main(words.split()) == 2
    assert message in capsys.readouterr().err


def test_overrides_are_refused_by_commands_without_a_config(fake: Fake, capsys: pytest.CaptureFixture[str]):
    fake.OVERRIDES = False
    assert cli.main(["fake", "--config.a=1"]) == 2
    assert "--config.a=1: earthgpt fake takes no config overrides" in capsys.readouterr().err


def test_user_error_is_one_line(fake: Fake, capsys: pytest.CaptureFixture[str]):
    fake.action = _raise(EarthGPTError("image a.tif: expected 3 bands, got 2"))
    assert cli.main(["fake"]) == 2
    assert capsys.readouterr().err == "error: image a.tif: expected 3 bands, got 2\n"


def test_defects_keep_their_traceback_and_are_not_restarted(fake: Fake, capsys: pytest.CaptureFixture[str]):
    for defect in (TypeError("ours"), KeyError("ours"), ZeroDivisionError("ours")):
        fake.action = _raise(defect)
        assert cli.main(["fake"]) == 70
        err = capsys.readouterr().err
        assert "Traceback" in err and "ours" in err
        assert err.splitlines()[-1].startswith("error: a defect of earthgpt-jax")


def test_a_path_that_cannot_be_used_is_one_line(fake: Fake, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    (tmp_path / "file").touch()
    fake.action = lambda: (tmp_path / "file" / "x").mkdir()
    assert cli.main(["fake"]) == 2
    path = tmp_path / "file" / "x"
    assert capsys.readouterr().err == f"error: {path}: Not a directory; choose another path, or check its permissions\n"


def test_what_another_host_or_the_system_may_have_caused_has_status_1(fake: Fake):
    for failure in (
        OSError("stale file handle"),
        jax.errors.JaxRuntimeError("a host is lost"),
        ValueError("UNAVAILABLE"),
    ):
        fake.action = _raise(failure)
        with pytest.raises(type(failure)):  # the interpreter ends with status 1
            cli.main(["fake"])


def test_interrupt_is_130(fake: Fake, capsys: pytest.CaptureFixture[str]):
    fake.action = _raise(KeyboardInterrupt())
    assert cli.main(["fake"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def _wrapped(inner: BaseException) -> BaseException:
    outer = RuntimeError("could not save")
    outer.__cause__ = inner
    return outer


@pytest.mark.parametrize(
    ("error", "place"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "w/step_10"), " while writing w/step_10"),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), ""),
        (_wrapped(OSError(errno.ENOSPC, "full", "w/x")), " while writing w/x"),
        (ValueError("RESOURCE_EXHAUSTED: Error writing local file: No space left on device [28]"), ""),
        (ExceptionGroup("save", [ValueError("other"), OSError(errno.ENOSPC, "full")]), ""),
    ],
    ids=["plain", "quota", "wrapped", "quoted", "group"],
)
def test_full_disk_is_one_line(error: BaseException, place: str, fake: Fake, capsys: pytest.CaptureFixture[str]):
    fake.action = _raise(error)
    assert cli.main(["fake"]) == 2
    expected = f"error: no space left on the disk{place}: free some and run the same command again\n"
    assert capsys.readouterr().err == expected


def test_other_system_errors_are_not_reported_as_a_full_disk(fake: Fake, capsys: pytest.CaptureFixture[str]):
    fake.action = _raise(OSError(errno.EIO, "input/output error", "x"))
    with pytest.raises(OSError, match="input/output"):
        cli.main(["fake"])
    assert "space" not in capsys.readouterr().err


PRINTS = """
import sys, types
from earthgpt_jax.cli import main as cli
from earthgpt_jax.cli.help_text import summary

module = types.ModuleType("prints")
module.add_arguments = lambda parser: None
module.run = lambda args: print("x" * 100_000)
sys.modules["prints"] = module
cli.COMMANDS = {"prints": "prints"}
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("word", ["prints", "--help"])
def test_closed_pipe_is_quiet(word: str):
    """As in `earthgpt data list | head -n1`: the reader is gone before everything is written."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [sys.executable, "-c", PRINTS, word],
            cwd=ROOT,
            env=environment,
            stdout=write,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (141, "")
