"""Scores of generated answers by the code of LHRS-Bot."""

from __future__ import annotations

import ast
import collections
import json
import os
import random
import re
import types
from collections.abc import Sequence
from pathlib import Path

from scorer_comparison.answers import CLASSES, Entries, Figures, int_box, jittered, noise
from scorer_comparison.checkouts import folder, functions


def lhrs_classification(root: Path, rng: random.Random, count: int, hostile: bool) -> tuple[Entries, Figures, str]:
    from difflib import SequenceMatcher

    from sklearn.metrics import balanced_accuracy_score

    entries: Entries = [
        {
            "filename": f"{i}.png",
            "target": rng.choice(CLASSES),
            "types": "",
            "pred": noise(rng) if hostile else rng.choice(CLASSES).lower().replace("_", " "),
        }
        for i in range(count)
    ]
    theirs = functions(
        root / "LHRS-Bot/main_cls.py",
        "find_index_of_max_similar_substring",
        "classname_2_idx",
        SequenceMatcher=SequenceMatcher,
        List=list,
        Dict=dict,
    )
    names = [name.lower().replace("_", " ") for name in sorted(CLASSES)]
    index = {name: i for i, name in enumerate(names)}
    truths = [index[item["target"].lower().replace("_", " ")] for item in entries]
    answers = theirs.classname_2_idx([item["pred"] for item in entries], index)
    return entries, {"balanced_accuracy": balanced_accuracy_score(truths, answers)}, "classification"


def lhrs_vqa(root: Path, rng: random.Random, count: int, hostile: bool) -> tuple[Entries, Figures, str]:
    entries: Entries = [
        {
            "question_id": i,
            "types": rng.choice(["presence", "comp", "rural_urban"]),
            "target": rng.choice(["yes", "no", "rural", "11"]),
            "pred": noise(rng) if hostile else rng.choice(["Yes", "no", "a rural", "eleven", "none"]),
        }
        for i in range(count)
    ]
    log: list[str] = []
    theirs = functions(
        root / "LHRS-Bot/main_vqa.py",
        "EvalAIAnswerProcessor",
        "TextVQAAccuracyEvaluator",
        List=list,
        tqdm=lambda values: values,
        defaultdict=collections.defaultdict,
        logger=types.SimpleNamespace(info=log.append),
    )
    total = theirs.TextVQAAccuracyEvaluator().eval_pred_list(entries)
    by_type = {f"accuracy_{name}": float(value) / 100 for name, value in (line.split(": ") for line in log)}
    return entries, {"accuracy": total, **by_type}, "vqa"


def lhrs_grounding(root: Path, rng: random.Random, count: int, hostile: bool) -> tuple[Entries, Figures, str]:
    def text(box: Sequence[int]) -> str:
        return "[" + ", ".join(f"{n / 1000:.3f}" for n in box) + "]"

    entries: Entries = []
    for i in range(count):
        truth = int_box(rng, 1000)
        answer = f"It is at {text(jittered(rng, truth, 1000, 100))}."
        if hostile and rng.random() < 0.5:
            answer = rng.choice(
                [
                    noise(rng),
                    "[0.1,0.2]",
                    "[,]",
                    "[0.1, 0.2, 0.3, 0.4, 0.5]",
                    answer * 2,
                    "[1.0,1.0,0.0,0.0]",
                    "[5, 6, 7, 8]",
                    "[.]",
                ]
            )
        entries.append({"filename": f"{i}.png", "target": text(truth), "pred": answer})
    theirs = functions(root / "LHRS-Bot/main_vg.py", "main", "calculate_iou")
    [body] = [
        node
        for node in ast.walk(ast.parse((root / "LHRS-Bot/main_vg.py").read_text()))
        if isinstance(node, ast.If)
        and "is_main_process()" in ast.unparse(node.test)
        and "fail_instance" in ast.unparse(node)
    ]
    log: list[str] = []
    with folder() as here:
        (here / "eval_save_file.json").write_text(json.dumps(entries))
        exec(
            compile(ast.Module(body=body.body, type_ignores=[]), "main_vg.py", "exec"),
            {
                "re": re,
                "os": os,
                "json": json,
                "config": types.SimpleNamespace(output=str(here)),
                "calculate_iou": theirs.calculate_iou,
                "logger": types.SimpleNamespace(info=log.append),
            },
        )
    accuracy, failures, with_failures = (float(line.rpartition(": ")[2]) for line in log)
    return (
        entries,
        {"accuracy": accuracy / 100, "failures": failures, "accuracy_with_failures": with_failures / 100},
        "grounding",
    )
