"""Compare our copies of other projects' scoring rules with the projects' own code.

Generates answers, clean and adversarial, as files in the format of each project; scores them with the code of a
checkout of the project and with `earthgpt score --as`; prints the largest difference of any figure as a Markdown table.

    python scripts/compare_scorers.py CHECKOUTS [--count 1000] [--project NAME]

CHECKOUTS has one folder per project, as `git clone` names it: VRSBench, RSEvalKit, LHRS-Bot, GeoChat, EarthDial,
Falcon; for RSCoVLM mmrotate (branch 1.x), mmdetection and mllm-mmrotate. Their code needs scikit-learn,
imbalanced-learn, scikit-image, nltk, rouge-score, rouge, pandas, matplotlib, seaborn and torch. Functions are taken
from their files without running the rest, which would load models. Their code is executed: read it before.
"""

from __future__ import annotations

import argparse
import ast
import collections
import contextlib
import io
import json
import math
import os
import random
import re
import runpy
import sys
import tempfile
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from earthgpt_jax.evaluation.third_party import formats, scorers

Entries = list[dict[str, Any]]
Figures = Mapping[str, float]


# -------------------------------------------------------------------------------------------- running their code
def functions(path: Path, *names: str, **given: Any) -> types.SimpleNamespace:
    """Return functions, classes and constants of a Python file or notebook, without running the rest of it."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
        text = "\n".join("".join(cell["source"]) for cell in cells)
    nodes = [node for node in ast.parse(text).body if _name(node) in names]
    namespace: dict[str, Any] = {"np": np, "re": re, "json": json, "os": os, "math": math, **given}
    exec(compile(ast.Module(body=nodes, type_ignores=[]), str(path), "exec"), namespace)
    return types.SimpleNamespace(**namespace)


def _name(node: ast.stmt) -> str:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return node.name
    return node.targets[0].id if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) else ""


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """Change to a temporary folder, and silence what their code prints."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
        os.chdir(name)
        try:
            yield Path(name)
        finally:
            os.chdir(before)


def run(path: Path, *arguments: str, **replaced: Any) -> dict[str, Any]:
    """Run a program of theirs in the current folder; return its global variables."""
    with mock.patch.object(sys, "argv", [str(path), *arguments]):
        return runpy.run_path(str(path), init_globals=replaced, run_name="__main__")


def write_lines(path: Path, entries: Entries) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return path


def without_sentences() -> None:
    """Let nltk tokenize without its model of sentences: their texts have no spaces, so they are single sentences."""
    import nltk.tokenize

    nltk.tokenize.sent_tokenize = lambda text, language="english": [text]


# ------------------------------------------------------------------------------------------------------- answers
WORDS = (
    *(
        "a",
        "the",
        "ship",
        "ships",
        "airport",
        "dense_residential",
        "yes",
        "no",
        "maybe",
        "rural",
        "urban",
        "3",
        "eleven",
    ),
    *("1.5", "Yes.", "No!", "know", "none"),
)
LEVELS = ("low", "medium", "high", "ultra")
CLASSES = ["Airport", "BareLand", "dense_residential", "storage tank", "Beach", "Port", "Harbor", "Church", "Pond"]


def noise(rng: random.Random) -> str:
    """Return a text that a rule may misread: empty, punctuation, other cases, substrings, several answers."""
    pieces = [
        *WORDS,
        "",
        " ",
        ",",
        ".",
        "...",
        "?",
        "'s",
        "isn't",
        "cannot",
        "\u00e9",
        "<",
        ">",
        "[",
        "]",
        "(",
        ")",
        "-",
        "--",
        "I do not know",
        "yes, no",
        "e",
        "\u2019",
        '"',
        "n't",
        ":",
        "1,000",
        "%",
    ]
    return "".join(rng.choice(pieces) + rng.choice(["", " "]) for _ in range(rng.randrange(0, 7)))


def int_box(rng: random.Random, scale: int) -> list[int]:
    x0, x1 = sorted(rng.sample(range(scale + 1), 2))
    y0, y1 = sorted(rng.sample(range(scale + 1), 2))
    return [x0, y0, x1, y1]


def jittered(rng: random.Random, box: Sequence[int], scale: int, step: int) -> list[int]:
    """Return a box near another one."""
    x0, y0, x1, y1 = (min(max(n + rng.randint(-step, step), 0), scale) for n in box)
    return [min(x0, x1), min(y0, y1), max(x0, x1, min(x0, x1) + 1), max(y0, y1, min(y0, y1) + 1)]


