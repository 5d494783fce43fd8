"""Files as the programs of other projects write them: scored without renaming a field, and never truth for answer."""

import json

import pytest

from earthgpt_jax.boxes import BoxKind
from earthgpt_jax.cli.main import main
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.evaluation import predictions_file
from earthgpt_jax.evaluation.metrics.coco_ap import coco_ap
from earthgpt_jax.evaluation.third_party import formats
from tests.support.answers import answer, truth


def lines(*entries) -> str:
    return "".join(json.dumps(entry) + "\n" for entry in entries)


GEOCHAT_SCENE = lines(
    {"question_id": "Airport/a1.tif", "image_id": "Airport/a1.tif", "answer": "airport", "ground_truth": "Airport"},
    {"question_id": "Beach/b1.tif", "image_id": "Beach/b1.tif", "answer": "airport", "ground_truth": "Beach"},
)
GEOCHAT_REFERRING = lines(
    {
        "question_id": 0,
        "image_id": "P1.png",
        "answer": "{<10><10><30><30>|<0>}",
        "ground_truth": "{<10><10><30><30>|<0>}",
        "question": "[refer]",
        "type": "ref",
        "dataset": "SOTA",
        "obj_ids": [1],
        "size_group": "small",
    },
    {
        "question_id": 1,
        "image_id": "P2.png",
        "answer": "none",
        "ground_truth": "{<10><10><30><30>|<0>}",
        "question": "[refer]",
        "type": "ref",
        "dataset": "SOTA",
        "obj_ids": [1],
        "size_group": "large",
    },
)
VRSBENCH = lines(
    {
        "question_id": 0,
        "image_id": "P1.png",
        "answer": "{<59><10><80><30>}",
        "ground_truth": "{<59><10><80><30>}",
        "is_unique": True,
        "size_group": "small",
    },
    {
        "question_id": 1,
        "image_id": "P2.png",
        "answer": "{<1><1><9><9>}",
        "ground_truth": "{<50><10><50><30>}",
        "is_unique": False,
        "size_group": "small",
    },
)
LHRS_VQA = json.dumps(
    [
        {"pred": "yes", "target": "yes", "types": "presence", "question_id": 7},
        {"pred": "no", "target": "yes", "types": "comp", "question_id": 8},
    ]
)
LHRS_VG = json.dumps(
    [
        {"pred": "[0.1, 0.1, 0.3, 0.3]", "target": "[0.1, 0.1, 0.3, 0.3]", "filename": "a.jpg"},
        {"pred": "there", "target": "[0.1, 0.1, 0.3, 0.3]", "filename": "b.jpg"},
    ]
)
RSEVALKIT = lines(
    {"filename": "d/a.png", "size": [800, 800], "query": "{CLS} Which?", "answer": "Airport", "pred": "airport"},
    {"filename": "d/b.png", "size": [800, 800], "query": "{CLS} Which?", "answer": "Beach", "pred": "airport"},
)
RSEVALKIT_VG = lines(
    {
        "filename": "d/a.png",
        "size": [400, 800],
        "query": "{VG}",
        "answer": "[80, 40, 240, 200]",
        "pred": "[100,100,300,500]",
    },
    {"filename": "d/b.png", "size": [400, 800], "query": "{VG}", "answer": "[80, 40, 240, 200]", "pred": "nowhere"},
)
EARTHDIAL_VQA = lines(
    {"question": "?", "answer": "yes", "annotation": "yes", "vqa_type": "presence"},
    {"question": "?", "answer": "no", "annotation": "yes", "vqa_type": "comp"},
)
EARTHDIAL_SCENE = lines(
    {"question": "?", "answer": "beach", "annotation": "Beach"},
    {"question": "?", "answer": "port", "annotation": "Beach"},
)
EARTHDIAL_CAPTIONS = lines(
    *(
        {"question": "?", "answer": f"a {word} lake", **{f"caption{k}": f"a {word} lake" for k in range(5)}}
        for word in ("green", "blue")
    )
)
EARTHDIAL_BOXES = lines(
    {
        "question": "?",
        "answer": "[[10, 10, 30, 30, 0]]",
        "gt_bbox": "[[10, 10, 30, 30, 0], [50, 50, 60, 60, 0]]",
        "task_type": "refer",
        "size_group": "small",
    },
)
FALCON_CLASSES = json.dumps(
    {
        "info": {"task": "IMG_CLS", "model": "falcon", "dataset": "AID"},
        "data": [
            {"image": "a.png", "crop": [], "question": "?", "answer": "Airport", "gt": "airport"},
            {"image": "b.png", "crop": [], "question": "?", "answer": "beach", "gt": "airport"},
        ],
    },
    indent=4,
)
FALCON_QUADS = json.dumps(
    {
        "info": {"task": "REG_DET_OBB", "model": "falcon", "dataset": "DOTA"},
        "data": [
            {
                "image": "a.png",
                "crop": [],
                "question": "?",
                "answer": [["1", "1", "9", "1", "9", "9", "1", "9"]],
                "gt": [["1", "1", "9", "1", "9", "9", "1", "9"], ["50", "50", "90", "50", "90", "90", "50", "90"]],
            }
        ],
    }
)
FALCON_BOXES = json.dumps(
    {
        "info": {"task": "REG_DET_HBB", "model": "falcon", "dataset": "DOTA"},
        "data": [
            {"image": "a.png", "question": "?", "answer": "<box><1><1><9><9></box>", "gt": "<box><1><1><9><9></box>"}
        ],
    }
)
LMMS_EVAL = lines(
    {"doc_id": 0, "target": "yes", "input": "Is it?", "resps": [["Yes"]], "filtered_resps": ["Yes"], "doc_hash": "x"},
    {"doc_id": 1, "target": "no", "input": "Is it?", "resps": [["Yes"]], "filtered_resps": ["Yes"], "doc_hash": "y"},
)
FILES = [
    # text, format, task to give, metric and its value, figure of the project's rule and its value
    (GEOCHAT_SCENE, "geochat", "classification", "top1", 0.5, "accuracy", 0.5),
    (GEOCHAT_REFERRING, "geochat", "grounding", "pr50", 0.5, None, None),
    (VRSBENCH, "vrsbench", None, "pr50", 0.5, "acc@0.5", 0.5),
    (LHRS_VQA, "lhrs", "vqa", "accuracy", 0.5, "accuracy", 0.5),
    (LHRS_VG, "lhrs", "grounding", "pr50", 0.5, "accuracy", 1.0),
    (RSEVALKIT, "vhm", "classification", "top1", 0.5, "accuracy", 0.5),
    (RSEVALKIT_VG, "vhm", "grounding", "pr50", 0.5, "precision", 0.5),
    (EARTHDIAL_VQA, "earthdial", None, "accuracy_comp", 0.0, "comp", 0.0),
    (EARTHDIAL_SCENE, "earthdial", "classification", "top1", 0.5, "recall", 0.5),
    (EARTHDIAL_CAPTIONS, "earthdial", None, "bleu1", 1.0, "rouge1", 1.0),
    (EARTHDIAL_BOXES, "earthdial", None, "recall", 0.5, "all", 1.0),
    (FALCON_CLASSES, "falcon", None, "top1", 0.5, "accuracy", 0.5),
    (FALCON_QUADS, "falcon", None, "recall", 0.5, "recall@0.5", 0.5),
    (FALCON_BOXES, "falcon", None, "f1", 1.0, "map@0.5", 1.0),
    (LMMS_EVAL, "lmms_eval", "vqa", "accuracy", 0.5, None, None),
]


