"""Files of every kind that a user may hand over, mutated at random: refused in one error, never by a crash or a hang.

A case is one mutated file. It passes if it is read, or refused by an `EarthGPTError` (the one line that a user sees),
within the time limit. Reading the files of a kind writes nothing and needs little memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from earthgpt_jax import config as config_lib
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.safetensors_files import indexed_files
from earthgpt_jax.datasets import cards, manifest, readers
from earthgpt_jax.datasets.collection import open_records
from earthgpt_jax.evaluation import predictions_file, scores
from earthgpt_jax.evaluation.third_party import formats
from earthgpt_jax.input.packing.mixture import load_mixture
from earthgpt_jax.input.tokenizer import Tokenizer
from earthgpt_jax.models import model_dir
from earthgpt_jax.raster.decode import decode
from earthgpt_jax.records import Task
from earthgpt_jax.training import inspection
from tests.support import mutations, nano
from tests.support.answers import answer, truth
from tests.support.mutations import Mutation
from tests.support.native_datasets import card as make_card
from tests.support.native_datasets import corner_object, png, voc_file, voc_object
from tests.training.test_checkpoints import _save

SECONDS = 30  # for one case, on a busy machine
MEMORY = 1 << 30  # bytes that all cases of a kind may add to the peak of the process
CASES = 30  # of each kind
MANY_CASES = 300


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of file.

    Attributes:
        make: writes the file and all that belongs to it into a folder; returns the file.
        read: reads it as the program does.
        mutations: ways to damage it.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], object]
    mutations: tuple[Mutation, ...] = ()


JSON = (mutations.mutate_json,) * 6 + mutations.BYTES
LINES = (mutations.mutate_json_line,) * 6 + mutations.BYTES
YAML = (mutations.mutate_yaml,) * 6 + mutations.BYTES
TEXT = (mutations.mutate_number,) * 3 + mutations.BYTES


def _predictions(folder: Path) -> Path:
    path = folder / "p.jsonl"
    items = [
        answer("<p>a ship</p>[0.1,0.1,0.3,0.3]", id="1", task="hbb", objects=(truth("ship", 1, 1, 3, 1, 3, 3, 1, 3),)),
        answer("a harbor", id="2", task="caption", references=("a harbor", "ships")),
        answer("yes", id="3", task="vqa", answer="yes"),
    ]
    predictions_file.write(path, items, header={"model": "m"})
    return path


def _score(path: Path) -> None:
    _, items = predictions_file.read_complete(path)
    scores.score(items, samples=0)


def _answers(folder: Path) -> Path:
    path = folder / "answers.jsonl"
    rows = [
        {"question_id": "1", "answer": "{<1><2><30><40>|<0>}", "ground_truth": "{<1><2><30><40>|<0>}"},
        {"question_id": "2", "answer": "no", "ground_truth": "yes"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _score_answers(path: Path) -> None:
    items = formats.read(path, file_format=formats.third_party_format("geochat"), task=Task.VQA)
    scores.score(items, samples=0)


def _native(format: str, annotations: str, content: str | bytes | dict | list, **entries: object) -> Kind:
    def make(folder: Path) -> Path:
        (folder / "d" / "i").mkdir(parents=True)
        (folder / "d" / "i" / "x.png").write_bytes(png())
        path = folder / "d" / annotations
        path.parent.mkdir(parents=True, exist_ok=True)
        data = content if isinstance(content, str | bytes) else json.dumps(content)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return path

    part = {"annotations": annotations if Path(annotations).suffix == ".json" else "a", "images": "i"}
    found = make_card(format, part, **entries)

    def read(path: Path) -> None:
        root = path.parents[len(Path(annotations).parts)]
        for event in readers.read(root, found):
            if hasattr(event, "reason"):
                event.reason.encode()

    is_json = not isinstance(content, str | bytes)
    return Kind(make=make, read=read, mutations=JSON if is_json else TEXT)


def _card(folder: Path) -> Path:
    path = folder / "port.yaml"
    values = yaml.safe_load(Path("data/sources/ssdd.yaml").read_text()) | {"name": "port", "tile": {"size": 800}}
    path.write_text(yaml.safe_dump(values))
    return path


def _read_card(path: Path) -> None:
    (found,) = cards.select_cards([str(path)])
    found.label("ship"), found.split("a1", ""), json.dumps(found.describe(), default=str).encode()
    for name in found.variants:
        found.variant(name)
    readers.missing_paths(path.parent, found)


def _mixture(folder: Path) -> Path:
    path = folder / "m.yaml"
    path.write_text("rule: temperature\ntemperature: 2\nsensors: {sar: 2}\nsources: [a, b]\n")
    return path


def _benchmark(folder: Path) -> Path:
    path = folder / "b.yaml"
    shutil.copy(sorted(Path("data/benchmarks").glob("*.yaml"))[0], path)
    return path


def _dataset(folder: Path) -> Path:
    nano.dataset(folder / "data", train=3, test=1)
    return folder / "data" / manifest.MANIFEST


def _open_dataset(path: Path) -> None:
    values = manifest.read_manifest(path.parent)
    manifest.annotated_classes(values), manifest.record_counts(values)
    records = open_records(path.parent, "train")
    for i in range(len(records)):
        records[i]


def _shard(folder: Path) -> Path:
    nano.dataset(folder / "data", train=3, test=1)
    return next((folder / "data").glob("*train*array_record*"))


def _model(folder: Path) -> Path:
    return nano.model_dir(folder / "model", nano.config("align").model)


def _read_model(path: Path) -> None:
    model_dir.read(path.parent)


def _picture(suffix: str, **options: object) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
        path = folder / f"x{suffix}"
        Image.fromarray(pixels).save(path, **options)  # type: ignore[arg-type]
        return path

    return make


def _decode(path: Path) -> None:
    decode(path.read_bytes())


def _recipe(folder: Path) -> Path:
    path = folder / "r.py"
    shutil.copy("configs/tiny.py", path)
    return path


def _overrides(folder: Path) -> Path:
    path = folder / "overrides.txt"
    words = (
        "optim.steps=30",
        "optim.peak_lr=1e-3",
        "data.batch_size=8",
        "mesh.data=1",
        "data.mixture=m.yaml",
        "seed=1",
    )
    path.write_text("".join(f"--config.{word}\n" for word in words))
    return path


def _load_overrides(path: Path) -> None:
    config_lib.load("tiny:align", path.read_text(errors="surrogateescape").splitlines())


def _index(folder: Path) -> Path:
    (folder / "a.safetensors").touch()
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 4}, "weight_map": {"x": "a.safetensors"}}))
    return path


def _checkpoint(folder: Path) -> Path:
    _save(folder / "run", 2)
    return folder / "run" / "checkpoints" / "2" / inspection.METADATA


def _inspect(path: Path) -> None:
    """Inspect a run and its checkpoint, with a digest that fits the damaged metadata where they can be read."""
    with contextlib.suppress(Exception):
        values = json.loads(path.read_bytes())
        path.write_text(json.dumps(values | {"digest": inspection.metadata_digest(values)}))
    inspection.inspect(path.parents[3]), inspection.inspect(path.parents[1])


def _coco() -> dict:
    rows = [
        {"id": 1, "image_id": 1, "category_id": 7, "bbox": [2, 3, 10, 6], "segmentation": [[2, 3, 12, 3, 12, 9, 2, 9]]}
    ]
    return {
        "images": [{"id": 1, "file_name": "x.png", "width": 40, "height": 30}],
        "annotations": rows, "categories": [{"id": 7, "name": "ship"}],
    }  # fmt: skip


def _turns() -> list:
    return [
        {
            "image": "x.png",
            "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "b"}],
        }
    ]


KINDS = {
    "predictions": Kind(make=_predictions, read=_score, mutations=LINES),
    "answers of another project": Kind(make=_answers, read=_score_answers, mutations=LINES),
    "card": Kind(make=_card, read=_read_card, mutations=YAML),
    "mixture": Kind(make=_mixture, read=lambda path: load_mixture(str(path)), mutations=YAML),
    "manifest": Kind(make=_dataset, read=_open_dataset, mutations=JSON),
    "shard": Kind(make=_shard, read=lambda path: _open_dataset(path), mutations=mutations.BYTES),
    "model config": Kind(make=lambda folder: _model(folder) / "config.json", read=_read_model, mutations=JSON),
    "weights": Kind(
        make=lambda folder: _model(folder) / "model.safetensors", read=_read_model, mutations=mutations.BYTES
    ),
    "tokenizer": Kind(
        make=lambda folder: _model(folder) / "tokenizer.model", read=lambda path: Tokenizer(path).encode("a b"),
        mutations=mutations.BYTES,
    ),
    "overrides": Kind(make=_overrides, read=_load_overrides, mutations=TEXT),
    "index of weights": Kind(make=_index, read=indexed_files, mutations=JSON),
    "checkpoint": Kind(make=_checkpoint, read=_inspect, mutations=JSON),
    "recipe": Kind(make=_recipe, read=lambda path: config_lib.load(f"{path}:align"), mutations=TEXT),
    "voc": _native("voc", "a/x.xml", voc_file(voc_object("ship", 1, 2, 11, 12))),
    "rotated voc": _native("rotated_voc", "a/x.xml", voc_file(corner_object("ship", 10, 5, 14, 1, 18, 5, 14, 9))),
    "coco": _native("coco", "a.json", _coco(), tasks=(Task.HBB, Task.OBB)),
    "yolo": _native("yolo", "a/x.txt", "0 0.5 0.5 0.5 0.2\n1 0.2 0.2 0.1 0.1\n"),
    "dota": _native("dota", "a/x.txt", "imagesource:x\ngsd:0.1\n1 1 9 1 9 9 1 9 ship 0\n", tasks=(Task.OBB,)),
    "captions": _native(
        "captions", "a.json", {"images": [{"filename": "x.png", "split": "train", "sentences": [{"raw": "a ship ."}]}]},
        tasks=(Task.CAPTION,),
    ),
    "llava": _native("llava", "a.json", _turns(), tasks=(Task.VQA,)),
    "png": Kind(make=_picture(".png"), read=_decode, mutations=mutations.BYTES),
    "jpeg": Kind(make=_picture(".jpg"), read=_decode, mutations=mutations.BYTES),
    "tiff": Kind(make=_picture(".tif"), read=_decode, mutations=mutations.BYTES),
    "lzw tiff": Kind(make=_picture(".tif", compression="tiff_lzw"), read=_decode, mutations=mutations.BYTES),
    "bmp": Kind(make=_picture(".bmp"), read=_decode, mutations=mutations.BYTES),
}  # fmt: skip


@contextlib.contextmanager
def _time_limit(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError(f"not finished after {seconds} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def failures(name: str, folder: Path, *, cases: int) -> list[str]:
    """Read mutated files of a kind; return what was neither read nor refused properly."""
    kind = KINDS[name]
    file = kind.make(folder)
    original = file.read_bytes()
    kind.read(file)
    found, before, peak = [], _paths(folder), _peak()
    for case in range(cases):
        rng = random.Random(f"{name} {case}")
        mutation = kind.mutations[case % len(kind.mutations)]
        file.write_bytes(mutation(rng, original))
        try:
            with _time_limit(SECONDS):
                kind.read(file)
        except EarthGPTError as error:
            if len(str(error)) > 4000 or str(error).count("\n") > 60:
                found.append(f"case {case}, {mutation.__name__}: message of {len(str(error))} characters")
        except Exception as error:
            found.append(f"case {case}, {mutation.__name__}: {type(error).__name__}: {str(error)[:200]}")
    found += [f"wrote {path}" for path in sorted(_paths(folder) - before)]
    if (grown := _peak() - peak) > MEMORY:
        found.append(f"needed {grown >> 20} MiB")
    return found


def _paths(folder: Path) -> set[Path]:
    """Return all paths next to a folder and in it."""
    return set(folder.parent.rglob("*"))


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@pytest.mark.parametrize("cases", [CASES, pytest.param(MANY_CASES, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", KINDS)
def test_a_mutated_file_is_read_or_refused(tmp_path, name, cases):
    folder = tmp_path / "case"
    folder.mkdir()
    found = failures(name, folder, cases=cases)
    assert not found, "\n".join(found)


def test_there_are_at_least_five_hundred_cases():
    assert len(KINDS) * CASES >= 500
