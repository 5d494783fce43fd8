"""Train a stage of a recipe; resumes by itself.

Trains one stage: `align` (projector, attention, norms on image-caption pairs), then `instruct`
(adapters on instructions). The same command continues a run that was stopped, bit for bit; on another
number of hosts, but for the order of sums. Worker processes change nothing.

WORKDIR then holds config.json (the recipe), schedule.txt (what an epoch of it holds), metrics.jsonl and
tb/ (loss, rate, epoch), throughput.jsonl (tokens/s, MFU, goodput, what is waited for), checkpoints/, and at
the end model/; profile/ and hang/ where there was something to say.

On several hosts start the same command on each, with a WORKDIR that all of them see: by scripts/launch/
(TPU VM, GKE, SLURM), which starts it again where that helps, or as in the last example. They find out at the
start whether their config, code, data and weights are the same, and refuse if not. docs/guides/running.md has it all.

exit status:
  0    finished
  2    something to mend: a setting, the data, a loss that is not finite; starting again changes nothing
  75   told to stop (SIGTERM) and saved, or no step finished for config.watchdog.minutes: start it again
  130  interrupted (Ctrl-C) and saved
  1, 134, 137, ...: it was killed, or another process was: start it again

examples:
  earthgpt train --config tiny:align --workdir runs/align --config.data.source=DATA
  earthgpt train --config tiny:instruct --workdir runs/instruct --config.data.source=DATA \\
      --config.init=runs/align/model
  earthgpt train --config tiny_real:instruct --workdir runs/real --config.data.source=DATASETS \\
      --config.data.mixture=mmrs_balanced --config.data.augment=flips --config.data.workers=2
  earthgpt train --config tiny:align --workdir /shared/align --config.data.source=/shared/DATA \\
      --coordinator node0:8476 --processes 2 --process 0     (and on the other host: --process 1)
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from earthgpt_jax.cli import process_options as hosts_cli

OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        required=True,
        metavar="NAME:STAGE",
        help="a recipe of configs/ or a path, with its stage: tiny:align; override any field as --config.a.b=value",
    )
    parser.add_argument("--workdir", required=True, type=Path, help="checkpoints, metrics and the finished model")
    parser.add_argument(
        "--profile",
        nargs="?",
        const="",
        metavar="FIRST-LAST",
        help="trace these steps (default: the third to fifth of this start) into WORKDIR/profile",
    )
    parser.add_argument(
        "--profile-processes", choices=("first", "all"), default="first", help="which processes trace (default: first)"
    )
    hosts_cli.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from earthgpt_jax import distributed
    from earthgpt_jax.config import load

    hosts_cli.start(args)
    with distributed.fail_together("reading the config"):
        config = load(args.config, args.overrides)

    import jax

    from earthgpt_jax.aot.flops_reference import flops_reference
    from earthgpt_jax.training.loop import train
    from earthgpt_jax.training.profile import Profile

    profile = None
    if args.profile is not None:
        profile = Profile(steps=args.profile, all_processes=args.profile_processes == "all")
    finished = train(config, args.workdir, profile=profile, flops_reference=flops_reference(config, jax.devices()))
    print(f"finished: {finished}", file=sys.stderr)
    return 0
