"""Scores of generated answers by the code of GeoChat."""

from __future__ import annotations

import io
import random
import re
from pathlib import Path

from scorer_comparison.answers import Entries, Figures, noise
from scorer_comparison.checkouts import folder, functions, write_lines


def geochat_scene(root: Path, rng: random.Random, count: int, hostile: bool) -> tuple[Entries, Figures, str]:
    names = ["Airport", "BareLand", "dense residential", "St.Peter", "beach"]
    entries: Entries = []
    for i in range(count):
        name = rng.choice(names)
        answer = (
            noise(rng) if hostile and rng.random() < 0.5 else rng.choice([name, name.lower() + ".", rng.choice(names)])
        )
        entries.append(
            {"question_id": f"{name}/{i}.tif", "image_id": f"{name}/{i}.tif", "answer": answer, "ground_truth": name}
        )
    output = io.StringIO()
    theirs = functions(
        root / "GeoChat/geochat/eval/batch_geochat_scene.py",
        "evaluation_metrics",
        tqdm=lambda values: values,
        print=lambda *values: output.write(" ".join(map(str, values)) + "\n"),
    )
    with folder() as here:
        theirs.evaluation_metrics(write_lines(here / "answers.jsonl", entries))
    return entries, {"accuracy": float(re.findall(r"Acc: (\S+)", output.getvalue())[0])}, "classification"
