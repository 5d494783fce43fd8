"""Paired comparison: the interval covers the difference, and equal models do not differ."""

import numpy as np
import pytest

from earthgpt_jax.cli.main import main
from earthgpt_jax.evaluation import paired, predictions_file
from tests.support.answers import answer, truth


def _scenes(hits):
    return [
        answer("port" if hit else "sea", id=f"{i:04d}", task="classification", answer="port")
        for i, hit in enumerate(hits)
    ]


def _top1(a, b, samples=400):
    [found] = [item for item in paired.compare(_scenes(a), _scenes(b), samples=samples) if item.metric == "top1"]
    return found


def test_a_model_does_not_differ_from_itself():
    hits = np.arange(60) % 3 > 0
    found = _top1(hits, hits)
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1.0)


def test_pairing_finds_what_two_intervals_do_not():
    """B is A with ten more correct answers of 200: their intervals overlap, that of the difference is above 0."""
    a = np.arange(200) % 2 > 0
    b = a.copy()
    b[np.flatnonzero(~a)[:10]] = True
    found = _top1(b, a)
    assert found.difference == pytest.approx(0.05)
    assert 0.02 < found.low < 0.05 < found.high < 0.085
    assert found.p < 0.01
    assert _top1(a, b).difference == pytest.approx(-0.05)


def test_the_p_value_is_uniform_where_models_are_alike():
    rng = np.random.default_rng(0)
    values = np.array([_top1(*(rng.uniform(size=(2, 60)) < 0.7), samples=200).p for _ in range(200)])
    assert 0.01 <= (values < 0.05).mean() <= 0.1
    assert (values < 0.5).mean() == pytest.approx(0.5, abs=0.12)


def test_two_files_are_compared_on_the_command_line(tmp_path, capsys):
    objects = (truth("ship", 10, 10, 30, 30),)
    right, wrong = "<p>one ship</p>[0.1,0.1,0.3,0.3]", "<p>one ship</p>[0.6,0.6,0.8,0.8]"
    for name, modulus in (("a", 2), ("b", 5)):
        rows = [answer(right if i % modulus else wrong, id=f"{i:03d}", objects=objects) for i in range(40)]
        predictions_file.write(tmp_path / f"{name}.jsonl", rows, header={})
    argv = ["score", str(tmp_path / "b.jsonl"), "--against", str(tmp_path / "a.jsonl"), "--samples", "200"]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "b.jsonl compared with a.jsonl" in out and "| hbb, f1 | 0.800 | 0.500 | 0.300 [" in out
    assert "| hbb, ap50 |" in out
    predictions_file.write(tmp_path / "c.jsonl", rows[:30], header={})
    assert main([*argv[:3], str(tmp_path / "c.jsonl")]) == 2
    assert "of 40 questions have no answer" in capsys.readouterr().err
