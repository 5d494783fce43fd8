"""Third-party predictions files: parsed in their own box format, joined with the truth, or refused with the reason."""

import dataclasses
import json

import pytest

from earthgpt_jax import __version__
from earthgpt_jax.boxes import FullImage, write_boxes
from earthgpt_jax.cli.main import main
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.evaluation import predictions_file, scores
from earthgpt_jax.evaluation.third_party import formats
from earthgpt_jax.evaluation.third_party.formats import FORMATS
from earthgpt_jax.records import Task
from tests.support.answers import answer, truth

SIZE = {"width": 400, "height": 200}


@pytest.fixture
def questions():
    """Two grounding questions about images that are not square."""
    ships = (truth("ship", 40, 20, 120, 100), truth("ship", 200, 100, 280, 180))
    return [
        answer(id="r/1#grounding#1", record_id="r/1", task="grounding", objects=ships, object_index=1, answer="[x]",
               question="where?", **SIZE),
        answer(id="r/2#grounding#0", record_id="r/2", task="grounding", objects=ships, object_index=0, answer="[y]",
               question="where?", **SIZE),
    ]  # fmt: skip


def _ours(path, rows, **header):
    predictions_file.write(path, rows, header={"data": "d1", **header})
    return path


def _boxes(questions, form) -> list[str]:
    """Return the correct answers as a model of that project writes them."""
    frame = FullImage(**SIZE)
    texts = []
    for q in questions:
        polygon = q.objects[q.object_index].polygon
        if form.box_format == "lhrs":
            x0, y0, x1, y1 = (polygon[i] / s for i, s in ((0, 400), (1, 200), (4, 400), (5, 200)))
            texts.append(f"It is at [{x0:.3f}, {y0:.3f}, {x1:.3f}, {y1:.3f}].")
        else:
            texts.append(write_boxes([polygon], box_format=form.box_format, frame=frame))
    return texts


@pytest.mark.parametrize("name", sorted(FORMATS.keys() - {"mmrs", "coco", "rscovlm"}))
def test_correct_answers_score_one_in_every_format(questions, tmp_path, name):
    form = formats.third_party_format(name)
    entries = [
        {(*form.id, "question_id")[0]: q.id, form.answer[0]: text}
        for q, text in zip(questions, _boxes(questions, form), strict=True)
    ]
    path = tmp_path / "third_party.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries[::-1]))
    rows = formats.read(path, file_format=form, questions=questions)
    assert [row.id for row in rows] == [q.id for q in questions]
    cell = scores.score(rows)["grounding"]["all"]
    assert cell["pr50"] == cell["parse_rate"] == 1.0
    assert cell["mean_iou"] > 0.97


def test_a_file_with_its_own_ground_truth(tmp_path):
    path = tmp_path / "geochat.jsonl"
    lines = [
        {"question_id": 1, "image_id": "a", "answer": "{<10><10><30><30>|<0>}", "ground_truth": "{<10><10><30><30>}"},
        {"question_id": 2, "image_id": "b", "answer": "{<60><60><80><80>|<90>}", "ground_truth": "{<60><60><80><70>}"},
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    rows = formats.read(path, file_format=FORMATS["geochat"], task=Task.GROUNDING)
    assert scores.score(rows)["grounding"]["all"]["mean_iou"] == pytest.approx(0.75, abs=1e-6)
    assert scores.breakdown(rows) == {}  # neither sizes nor classes are known
    lhrs = tmp_path / "eval_save_file.json"
    lhrs.write_text(json.dumps([{"pred": "yes", "target": "yes", "types": "presence", "question_id": 7},
                                {"pred": "no", "target": "yes", "types": "comp", "question_id": 8}]))  # fmt: skip
    cell = scores.score(formats.read(lhrs, file_format=FORMATS["lhrs"], task=Task.VQA))["vqa"]["all"]
    assert (cell["accuracy"], cell["accuracy_presence"], cell["accuracy_comp"]) == (0.5, 1.0, 0.0)
    scene = tmp_path / "scene.jsonl"
    scene.write_text(json.dumps({"question_id": "Airport/airport_1.tif", "answer": "airport"}))
    assert formats.read(scene, file_format=FORMATS["geochat"], task=Task.CLASSIFICATION)[0].answer == "Airport"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"question_id": "r/1#grounding#1", "answer": ""}], "1 of 2 questions have no answer .r/2#grounding#0."),
        ([{"id": n, "text": ""} for n in ("r/1#grounding#1", "r/2#grounding#0", "x")], "1 ids are unknown .x."),
        ([{"question_id": "r/1#grounding#1", "answer": ""}] * 2, "id r/1#grounding#1 occurs 2 times"),
        ([{"question_id": "r/1#grounding#1"}], "entry 1: expected one of pred, answer, prediction"),
        ([{"answer": "a"}], "entry 1: expected one of question_id, filename, id"),
        ([3], "entry 1: expected a JSON object, got int"),
        ([], "empty file"),
    ],
)  # fmt: skip
def test_an_error_says_what_is_wrong_with_a_file(questions, tmp_path, entries, message):
    path = tmp_path / "third_party.json"
    path.write_text(json.dumps(entries))
    with pytest.raises(EarthGPTError, match=message):
        formats.read(path, file_format=FORMATS["lhrs"], questions=questions)


