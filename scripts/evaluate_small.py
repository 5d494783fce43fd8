"""Evaluate a model on the held-out real images of the datasets that `scripts/make_small.py` builds, and print a table.

Each dataset is one `earthgpt eval`, whose predictions files, scores.json and report.html are kept. Rerun the same
command to continue a stopped evaluation.

example:
  python scripts/evaluate_small.py --model runs/small/small --datasets datasets --out runs/small/evaluation
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from earthgpt_jax.cli.main import main as earthgpt
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.evaluation.report.markdown import format_value, markdown_table
from earthgpt_jax.evaluation.scores import BASELINES, HEADLINE

DATASETS = (
    "aid", "rsscn7", "sar_acd", "rsicd", "ssdd_yolo", "hit_uav", "sirst_v2", "rsivqa", "rsvqa_lr", "rsvqa_hr",
    "rsvqa_usgs", "dota",
)  # fmt: skip
MANY = {"rsvqa_lr": 50, "rsvqa_hr": 50, "rsvqa_usgs": 50}  # questions per image of datasets with few images
# Metrics of a task that are listed next to its headline.
FURTHER = {"caption": ("bleu4",), "hbb": ("hallucinated_boxes",), "absent_hbb": ("hallucinated_boxes",)}


def evaluate(model: str, datasets: Path, out: Path, *, limit: int, per_image: int, batch_size: int) -> None:
    """Run `earthgpt eval` on every dataset."""
    for name in DATASETS:
        arguments = [
            "eval", "--model", model, "--data", str(datasets / name), "--out", str(out / name), "--limit", str(limit),
            "--per-image", str(MANY.get(name, per_image)), "--batch-size", str(batch_size), "--false-premises",
            "--processes", "1",
        ]  # fmt: skip
        print("earthgpt", *arguments, flush=True)
        if status := earthgpt(arguments):
            raise EarthGPTError(f"earthgpt eval of {name}: exit status {status}")


def table(out: Path) -> str:
    """Return a Markdown table with a row for each dataset, task and metric."""
    rows = [["dataset", "task", "metric", "model", *BASELINES, "n"]]
    for name in DATASETS:
        file = out / name / "scores.json"
        scores = json.loads(file.read_text()) if file.is_file() else {}
        for task, groups in scores.items():
            overall = groups["all"]
            headline, title = HEADLINE.get(task, (next(iter(overall)), task))
            for metric in (headline, *FURTHER.get(task, ())):
                if metric in overall:
                    rows.append(
                        [
                            name, title.split(",")[0], metric,
                            format_value(overall[metric], overall.get("intervals", {}).get(metric)),
                            *(format_value(overall.get(baseline, {}).get(metric)) for baseline in BASELINES),
                            str(overall["n"]),
                        ]
                    )  # fmt: skip
    return markdown_table(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/small/small", help="a model directory (default: runs/small/small)")
    parser.add_argument("--datasets", type=Path, default=Path("datasets"), help="folder of the built datasets")
    parser.add_argument("--out", type=Path, default=Path("runs/small/evaluation"), help="folder for all results")
    parser.add_argument("--limit", type=int, default=300, help="images of each dataset, spread evenly (default: 300)")
    parser.add_argument("--per-image", type=int, default=3, help="questions per image and task (default: 3)")
    parser.add_argument("--batch-size", type=int, default=50)
    args = parser.parse_args()
    evaluate(
        args.model, args.datasets, args.out, limit=args.limit, per_image=args.per_image, batch_size=args.batch_size
    )  # fmt: skip
    text = table(args.out)
    (args.out / "table.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