@pytest.mark.parametrize(("text", "name", "task", "metric", "value", "figure", "theirs"), FILES)
def test_a_native_file_is_recognized_and_scored(tmp_path, capsys, text, name, task, metric, value, figure, theirs):
    path, out = tmp_path / "answers.json", tmp_path / "scores.json"
    path.write_text(text)
    rule = ["--as", name] if figure else []
    argv = ["score", str(path), "--samples", "0", "--json", str(out), *rule, *(["--task", task] if task else [])]
    assert main(argv) == 0
    assert f"(--from {name})" in capsys.readouterr().out
    [groups] = json.loads(out.read_text()).values()
    assert groups["all"][metric] == pytest.approx(value, abs=1e-6)
    if figure:
        assert groups[f"as {name}"][figure] == pytest.approx(theirs, abs=1e-9)


def test_a_truth_is_never_taken_for_an_answer(tmp_path):
    """Files of VHM have the truth in `answer`."""
    path = tmp_path / "answers.jsonl"
    path.write_text(RSEVALKIT)
    for name in ("geochat", "lhrs", "earthdial", "mmrs"):
        with pytest.raises(
            EarthGPTError, match=r"entry 1: '(answer|pred)' or '(answer|pred)' may be the model's answer"
        ):
            formats.read(path, file_format=formats.FORMATS[name], task="classification")
    rows = formats.read(path, file_format=formats.FORMATS["vhm"], task="classification")
    assert [(row.prediction, row.answer) for row in rows] == [("airport", "Airport"), ("airport", "Beach")]


