"""Score an existing predictions file, without a model.

Scores a predictions file of `earthgpt eval` or `earthgpt quickstart`, which holds the ground truth, or
a file of another project. Neither the model nor the dataset is needed. A file is refused if answers are
missing, an id occurs twice, it belongs to other questions, or its ground truth was changed.

Files of other projects are read as their own programs write them. Their format is recognized by its
fields, or named:
  --from NAME       geochat, vrsbench, lhrs, vhm, llava, earthdial, falcon, rscovlm, lmms_eval, coco, mmrs
  --questions FILE  a predictions file of this project with the questions and ground truth, joined by id;
                    for COCO results, the annotation file
  --task TASK       instead, if the entries have their own truth and do not say their task

`--as PROJECT` also applies the published scoring rule of another project to the same answers (geochat,
vhm, lhrs, vrsbench, earthdial, falcon, rscovlm), to show how much of a result is due to the rule.

examples:
  earthgpt score runs/eval/predictions_image.jsonl --json scores.json
  earthgpt score runs/eval/predictions_image.jsonl --blind runs/eval/predictions_blind.jsonl --report report
  earthgpt score answers.jsonl --from geochat --questions runs/eval/predictions_image.jsonl --as lhrs
  earthgpt score eval_save_file.json --task grounding --as lhrs
  earthgpt score runs/eval/predictions_image.jsonl --benchmark dior_rsvg
  earthgpt score new/predictions_image.jsonl --against old/predictions_image.jsonl
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from earthgpt_jax.cli.json_output import json_output
from earthgpt_jax.cli.made_by import made_by
from earthgpt_jax.common import files

if TYPE_CHECKING:
    from earthgpt_jax.evaluation.benchmarks import Benchmark
    from earthgpt_jax.evaluation.confidence import Calibration
    from earthgpt_jax.evaluation.predictions import Prediction
    from earthgpt_jax.evaluation.report.tables import Table
    from earthgpt_jax.evaluation.scores import Scores
    from earthgpt_jax.evaluation.third_party.formats import ThirdPartyFormat


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=files.path, help="predictions: JSON Lines or a JSON list")
    parser.add_argument(
        "--json",
        type=files.output_path,
        metavar="FILE",
        help="also write all metrics to this file; - for standard output, and the text goes to standard error",
    )
    parser.add_argument(
        "--report", type=files.output_path, metavar="DIR", help="also write report.html and report.md there"
    )
    parser.add_argument(
        "--from",
        dest="third_party",
        metavar="NAME",
        help="format of the file, if it is another project's (default: recognized by its fields)",
    )
    parser.add_argument(
        "--questions", type=files.path, metavar="FILE", help="predictions file with the questions and ground truth "
        "of a third-party file; for COCO results, the annotation file",
    )  # fmt: skip
    parser.add_argument("--task", help="task of a third-party file that holds its own ground truth")
    parser.add_argument("--box-format", help="box format of a third-party file, if it is not the project's usual one")
    parser.add_argument(
        "--frame", choices=("square", "image"), help="what the coordinates of a third-party file are fractions of: "
        "the padded square or the image",
    )  # fmt: skip
    parser.add_argument(
        "--as", dest="project", metavar="PROJECT", help="also score by the published rule of this project"
    )
    parser.add_argument(
        "--benchmark", metavar="NAME", help="score the questions of this benchmark and show published results"
    )
    parser.add_argument("--constant", type=files.path, metavar="FILE", help="predictions of the constant baseline")
    parser.add_argument(
        "--blind", type=files.path, metavar="FILE", help="predictions of the same model without the image"
    )
    parser.add_argument(
        "--against", type=files.path, metavar="FILE", help="another model's predictions for the same questions: "
        "differences, intervals and p-values by paired bootstrap",
    )  # fmt: skip
    parser.add_argument(
        "--calibrate",
        type=files.path,
        metavar="FILE",
        help="predictions about other images, to which the calibration of box confidences is fitted",
    )
    parser.add_argument(
        "--data", type=files.path, help="check that the file is about this dataset; its images illustrate the report"
    )
    parser.add_argument("--split", default="test", help="split of --data (default: test)")
    parser.add_argument(
        "--samples", type=int, default=1000, metavar="N", help="bootstrap samples for the intervals; 0: no intervals "
        "(default: 1000)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    with json_output(args.json) as write_json:
        return _score(args, write_json)


def _score(args: argparse.Namespace, write_json: Callable[[str], object]) -> int:
    from earthgpt_jax.common.errors import EarthGPTError
    from earthgpt_jax.datasets.collection import open_records
    from earthgpt_jax.evaluation import benchmarks, confidence, report, scores
    from earthgpt_jax.evaluation.metrics.calibration import FEW_BOXES
    from earthgpt_jax.evaluation.third_party import scorers

    if args.samples < 0:
        raise EarthGPTError(f"--samples: expected 0 or more, got {args.samples}")
    if args.project:
        scorers.rules_of(args.project)  # refuses an unknown name before the work starts
    header, predictions, notes = _read(args)
    source = open_records(args.data, args.split) if args.data else None
    if source is not None and (digest := header.get("data")) not in (None, source.fingerprint):
        raise EarthGPTError(
            f"{args.file}: expected answers about {args.data} ({args.split}), digest {source.fingerprint}, got answers "
            f"about a dataset with digest {digest}; give that dataset with --data"
        )
    notes = [made_by(args, samples=args.samples), *_file_notes(args, header, predictions), *notes]
    card = benchmarks.benchmark(args.benchmark) if args.benchmark else None
    if card is not None:
        predictions = benchmarks.select_answers(predictions, card, path=args.file)
        notes += benchmarks.notes(predictions, card)
    notes += confidence.notes(predictions)
    notes += scores.notes(predictions) if args.samples else []
    predictions = confidence.assign_confidences(predictions)  # once, for everything below
    calibrations = _calibrations(args.calibrate, predictions, scored_path=args.file) if args.calibrate else {}
    if args.calibrate:
        notes += [
            f"{task}: confidences calibrated on {item.boxes} boxes of {args.calibrate.name}"
            + ("." if item.boxes >= FEW_BOXES else f"; fewer than {FEW_BOXES} are too few for a reliable calibration.")
            for task, item in calibrations.items()
        ] or [f"Nothing is calibrated: {args.calibrate.name} has no confidences."]
    baselines = _baselines(args, predictions, card)
    model = scores.score(predictions, samples=args.samples, extras=tuple(scores.Extra), calibrations=calibrations)
    table = scores.with_baselines(model, **baselines)
    notes += _missing_metrics(predictions)
    print(report.headline_table(table))
    tables = [item for item in (report.confidence_table(model),) if item is not None]
    if card is not None:
        tables.append(report.published_table(card, model))
    if args.against:
        tables.append(_against(args, predictions, card))
    if args.project:
        tables.append(report.third_party_table(args.project, predictions, model))
    for extra in tables:
        print(f"\n## {extra.title}\n\n{report.markdown_table([extra.head, *extra.rows])}\n\n{extra.note}")
    print("\n" + "\n".join(f"- {note}" for note in notes))
    if not (args.json or args.report):
        return 0
    everything = scores.with_breakdown(table, predictions, samples=args.samples)
    if args.project:
        everything = _with_figures(everything, args.project, predictions)
    if args.json:
        write_json(json.dumps(scores.without_nan(everything), indent=1) + "\n")
    if args.report:
        report.write_report(
            args.report, title=f"Answers of {args.file.name}", scores=everything, predictions=predictions,
            records=source, notes=notes, tables=tables, calibrations=calibrations,
        )  # fmt: skip
        print(f"report: {args.report / 'report.html'}, {args.report / 'report.md'}")
    return 0


def _read(args: argparse.Namespace) -> tuple[dict[str, Any], list[Prediction], list[str]]:
    """Return the header and predictions of a file of this project or of a third party, and notes about the latter."""
    from earthgpt_jax.evaluation import predictions_file
    from earthgpt_jax.evaluation.third_party import formats

    if not args.third_party:
        args.third_party = "" if predictions_file.is_predictions_file(args.file) else formats.detect(args.file)
        if not args.third_party:
            _refuse_third_party_options(args)
            return *predictions_file.read_complete(args.file), []
    file_format = _third_party_format(args)
    notes = [f"Read as a file of {file_format.project} (--from {args.third_party})."]
    if args.third_party == "coco" and args.questions:
        results = formats.load_coco(args.file, annotations=args.questions)
        return {}, results.predictions, notes + results.notes
    header, questions = predictions_file.read_complete(args.questions) if args.questions else ({}, None)
    results = formats.load(
        args.file, file_format=file_format, task=args.task, questions=questions, questions_path=args.questions
    )
    return {"data": header.get("data")}, results.predictions, notes + results.notes


def _refuse_third_party_options(args: argparse.Namespace) -> None:
    from earthgpt_jax.common.errors import EarthGPTError
    from earthgpt_jax.evaluation.third_party import formats

    if given := [name for name in ("questions", "task", "box_format", "frame") if getattr(args, name)]:
        raise EarthGPTError(
            f"--{given[0].replace('_', '-')}: only for files of other projects; name the project with --from "
            f"({', '.join(formats.FORMATS)})"
        )


def _third_party_format(args: argparse.Namespace) -> ThirdPartyFormat:
    """Return the format of `--from`, as `--box-format` and `--frame` correct it."""
    import dataclasses

    from earthgpt_jax.common.errors import EarthGPTError
    from earthgpt_jax.common.names import did_you_mean
    from earthgpt_jax.evaluation.predictions import CoordinateFrame
    from earthgpt_jax.evaluation.third_party import formats

    if args.task and args.task not in formats.TASKS:
        raise EarthGPTError(
            f"--task {args.task}: unknown{did_you_mean(args.task, formats.TASKS)} Tasks: {', '.join(formats.TASKS)}"
        )
    file_format = formats.third_party_format(args.third_party)
    if args.box_format:
        file_format = dataclasses.replace(file_format, box_format=args.box_format, obb_format="")
    return dataclasses.replace(file_format, frame=CoordinateFrame(args.frame) if args.frame else file_format.frame)


def _file_notes(args: argparse.Namespace, header: dict[str, Any], predictions: list[Prediction]) -> list[str]:
    """Return what a reader must know about the file: its digest, its header, and what it lacks."""
    from earthgpt_jax.common.digests import sha256_file

    notes = [f"{len(predictions)} answers of {args.file.name}, sha256 {sha256_file(args.file)}."]
    checked = ("questions", "questions_digest", "truth_digest")
    notes += [f"{name}: {json.dumps(value)}" for name, value in header.items() if name not in checked]
    if not args.third_party and "questions" not in header:
        notes.append(
            "The file's header does not say how many questions were asked, so missing answers cannot be detected."
        )
    if predictions[0].width <= 1:
        notes.append("The file has no image sizes: IoU is computed on fractions, and objects have no size.")
    return notes


def _against(args: argparse.Namespace, predictions: list[Prediction], card: Benchmark | None) -> Table:
    """Compare the answers with those of another model to the same questions."""
    from earthgpt_jax.common.errors import EarthGPTError
    from earthgpt_jax.evaluation import benchmarks, paired, predictions_file, report

    if not args.samples:
        raise EarthGPTError("--against: needs bootstrap samples, got --samples 0; leave --samples out")
    _, others = predictions_file.read_complete(args.against)
    if card is not None:
        others = benchmarks.select_answers(others, card, path=args.against)
    predictions_file.check_same_questions(others, predictions, path=args.against, reference_path=args.file)
    differences = paired.compare(predictions, others, samples=args.samples)
    return report.paired_table(differences, name=args.file.name, other=args.against.name)


def _calibrations(path: Path, predictions: list[Prediction], *, scored_path: Path) -> dict[str, Calibration]:
    """Fit calibrations to the answers of a file about other images."""
    from earthgpt_jax.evaluation import confidence, predictions_file
    from earthgpt_jax.evaluation.metrics import calibration

    _, others = predictions_file.read_complete(path)
    confidence.check_disjoint(others, predictions, fitted_path=path, scored_path=scored_path)
    return calibration.fit_calibrations(others)


def _baselines(args: argparse.Namespace, predictions: list[Prediction], card: Benchmark | None) -> dict[str, Scores]:
    """Score the baselines' files that are given, and the random baseline."""
    from earthgpt_jax.evaluation import baselines, benchmarks, predictions_file, scores

    results = {}
    for name in ("constant", "blind"):
        if path := getattr(args, name):
            _, answers = predictions_file.read_complete(path)
            if card is not None:
                answers = benchmarks.select_answers(answers, card, path=path)
            predictions_file.check_same_questions(answers, predictions, path=path, reference_path=args.file)
            results[name] = scores.score(answers, extras=(scores.Extra.AP,))
    results["random"] = scores.score(baselines.shuffled(predictions), extras=(scores.Extra.AP,))
    return results


def _with_figures(everything: Scores, project: str, predictions: list[Prediction]) -> Scores:
    """Return the scores with a group `as PROJECT` of the other project's figures in each of its tasks."""
    from earthgpt_jax.evaluation.third_party import scorers

    figures = scorers.figures(project, predictions)
    return {
        task: groups | ({f"as {project}": {**figures[task], "n": groups["all"]["n"]}} if task in figures else {})
        for task, groups in everything.items()
    }


def _missing_metrics(predictions: list[Prediction]) -> list[str]:
    """Return which caption metrics could not be computed on this machine, and why."""
    from earthgpt_jax.evaluation.metrics.meteor_spice import JavaMetric, missing_requirement
    from earthgpt_jax.records import Task

    if not any(p.task in (Task.CAPTION, Task.REGION_CAPTION) for p in predictions):
        return []
    missing = {metric: missing_requirement(metric) for metric in JavaMetric}
    return [f"{metric.value.upper()} was not computed: {reason}." for metric, reason in missing.items() if reason]
