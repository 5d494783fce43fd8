"""Score an existing predictions file, without a model.

Scores a predictions file: one that `earthgpt eval` or `earthgpt quickstart` wrote, whose truth is in
it, or one of another project. Neither the model nor the dataset is needed. A file that lacks answers,
has an id twice or belongs to other questions is refused.

Files of other projects (JSON lines or a JSON list) hold an id and an answer an entry:
  --from NAME       how they write boxes: geochat, lhrs, vhm, earthdial, vrsbench, falcon, mmrs
  --questions FILE  a predictions file of ours, for its questions and truth; joined by id
  --task TASK       instead, where entries have their own truth (ground_truth, target, annotation)

`--as PEER` puts the same answers through that project's published rule (geochat, lhrs, vhm, vrsbench,
earthdial, falcon) too, to show how much of a number is the rule.

examples:
  earthgpt score runs/eval/predictions_image.jsonl --json scores.json
  earthgpt score runs/eval/predictions_image.jsonl --blind runs/eval/predictions_blind.jsonl --report look
  earthgpt score answers.jsonl --from geochat --questions runs/eval/predictions_image.jsonl --as lhrs
  earthgpt score runs/eval/predictions_image.jsonl --benchmark dior_rsvg
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from earthgpt_jax.evaluation.predictions import Prediction


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="predictions, JSON lines or a JSON list")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all metrics into this file")
    parser.add_argument("--report", type=Path, metavar="DIR", help="also write report.html and report.md there")
    parser.add_argument("--from", dest="form", metavar="NAME", help="another project's file, by its form of boxes")
    parser.add_argument("--questions", type=Path, metavar="FILE", help="questions and truth of another project's file")
    parser.add_argument("--task", help="task of another project's file that holds its own truth")
    parser.add_argument("--box-format", help="of its boxes, where it is not the project's usual one")
    parser.add_argument("--frame", choices=("square", "whole"), help="what its boxes are fractions of")
    parser.add_argument("--as", dest="peer", metavar="PEER", help="also score by this project's published rule")
    parser.add_argument("--benchmark", metavar="NAME", help="score a benchmark's questions, beside published figures")
    parser.add_argument("--constant", type=Path, metavar="FILE", help="a constant baseline's answers, to stand beside")
    parser.add_argument("--blind", type=Path, metavar="FILE", help="answers of the same model without the image")
    parser.add_argument(
        "--calibrate",
        type=Path,
        metavar="FILE",
        help="answers about other images, from which box confidences are calibrated",
    )
    parser.add_argument("--data", type=Path, help="checks that the file is about this dataset; pictures for --report")
    parser.add_argument("--split", default="test", help="of --data (default: test)")
    parser.add_argument("--samples", type=int, default=1000, help="bootstrap samples; 0: no intervals (default: 1000)")


def run(args: argparse.Namespace) -> int:
    from earthgpt_jax.common.digests import sha256_file
    from earthgpt_jax.common.errors import EarthGPTError
    from earthgpt_jax.datasets.collection import open_records
    from earthgpt_jax.evaluation import baselines, benchmarks, confidence, predictions, report, scores
    from earthgpt_jax.evaluation.metrics import calibration
    from earthgpt_jax.evaluation.metrics.java import JavaMetric, why_not
    from earthgpt_jax.evaluation.third_party import scorers
    from earthgpt_jax.records import Task

    if args.samples < 0:
        raise EarthGPTError(f"--samples: expected 0 or more, got {args.samples}")
    if args.peer:
        scorers.rules(args.peer)  # a wrong name is answered before the work
    header, answered = _read(args)
    source = open_records(args.data, args.split) if args.data else None
    if source is not None and (said := header.get("data")) not in (None, source.fingerprint):
        raise EarthGPTError(
            f"{args.file}: expected answers about {args.data} ({args.split}), digest {source.fingerprint}, got answers "
            f"about a dataset of digest {said}; name that one"
        )
    notes = [f"{len(answered)} answers of {args.file.name}, sha256 {sha256_file(args.file)}."]
    notes += [f"{name}: {json.dumps(value)}" for name, value in header.items() if name not in ("questions", "asked")]
    if not args.form and "questions" not in header:
        notes.append("The file's header does not say how many questions were asked; missing answers would not show.")
    if answered[0].width <= 1:
        notes.append("The file gives no sizes of images: IoU is of fractions, and objects have no size.")
    card = benchmarks.benchmark(args.benchmark) if args.benchmark else None
    if card is not None:
        answered = benchmarks.chosen(answered, card, where=args.file)
        notes += benchmarks.remarks(answered, card)
    notes += confidence.remarks(answered)
    answered = confidence.settled(answered)  # once, for all that follows
    calibrations = {}
    if args.calibrate:
        others = predictions.whole(args.calibrate)
        confidence.check_disjoint(others, answered, where=args.calibrate, of=args.file)
        calibrations = calibration.learn(others)
        notes += [
            f"{task}: confidences calibrated on {item.boxes} boxes of {args.calibrate.name}."
            for task, item in calibrations.items()
        ] or [f"Nothing is calibrated: {args.calibrate.name} has no confidences."]
    beside = {}
    for name in ("constant", "blind"):
        if path := getattr(args, name):
            other = predictions.whole(path)
            if card is not None:
                other = benchmarks.chosen(other, card, where=path)
            predictions.check_same(other, answered, where=path, of=args.file)
            beside[name] = scores.score(other, extras=(scores.Extra.AP,))
    beside["random"] = scores.score(baselines.shuffled(answered), extras=(scores.Extra.AP,))
    model = scores.score(answered, samples=args.samples, extras=tuple(scores.Extra), calibrations=calibrations)
    table = scores.assemble(model=model, **beside)
    if any(p.task in (Task.CAPTION, Task.REGION_CAPTION) for p in answered):
        notes += [f"{m.value.upper()} was not computed: {why}." for m in JavaMetric if (why := why_not(m))]
    print(scores.to_markdown(table))
    tables = [found for found in (report.confidences(model),) if found is not None]
    if card is not None:
        tables.append(report.published(card, model))
    if args.peer:
        tables.append(report.by_rule(args.peer, answered, model))
    for extra in tables:
        print(f"\n## {extra.title}\n\n{scores.markdown_table([extra.head, *extra.rows])}\n\n{extra.note}")
    print("\n" + "\n".join(f"- {note}" for note in notes))
    if not (args.json or args.report):
        return 0
    everything = scores.with_breakdown(table, answered, samples=args.samples)
    if args.json:
        _write(args.json, json.dumps(everything, indent=1) + "\n")
    if args.report:
        report.write_both(
            args.report, title=f"Answers of {args.file.name}", scores=everything, predictions=answered,
            records=source, notes=notes, tables=tables, calibrations=calibrations,
        )  # fmt: skip
        print(f"report: {args.report / 'report.html'}, {args.report / 'report.md'}")
    return 0


def _read(args: argparse.Namespace) -> tuple[dict, list[Prediction]]:
    """(header, predictions) of a file of ours, or of another project's."""
    import dataclasses

    from earthgpt_jax.common.errors import EarthGPTError
    from earthgpt_jax.evaluation import predictions
    from earthgpt_jax.evaluation.predictions import FrameKind
    from earthgpt_jax.evaluation.third_party import formats
    from earthgpt_jax.records import Task

    if not args.form:
        if given := [name for name in ("questions", "task", "box_format", "frame") if getattr(args, name)]:
            raise EarthGPTError(
                f"--{given[0]}: only for files of other projects; say whose with --from ({', '.join(formats.FORMS)})"
            )
        header, answered = predictions.read(args.file)
        predictions.check(header, answered, where=args.file)
        return header, answered
    form = formats.form_of(args.form)
    form = dataclasses.replace(
        form, box_format=args.box_format or form.box_format, frame=FrameKind(args.frame) if args.frame else form.frame
    )
    if args.task and args.task not in {task.value for task in Task}:
        raise EarthGPTError(f"--task {args.task}: unknown; there are {', '.join(task.value for task in Task)}")
    if not args.questions:
        return {}, formats.read(args.file, form=form, task=Task(args.task) if args.task else None)
    header, questions = predictions.read(args.questions)
    predictions.check(header, questions, where=args.questions)
    answers = formats.read(args.file, form=form, questions=questions, questions_path=args.questions)
    return {"data": header.get("data")}, answers


def _write(path: Path, text: str) -> None:
    from earthgpt_jax.common.errors import EarthGPTError

    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise EarthGPTError(f"--json {path}: cannot be written ({error.strerror}); name another") from error
