"""Real annotations as answers: the truth scores one, on GeoChat's grid as much as the grid allows, chance near zero."""

import json
from pathlib import Path

import pytest

from earthgpt_jax.boxes import FullImage, write_boxes
from earthgpt_jax.datasets.build.builder import build
from earthgpt_jax.datasets.cards import SPLITS, select_cards
from earthgpt_jax.datasets.collection import open_records
from earthgpt_jax.datasets.manifest import read_manifest
from earthgpt_jax.evaluation import baselines, benchmarks, scores
from earthgpt_jax.evaluation.predictions import Prediction
from earthgpt_jax.evaluation.predictions_file import digest
from earthgpt_jax.evaluation.questions import select_examples
from earthgpt_jax.evaluation.third_party import formats, scorers
from earthgpt_jax.records import Task

pytestmark = pytest.mark.realdata
# The questions of the sample data: benchmark -> (number, digest). A change of a reader or a question template shows up
# here before it makes results incomparable.
SAMPLES = {
    "hit_uav": (90, "3b79bf0967bfc637"), "hit_uav_obb": (90, "e8b1c913d9fa8741"), "rsvqa_lr": (180, "5ad507c81e8155c9"),
}  # fmt: skip


@pytest.fixture(scope="module")
def truth(realdata: Path, tmp_path_factory) -> list[Prediction]:
    """The correct answers about infrared images with horizontal and oriented boxes, and about Sentinel-2 tiles."""
    out = tmp_path_factory.mktemp("built")
    build(select_cards(["hit_uav", "rsvqa_lr"]), root=_linked(realdata, out / "native"), out=out / "data")
    rows = []
    for folder in sorted((out / "data").iterdir()):
        for split in SPLITS:
            if read_manifest(folder)["counts"].get(split, {}).get("task"):
                examples = select_examples(open_records(folder, split), decimals=4, per_image={"vqa": 30})
                rows += [Prediction.from_answer(item.record, item.question, item.question.answer) for item in examples]
    return rows


def _linked(realdata: Path, native: Path) -> Path:
    native.mkdir()
    for name in ("ir", "optical"):
        (native / name).symlink_to(realdata / name)
    return native


def test_the_truth_scores_one_and_chance_near_zero(truth):
    table = scores.score(truth, extras=(scores.Extra.AP,))
    assert table["vqa"]["all"]["accuracy"] == 1.0
    for task in (Task.HBB, Task.OBB):
        cell = table[task]["all"]
        assert cell["objects"] > 300, task
        for name in ("f1", "ap50", "ap40", "coco_ap50"):
            assert cell[name] > 0.99, (task, name)
    random = scores.score(baselines.shuffled(truth))
    assert random["hbb"]["all"]["f1"] < 0.05 and random["vqa"]["all"]["accuracy"] < 0.7


def test_the_truth_in_geochats_box_format_is_parsed(truth, tmp_path):
    """Rounding to a grid of 100 lowers the score to the ceiling of the box format."""
    chosen = [p for p in truth if p.task == Task.OBB]
    path = tmp_path / "geochat.jsonl"
    with path.open("w") as file:
        for p in chosen:
            frame = FullImage(p.width, p.height)
            texts = [
                write_boxes([item.polygon], box_format="geochat", frame=frame, label=item.label) for item in p.objects
            ]
            file.write(json.dumps({"question_id": p.id, "answer": " ".join(texts)}) + "\n")
    cell = scores.score(formats.read(path, file_format=formats.FORMATS["geochat"], questions=chosen))["obb"]["all"]
    assert cell["parse_rate"] == 1.0
    assert 0.3 < cell["f1"] < 0.97


def test_third_party_rules_overrate_chance(truth):
    random = [p for p in baselines.shuffled(truth) if p.task == Task.VQA]
    exact = scores.score(random)["vqa"]["all"]["accuracy"]
    assert scorers.apply_rules("vrsbench", random)["vqa"] > exact


@pytest.mark.parametrize("name", SAMPLES)
def test_the_questions_of_a_benchmark_stay_the_same(truth, name):
    rows = benchmarks.select_answers(truth, benchmarks.benchmark(name), path=Path("sample"))
    assert (len(rows), digest(rows)) == SAMPLES[name]
    assert len({p.source for p in rows}) == 1
