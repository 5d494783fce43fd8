"""Scores of generated answers by the code of Falcon."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from scorer_comparison.answers import CLASSES, Entries, Figures, int_box, jittered, noise
from scorer_comparison.checkouts import folder, functions


def _falcon_file(entries: Entries, task: str) -> dict[str, Any]:
    return {"info": {"task": task, "model": "m", "dataset": "d"}, "data": entries}


def _falcon_swept(root: Path, entries: Entries, *, oriented: bool) -> Figures:
    from shapely.geometry import Polygon

    theirs = functions(
        root / "Falcon/eval/src/detection_obb.py",
        "process_flat_obb",
        "format_preprocess",
        "calculate_iou_obb",
        "calculate_iou_hbb",
        "calculate_ap",
        "evaluate_one",
        "calculate_eval_matrix",
        "evaluate_detection2",
        Polygon=Polygon,
    )
    as_text = isinstance(entries[0]["answer"], str)
    with folder():
        found = theirs.evaluate_detection2(entries, pre_box=as_text, is_box=as_text, is_obb=oriented)
    return {name.lower(): value / 100 for name, value in found.items()}


def falcon_grounding(root: Path, rng: random.Random, count: int, hostile: bool) -> tuple[Any, Figures, str]:
    def text(box: Sequence[int]) -> str:
        return "<box>" + "".join(f"<{n}>" for n in box) + "</box>"

    entries: Entries = []
    for i in range(count):
        truth = int_box(rng, 999)
        answer = text(jittered(rng, truth, 999, 100))
        if hostile and rng.random() < 0.5:
            answer = rng.choice(
                [noise(rng), "<box><1><2><3></box>", text([*truth, 5]), answer * 2, "<box></box>", answer[:-6]]
            )
        entries.append({"image": f"a/{i}.png", "question": "?", "answer": answer, "gt": text(truth)})
    return _falcon_file(entries, "REG_VG"), _falcon_swept(root, entries, oriented=False), "grounding"


def falcon_oriented(root: Path, rng: random.Random, count: int, hostile: bool) -> tuple[Any, Figures, str]:
    def quad(box: Sequence[int]) -> list[int]:
        x0, y0, x1, y1 = box
        return [x0, y0, x1, y0, x1, y1, x0, y1]

    entries: Entries = []
    for i in range(count):
        truths = [int_box(rng, 999) for _ in range(rng.choice([1, 2, 3]))]
        boxes = [quad(jittered(rng, box, 999, 80)) for box in truths]
        if hostile and rng.random() < 0.5:
            boxes = rng.choice([[], boxes * 2, [box[:6] for box in boxes], [[0, 0, 9, 9, 9, 0, 0, 9]], boxes[:1]])
        texts = [
            "".join("<quad>" + "".join(f"<{n}>" for n in box) + "</quad>" for box in group)
            for group in (boxes, [quad(box) for box in truths])
        ]
        entries.append({"image": f"a/{i}.png", "question": "?", "answer": texts[0], "gt": texts[1]})
    return _falcon_file(entries, "REG_DET_OBB"), _falcon_swept(root, entries, oriented=True), "obb"


def falcon_horizontal(root: Path, rng: random.Random, count: int, hostile: bool) -> tuple[Any, Figures, str]:
    entries: Entries = []
    for i in range(count):
        truths = [int_box(rng, 999) for _ in range(rng.choice([1, 2, 3]))]
        boxes = [jittered(rng, box, 999, 80) for box in truths]
        if hostile and rng.random() < 0.5:
            boxes = rng.choice([[], boxes * 2, [[*box, 3] for box in boxes], boxes[:1], truths + boxes])
        texts = [
            "".join("<box>" + "".join(f"<{n}>" for n in box) + "</box>" for box in group) for group in (boxes, truths)
        ]
        entries.append({"image": f"a/{i}.png", "question": "?", "answer": texts[0], "gt": texts[1]})
    folder_of_code = root / "Falcon/eval"
    with folder() as here, mock.patch.object(sys, "path", [str(folder_of_code), *sys.path]):
        (here / "r.json").write_text(json.dumps(_falcon_file(entries, "REG_DET_HBB")))
        import evaluation

        found = evaluation.read_json_result("r.json")["results"]["mAP@0.5"]
    return _falcon_file(entries, "REG_DET_HBB"), {"map@0.5": found / 100}, "hbb"


def _classes_by_falcon(root: Path, entries: Entries) -> tuple[Any, Figures, str]:
    """Return Falcon's file of the entries, the figures of its script, and the task."""
    content = _falcon_file(entries, "IMG_CLS")
    with folder() as here, mock.patch.object(sys, "path", [str(root / "Falcon/eval"), *sys.path]):
        (here / "r.json").write_text(json.dumps(content))
        import evaluation

        found = evaluation.read_json_result("r.json")["results"]
    return content, {name: found[name] for name in ("accuracy", "precision", "recall", "f1")}, "classification"


