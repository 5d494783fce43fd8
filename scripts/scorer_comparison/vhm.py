"""Scores of generated answers by the code of RSEvalKit, the scorer of VHM."""

from __future__ import annotations

import collections
import random
import re
import types
from pathlib import Path
from typing import Any

import numpy as np

from scorer_comparison.answers import LEVELS, Entries, Figures, int_box, jittered, noise
from scorer_comparison.checkouts import folder, functions, write_lines


def _rsevalkit(root: Path, name: str, entries: Entries) -> dict[str, Any]:
    """Run a function of RSEvalKit; return its own figures and those of its table."""
    saved: dict[str, Any] = {}
    theirs = functions(
        root / "RSEvalKit/model_eval_mp.py",
        name,
        "EXTRACT_NUMBER_PATTERN",
        defaultdict=collections.defaultdict,
        pd=types.SimpleNamespace(DataFrame=lambda values: values),
        dump=lambda values, path: saved.update(values),
    )
    with folder() as here, np.errstate(all="ignore"):
        figures = getattr(theirs, name)(None, write_lines(here / "results.jsonl", entries), "table.xlsx")
    return {**saved, **figures}


def vhm_text(root: Path, rng: random.Random, count: int, hostile: bool) -> tuple[Entries, Figures, str]:
    entries: Entries = [
        {
            "filename": f"{i}.png",
            "size": [800, 800],
            "query": "?",
            "answer": rng.choice(["yes", "no", "Dense Urban"]),
            "pred": noise(rng) if hostile else rng.choice(["yes", "no", "dense urban", ""]),
        }
        for i in range(count)
    ]
    return entries, {"accuracy": _rsevalkit(root, "eval_results_cls_vqa", entries)["perception"]}, "vqa"


def vhm_presence(root: Path, rng: random.Random, count: int, hostile: bool) -> tuple[Entries, Figures, str]:
    entries: Entries = [
        {
            "filename": f"{i}.png",
            "size": [800, 800],
            "query": "?",
            "answer": rng.choice(["Yes", "no"]),
            "pred": noise(rng) if hostile else rng.choice(["Yes", "No", "no", "yes."]),
        }
        for i in range(count)
    ]
    return entries, {"accuracy": _rsevalkit(root, "eval_results_presence", entries)["perception"]}, "presence"


def vhm_count(root: Path, rng: random.Random, count: int, hostile: bool) -> tuple[Entries, Figures, str]:
    words = ["three", "There are 12 ships", "twenty-one", "7.0", "5"]
    entries: Entries = [
        {
            "filename": f"{i}.png",
            "size": [800, 800],
            "query": "?",
            "answer": str(rng.randrange(1, 40)),
            "pred": rng.choice(words) + (noise(rng) if hostile else ""),
        }
        for i in range(count)
    ]
    entries = [item for item in entries if re.search(r"\d|three |three$|twenty-one |twenty-one$", item["pred"])]
    found = _rsevalkit(root, "eval_results_couting", entries)
    levels: Any = found["RANGE_ACC"]
    by_level = {f"accuracy_{name}": value / 100 for name, value in zip(LEVELS, levels, strict=True)}
    return entries, {"mae": found["MAE"], "mape": found["MAPE"], **by_level}, "count"


def vhm_multi_label(root: Path, rng: random.Random, count: int, hostile: bool) -> tuple[Entries, Figures, str]:
    names = ["forest", "water", "urban", "farm land", "road"]
    entries: Entries = []
    for i in range(count):
        truth = rng.sample(names, rng.randrange(1, 4))
        answer = ", ".join(rng.sample(names, rng.randrange(1, 4))) + (noise(rng) if hostile else "")
        entries.append(
            {
                "filename": f"{i}.png",
                "size": [800, 800],
                "query": f"Choose: {', '.join(names)}.",
                "answer": ", ".join(truth),
                "pred": answer,
            }
        )
    return entries, {"average_cp": _rsevalkit(root, "eval_results_ml", entries)["average CP"]}, "classification"


def vhm_boxes(root: Path, rng: random.Random, count: int, hostile: bool) -> tuple[Entries, Figures, str]:
    entries: Entries = []
    for i in range(count):
        truth = int_box(rng, 800)
        box = [round(n / 0.8) for n in jittered(rng, truth, 800, 60)]
        answer = str(box)
        if hostile and rng.random() < 0.4:
            answer = rng.choice(
                [f"It is at {box}.", f"{box} or {box}", "nothing", f"[{box[0]}.5, -{box[1]}, {box[2]}, 2000]"]
            )
        entries.append({"filename": f"{i}.png", "size": [800, 800], "query": "?", "answer": str(truth), "pred": answer})
    entries[0]["pred"] = str([0, 0, 10, 10])  # their code needs an IoU in the first line
    found = _rsevalkit(root, "eval_results_bbox", entries)
    sizes = {"S": "small", "M": "medium", "L": "large"}
    by_size = {
        f"precision_{sizes[key.split('_')[1]]}": float(value)
        for key, value in found.items()
        if key.startswith("precision_")
    }
    return entries, {"precision": float(found["precision"]), **by_size}, "grounding"
