"""Scores of generated answers by the code of VRSBench."""

from __future__ import annotations

import collections
import random
import re
from pathlib import Path

import numpy as np

from scorer_comparison.answers import WORDS, Entries, Figures, braces, int_box, jittered, noise
from scorer_comparison.checkouts import functions


def vrsbench_grounding(root: Path, rng: random.Random, count: int, hostile: bool) -> tuple[Entries, Figures, str]:
    entries: Entries = []
    for i in range(count):
        truth = int_box(rng, 100)
        if hostile and rng.random() < 0.05:
            truth[2] = truth[0]  # no area
        answer = braces(jittered(rng, truth, 100, 8), rng.choice([None, 0, 0]))
        if hostile and rng.random() < 0.5:
            answer = rng.choice(
                [
                    f"2 ships at {answer}",
                    noise(rng),
                    answer[:-5],
                    answer + answer,
                    braces(truth[::-1]),
                    braces([1, 2, 3]),
                ]
            )
        entries.append(
            {
                "question_id": i,
                "image_id": f"P{i:04d}.png",
                "answer": answer,
                "ground_truth": braces(truth),
                "is_unique": rng.random() < 0.5,
            }
        )
    theirs = functions(root / "VRSBench/eval_fianl/eval_utils.py", "computeIoU")
    figures: dict[str, float] = {}
    for suffix, groups in (("", (True, False)), ("_unique", (True,)), ("_non_unique", (False,))):
        total, hits, i_sum, u_sum, iou_sum = 0, collections.Counter[float](), 0.0, 0.0, 0.0
        for item in entries:  # the loop of compute_metrics.ipynb
            if item["is_unique"] not in groups:
                continue
            total += 1
            boxes = [[int(n) for n in re.findall(r"\d+", item[key])][:4] for key in ("ground_truth", "answer")]
            try:
                iou, shared, union = theirs.computeIoU(*boxes, return_iou=True)
            except (ValueError, ZeroDivisionError):
                continue
            iou_sum, i_sum, u_sum = iou_sum + iou, i_sum + shared, u_sum + union
            hits.update(limit for limit in (0.5, 0.7) if iou >= limit)
        figures |= {f"acc@{limit}{suffix}": hits[limit] / total for limit in (0.5, 0.7)}
        figures |= {f"mean_iou{suffix}": iou_sum / total, f"cum_iou{suffix}": i_sum / u_sum}
    return entries, figures, "grounding"


def vrsbench_vqa(root: Path, rng: random.Random, count: int, hostile: bool) -> tuple[Entries, Figures, str]:
    del root  # the cells of the notebook ask a language model; the rule before that is one line
    types = ["object category", "Object Color", "image", "rural or urban", "reasoning", "other"]
    entries: Entries = [
        {
            "question_id": i,
            "image_id": f"P{i}",
            "question": "?",
            "type": rng.choice(types),
            "ground_truth": rng.choice(["yes", "no", "3", "ship", "Red"]),
            "answer": noise(rng) if hostile else rng.choice(WORDS),
        }
        for i in range(count)
    ]
    by_type = collections.defaultdict(list)
    for item in entries:
        name = item["type"].lower()
        correct = item["ground_truth"].lower() in item["answer"].lower()
        by_type["scene type" if name in ("image", "rural or urban") else name].append(correct)
    figures = {f"accuracy_{name}": float(np.mean(hits)) for name, hits in by_type.items() if name != "other"}
    figures["mean"] = float(np.mean(list(figures.values())))
    return entries, figures | {"accuracy": float(np.mean([hit for hits in by_type.values() for hit in hits]))}, "vqa"
