"""The whole recipe on synthetic data, on a CPU, in minutes.

Builds a synthetic dataset (optical, SAR, infrared), trains both stages briefly from `tiny-base`,
evaluates what came out and the shipped `tiny` on held-out images, with constant and blind
baselines, writes scores.json and report.html, and exports `tiny` for Hugging Face, checked against
our own answers. A stopped run continues where it was.

example:
  earthgpt quickstart --workdir runs/quickstart
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

PARITY = 1e-3  # of the export's logits, which reach 20; 2e-5 is usual
# Questions asked an image and task; everything is asked once where a task has a single question.
PER_IMAGE = {"vqa": 2, "grounding": 1, "region_caption": 1}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", type=Path, default=Path("runs/quickstart"), help="(default: runs/quickstart)")
    parser.add_argument("--train-images", type=int, default=1500, help="synthetic training images (default: 1500)")
    parser.add_argument("--test-images", type=int, default=300, help="held-out images (default: 300)")
    parser.add_argument("--steps", type=int, default=80, help="training steps of each stage (default: 80)")
    parser.add_argument("--batch-size", type=int, default=50, help="questions answered at once (default: 50)")


def run(args: argparse.Namespace) -> int:
    from earthgpt_jax.common.errors import EarthGPTError
    from earthgpt_jax.config import load
    from earthgpt_jax.datasets.build.writer import write_dataset
    from earthgpt_jax.datasets.collection import open_records
    from earthgpt_jax.evaluation import report, scores
    from earthgpt_jax.evaluation.compare import answer, beside_baselines
    from earthgpt_jax.inference.engine import Engine
    from earthgpt_jax.synthetic import SyntheticSource
    from earthgpt_jax.training.loop import train
    from earthgpt_jax.training.metrics import read_losses

    for name in ("train_images", "test_images", "steps", "batch_size"):
        if getattr(args, name) < 1:
            raise EarthGPTError(f"--{name.replace('_', '-')}: expected at least 1, got {getattr(args, name)}")
    started = time.monotonic()
    work: Path = args.workdir
    work.mkdir(parents=True, exist_ok=True)

    _say(started, f"1/6  synthetic data: {args.train_images} training and {args.test_images} test images")
    data = work / f"data_{args.train_images}_{args.test_images}"
    if not data.exists():
        splits = {
            "train": SyntheticSource("train", args.train_images),
            "test": SyntheticSource("test", args.test_images),
        }
        write_dataset(splits, out=data, name="synthetic")

    common = [f"--config.data.source={data}", f"--config.optim.steps={args.steps}"]
    _say(started, f"2/6  align: {args.steps} steps from tiny-base")
    aligned = train(load("tiny:align", common), work / "align")
    _say(started, f"3/6  instruct: {args.steps} steps from what align made")
    tuned = train(load("tiny:instruct", [*common, f"--config.init={aligned}"]), work / "instruct")

    _say(started, "4/6  evaluation on held-out images, each beside a constant and a blind baseline")
    test, train_split = (open_records(data, split) for split in ("test", "train"))
    models = {"shipped": "tiny", "fresh": str(tuned)}
    results = {}
    for name, model in models.items():
        engine, out = Engine.from_model_dir(model, batch_size=args.batch_size), work / "evaluation" / name
        answered = answer(engine, test, out=out, per_image=PER_IMAGE, label=name)
        results[name] = beside_baselines(answered, train_split, out=out, decimals=engine.decimals)
    table = results["shipped"].scores | {"fresh": results["fresh"].scores}
    (work / "scores.json").write_text(json.dumps(table, indent=1) + "\n")

    _say(started, "5/6  report")
    report.write(
        work / "report.html",
        title="EarthGPT-JAX quickstart: synthetic test images",
        runs={
            "tiny (shipped with the package)": results["shipped"].scores,
            f"fresh (trained just now: {args.steps} + {args.steps} steps)": results["fresh"].scores,
        },
        curves={stage: read_losses(work / stage) for stage in ("align", "instruct")},
        gallery=report.cases(test, results["shipped"].predictions, per_sensor=4),
        failures=report.failures(results["shipped"].predictions),
        notes=[
            "All images are synthetic: procedural scenes, rendered as optical, SAR and infrared.",
            "Pictures show the answers of the shipped model.",
        ],
    )
    _say(started, "6/6  export for Hugging Face, and its answers beside ours")
    parity = _export(work / "huggingface", results["shipped"].scores, [test[i] for i in range(min(len(test), 8))])
    for name, title in (("shipped", "tiny, shipped"), ("fresh", "fresh, trained just now")):
        print(f"\n## {title}\n\n{scores.to_markdown(results[name].scores)}")
    print(f"\nscores: {work / 'scores.json'}\nreport: {work / 'report.html'}\nmodel:  {tuned}")
    print(f"export: {work / 'huggingface'} ({parity})")
    _say(started, "done")
    return 0


def _export(folder: Path, scores: dict, records: list) -> str:
    """Exports `tiny` and says how well the export agrees with it."""
    from earthgpt_jax.common.errors import EarthGPTError
    from earthgpt_jax.convert.exporter import export_hf
    from earthgpt_jax.convert.parity import can_check_export, check_export
    from earthgpt_jax.input.prompts.templates import default_question
    from earthgpt_jax.records import Task

    if not folder.exists():
        export_hf("tiny", folder, scores=scores)
    if not can_check_export():
        return "not compared with ours: that needs PyTorch, pip install 'earthgpt-jax[convert]'"
    tasks = (Task.CAPTION, Task.HBB, Task.OBB, Task.CLASSIFICATION)
    items = [(record.image, default_question(tasks[i % len(tasks)])) for i, record in enumerate(records)]
    parity = check_export("tiny", folder, items)
    difference, answers = parity.max_logit_difference, f"{parity.identical_answers} of {parity.questions} answers"
    if difference > PARITY:
        raise EarthGPTError(
            f"{folder}: expected the export's logits within {PARITY:.0e} of ours, got {difference:.1e} "
            f"({answers} identical); another release of PyTorch or transformers may "
            "compute different values: try those that scripts/test installs"
        )
    return f"{answers} identical to ours, logits within {difference:.1e}"


def _say(started: float, text: str) -> None:
    print(f"[{time.monotonic() - started:6.1f} s] {text}", file=sys.stderr, flush=True)
