"""Figures of validation: sums by group, names, and the choice of the best step."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from earthgpt_jax import config as config_lib
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.ops.losses import next_token_loss, supervised_sums
from earthgpt_jax.training.metrics import read_validations
from earthgpt_jax.training.validation import Sums, best_step, figures, summarize
from tests.support import nano


@pytest.mark.parametrize("chunk", [3, 256])
def test_sums_by_group_are_those_of_the_plain_loss(chunk):
    rng = np.random.default_rng(0)
    x, unembedding = rng.normal(size=(3, 20, 8)).astype(np.float32), rng.normal(size=(8, 11)).astype(np.float32)
    tokens, groups = rng.integers(0, 11, (3, 20)), rng.integers(0, 4, (3, 20))
    likely = np.argmax(x[:, :-1] @ unembedding, -1)
    tokens[:, 1:] = np.where(rng.random((3, 19)) < 0.7, likely, tokens[:, 1:])  # so that some answers are exact
    weights = (rng.random((3, 20)) < 0.5).astype(np.float32)
    weights[2] = 0  # an empty sequence
    weights[:, 0] = 0  # as in every sample: the first token is not supervised
    arrays = (jnp.asarray(array) for array in (x, unembedding, tokens, weights, groups))
    sums = jax.jit(lambda *a: supervised_sums(*a, num_groups=5, chunk=chunk))(*arrays)
    loss, count, correct, answers, exact = sums
    logits = x @ unembedding
    found = np.zeros((2, 5), int)
    for row in range(3):  # answers, one at a time
        for start in range(1, 20):
            if weights[row, start] and not weights[row, start - 1]:
                end = next((t for t in range(start, 20) if not weights[row, t]), 20)
                hits = np.argmax(logits[row, start - 1 : end - 1], -1) == tokens[row, start:end]
                found[:, groups[row, end - 1]] += 1, hits.all()
    np.testing.assert_array_equal([answers, exact], found)
    assert 0 < found[1].sum() < found[0].sum()
    for group in range(5):
        wanted = weights * (groups == group)
        expected, total = next_token_loss(jnp.asarray(logits), jnp.asarray(tokens), jnp.asarray(wanted))
        hits = (np.argmax(logits[:, :-1], -1) == tokens[:, 1:]) & (wanted[:, 1:] > 0)
        assert (int(count[group]), int(correct[group])) == (int(total), int(hits.sum()))
        np.testing.assert_allclose(loss[group], expected, rtol=1e-5)
    assert int(count.sum()) == int(weights.sum()) and int(count[4]) == 0


def test_figures_have_names_and_groups_without_tokens_have_none():
    sums = {
        ("caption", "sar"): Sums(loss_sum=6.0, supervised_tokens=3, correct_tokens=1, answers=2),
        ("caption", "optical"): Sums(loss_sum=2.0, supervised_tokens=1, correct_tokens=1, answers=1, exact_answers=1),
        ("vqa", "sar"): Sums(loss_sum=1.0, supervised_tokens=4, correct_tokens=4, answers=1, exact_answers=1),
        ("hbb", "infrared"): Sums(),
    }
    validation = summarize(sums)
    assert figures(validation) == {
        "validation/loss": 9 / 8, "validation/accuracy": 6 / 8, "validation/caption/loss": 2.0,
        "validation/caption/accuracy": 0.5, "validation/vqa/loss": 0.25, "validation/vqa/accuracy": 1.0,
        "validation/optical/loss": 2.0, "validation/optical/accuracy": 1.0, "validation/sar/loss": 1.0,
        "validation/sar/accuracy": 5 / 7, "validation/exact": 2 / 4, "validation/caption/exact": 1 / 3,
        "validation/vqa/exact": 1.0, "validation/optical/exact": 1.0, "validation/sar/exact": 1 / 3,
    }  # fmt: skip
    assert validation["sensors"]["sar"]["supervised_tokens"] == 7


def test_the_best_step_has_the_lowest_loss_or_the_highest_accuracy():
    one = Sums(supervised_tokens=10, answers=1)
    history = [
        (step, summarize({("vqa", "sar"): dataclasses.replace(one, loss_sum=loss, correct_tokens=correct)}))
        for step, loss, correct in ((2, 9.0, 5), (4, 7.0, 6), (6, 7.0, 8), (8, 8.0, 8))
    ]
    assert best_step(history, "validation/loss") == 4  # the earliest of equal ones
    assert best_step(history, "validation/vqa/accuracy") == 6


def test_validations_are_read_up_to_a_step_and_a_torn_line_is_ignored(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 2, "loss": 1.0}\n{"step": 2, "validation": {"loss": 1}}\n{"step": 4, "validation": {"loss": 2}}\n'
        '{"step": 6, "validation": {"lo'
    )
    assert read_validations(tmp_path, up_to=2) == [(2, {"loss": 1})]
    assert [step for step, _ in read_validations(tmp_path, up_to=9)] == [2, 4]
    assert read_validations(tmp_path / "absent", up_to=9) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["validation.every_steps=-1"], r"every_steps: expected a number of steps, or 0, got -1"),
        (["validation.every_steps=2", "validation.split=train"], r"expected another split than data\.split"),
        (["checkpoint.keep_best=loss", "validation.every_steps=2"], r'keep_best: expected "validation/loss"'),
        (["checkpoint.keep_best=validation/loss"], r"expects a multiple of checkpoint\.every_steps=2.* got 0"),
        (["checkpoint.keep_best=validation/loss", "validation.every_steps=3"], r"checkpoint\.every_steps=2.* got 3"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(overrides, message):
    with pytest.raises(EarthGPTError, match=message):
        nano.config("align", *overrides)


def test_debug_mode_validates_often_where_the_recipe_validates():
    assert config_lib.load("forkme:align:debug", []).validation.every_steps in (0, 2)
