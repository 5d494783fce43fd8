"""Help of a command: the docstring of its module or function is the text of `--help`."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

COMPILATION_CACHE = """\
environment:
  JAX_COMPILATION_CACHE_DIR         folder of compiled programs, which later starts read
                                    (default: WORKDIR/compilation_cache for `train`, otherwise
                                    $XDG_CACHE_HOME/earthgpt_jax/programs, at most 4 GiB)
  JAX_ENABLE_COMPILATION_CACHE=0    compile at every start
"""

EXIT_STATUS = """\
exit status:
  0    success
  1    a check found problems
  2    user error; one `error:` line explains the fix
  70   a defect of earthgpt-jax; please report it with its traceback
  75   preempted or hung; rerun the same command to resume
  130  interrupted (Ctrl-C)
"""


def summary(documented: ModuleType | Callable) -> str:
    """Return the first line of a docstring, without its full stop: the entry in a list of commands."""
    return (documented.__doc__ or "").partition("\n")[0].removesuffix(".")


def add_parser(
    subparsers: argparse._SubParsersAction, name: str, documented: ModuleType | Callable, **kwargs: Any
) -> argparse.ArgumentParser:
    """Add the parser of a command whose help is a docstring.

    `EXIT_STATUS` is printed at the end unless the docstring has its own list of exit statuses.
    """
    text = inspect.cleandoc(documented.__doc__ or "")
    epilog = None if "exit status:" in text else EXIT_STATUS
    return subparsers.add_parser(name, description=text, epilog=epilog, **kwargs)
