"""Several processes give the answers of one, also when they are killed and resumed with another number of them."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from earthgpt_jax.datasets.build.builder import build
from earthgpt_jax.datasets.cards import select_cards
from earthgpt_jax.evaluation import predictions_file, scores
from tests.support import nano
from tests.support.processes import Together, address

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]
DEVICES = 8  # in total, over all processes


def _run(processes: int, *words: object, kill_after: int = -1) -> None:
    where = address()
    commands = [
        ["-m", "tests.multiprocess.evaluation_worker", where, processes, index, *words, kill_after]
        for index in range(processes)
    ]
    with Together(commands, devices=DEVICES // processes) as together:
        ended = together.ended()
    codes = {each.status for each in ended}
    # When one process is killed, the coordinator may end the others before they reach their own kill.
    assert -signal.SIGKILL in codes if kill_after >= 0 else codes == {0}, "\n".join(each.tail() for each in ended)


def test_two_then_four_then_two_processes_give_the_answers_of_one(tmp_path):
    model = nano.model_dir(tmp_path / "nano", nano.config("align").model)
    data = nano.dataset(tmp_path / "data", test=10)
    alone, several = (tmp_path / name / "predictions.jsonl" for name in ("alone", "several"))
    _run(1, model, data, alone)
    _run(2, model, data, several, kill_after=9)
    parts = sorted(path.name for path in several.parent.iterdir())
    assert parts and set(parts) <= {"predictions-0-of-2.jsonl", "predictions-1-of-2.jsonl"}
    _run(4, model, data, several, kill_after=3)
    assert len(list(several.parent.iterdir())) > len(parts)
    _run(2, model, data, several)
    assert several.read_bytes() == alone.read_bytes()
    assert [path.name for path in several.parent.iterdir()] == ["predictions.jsonl"]
    (_, one), (_, two) = predictions_file.read(alone), predictions_file.read(several)
    assert scores.score(one) == scores.score(two)
    assert len({p.prediction for p in one}) > 3


def _commands(processes: int, *words: object, devices: int, extra: dict[int, list] | None = None) -> Together:
    """Return the command `earthgpt eval WORDS` as `processes` processes with `devices` devices each.

    Args:
        processes: number of processes.
        words: arguments that all processes get.
        devices: number of devices per process.
        extra: process -> further arguments, appended at the end.
    """
    several = ["--coordinator", address(), "--processes", processes] if processes > 1 else []
    commands = [
        [
            "-m",
            "earthgpt_jax",
            "eval",
            *words,
            *(several and [*several, "--process", index]),
            *(extra or {}).get(index, []),
        ]
        for index in range(processes)
    ]
    return Together(commands, devices=devices, PATH="")  # no Java


def _finish(together: Together, *, status: int = 0) -> list[tuple[str, str]]:
    """Wait for all processes to exit with `status`; return what each wrote to standard output and error."""
    ended = together.ended(900)
    assert {each.status for each in ended} == {status}, [each.tail() for each in ended]
    return [(each.out, each.err) for each in ended]


def _written(out: Path) -> int:
    """Return the number of answers in the files of the view with the image."""
    return sum(path.read_bytes().count(b"\n") - 1 for path in out.glob("predictions_image*.jsonl"))


def _leaves(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(tree, dict | list):
        yield name, tree
        return
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield from _leaves(value, f"{name}/{key}")


@pytest.mark.realdata
def test_two_processes_killed_half_way_answer_real_images_as_one_process_does(realdata, tmp_path):
    """The embedded model runs on two processes with four devices each, which are killed and restarted."""
    for name in ("ir", "optical"):
        (tmp_path / "native").mkdir(exist_ok=True)
        (tmp_path / "native" / name).symlink_to(realdata / name)
    data = tmp_path / "data"
    build(select_cards(["hit_uav", "rsvqa_lr", "rsscn7"]), root=tmp_path / "native", out=data)
    words = ["--model", "tiny", "--data", data, "--split", "train", "--limit", "40", "--per-image", "2"]
    alone, several = tmp_path / "alone", tmp_path / "several"
    with _commands(1, *words, "--out", alone, devices=1) as started:
        _finish(started)
    questions = _written(alone)

    with _commands(2, *words, "--out", several, devices=4) as started:
        while _written(several) < questions // 2:
            assert started.are_running(), started.output()
            time.sleep(0.05)
        for process in started.processes:
            process.send_signal(signal.SIGKILL)
    half = _written(several)
    assert questions // 2 <= half < questions
    assert not (several / "report.html").exists()
    with _commands(2, *words, "--out", several, devices=4) as started:
        (first, _), (second, quiet) = _finish(started)
    # Lines of the CPU's collectives library are not ours.
    second = [line for line in second.splitlines() if not line.startswith("[Gloo]")]
    assert "report: " in first and second == [] and "question" not in quiet

    for view in ("image", "blind"):
        one, other = (predictions_file.read_complete(out / f"predictions_{view}.jsonl")[1] for out in (alone, several))
        assert len({p.id for p in one}) == len(one) == questions
        assert [(p.id, p.prediction) for p in other] == [(p.id, p.prediction) for p in one]
    # Answers are equal; log-probabilities, and values computed from them, are equal up to rounding.
    one, other = (dict(_leaves(json.loads((out / "scores.json").read_text()))) for out in (alone, several))
    assert other.keys() == one.keys()
    assert [name for name in one if one[name] != pytest.approx(other[name], abs=1e-4)] == []
    rounded = {"ece", "mean_confidence"}  # values computed from log-probabilities
    assert [name for name in one if one[name] != other[name] and not rounded & set(name.split("/"))] == []
    assert sorted(path.name for path in several.iterdir()) == sorted(path.name for path in alone.iterdir())
    assert len({p.prediction for p in predictions_file.read_complete(several / "predictions_image.jsonl")[1]}) > 20


def test_an_error_on_one_process_is_reported_by_all(tmp_path):
    model = nano.model_dir(tmp_path / "nano", nano.config("align").model)
    other = nano.model_dir(tmp_path / "other", nano.config("align").model, seed=1)
    words = ["--data", nano.dataset(tmp_path / "data", test=4), "--out", tmp_path / "out", "--model", model]
    for extra, message in (
        (["--model", tmp_path / "nowhere"], "lacks model.safetensors"),
        (["--model", other], "processes of this run differ (model: 'nano' on process 0, 'other' on process 1"),
        (["--temperature", "0.7"], "decode: 'greedy' on process 0, 'temperature 0.7"),
        (["--mesh", "tensor=3"], "multiply to 2 devices"),
    ):
        with _commands(2, *words, devices=2, extra={1: extra}) as started:
            for _, err in _finish(started, status=2):
                (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
                assert message in err and "Traceback" not in err, (line, extra)