def braces(box: Sequence[int], angle: int | None = None) -> str:
    return "{" + "".join(f"<{n}>" for n in box) + ("" if angle is None else f"|<{angle}>") + "}"


# ----------------------------------------------------------------------------------------------------- projects
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
    with folder() as here, mock.patch.object(sys, "path", [str(root / "Falcon/eval"), *sys.path]):
        (here / "r.json").write_text(json.dumps(_falcon_file(entries, "IMG_CLS")))
        import evaluation

        found = evaluation.read_json_result("r.json")["results"]
    return (
        _falcon_file(entries, "IMG_CLS"),
        {name: found[name] for name in ("accuracy", "precision", "recall", "f1")},
        "classification",
    )


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
    with folder() as here, mock.patch.object(sys, "path", [str(root / "Falcon/eval"), *sys.path]):
        (here / "r.json").write_text(json.dumps(_falcon_file(entries, "IMG_CLS")))
        import evaluation

        found = evaluation.read_json_result("r.json")["results"]
    return (
        _falcon_file(entries, "IMG_CLS"),
        {name: found[name] for name in ("accuracy", "precision", "recall", "f1")},
        "classification",
    )


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


class _NoPool:
    """Stands for a pool of processes: runs in this one."""

    def __init__(self, count: int) -> None:
        del count

    def starmap(self, function: Callable[..., Any], arguments: Any) -> list[Any]:
        return [function(*values) for values in arguments]

    def close(self) -> None:
        pass


def _quad_ious(boxes1: Any, boxes2: Any) -> Any:
    """Stand for the compiled IoU of mmcv: the IoU of polygons, by shapely."""
    import torch

    from earthgpt_jax.evaluation.metrics.iou import obb_ious

    return torch.from_numpy(obb_ious(np.asarray(boxes1, float)[:, :8], np.asarray(boxes2, float)[:, :8]))


def rscovlm_detection(root: Path, rng: random.Random, count: int, hostile: bool) -> tuple[Entries, Figures, str]:
    import torch

    names = ["harbor", "plane", "ship"]
    entries: Entries = []
    images = []
    for i in range(count):
        truths = [[*int_box(rng, 800), rng.randrange(3)] for _ in range(rng.choice([1, 2, 3]))]
        boxes = [[*jittered(rng, box[:4], 800, 60), rng.choice([box[4], box[4], rng.randrange(3)])] for box in truths]
        if hostile and rng.random() < 0.5:
            boxes = rng.choice([[], boxes * 2, boxes[:1], truths + boxes])
        texts = [
            [f"{x0},{y0},{x1},{y0},{x1},{y1},{x0},{y1} {names[k]}" for x0, y0, x1, y1, k in group]
            for group in (boxes, truths)
        ]
        broken = ["1,2,3 ship", "nothing", "1,2,30,2,30,40,1,40"] if hostile else []
        entries.append(
            {"file_name": f"{i}.png", "output": "\n".join(texts[0] + broken), "ground_truth": "\n".join(texts[1])}
        )
        quads = [[[x0, y0, x1, y0, x1, y1, x0, y1] for x0, y0, x1, y1, _ in group] for group in (boxes, truths)]
        images.append(
            [
                (np.array(quad, float).reshape(-1, 8), np.array([box[4] for box in group], int))
                for quad, group in zip(quads, (boxes, truths), strict=True)
            ]
        )
    average_precision = functions(root / "mmdetection/mmdet/evaluation/functional/mean_ap.py", "average_precision")
    theirs = functions(
        root / "mmrotate/mmrotate/evaluation/functional/mean_ap.py",
        "tpfp_default",
        "get_cls_results",
        "eval_rbbox_map",
        torch=torch,
        box_iou_quadri=_quad_ious,
        average_precision=average_precision.average_precision,
        get_context=lambda kind: types.SimpleNamespace(Pool=_NoPool),
        print_map_summary=lambda *values, **options: None,
    )
    results = [
        [np.c_[boxes[labels == k], np.ones(int((labels == k).sum()))] for k in range(3)]
        for (boxes, labels), _ in images
    ]
    truth = [
        {
            "bboxes": torch.from_numpy(boxes),
            "labels": torch.from_numpy(labels),
            "labels_ignore": torch.zeros(0),
            "bboxes_ignore": torch.zeros(0, 8),
        }
        for _, (boxes, labels) in images
    ]
    stable = mock.patch.object(np, "argsort", lambda values: np.asarray(values).argsort(kind="stable"))
    with stable:
        map_nc, _ = theirs.eval_rbbox_map(results, truth, box_type="qbox")
    f1 = functions(
        root / "mllm-mmrotate/lmmrotate/modules/f1_metric.py",
        "get_num_classes",
        "calculate_confusion_matrix",
        "analyze_per_img_dets",
        "confusion_matrix_to_ap_ar_f1",
        torch=torch,
        rbbox_overlaps=lambda a, b: _quad_ious(a, b),
        qbox2rbox=lambda boxes: boxes,
        ProgressBar=lambda total: types.SimpleNamespace(update=lambda: None),
    )
    matrix = torch.zeros(4, 4)
    for (quads1, labels), (quads2, true_labels) in images:
        wide = _Polygons(quads1)
        f1.analyze_per_img_dets(
            matrix,
            {"bboxes": _Polygons(quads2), "labels": torch.from_numpy(true_labels)},
            {"bboxes": wide, "labels": torch.from_numpy(labels), "scores": torch.ones(len(labels))},
        )
    return entries, {"map_nc": map_nc, "mf1": f1.confusion_matrix_to_ap_ar_f1(matrix)[2]}, "obb"


