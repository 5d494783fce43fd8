"""Build a user's own data with the card of docs/guides/data.md, word by word, and with each format it recommends."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from earthgpt_jax.cli.main import main
from earthgpt_jax.datasets.store import RecordSource
from tests.support.native_datasets import png

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "data.md"
SPLITS = ("train", "val", "test")


def _readme_card() -> str:
    match = re.search(r"`mine/port.yaml`:\n\n```yaml\n(.*?)```\n", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert match
    return match[1]


def _build(folder: Path, card: str, *, status: int = 0) -> list:
    path = folder / "card.yaml"
    path.write_text(card)
    out = folder / "datasets"
    assert main(["data", "build", str(path), "--root", str(folder), "--out", str(out)]) == status
    (built,) = out.iterdir()
    assert main(["data", "check", str(built)]) == 0
    manifest = json.loads((built / "manifest.json").read_text())
    return [record for split in SPLITS if split in manifest["counts"] for record in RecordSource(built, split)]


def test_the_card_in_the_readme(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = tmp_path / "port" / "pictures"
    pictures.mkdir(parents=True)
    rows = []
    for i in range(20):
        (pictures / f"{i}.png").write_bytes(png(40 + i))
        rows.append({"file": f"{i}.png", "ask": "How many ships are there?", "say": i})
    (tmp_path / "port" / "questions.json").write_text(json.dumps([*rows, {"ask": "Where?", "say": "left"}]))
    records = _build(tmp_path, _readme_card(), status=1)  # the last row has no image and is quarantined
    assert {(record.source, record.turns[0].answer) for record in records} == {
        ("port_questions", str(i)) for i in range(20)
    }
    assert {record.split for record in records} <= set(SPLITS)
    lines = (tmp_path / "datasets" / "port_questions" / "quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["reason"] for line in lines] == ["no image in the field 'file'; found the fields ask, say"]
    assert "port_questions" in capsys.readouterr().out


OWN = "name: own\ntitle: t\nsensor: sar\nfolder: own\nlicence: ours\nnotes: [n]\n"
BOX = "There is <p>one ship</p>[0.25,0.25,0.50,0.50] in the image."
FORMATS = {
    "folders": ("tasks: [classification]\nlayout: {images: .}\nopen_classes: true\n", "ships/a.png", None),
    "captions": (
        "tasks: [caption]\nlayout: {annotations: a.json, images: .}\n",
        "a.png",
        {"images": [{"filename": "a.png", "sentences": [{"raw": "a ship"}, {"raw": "one ship"}]}]},
    ),
    "llava": (
        "tasks: [hbb]\nlayout: {annotations: a.json, images: .}\nclasses: [ship]\n",
        "a.png",
        [{"image": "a.png", "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": BOX}]}],
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_the_formats_in_the_readme(name: str, tmp_path: Path) -> None:
    entries, image, annotations = FORMATS[name]
    path = tmp_path / "own" / image
    path.parent.mkdir(parents=True)
    path.write_bytes(png())
    if annotations:
        (tmp_path / "own" / "a.json").write_text(json.dumps(annotations))
    (record,) = _build(tmp_path, f"{OWN}format: {name}\n{entries}")
    content = (record.label, len(record.references), len(record.objects))
    assert content == {"folders": ("ships", 0, 0), "captions": ("", 2, 0), "llava": ("", 0, 1)}[name]