def test_an_incomplete_or_edited_file_is_refused(questions, tmp_path, capsys):
    path = _ours(tmp_path / "p.jsonl", questions)
    lines = path.read_text().splitlines(keepends=True)

    def fails(text: str, *more: str) -> str:
        path.write_text(text)
        assert main(["score", str(path), *more]) == 2
        return capsys.readouterr().err

    assert "expected answers to 2 questions, as its header says, got 1" in fails("".join(lines[:2]))
    assert "is already answered in line 2" in fails("".join([*lines, lines[1]]))
    assert "an id, a question or a true answer was changed" in fails("".join(lines).replace("[x]", "[z]"))
    assert "only for files of other projects" in fails("".join(lines), "--task", "hbb")
    assert "no third-party scorer 'lrhs'; did you mean 'lhrs'?" in fails("".join(lines), "--as", "lrhs")


def test_answers_about_another_dataset_are_refused(questions, tmp_path, capsys):
    from earthgpt_jax.datasets.build.writer import write_dataset
    from earthgpt_jax.datasets.collection import open_records
    from earthgpt_jax.synthetic import SyntheticSource

    write_dataset({"test": SyntheticSource("test", 2)}, out=tmp_path / "data", name="synthetic")
    path = _ours(tmp_path / "p.jsonl", questions)
    assert main(["score", str(path), "--data", str(tmp_path / "data")]) == 2
    assert "got answers about a dataset with digest d1" in capsys.readouterr().err
    path = _ours(tmp_path / "p.jsonl", questions, data=open_records(tmp_path / "data", "test").fingerprint)
    assert main(["score", str(path), "--data", str(tmp_path / "data"), "--samples", "10"]) == 0


def test_baselines_must_answer_the_same_questions(questions, tmp_path, capsys):
    path = _ours(tmp_path / "p.jsonl", questions)
    fewer = _ours(tmp_path / "fewer.jsonl", questions[:1])
    assert main(["score", str(path), "--blind", str(fewer)]) == 2
    assert "1 of 2 questions have no answer" in capsys.readouterr().err
    moved = _ours(
        tmp_path / "moved.jsonl", [questions[0], dataclasses.replace(questions[1], objects=(), object_index=None)]
    )
    assert main(["score", str(path), "--blind", str(moved)]) == 2
    assert "1 questions have another text or ground truth" in capsys.readouterr().err
    assert main(["score", str(path), "--blind", str(path), "--samples", "5", "--json", "-"]) == 0
    printed = capsys.readouterr()
    assert "| blind |" in printed.err and json.loads(printed.out)["grounding"]["all"]["n"] == 2


def test_a_third_party_file_is_scored_from_the_command_line(questions, tmp_path, capsys):
    ours = _ours(tmp_path / "p.jsonl", questions)
    third_party = tmp_path / "third_party.jsonl"
    texts = _boxes(questions, FORMATS["geochat"])
    third_party.write_text("".join(json.dumps({"question_id": q.id, "answer": t}) + "\n"
                              for q, t in zip(questions, texts, strict=True)))  # fmt: skip
    argv = ["score", str(third_party), "--from", "geochat", "--questions", str(ours), "--as", "lhrs", "--samples", "20"]
    assert main([*argv, "--report", str(tmp_path / "report")]) == 0
    out = capsys.readouterr().out
    assert "| grounding, Pr@0.5 | 1.000 [0.012, 1.000] |" in out
    assert "published rule of lhrs" in out
    for name in ("report.html", "report.md"):
        text = (tmp_path / "report" / name).read_text()
        assert "published rule of lhrs" in text and "cum_iou" in text and "size: medium" in text
        assert f"earthgpt-jax {__version__}, 20" in text and "earthgpt score " in text
        assert "20 bootstrap samples" in text and "sha256" in text
