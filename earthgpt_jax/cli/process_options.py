"""The options with which a command runs as one of several processes."""

from __future__ import annotations

import argparse
import os
import sys

from earthgpt_jax.common.errors import EarthGPTError

_HELP = {
    "coordinator": "address of process 0, for hosts that do not find each other by themselves",
    "processes": "how many take part; 1: this one alone, whatever surrounds it (default: found)",
    "process": "which of them this one is, from 0 (default: found)",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "several processes",
        "Found by themselves on TPU pods, under srun and mpirun; elsewhere give all three, or set\n"
        "EARTHGPT_COORDINATOR, EARTHGPT_PROCESSES and EARTHGPT_PROCESS.",
    )
    for name, metavar in (("coordinator", "HOST:PORT"), ("processes", "N"), ("process", "I")):
        group.add_argument(
            f"--{name}",
            metavar=metavar,
            default=os.environ.get(f"EARTHGPT_{name.upper()}", ""),
            type=str if name == "coordinator" else _number,
            help=_HELP[name],
        )


def _number(text: str) -> int | None:
    return int(text) if text else None


def start(args: argparse.Namespace) -> None:
    """Joins the other processes, see `hosts.start`, and says so."""
    from earthgpt_jax import distributed

    if args.coordinator and ":" not in args.coordinator:
        raise EarthGPTError(f"--coordinator {args.coordinator}: expected HOST:PORT")
    distributed.start(
        coordinator=args.coordinator,
        processes=args.processes or 0,
        process=-1 if args.process is None else args.process,
    )
    if line := distributed.describe():
        print(line, file=sys.stderr, flush=True)
