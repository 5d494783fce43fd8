"""Figures of validation: sums by group, names, and the choice of the best step."""

from __future__ import annotations

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
    weights = (rng.random((3, 20)) < 0.5).astype(np.float32)
    weights[2] = 0  # an empty sequence
    weights[:, 0] = 0  # as in every sample: the first token is not supervised
    arrays = (jnp.asarray(array) for array in (x, unembedding, tokens, weights, groups))
    loss, count, correct = jax.jit(lambda *a: supervised_sums(*a, num_groups=5, chunk=chunk))(*arrays)
    logits = x @ unembedding
    for group in range(5):
        wanted = weights * (groups == group)
        expected, total = next_token_loss(jnp.asarray(logits), jnp.asarray(tokens), jnp.asarray(wanted))
        hits = (np.argmax(logits[:, :-1], -1) == tokens[:, 1:]) & (wanted[:, 1:] > 0)
        assert (int(count[group]), int(correct[group])) == (int(total), int(hits.sum()))
        np.testing.assert_allclose(loss[group], expected, rtol=1e-5)
    assert int(count.sum()) == int(weights.sum()) and int(count[4]) == 0


def test_figures_have_names_and_groups_without_tokens_have_none():
    sums = {
        ("caption", "sar"): Sums(loss_sum=6.0, supervised_tokens=3, correct_tokens=1),
        ("caption", "optical"): Sums(loss_sum=2.0, supervised_tokens=1, correct_tokens=1),
        ("vqa", "sar"): Sums(loss_sum=1.0, supervised_tokens=4, correct_tokens=4),
        ("hbb", "infrared"): Sums(),
    }
    validation = summarize(sums)
    assert figures(validation) == {
        "validation/loss": 9 / 8, "validation/accuracy": 6 / 8, "validation/caption/loss": 2.0,
        "validation/caption/accuracy": 0.5, "validation/vqa/loss": 0.25, "validation/vqa/accuracy": 1.0,
        "validation/optical/loss": 2.0, "validation/optical/accuracy": 1.0, "validation/sar/loss": 1.0,
        "validation/sar/accuracy": 5 / 7,
    }  # fmt: skip
    assert validation["sensors"]["sar"]["supervised_tokens"] == 7


def test_the_best_step_has_the_lowest_loss_or_the_highest_accuracy():
    history = [
        (step, summarize({("vqa", "sar"): Sums(loss_sum=loss, supervised_tokens=10, correct_tokens=correct)}))
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
