"""Answer a benchmark's questions and score the answers.

Asks a model every question of a split, scores the answers, and puts a constant baseline (learnt from
the training split), a random one (another question's right answer) and a blind one (the same model on
a grey image) beside each figure. Answers are written as they come; a stopped evaluation continues.

Several processes, each with the same command and folders that all of them see, share the images; the
first one scores. Any number of them may go on with what others have begun.

examples:
  earthgpt eval --model runs/instruct/model --data DATA --split test --out runs/eval
  srun earthgpt eval --model runs/instruct/model --data DATA --out runs/eval --mesh tensor=4
  earthgpt eval --model runs/instruct/model --data DATA --out runs/eval --chained classes --false-premises
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from earthgpt_jax.cli import engine_options, process_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", required=True, type=Path, help="a dataset made by `earthgpt data build`, or a folder of them"
    )
    parser.add_argument("--split", default="test", help="split to ask about (default: test)")
    parser.add_argument("--out", required=True, type=Path, help="predictions, scores.json and report.html go here")
    parser.add_argument("--limit", type=int, metavar="N", help="ask about N images only, spread over the split")
    parser.add_argument("--per-image", type=int, default=3, help="most questions an image of a task (default: 3)")
    parser.add_argument(
        "--false-premises", action="store_true", help="also ask what is there, how many, and for boxes of what is not"
    )
    parser.add_argument(
        "--chained", choices=("mmrs", "classes"),
        help="also detect by chained questions (what is there, where, is it that), in rows of their own; the kinds of "
        "question are MMRS's, or those about a class",
    )  # fmt: skip
    parser.add_argument(
        "--log-probs", choices=("boxes", "all", "none"), default="boxes",
        help="answers kept with their tokens' log-probabilities, which give boxes confidences (default: boxes)",
    )  # fmt: skip
    parser.add_argument(
        "--batch-size", type=int, default=50, help="questions that a process answers at once (default: 50)"
    )
    engine_options.add_arguments(parser)
    process_options.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    process_options.start(args)

    from earthgpt_jax.common.errors import EarthGPTError
    from earthgpt_jax.datasets.collection import open_records
    from earthgpt_jax.evaluation import report, scores
    from earthgpt_jax.evaluation.chained import Protocol
    from earthgpt_jax.evaluation.compare import answer, beside_baselines
    from earthgpt_jax.evaluation.files import Process
    from earthgpt_jax.evaluation.metrics.intervals import SAMPLES
    from earthgpt_jax.evaluation.runner import DERIVED, LogProbs
    from earthgpt_jax.records import Task

    process = Process.this()
    with process.together("getting ready"):
        for name in ("limit", "per_image", "batch_size"):
            value = getattr(args, name)
            if value is not None and value < 1:
                raise EarthGPTError(f"--{name.replace('_', '-')}: expected at least 1, got {value}")
        test, train = (open_records(args.data, split) for split in (args.split, "train"))
        try:
            args.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EarthGPTError(
                f"--out {args.out}: cannot be made a folder ({error.strerror}); name another"
            ) from error
        engine = engine_options.engine(args, batch_size=args.batch_size)
    answered = answer(
        engine,
        test,
        out=args.out,
        per_image=dict.fromkeys((*Task, *DERIVED), args.per_image),
        label="/".join(Path(args.model).parts[-2:]),
        images=args.limit,
        derived=DERIVED if args.false_premises else (),
        chained_by=Protocol(args.chained) if args.chained else None,
        log_probs=LogProbs(args.log_probs),
    )
    with process.together("scoring"):
        if not process.leads:
            return 0
        result = beside_baselines(answered, train, out=args.out, decimals=engine.decimals, extras=(scores.Extra.AP,))
        table = scores.with_breakdown(result.scores, result.predictions, samples=SAMPLES)
        (args.out / "scores.json").write_text(json.dumps(table, indent=1) + "\n")
        report.write(
            args.out / "report.html",
            title=f"{args.model} on {test.name}, {args.split}",
            runs={str(args.model): table},
            curves={},
            gallery=report.cases(test, result.predictions, per_sensor=6),
            notes=[
                f"{min(args.limit or len(test), len(test))} of {len(test)} images of {test.name}, split {args.split}."
            ],
            failures=report.failures(result.predictions),
            predictions=result.predictions,
            tables=[found] if (found := report.confidences(result.scores)) else [],
            extremes=report.extremes(test, result.predictions, count=4),
        )
        print(scores.to_markdown(result.scores))
        print(f"\nscores: {args.out / 'scores.json'}\nreport: {args.out / 'report.html'}")
    return 0
