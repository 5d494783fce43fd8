"""Compare a model's answers to free wordings with its answers to the default templates, and JSON with MMRS's format.

    python scripts/bench/wording.py --model tiny --images 300

Every question of the synthetic test images is asked with the default template and in words that no template has: each
question takes one of its task's paraphrases, in turn. Boxes are asked for as JSON too, with the templates of
`data/templates/json.yaml` and in free words. Answers are kept in `--out`, so that an interrupted run continues.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import yaml

from earthgpt_jax.boxes import JsonStyle
from earthgpt_jax.cli.quickstart import PER_IMAGE
from earthgpt_jax.common.tables import align_columns
from earthgpt_jax.evaluation.metrics.parsed_boxes import parse_answer
from earthgpt_jax.evaluation.predictions import Prediction
from earthgpt_jax.evaluation.questions import Example, select_examples
from earthgpt_jax.evaluation.runner import View, evaluate
from earthgpt_jax.evaluation.scores import HEADLINE, score
from earthgpt_jax.inference.engine import Engine
from earthgpt_jax.input.prompts.questions import BoxStyle, build_question
from earthgpt_jax.input.prompts.templates import Template, json_templates
from earthgpt_jax.records import Record, Task
from earthgpt_jax.synthetic import SyntheticSource

PARAPHRASES = Path(__file__).parents[2] / "tests" / "input" / "prompts" / "paraphrases.yaml"
JSON_TASKS = ("hbb", "obb")


def read_paraphrases(path: Path = PARAPHRASES) -> dict[str, list[str]]:
    """Return the paraphrases of each task; those of `json_hbb` and `json_obb` ask for JSON."""
    return yaml.safe_load(path.read_text())


def reworded(examples: Sequence[Example], choose: Callable[[Example, int], Template], decimals: int) -> list[Example]:
    """Return the examples with other question templates, chosen by example and by its place within its task."""
    places: dict[str, int] = {}
    result = []
    for example in examples:
        record, question = example.record, example.question
        place = places[question.task] = places.get(question.task, -1) + 1
        index = int(question.id.rsplit("#", 1)[1])
        style = BoxStyle(decimals=decimals)
        built = build_question(record, question.task, index, box_style=style, template=choose(example, place))
        result.append(Example(record, dataclasses.replace(built, references=question.references)))
    return result


def variants(examples: Sequence[Example], decimals: int) -> Mapping[str, list[Example]]:
    """Return the questions in each wording: the default, free words, JSON by template, and JSON in free words."""
    phrases, templates = read_paraphrases(), json_templates()
    boxes = [example for example in examples if example.question.task in JSON_TASKS]

    def free(example: Example, place: int) -> Template:
        texts = phrases[example.question.task]
        return Template(texts[place % len(texts)])

    def json_template(example: Example, place: int) -> Template:
        chosen = [t for t in templates[example.question.task] if t.json_style is JsonStyle.FRACTIONS]
        return chosen[(place * 37) % len(chosen)]

    def json_free(example: Example, place: int) -> Template:
        texts = phrases[f"json_{example.question.task}"]
        return Template(texts[place % len(texts)].replace("{", "{{").replace("}", "}}"), JsonStyle.FRACTIONS)

    return {
        "default": list(examples),
        "free": reworded(examples, free, decimals),
        "json": reworded(boxes, json_template, decimals),
        "json, free": reworded(boxes, json_free, decimals),
    }


def figures(predictions: Sequence[Prediction]) -> dict[str, float]:
    """Return the main figure of each task."""
    return {task: float(cells["all"][HEADLINE[task][0]]) for task, cells in score(predictions).items()}


def parse_rate(predictions: Sequence[Prediction]) -> float:
    """Return the share of answers that are a JSON list from which every object is read as a box."""

    def parses(prediction: Prediction) -> bool:
        try:
            values = json.loads(prediction.prediction)
        except ValueError:
            return False
        parsed = parse_answer(prediction)
        return isinstance(values, list) and not parsed.rejections and len(parsed.boxes) == len(values)

    return float(np.mean([parses(prediction) for prediction in predictions]))


def measure(model: str, records: Sequence[Record], *, out: Path, batch_size: int = 32) -> dict[str, dict[str, float]]:
    """Return the figures by wording and task; `parse rate` stands for a task where JSON was asked for."""
    engine = Engine.from_model_dir(model, batch_size=batch_size)
    examples = select_examples(records, decimals=engine.decimals, per_image=PER_IMAGE)
    results = {}
    for name, items in variants(examples, engine.decimals).items():
        predictions = evaluate(
            engine, items, out=out / f"{name.replace(', ', '_')}.jsonl", header=engine.describe() | {"wording": name},
            view=View.IMAGE, label=name, log_probs=(),
        )  # fmt: skip
        results[name] = figures(predictions)
        if "json" in name:
            results[name]["parse rate"] = parse_rate(predictions)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="embedded model or model directory")
    parser.add_argument("--images", type=int, default=300, help="number of synthetic test images")
    parser.add_argument("--out", type=Path, help="folder of the predictions (default: a temporary one)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = measure(args.model, SyntheticSource("test", args.images), out=args.out or Path(folder))
    names = [*Task, "parse rate"]
    rows = [[name, *(f"{results[w][name]:.3f}" if name in results[w] else "" for w in results)] for name in names]
    print("\n".join(align_columns([["", *results], *rows])))


if __name__ == "__main__":
    main()