def falcon_classification(root: Path, rng: random.Random, count: int, hostile: bool) -> tuple[Any, Figures, str]:
    entries: Entries = [
        {
            "image": f"{i}.png",
            "question": "?",
            "gt": rng.choice(CLASSES),
            "answer": rng.choice([noise(rng), *CLASSES]) if hostile else rng.choice(CLASSES),
        }
        for i in range(count)
    ]
    return _classes_by_falcon(root, entries)


def falcon_multi_label(root: Path, rng: random.Random, count: int, hostile: bool) -> tuple[Any, Figures, str]:
    entries: Entries = [
        {
            "image": f"{i}.png",
            "question": "?",
            "gt": ", ".join(rng.sample(CLASSES, rng.randrange(1, 4))),
            "answer": ", ".join(rng.sample(CLASSES, rng.randrange(1, 4))) + (noise(rng) if hostile else ""),
        }
        for i in range(count)
    ]
    return _classes_by_falcon(root, entries)


def falcon_vqa(root: Path, rng: random.Random, count: int, hostile: bool) -> tuple[Any, Figures, str]:
    entries: Entries = [
        {
            "image": f"{i}.png",
            "question": "?",
            "gt": rng.choice(["yes", "no", "3"]),
            "answer": noise(rng) if hostile else rng.choice(["Yes.", "no", "3"]),
        }
        for i in range(count)
    ]
    with folder() as here, mock.patch.object(sys, "path", [str(root / "Falcon/eval"), *sys.path]):
        (here / "r.json").write_text(json.dumps(_falcon_file(entries, "IMG_VQA")))
        import evaluation

        found = evaluation.read_json_result("r.json")["results"]
    return _falcon_file(entries, "IMG_VQA"), {name: found[name] for name in ("accuracy", "f1")}, "vqa"


def falcon_captions(root: Path, rng: random.Random, count: int, hostile: bool) -> tuple[Any, Figures, str]:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    def text() -> str:
        return " ".join(
            rng.choice(["Ships", "are", "parked", "on", "the", "lake.", "(two)", "planes"]) for _ in range(9)
        )

    entries: Entries = [
        {"image": f"{i}.png", "question": "?", "gt": text(), "answer": noise(rng) + "x" if hostile else text()}
        for i in range(count)
    ]
    theirs = functions(
        root / "Falcon/eval/src/captioning.py",
        "Caption_Scorer",
        "evaluate_captioning2",
        Bleu=Bleu,
        Cider=Cider,
        RougeC=Rouge,
    )
    with folder():
        texts = [[item[key].lower() for item in entries] for key in ("gt", "answer")]
        found = theirs.Caption_Scorer(*theirs.evaluate_captioning2(*texts)).compute_scores()
    bleu = {f"bleu{k}": value / 100 for k, value in enumerate(found["Bleu"], start=1)}
    return (
        _falcon_file(entries, "IMG_CAP"),
        {**bleu, "rouge_l": found["ROUGE_L"] / 100, "cider": found["CIDEr"] / 100},
        "caption",
    )
