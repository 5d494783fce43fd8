"""The program `earthgpt`: dispatch to a command, parse its arguments, turn exceptions into an exit status.

A command is a module of `earthgpt_jax.cli` with

    __doc__      the text of `earthgpt COMMAND --help`; its first line is the entry in `earthgpt --help`
    OVERRIDES    True if the command takes `--config.path=value` words, passed in `args.overrides` (optional)
    add_arguments(parser) -> None
    run(args) -> int

These modules import nothing heavy at the top, so that help is printed at once; `run` imports what it needs.

`help_text.EXIT_STATUS` lists the exit statuses. In addition, 141 means that the reader of our output closed the pipe
(`earthgpt data list | head -n1`). Any other exception keeps its traceback, with status 70 if it is one of `DEFECTS` and
status 1 otherwise: it may come from the system, from storage, or from JAX because another host is lost.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib.util
import os
import shlex
import sys
import traceback
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any, NoReturn

from earthgpt_jax import __version__
from earthgpt_jax.cli.help_text import COMPILATION_CACHE, EXIT_STATUS, add_parser, summary
from earthgpt_jax.common.accelerators import skip_tpu_search
from earthgpt_jax.common.errors import (
    EXIT_DEFECT,
    EXIT_INTERRUPTED,
    EXIT_RETRY,
    EarthGPTError,
    RetryableError,
    RunStopped,
    find_full_disk,
)
from earthgpt_jax.common.names import did_you_mean

USER_ERROR = 2
# Exceptions that no disk, network or other host can cause: running the same command again does not help.
DEFECTS = (
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    NotImplementedError,
    TypeError,
    ZeroDivisionError,
)
# Errors of the file system that stay until the user chooses another path.
PERMANENT = {
    errno.EACCES, errno.EISDIR, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EPERM, errno.EROFS,
}  # fmt: skip
BROKEN_PIPE = 128 + 13  # what a shell reports for SIGPIPE

# Command -> its module, in the order of `earthgpt --help`.
COMMANDS = {
    "quickstart": "earthgpt_jax.cli.quickstart",
    "data": "earthgpt_jax.cli.data",
    "train": "earthgpt_jax.cli.train",
    "inspect": "earthgpt_jax.cli.inspect",
    "plan": "earthgpt_jax.cli.plan",
    "eval": "earthgpt_jax.cli.evaluate",
    "score": "earthgpt_jax.cli.score",
    "chat": "earthgpt_jax.cli.chat",
    "detect": "earthgpt_jax.cli.detect",
    "convert": "earthgpt_jax.cli.convert",
}

DESCRIPTION = """\
EarthGPT in JAX: a multimodal LLM for optical, SAR and infrared remote-sensing images. It classifies
scenes, writes captions, answers questions, grounds phrases and detects objects with axis-aligned (HBB)
and oriented (OBB) boxes.
"""

EXAMPLES = """\
examples:
  earthgpt quickstart --workdir runs/quickstart    data, training, evaluation and export, on a CPU, in minutes
  earthgpt detect scene.png                        boxes of all objects in an image, as JSON
  earthgpt COMMAND --help                          what a command does and its options