def test_a_file_whose_boxes_are_all_unreadable_is_refused(tmp_path):
    path = tmp_path / "answers.json"
    path.write_text(FALCON_QUADS)
    with pytest.raises(EarthGPTError, match="none of 1 ground truths has a box in the format 'falcon'"):
        formats.read(path, file_format=formats.FORMATS["falcon"], task="hbb")


def test_a_true_box_without_an_area_is_scored(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text(VRSBENCH)
    second = formats.read(path, file_format=formats.FORMATS["vrsbench"])[1]
    assert second.objects[0].polygon == (0.5, 0.1, 0.5, 0.1, 0.5, 0.3, 0.5, 0.3)


def test_falcons_answer_and_truth_are_read_alike(tmp_path):
    path = tmp_path / "answers.json"
    path.write_text(FALCON_BOXES)
    [row] = formats.read(path, file_format=formats.FORMATS["falcon"])
    assert row.objects[0].polygon[:2] == pytest.approx((0.0015, 0.0015))


RSCOVLM = {
    "file_name": "P1.png",
    "output": "100,100,300,100,300,300,100,300 ship",
    "original_width": 512,
    "original_height": 512,
    "resized_width": 1024,
    "resized_height": 1024,
    "gt_instances": {},
}


def test_boxes_of_rscovlm_are_in_pixels_of_the_resized_image(tmp_path):
    questions = [
        answer(
            id="dota/P1#obb#0",
            record_id="dota/P1",
            task="obb",
            width=512,
            height=512,
            objects=(truth("ship", 50, 50, 150, 150),),
        )
    ]
    predictions_file.write(tmp_path / "q.jsonl", questions, header={})
    path = tmp_path / "answers.json"
    path.write_text(json.dumps([RSCOVLM]))
    out = tmp_path / "scores.json"
    argv = ["score", str(path), "--questions", str(tmp_path / "q.jsonl"), "--as", "rscovlm", "--json", str(out)]
    assert main([*argv, "--samples", "0"]) == 0
    groups = json.loads(out.read_text())["obb"]
    assert groups["all"]["f1"] == groups["as rscovlm"]["map_nc"] == 1.0


def test_coco_results_have_pycocotools_average_precision(tmp_path, capsys):
    """The boxes go through text and back; the AP is that of pycocotools on the original files."""
    import contextlib
    import io

    import numpy as np
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    rng = np.random.default_rng(0)
    images = [{"id": i, "width": 640, "height": 480, "file_name": f"{i}.jpg"} for i in range(1, 21)]
    annotations, results = [], []
    for i in range(1, 21):
        for _ in range(4):
            x, y, w, h = (float(n) for n in rng.uniform([0, 0, 8, 8], [400, 300, 200, 150]))
            category = int(rng.integers(1, 3))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i,
                    "category_id": category,
                    "area": w * h,
                    "bbox": [x, y, w, h],
                    "iscrowd": 0,
                }
            )
            moved = [x + rng.uniform(-9, 9), y + rng.uniform(-9, 9), w, h]
            moved[:2] = [max(n, 0.0) for n in moved[:2]]
            results.append({"image_id": i, "category_id": category, "bbox": moved, "score": float(rng.uniform())})
    dataset = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "ship"}, {"id": 2, "name": "plane"}],
    }
    (tmp_path / "truth.json").write_text(json.dumps(dataset))
    (tmp_path / "results.json").write_text(json.dumps(results))
    loaded = formats.load_coco(tmp_path / "results.json", annotations=tmp_path / "truth.json").predictions
    with contextlib.redirect_stdout(io.StringIO()):
        truths = COCO(str(tmp_path / "truth.json"))
        theirs = COCOeval(truths, truths.loadRes(str(tmp_path / "results.json")), "bbox")
        theirs.evaluate()
        theirs.accumulate()
        theirs.summarize()
    ours = coco_ap(loaded, BoxKind.HBB)
    assert list(ours.values()) == pytest.approx([float(value) for value in theirs.stats[:6] if value >= 0], abs=1e-9)
    argv = ["score", str(tmp_path / "results.json"), "--questions", str(tmp_path / "truth.json"), "--samples", "0"]
    assert main(argv) == 0
    assert "Read as a file of COCO results" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("yes</s>", "yes"),
        ("yes<|im_end|>", "yes"),
        ("<s>yes</s><pad><pad>", "yes"),
        ("\ufeffyes", "yes"),
        ("two\u2028lines", "two lines"),
        (["yes"], "yes"),
        ([["yes"]], "yes"),
        (3.0, "3"),
        (3, "3"),
        (2.5, "2.5"),
        (True, "yes"),
        ([[1, 2, 3, 4]], "<box><1><2><3><4></box>"),
    ],
)
def test_artefacts_with_one_meaning_are_read_and_counted(tmp_path, text, expected):
    path = tmp_path / "answers.jsonl"
    path.write_text(
        "\ufeff" + lines({"question_id": 1, "image_id": "a", "answer": text, "ground_truth": "yes"}), encoding="utf-8"
    )
    file = formats.load(path, file_format=formats.FORMATS["geochat"], task="vqa")
    assert file.predictions[0].prediction == expected
    assert bool(file.notes) == (isinstance(text, (str, int, float)) and not isinstance(text, bool))


