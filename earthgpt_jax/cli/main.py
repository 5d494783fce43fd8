"""The program `earthgpt`: finds the command, parses its arguments, turns what escapes into an exit status.

A command is a module with

    NAME         the verb, as typed
    HELP         one line
    DESCRIPTION  what `--help` says above the options, examples included (optional; HELP otherwise)
    OVERRIDES    True if it takes `--config.path=value`; they arrive in `args.overrides` (optional)
    add_arguments(parser) -> None
    run(args) -> int

Only the module of the command that was asked for is imported, so that help comes at once.

Exit statuses: 0 done, 1 a check found something, 2 the user can mend it, 75 the same command goes on (a run was told to
stop and saved, or waited in vain), 130 interrupted, 141 the reader of our output went away. Anything else that escapes
is a defect and keeps its traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import errno
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import NoReturn

from earthgpt_jax import __version__
from earthgpt_jax.common.errors import AGAIN, INTERRUPTED, EarthGPTError, Stopped, TryAgain

USER_ERROR = 2
BROKEN_PIPE = 128 + 13  # what a shell reports for SIGPIPE


@dataclasses.dataclass(frozen=True)
class Command:
    """A row of the table: the verb, the module behind it, the line about it in `earthgpt --help`."""

    name: str
    module: str
    help: str


COMMANDS = (
    Command(
        "quickstart",
        "earthgpt_jax.cli.quickstart",
        "the whole recipe on synthetic data, on a CPU, in minutes",
    ),
    Command("data", "earthgpt_jax.cli.data", "list, build, check, count and look at datasets"),
    Command("train", "earthgpt_jax.cli.train", "train a stage of a recipe; resumes by itself"),
    Command(
        "inspect",
        "earthgpt_jax.cli.inspect",
        "say what a run, a checkpoint or a foreign file of weights is, without loading it",
    ),
    Command(
        "plan",
        "earthgpt_jax.cli.plan",
        "compile a recipe's step for a TPU slice: memory, FLOPs, collectives, the bound of its speed",
    ),
    Command("eval", "earthgpt_jax.cli.evaluate", "answer a benchmark's questions and score the answers"),
    Command("score", "earthgpt_jax.cli.score", "score an existing predictions file, without a model"),
    Command("chat", "earthgpt_jax.cli.chat", "ask a model about an image"),
    Command("detect", "earthgpt_jax.cli.detect", "find the objects of an image: boxes as JSON and drawn"),
    Command(
        "convert",
        "earthgpt_jax.cli.convert",
        "import foreign checkpoints; export for Hugging Face and LLaMA2-Accessory",
    ),
)

DESCRIPTION = """\
EarthGPT in JAX: one model for optical, SAR and infrared remote-sensing images that classifies,
captions, answers questions, grounds phrases and detects objects in upright and oriented boxes.
"""

EXAMPLES = """\
examples:
  earthgpt quickstart --workdir runs/quickstart    everything once, on a CPU, in minutes
  earthgpt COMMAND --help                          what a command does and takes
"""


class _Parser(argparse.ArgumentParser):
    """argparse with whole option names only, and errors in the one form that all our errors have."""

    def __init__(self, **kwargs) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(**kwargs)

    def error(self, message: str) -> NoReturn:
        raise EarthGPTError(f"{message} (see `{self.prog} --help`)")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `earthgpt ARGV...` (default: this process's arguments) and returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        try:
            status = _dispatch(argv)
        except SystemExit as stop:  # argparse ends `--help` and `--version` so
            if isinstance(stop.code, str):
                raise
            status = stop.code or 0
        sys.stdout.flush()  # a closed pipe shows here, not at interpreter exit
        return status
    except TryAgain as error:
        _say(str(error))
        return AGAIN
    except EarthGPTError as error:
        return _say(str(error))
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return stopped.status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes stdout once more when it exits: let that go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except Exception as error:
        if full := _full_disk(error):
            return _say(full)
        raise


def _dispatch(argv: Sequence[str]) -> int:
    parser = _Parser(prog="earthgpt", usage="earthgpt COMMAND ...", description=DESCRIPTION, epilog=_epilog())
    parser.add_argument("--version", action="version", version=f"earthgpt {__version__}")
    verbs = parser.add_subparsers(prog="earthgpt", dest="command", help=argparse.SUPPRESS)

    asked = next((word for word in argv if not word.startswith("-")), None)
    _check_known(asked)
    module: ModuleType | None = None
    deepest = parser
    for command in COMMANDS:
        if command.name != asked:
            verbs.add_parser(command.name)
            continue
        module = importlib.import_module(command.module)
        deepest = verbs.add_parser(command.name, description=getattr(module, "DESCRIPTION", module.HELP))
        module.add_arguments(deepest)

    words, overrides = _split(argv, parser=deepest, takes_overrides=getattr(module, "OVERRIDES", False))
    args = parser.parse_args(words)
    if module is None:
        parser.print_help()
        return 0
    args.overrides = overrides
    _settle_absl_flags()
    return module.run(args) or 0


def _epilog() -> str:
    width = max(len(command.name) for command in COMMANDS) + 2
    lines = [f"  {command.name:<{width}}{command.help}" for command in COMMANDS]
    return "\n".join(["commands:", *lines, "", EXAMPLES])


def _check_known(name: str | None) -> None:
    names = [command.name for command in COMMANDS]
    if name is not None and name not in names:
        raise EarthGPTError(f"unknown command {name!r}{_nearest(name, names)} Commands: {', '.join(names)}.")


def _split(
    argv: Sequence[str], *, parser: argparse.ArgumentParser, takes_overrides: bool
) -> tuple[list[str], list[str]]:
    """(what argparse shall see, the `--config.path=value` words); an unknown option is refused here.

    Before argparse, because that takes the value of an unknown option for a positional argument, and an
    override with a space in it too.
    """
    known = sorted({*_options(parser), "--version"})
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
            raise EarthGPTError(f"unknown option {option}{_nearest(option, known)} (see `{parser.prog} --help`)")
        words.append(word)
    return words, overrides


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The option names of `parser` and of the parsers below it (argparse has no public list of them)."""
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _options(below)


def _nearest(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f": did you mean {near[0]}?" if near else "."


def _settle_absl_flags() -> None:
    """Worker processes of Grain read absl flags, which nobody parses outside an absl application."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def _full_disk(error: BaseException) -> str:
    """What to say if `error`, or what lies behind it, is a full disk; "" otherwise.

    Checkpoint writers wrap the system's error, or only quote its text.
    """
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        cause = waiting.pop()
        if cause is None or id(cause) in seen:
            continue
        seen.add(id(cause))
        number = cause.errno if isinstance(cause, OSError) else None
        if number in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in str(cause):
            place = f" while writing {cause.filename}" if isinstance(cause, OSError) and cause.filename else ""
            return f"no space left on the disk{place}: free some and run the same command again"
        waiting += [cause.__cause__, cause.__context__]
        if isinstance(cause, BaseExceptionGroup):
            waiting += cause.exceptions
    return ""


def _say(message: str) -> int:
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()  # what was printed before stands before the error
    print(f"error: {message}", file=sys.stderr)
    return USER_ERROR


if __name__ == "__main__":
    sys.exit(main())
