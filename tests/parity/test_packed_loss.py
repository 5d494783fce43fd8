"""Packing changes neither the loss of a sample or question nor the gradients; fp32, 1e-5."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from earthgpt_jax import params as params_lib
from earthgpt_jax.config import QuestionContext
from earthgpt_jax.input.batch import Batch, concatenate_batches
from earthgpt_jax.input.packing.schedule import PackedSample
from earthgpt_jax.input.pipeline import PackedSequences
from earthgpt_jax.input.tokenizer import Tokenizer
from earthgpt_jax.models import earthgpt
from earthgpt_jax.models import model_dir as io
from earthgpt_jax.sharding.mesh import data_parallel
from earthgpt_jax.synthetic import SyntheticSource
from earthgpt_jax.training.execution import DEFAULT_EXECUTION
from earthgpt_jax.training.prefetch import device_batch
from earthgpt_jax.training.stages import trainable_paths
from earthgpt_jax.training.step import encode_images, hidden
from tests.support import nano
from tests.support.in_memory import packed_sequences

WEIGHTS = {"caption": 1.0, "classification": 1.0, "grounding": 1.0, "hbb": 1.0, "vqa": 1.0}
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model with no parameter at its initial value, and packed sequences of its data."""
    config = nano.config("instruct", "model.adapter.kind='scale+bias'")
    path = nano.model_dir(tmp_path_factory.mktemp("world") / "model", config.model)
    description, arrays = io.read(path)
    rng = np.random.default_rng(0)
    arrays = {key: value + 0.05 * rng.standard_normal(value.shape).astype(np.float32) for key, value in arrays.items()}
    source = SyntheticSource("train", 6, size=64)
    sequences = {
        context: packed_sequences(
            [source[i] for i in range(6)], Tokenizer(description.tokenizer), weights=WEIGHTS, seq_len=420,
            max_images=4, image_size=64, visual_tokens=config.model.visual_tokens, max_questions=4,
            question_context=context,
        )
        for context in QuestionContext
    }  # fmt: skip
    return config, {key: jnp.asarray(value) for key, value in arrays.items()}, sequences


def _functions(config, params):
    """Return `losses(batch) -> f32[B, T]` of the tokens as targets, and `gradients(batch)` of their sum."""
    graphdef, _ = earthgpt.abstract(config.model)
    trainable, frozen = params_lib.split(params, trainable_paths(config, params))

    def losses(trainable, batch):
        model = params_lib.merge_module(graphdef, params_lib.merge(trainable, frozen))
        features = encode_images(model.encode, batch.images, used=jnp.max(batch.segments, axis=1))
        x = hidden(model, jax.lax.stop_gradient(features), batch, execution=DEFAULT_EXECUTION)
        logits = model.llm.logits(x)[:, :-1]
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), batch.tokens[:, 1:, None], axis=-1)[..., 0]
        return jnp.pad(-picked, ((0, 0), (1, 0))) * batch.loss_weights

    each = jax.jit(losses)
    summed = jax.jit(jax.grad(lambda trainable, batch: losses(trainable, batch).sum()))
    place = data_parallel(1).batch
    return (lambda batch: np.asarray(each(trainable, device_batch(batch, place)))), (
        lambda batch: summed(trainable, device_batch(batch, place))
    )


def _separate(sequences: PackedSequences, number: int, *, questions: bool) -> list[Batch]:
    """Each sample of a sequence, or each of its questions with the image, in a sequence of its own."""
    return [
        sequences.build([part])
        for sample in sequences.schedule[number]
        for part in (
            [dataclasses.replace(sample, questions=(question,)) for question in sample.questions]
            if questions
            else [sample]
        )
    ]


def _sample_losses(batch: Batch, losses: np.ndarray) -> list[float]:
    """The loss of each sample of a sequence, in order."""
    return [float(losses[0][batch.segments[0] == segment].sum()) for segment in range(1, int(batch.segments.max()) + 1)]


