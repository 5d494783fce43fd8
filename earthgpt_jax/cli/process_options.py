"""Command-line options for running a command as one of several processes."""

from __future__ import annotations

import argparse
import os
import sys

_HELP = {
    "coordinator": "address of process 0, where cluster detection does not work",
    "processes": "number of processes; 1 disables cluster detection (default: auto-detect)",
    "process": "index of this process, from 0 (default: auto-detect)",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "several processes",
        "Detected automatically on TPU pods and under srun and mpirun. Elsewhere give all three, or set\n"
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
    """Connect to the other processes of the run (see `distributed.start`) and print which one this is."""
    from earthgpt_jax import distributed

    distributed.start(
        coordinator=args.coordinator,
        processes=args.processes or 0,
        process=-1 if args.process is None else args.process,
    )
    if line := distributed.describe():
        print(line, file=sys.stderr, flush=True)
