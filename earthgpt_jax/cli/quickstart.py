"""Run the whole recipe on synthetic data, on a CPU, in minutes.

Builds a synthetic dataset (optical, SAR, infrared) and trains both stages briefly, starting from the
embedded `tiny-base`. Evaluates the trained model and the embedded `tiny` on held-out images against
baselines, writes scores.json and report.html, exports `tiny` to Hugging Face format, and compares the
export's answers with the original's. Rerun the same command to continue a stopped run.

example:
  earthgpt quickstart --workdir runs/quickstart
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from earthgpt_jax.cli.made_by import made_by
from earthgpt_jax.common import files

MAX_LOGIT_DIFFERENCE = 1e-3  # between export and original; logits reach 20, and a difference of 2e-5 is usual
# Maximum number of questions per image and task; tasks that are not listed have a single question per image.
PER_IMAGE = {"vqa": 2, "grounding": 1, "region_caption": 1}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workdir",
        type=files.output_path,
        default=Path("runs/quickstart"),
        help="folder for all files (default: runs/quickstart)",
    )
    for name, default, text in (
        ("train-images", 1500, "synthetic training images"),
        ("test-images", 300, "held-out test images"),
        ("steps", 80, "training steps per stage"),
        ("batch-size", 50, "questions answered at a time"),
    ):
        parser.add_argument(
            f"--{name}", type=int, default=default, metavar="N", help=f"{text} (default: {default})"
        )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    from earthgpt_jax import compilation
    from earthgpt_jax.common.errors import EarthGPTError
    from earthgpt_jax.common.files import write_json
    from earthgpt_jax.config import load
    from earthgpt_jax.datasets.build.writer import write_dataset
    from earthgpt_jax.datasets.collection import open_records
    from earthgpt_jax.evaluation import report
    from earthgpt_jax.evaluation.compare import answer_questions, compare_with_baselines
    from earthgpt_jax.evaluation.metrics.intervals import SAMPLES
    from earthgpt_jax.inference.engine import Engine
    from earthgpt_jax.synthetic import SyntheticSource
    from earthgpt_jax.training.loop import train
    from earthgpt_jax.training.metrics import read_losses

    for name in ("train_images", "test_images", "steps", "batch_size"):
        if getattr(args, name) < 1:
            raise EarthGPTError(f"--{name.replace('_', '-')}: expected at least 1, got {getattr(args, name)}")
    compilation.enable_cache()
    started = time.monotonic()
    work: Path = args.workdir
    work.mkdir(parents=True, exist_ok=True)

    _log(started, f"1/6  building synthetic data: {args.train_images} training and {args.test_images} test images")
    data = work / f"data_{args.train_images}_{args.test_images}"
    if not data.exists():
        splits = {
            "train": SyntheticSource("train", args.train_images),
            "test": SyntheticSource("test", args.test_images),
        }
        write_dataset(splits, out=data, name="synthetic")

    common = [f"--config.data.source={data}", f"--config.optim.steps={args.steps}"]
    common.append(f"--config.optim.warmup_steps={min(20, args.steps // 4)}")
    _log(started, f"2/6  training stage `align`: {args.steps} steps, starting from tiny-base")
    aligned = train(load("tiny:align", common), work / "align")
    _log(started, f"3/6  training stage `instruct`: {args.steps} steps, starting from the aligned model")
    trained = train(load("tiny:instruct", [*common, f"--config.init={aligned}"]), work / "instruct")

    _log(started, "4/6  evaluating both models on held-out images, with and without the image")
    test, train_split = (open_records(data, split) for split in ("test", "train"))
    models = {"tiny": "tiny", "trained": str(trained)}
    results = {}
    for name, model in models.items():
        engine, out = Engine.from_model_dir(model, batch_size=args.batch_size), work / "evaluation" / name
        answers = answer_questions(engine, test, out=out, per_image=PER_IMAGE, label=name)
        results[name] = compare_with_baselines(answers, train_split, out=out, decimals=engine.decimals)
    table = results["tiny"].scores | {"trained": results["trained"].scores}
    write_json(work / "scores.json", table)

    _log(started, "5/6  writing the report")
    report.write_page(
        work / "report.html",
        title="EarthGPT-JAX quickstart: synthetic test images",
        runs={
            "tiny (embedded in the package)": results["tiny"].scores,
            f"trained just now ({args.steps} + {args.steps} steps)": results["trained"].scores,
        },
        curves={stage: read_losses(work / stage) for stage in ("align", "instruct")},
        images=report.first_images(test, results["tiny"].predictions, per_sensor=4),
        failures=report.parse_failures(results["tiny"].predictions),
        notes=[
            made_by(args, samples=SAMPLES, inputs={"test images": test.fingerprint}),
            "All images are synthetic: procedural scenes, rendered as optical, SAR and infrared images.",
            "The pictures show the answers of the embedded model `tiny`.",
        ],
    )
    _log(started, "6/6  exporting `tiny` to Hugging Face format and comparing the answers")
    parity = _export(work / "huggingface", results["tiny"].scores, [test[i] for i in range(min(len(test), 8))])
    for name, title in (("tiny", "tiny, the embedded model"), ("trained", "the model trained just now")):
        print(f"\n## {title}\n\n{report.headline_table(results[name].scores)}")
    print(f"\nscores: {work / 'scores.json'}\nreport: {work / 'report.html'}\nmodel:  {trained}")
    print(f"export: {work / 'huggingface'} ({parity})")
    _log(started, "done; open the report in a browser")
    return 0


def _export(folder: Path, scores: dict, records: list) -> str:
    """Export `tiny`, and return a sentence on how well the export agrees with it."""
    from earthgpt_jax.common.errors import EarthGPTError
    from earthgpt_jax.convert.exporter import export_hf
    from earthgpt_jax.convert.parity import can_check_export, check_export
    from earthgpt_jax.input.prompts.templates import default_question
    from earthgpt_jax.records import Task

    if not folder.exists():
        export_hf("tiny", folder, scores=scores)
    if not can_check_export():
        return "not compared with the original, which needs PyTorch: pip install 'earthgpt-jax[convert]'"
    tasks = (Task.CAPTION, Task.HBB, Task.OBB, Task.CLASSIFICATION)
    items = [(record.image, default_question(tasks[i % len(tasks)])) for i, record in enumerate(records)]
    parity = check_export("tiny", folder, items)
    difference, answers = parity.max_logit_difference, f"{parity.identical_answers} of {parity.questions} answers"
    if difference > MAX_LOGIT_DIFFERENCE:
        raise EarthGPTError(
            f"{folder}: expected the export's logits to differ by at most {MAX_LOGIT_DIFFERENCE:.0e} from the "
            f"original's, got {difference:.1e} ({answers} are identical). Other releases of PyTorch or transformers "
            "may give other results: install those that scripts/test installs"
        )
    return f"{answers} are identical, logits differ by at most {difference:.1e}"


def _log(started: float, text: str) -> None:
    print(f"[{time.monotonic() - started:6.1f} s] {text}", file=sys.stderr, flush=True)
