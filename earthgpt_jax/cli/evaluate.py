"""Answer a benchmark's questions and score the answers.

Asks a model all questions of a split and scores the answers next to three baselines that do not see
the image: constant (the best single answer, chosen on the training split), random (the correct answer
of another question) and blind (the same model on a grey image). Answers are written as they arrive;
rerun the same command to continue a stopped evaluation.

Several processes share the images if each runs the same command and all see the same folders. The first
one scores the answers. An evaluation may continue with another number of processes.

examples:
  earthgpt eval --model runs/instruct/model --data DATA --split test --out runs/eval
  srun earthgpt eval --model runs/instruct/model --data DATA --out runs/eval --mesh tensor=4
  earthgpt eval --model runs/instruct/model --data DATA --out runs/eval --chained classes --false-premises
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from earthgpt_jax.cli import engine_options, process_options
from earthgpt_jax.cli.made_by import made_by
from earthgpt_jax.common import files

if TYPE_CHECKING:
    from earthgpt_jax.evaluation.compare import Comparison
    from earthgpt_jax.evaluation.report import Table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", required=True, type=files.path, help="a dataset built by `earthgpt data build`, or a folder of them"
    )
    parser.add_argument("--split", default="test", help="split to ask about (default: test)")
    parser.add_argument(
        "--out", required=True, type=files.output_path, help="folder for the predictions, scores.json and report.html"
    )
    parser.add_argument(
        "--limit", type=int, metavar="N", help="ask about N images only, spread evenly over the split (default: all)"
    )
    parser.add_argument(
        "--per-image", type=int, default=3, metavar="N", help="maximum number of questions per image and task "
        "(default: 3)",
    )  # fmt: skip
    parser.add_argument(
        "--false-premises",
        action="store_true",
        help="also ask which classes are present, how many objects there are, and for boxes of absent classes",
    )
    parser.add_argument(
        "--chained", choices=("mmrs", "classes"),
        help="also detect by a chain of questions (what is there, where, is it really that), scored as separate tasks; "
        "mmrs asks the questions of MMRS-1M, classes asks about each class",
    )  # fmt: skip
    parser.add_argument(
        "--log-probs", choices=("boxes", "all", "none"), default="boxes",
        help="answers to store with the log-probabilities of their tokens, from which box confidences are computed "
        "(default: boxes)",
    )  # fmt: skip
    parser.add_argument(
        "--batch-size", type=int, default=50, metavar="N", help="questions answered at a time per process (default: 50)"
    )
    parser.add_argument(
        "--scenes", action="store_true", help="also merge the boxes of the tiles of each scene, and score scenes "
        "next to tiles; for datasets that were built with `tile`",
    )  # fmt: skip
    engine_options.add_arguments(parser)
    process_options.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    process_options.start(args)

    from earthgpt_jax.common.errors import EarthGPTError
    from earthgpt_jax.common.files import write_json
    from earthgpt_jax.datasets.collection import open_records
    from earthgpt_jax.evaluation import report, scores
    from earthgpt_jax.evaluation.chained import Protocol
    from earthgpt_jax.evaluation.compare import answer_questions, compare_with_baselines
    from earthgpt_jax.evaluation.metrics.intervals import SAMPLES
    from earthgpt_jax.evaluation.questions import DERIVED
    from earthgpt_jax.evaluation.runner import LogProbs
    from earthgpt_jax.inference.processes import Process
    from earthgpt_jax.records import Task

    process = Process.current()
    with process.synchronized("starting"):
        for name in ("limit", "per_image", "batch_size"):
            value = getattr(args, name)
            if value is not None and value < 1:
                raise EarthGPTError(f"--{name.replace('_', '-')}: expected at least 1, got {value}")
        if args.scenes and args.limit is not None:
            raise EarthGPTError("--scenes and --limit: expected all tiles of each scene; leave one of them out")
        test, train = (open_records(args.data, split) for split in (args.split, "train"))
        try:
            args.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EarthGPTError(
                f"--out {args.out}: the folder cannot be created ({error.strerror}); choose another"
            ) from error
        engine = engine_options.engine(args, batch_size=args.batch_size)
    answers = answer_questions(
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
    with process.synchronized("scoring"):
        if not process.is_main:
            return 0
        result = compare_with_baselines(
            answers, train, out=args.out, decimals=engine.decimals, extras=(scores.Extra.AP,)
        )
        scenes = _score_scenes(result, args.out) if args.scenes else None
        table = scores.with_breakdown(result.scores, result.predictions, samples=SAMPLES)
        write_json(args.out / "scores.json", scores.without_nan(table))
        report.write_page(
            args.out / "report.html",
            title=f"{args.model} on {test.name}, {args.split}",
            runs={str(args.model): table},
            curves={},
            images=report.first_images(test, result.predictions, per_sensor=6),
            notes=[
                made_by(
                    args,
                    samples=SAMPLES,
                    inputs={"model": engine.describe()["params"], f"{test.name} ({args.split})": test.fingerprint},
                ),
                f"{min(args.limit or len(test), len(test))} of {len(test)} images of {test.name}, split {args.split}.",
            ],
            failures=report.parse_failures(result.predictions),
            predictions=result.predictions,
            tables=[found for found in (report.confidence_table(result.scores), scenes) if found],
            extremes=report.best_and_worst(test, result.predictions, count=4),
        )
        print(report.headline_table(result.scores))
        if scenes is not None:
            print(f"\n{scenes.title}:\n{report.markdown_table([scenes.head, *scenes.rows])}")
        print(f"\nscores: {args.out / 'scores.json'}\nreport: {args.out / 'report.html'}")
    return 0


def _score_scenes(result: Comparison, out: Path) -> Table:
    """Merge the tiles of each scene, write the scores of scenes, and return them next to those of tiles."""
    from earthgpt_jax.common.files import write_json
    from earthgpt_jax.evaluation import report, scores
    from earthgpt_jax.evaluation.metrics.intervals import SAMPLES
    from earthgpt_jax.evaluation.scene_predictions import scene_predictions

    merged = scores.score(scene_predictions(result.predictions), samples=SAMPLES, extras=(scores.Extra.AP,))
    write_json(out / "scores_scenes.json", scores.without_nan(merged))
    return report.scene_table(result.scores, merged)
