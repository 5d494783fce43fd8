"""Train a stage of a recipe; rerun the same command to resume.

Trains one stage: first `align` (projector, attention and norms, on image-caption pairs), then
`instruct` (adapters, on instructions). A stopped run resumes with the same command and ends with
the same bits; on another number of hosts or devices, up to the order of floating-point sums. The
number of data workers never matters.

WORKDIR contains config.json (the resolved recipe), schedule.txt (what an epoch contains),
metrics.jsonl and tb/ (loss, learning rate, epoch), throughput.jsonl (tokens/s, MFU, goodput,
waiting times, what a start cost), checkpoints/, compilation_cache/ (compiled programs, which the
next start reads), at the end model/ and validation.json (with --config.validation.every_steps=N),
and where applicable profile/ and hang/.

With several hosts, start the same command on every host, with a WORKDIR that all see: in a bucket
(gs://BUCKET/..., s3://BUCKET/...) or on shared storage. The
launchers in scripts/launch/ (TPU VM, GKE, SLURM) do this and restart the run after a preemption or
a crash; the last example starts two hosts by hand. At the start, the processes check that their
config, code, data and weights are the same. See docs/guides/running.md.

exit status:
  0    finished
  2    user error (a setting, the data, a loss that is not finite); one `error:` line explains the fix
  70   a defect of earthgpt-jax; please report it with its traceback
  75   preempted (SIGTERM, the current step is saved) or hung (no step finished within config.watchdog.minutes);
       rerun the same command to resume
  130  interrupted (Ctrl-C); the current step is saved
  1, 134, 137, ...: this process or another one crashed or was killed; rerun the same command to resume

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

from earthgpt_jax.cli import process_options
from earthgpt_jax.common import files

OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        required=True,
        metavar="NAME:STAGE",
        help="a recipe name from configs/ or a path, with its stage, e.g. tiny:align; override any field with "
        "--config.a.b=value",
    )
    parser.add_argument(
        "--workdir",
        required=True,
        type=files.output_path,
        help="folder for checkpoints, metrics and the finished model, on a disk or in a bucket",
    )
    parser.add_argument(
        "--profile",
        nargs="?",
        const="",
        metavar="FIRST-LAST",
        help="trace these steps into WORKDIR/profile (default: the third to fifth step of this start)",
    )
    parser.add_argument(
        "--profile-processes", choices=("first", "all"), default="first", help="which processes trace (default: first)"
    )
    process_options.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from earthgpt_jax import distributed
    from earthgpt_jax.config import load

    process_options.start(args)
    with distributed.fail_together("reading the config"):
        config = load(args.config, args.overrides)

    import jax

    from earthgpt_jax import compilation
    from earthgpt_jax.aot.flops_reference import flops_reference
    from earthgpt_jax.aot.remat_search import choose_for_devices
    from earthgpt_jax.evaluation.validation_answers import AnswerScorer
    from earthgpt_jax.training.loop import train
    from earthgpt_jax.training.profile import Profile

    profile = None
    if args.profile is not None:
        profile = Profile(steps=args.profile, all_processes=args.profile_processes == "all")
    compilation.enable_cache(args.workdir / "compilation_cache")
    finished = train(
        config,
        args.workdir,
        profile=profile,
        flops_reference=flops_reference(config, jax.devices()),
        choose_remat=lambda config: choose_for_devices(config, jax.devices()),
        make_scorer=AnswerScorer,
    )
    print(f"finished: {finished}", file=sys.stderr)
    return 0