@pytest.mark.parametrize("context", list(QuestionContext))
def test_packed_samples_have_the_losses_and_gradients_of_separate_samples(world, context):
    config, params, sequences = world[0], world[1], world[2][context]
    losses, gradients = _functions(config, params)
    schedule = sequences.schedule
    chosen = sorted(range(schedule.sequences_per_cycle), key=lambda number: -len(schedule[number]))[:3]
    assert len(schedule[chosen[0]]) >= 2
    packed = [sequences[number] for number in chosen]
    separate = [part for number in chosen for part in _separate(sequences, number, questions=False)]
    one = [loss for batch in packed for loss in _sample_losses(batch, losses(batch))]
    two = [float(losses(batch).sum()) for batch in separate]
    tokens = [float(batch.loss_weights.sum()) for batch in separate]
    np.testing.assert_allclose(np.array(one) / tokens, np.array(two) / tokens, atol=TOLERANCE, rtol=0)
    _assert_same_gradients(gradients, packed, separate)


def test_independent_questions_have_the_losses_and_gradients_of_separate_sequences(world):
    config, params, sequences = world[0], world[1], world[2][QuestionContext.INDEPENDENT]
    losses, gradients = _functions(config, params)
    packed = [sequences[number] for number in range(3)]
    separate = [part for number in range(3) for part in _separate(sequences, number, questions=True)]
    one, two = [], []
    for batch in packed:
        loss, question_index = losses(batch)[0], batch.question_index[0]
        for segment in range(1, int(batch.segments.max()) + 1):
            inside = batch.segments[0] == segment
            for question in range(1, int(question_index[inside].max()) + 1):
                one.append(loss[inside & (question_index == question)].sum())
    for batch in separate:
        two.append(losses(batch).sum())
    assert len(one) == len(two) > len(packed) * 2
    tokens = np.array([batch.loss_weights.sum() for batch in separate])
    np.testing.assert_allclose(np.array(one) / tokens, np.array(two) / tokens, atol=TOLERANCE, rtol=0)
    _assert_same_gradients(gradients, packed, separate)


def test_the_turns_of_a_dialogue_are_not_independent(world):
    """The opposite case: later turns must depend on earlier ones."""
    config, params, sequences = world[0], world[1], world[2][QuestionContext.DIALOGUE]
    losses, _ = _functions(config, params)
    schedule = sequences.schedule
    number = next(n for n in range(schedule.sequences_per_cycle) if len(schedule[n][0].questions) > 1)
    together = _sample_losses(sequences[number], losses(sequences[number]))[0]
    first = PackedSample(source=0, record=schedule[number][0].record, questions=schedule[number][0].questions)
    parts = [sequences.build([dataclasses.replace(first, questions=(question,))]) for question in first.questions]
    assert abs(together - sum(float(losses(part).sum()) for part in parts)) > 1e-3


def _assert_same_gradients(gradients, packed: list[Batch], separate: list[Batch]) -> None:
    """Compare sums over all sequences, relative to the largest entry of each path."""
    one, two = (
        jax.tree.map(lambda *parts: sum(np.asarray(part, np.float64) for part in parts), *map(gradients, batches))
        for batches in (packed, separate)
    )
    for path, value in two.items():
        scale = float(np.abs(value).max())
        assert scale > 0, path
        np.testing.assert_allclose(one[path] / scale, value / scale, atol=TOLERANCE, rtol=0, err_msg=path)


def test_padding_images_change_nothing(world):
    config, params, sequences = world[0], world[1], world[2][QuestionContext.INDEPENDENT]
    losses, _ = _functions(config, params)
    batch = concatenate_batches([sequences[number] for number in range(4)])
    noise = np.random.default_rng(0).integers(0, 255, batch.images.shape, np.uint8)
    real = np.arange(batch.images.shape[1]) < batch.segments.max(axis=1)[:, None]
    assert not real.all()
    noisy = dataclasses.replace(batch, images=np.where(real[..., None, None, None], batch.images, noise))
    np.testing.assert_array_equal(losses(batch), losses(noisy))
