"""Scores of generated answers by the code of EarthDial."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from scorer_comparison.answers import Entries, Figures, int_box, jittered, noise
from scorer_comparison.checkouts import folder, run, without_sentences, write_lines


def _earthdial(root: Path, task: str, entries: Entries) -> dict[str, Any]:
    without_sentences()
    with folder() as here:
        write_lines(here / f"src/earthdial/eval/{task}/results/x.jsonl", entries)
        return run(root / f"EarthDial/src/earthdial/eval/{task}/eval.py", "--datasets", "x")


def earthdial_classification(root: Path, rng: random.Random, count: int, hostile: bool) -> tuple[Entries, Figures, str]:
    labels = ["Urban fabric, Arable land", "Pastures, Marine waters", "yes", "Pastures"]
    entries: Entries = [
        {"question": "?", "answer": noise(rng) if hostile else rng.choice(labels), "annotation": rng.choice(labels)}
        for _ in range(count)
    ]
    return entries, {"recall": _earthdial(root, "rs_classification", entries)["recall"]}, "classification"


def earthdial_vqa(root: Path, rng: random.Random, count: int, hostile: bool) -> tuple[Entries, Figures, str]:
    types_ = ["comp", "presence", "rural_urban", "count", "area"]
    entries: Entries = [
        {
            "question": "?",
            "answer": noise(rng) if hostile else rng.choice(["Yes", "no", "rural"]),
            "annotation": rng.choice(["yes", "no", "rural", "3"]),
            "vqa_type": rng.choice(types_),
        }
        for _ in range(count)
    ]
    return entries, _earthdial(root, "rs_vqa", entries)["pred_scores"], "vqa"


def earthdial_detection(root: Path, rng: random.Random, count: int, hostile: bool) -> tuple[Entries, Figures, str]:
    entries: Entries = []
    for _ in range(count):
        truths = [[*int_box(rng, 100), rng.randrange(0, 90)] for _ in range(rng.choice([1, 1, 2, 3]))]
        boxes = [[*jittered(rng, box[:4], 100, 6), box[4] + rng.randrange(0, 5)] for box in truths]
        answer = f"[{', '.join(map(str, boxes))}]"
        if hostile and rng.random() < 0.5:
            answer = rng.choice(
                [noise(rng), answer * 3, "[[1,2,3]]", answer + "[[1, 2, 3, 4]]", "[[1.5, 2, 3, 4, 5]]", "[[9,9,9,9,0]]"]
            )
        entries.append(
            {
                "question": "?",
                "answer": answer,
                "gt_bbox": f"[{', '.join(map(str, truths))}]",
                "task_type": "refer",
                "size_group": rng.choice(["small", "medium", "large"]),
            }
        )
    return entries, _earthdial(root, "rs_detection", entries)["pred_count"], "obb"


def earthdial_captions(root: Path, rng: random.Random, count: int, hostile: bool) -> tuple[Entries, Figures, str]:
    def text() -> str:
        return " ".join(
            rng.choice(["ships", "are", "parked", "on", "the", "running", "planes", "lake,", "cannot"])
            for _ in range(9)
        )

    entries: Entries = [
        {"question": "?", "answer": noise(rng) if hostile else text(), **{f"caption{k}": text() for k in range(5)}}
        for _ in range(count)
    ]
    import nltk.translate.meteor_score

    nltk.translate.meteor_score.meteor_score = lambda *texts: 0.0  # needs WordNet; our rule leaves it out
    found = _earthdial(root, "rs_image_caption", entries)
    return entries, {"rouge1": found["rouge1_fscore"], "rougeL": found["rougeL_fscore"]}, "caption"