"""

# Former options and option values -> their replacements, for "did you mean".
RENAMED = {
    "fold": "merge",
    "whole": "image",
    "--grammar": "--box-format",
    "--image": "IMAGE",  # without an option
    "--images-per-row": "--max-images",
    "--plan": "--packing",
    "--tokens-per-row": "--seq-len",
}


class _Parser(argparse.ArgumentParser):
    """An argument parser that accepts full option names only and raises errors as `EarthGPTError`."""

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(**kwargs)

    def error(self, message: str) -> NoReturn:
        raise EarthGPTError(f"{message} (see `{self.prog} --help`)")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        # argparse has no public hook for a wrong value of an option with choices.
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            suggestion = _suggestion(str(value), choices)
            raise argparse.ArgumentError(action, f"invalid choice {value!r}{suggestion} Choices: {', '.join(choices)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run `earthgpt ARGV...` (default: the arguments of this process) and return its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        try:
            status = _dispatch(argv)
        except SystemExit as stop:  # raised by argparse after `--help` and `--version`
            if isinstance(stop.code, str):
                raise
            status = stop.code or 0
        sys.stdout.flush()  # a closed pipe raises here instead of at interpreter exit
        return status
    except RetryableError as error:
        _print_error(str(error))
        return EXIT_RETRY
    except EarthGPTError as error:
        return _print_error(str(error))
    except RunStopped as stopped:
        print(stopped, file=sys.stderr)
        return stopped.status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes stdout once more when it exits; send that to /dev/null.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except Exception as error:
        if (full := find_full_disk(error)) is not None:
            location = f" while writing {name}" if (name := getattr(full, "filename", None)) else ""
            return _print_error(f"no space left on the disk{location}: free some and run the same command again")
        if isinstance(error, OSError) and error.errno in PERMANENT and error.filename:
            return _print_error(f"{error.filename}: {error.strerror}; choose another path, or check its permissions")
        if not isinstance(error, DEFECTS):
            raise
        traceback.print_exc()
        print("error: a defect of earthgpt-jax; please report it with the lines above", file=sys.stderr)
        return EXIT_DEFECT


def _dispatch(argv: Sequence[str]) -> int:
    parser = _Parser(prog="earthgpt", usage="earthgpt COMMAND ...", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"earthgpt {__version__}")
    commands = parser.add_subparsers(prog="earthgpt", dest="command", help=argparse.SUPPRESS)

    chosen = next((word for word in argv if not word.startswith("-")), None)
    _check_command(chosen)
    module: ModuleType | None = None
    command_parser: argparse.ArgumentParser = parser
    for name in COMMANDS:
        if name != chosen:
            commands.add_parser(name)
            continue
        module = importlib.import_module(COMMANDS[name])
        command_parser = add_parser(commands, name, module)
        module.add_arguments(command_parser)
    if module is None:
        parser.epilog = _overview()

    words, overrides = _split(argv, parser=command_parser, takes_overrides=getattr(module, "OVERRIDES", False))
    args = parser.parse_args(words)
    if module is None:
        parser.print_help()
        return 0
    args.overrides = overrides
    args.command_line = shlex.join(("earthgpt", *argv))
    _mark_absl_flags_parsed()
    skip_tpu_search()
    return module.run(args) or 0


def _overview() -> str:
    """The commands, examples and exit statuses below `earthgpt --help`."""
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:<{width}}{summary(importlib.import_module(module))}" for name, module in COMMANDS.items()]
    return "\n".join(["commands:", *lines, "", EXAMPLES, EXIT_STATUS, COMPILATION_CACHE])


def _check_command(name: str | None) -> None:
    if name is not None and name not in COMMANDS:
        raise EarthGPTError(
            f"unknown command {name!r}{did_you_mean(name, tuple(COMMANDS))} Commands: {', '.join(COMMANDS)}."
        )


def _split(
    argv: Sequence[str], *, parser: argparse.ArgumentParser, takes_overrides: bool
) -> tuple[list[str], list[str]]:
    """Split the arguments into those for argparse and the `--config.path=value` words; refuse unknown options.

    This happens before argparse, which takes the value of an unknown option, or an override with a space in it,
    for a positional argument.
    """
    known = sorted({*_options(parser), "--version"})
    positionals = [str(action.metavar) for action in parser._actions if not action.option_strings]
    words: list[str] = []
    overrides: list[str] = []
    for position, word in enumerate(argv):
        option = word.partition("=")[0]
        if word == "--":
            return words + list(argv[position:]), overrides
        if word.startswith("--config."):
            if not takes_overrides:
                raise EarthGPTError(f"{word}: {parser.prog} takes no config overrides")
            if "=" not in word:
                raise EarthGPTError(f"{word}: expected {word}=VALUE, in one word")
            overrides.append(word)
            continue
        if word.startswith("--") and option not in known:
            raise EarthGPTError(
                f"unknown option {option}{_suggestion(option, [*known, *positionals])} (see `{parser.prog} --help`)"
            )
        words.append(word)
    return words, overrides


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield the option names of `parser` and its subparsers (argparse has no public list of them)."""
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for subparser in action.choices.values():
                yield from _options(subparser)


def _suggestion(word: str, known: Sequence[str]) -> str:
    """Return "; did you mean ...?" for a word that was renamed or is misspelled; "." if no known word is close."""
    renamed = RENAMED.get(word)
    return f"; did you mean {renamed!r}?" if renamed in known else did_you_mean(word, known)


def _mark_absl_flags_parsed() -> None:
    """Let Grain's worker processes read absl flags, which are parsed only inside an absl application."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def _print_error(message: str) -> int:
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()  # keeps earlier output above the error
    print(f"error: {message}", file=sys.stderr)
    return USER_ERROR


if __name__ == "__main__":
    sys.exit(main())