def test_a_line_separator_within_a_text_does_not_end_a_line(tmp_path):
    path = tmp_path / "answers.jsonl"
    entries = [{"question_id": n, "image_id": "a", "answer": "two\u2028lines", "ground_truth": "x"} for n in (1, 2)]
    path.write_text("".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries), encoding="utf-8")
    assert len(formats.read(path, file_format=formats.FORMATS["geochat"], task="vqa")) == 2


def test_each_of_several_true_answers_is_accepted(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text(lines({"question_id": 1, "image_id": "a", "answer": "lawn", "ground_truth": ["grass", "lawn"]}))
    file = formats.load(path, file_format=formats.FORMATS["geochat"], task="vqa")
    assert (file.predictions[0].answer, file.predictions[0].synonyms) == ("grass", ("lawn",))
    assert file.notes == ["1 texts: several true answers, each of which is accepted."]


def test_a_whole_number_with_decimals_is_that_number():
    from earthgpt_jax.evaluation.metrics.vqa import vqa

    rows = [answer(text, id=text, task="vqa", answer="3") for text in ("3.0", "3", "three.", "3.5", "30")]
    found = vqa(rows)
    assert (found["accuracy"], found["count_exact"], found["count_parse_rate"]) == (0.4, 0.6, 0.8)