class _Polygons(np.ndarray):
    """Polygons f[N, 8] that stay whole when five numbers of a rotated box are taken."""

    def __new__(cls, values: np.ndarray) -> _Polygons:
        return np.asarray(values, float).view(cls)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, tuple) and key == (slice(None), slice(None, 5)):
            return self
        return super().__getitem__(np.asarray(key) if not isinstance(key, (int, slice, tuple)) else key)


Generator = Callable[[Path, random.Random, int, bool], tuple[Any, Figures, str]]
COMPARISONS: Mapping[str, Sequence[Generator]] = {
    "vrsbench": (vrsbench_grounding, vrsbench_vqa),
    "vhm": (vhm_text, vhm_presence, vhm_count, vhm_multi_label, vhm_boxes),
    "lhrs": (lhrs_classification, lhrs_vqa, lhrs_grounding),
    "geochat": (geochat_scene,),
    "earthdial": (earthdial_classification, earthdial_vqa, earthdial_detection, earthdial_captions),
    "falcon": (
        falcon_grounding,
        falcon_oriented,
        falcon_horizontal,
        falcon_classification,
        falcon_multi_label,
        falcon_vqa,
        falcon_captions,
    ),
    "rscovlm": (rscovlm_detection,),
}


def largest_difference(project: str, document: Any, theirs: Figures, task: str) -> tuple[float, str]:
    """Return the largest difference of a figure, and its name."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "answers.json"
        path.write_text(json.dumps(document), encoding="utf-8")
        predictions = formats.read(path, file_format=formats.FORMATS[project], task=task)
    ours = scorers.figures(project, predictions)[task]
    if missing := theirs.keys() - ours.keys():
        raise SystemExit(f"{project}, {task}: we have no figure {sorted(missing)}; ours are {sorted(ours)}")
    return max((abs(ours[key] - float(value)), key) for key, value in theirs.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", type=Path)
    parser.add_argument("--count", type=int, default=1000, help="answers of each kind (default: 1000)")
    parser.add_argument("--project", choices=COMPARISONS, help="one project alone")
    arguments = parser.parse_args()
    root = arguments.checkouts.resolve()
    print("| project | rule | figures | answers | largest difference, clean | adversarial |")
    print("|---|---|---:|---:|---:|---:|")
    for project, generators in COMPARISONS.items():
        if arguments.project not in (None, project):
            continue
        for generator in generators:
            results = []
            for hostile in (False, True):
                rng = random.Random(f"{generator.__name__} {hostile}")
                document, theirs, task = generator(root, rng, arguments.count, hostile)
                results.append(largest_difference(project, document, theirs, task))
            rule = generator.__name__.removeprefix(f"{project}_").replace("_", " ")
            cells = [f"{value:.1e}" + (f" ({name})" if value > 1e-9 else "") for value, name in results]
            print(f"| {project} | {rule} | {len(theirs)} | {arguments.count} | {cells[0]} | {cells[1]} |", flush=True)


if __name__ == "__main__":
    main()
