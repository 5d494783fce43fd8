"""What packing must not change: the loss of every sample and question, and the gradients. fp32, 1e-5."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from earthgpt_jax import params as params_lib
from earthgpt_jax.config import QuestionContext
from earthgpt_jax.input.batch import Batch
from earthgpt_jax.input.packing.schedule import PackedSample
from earthgpt_jax.input.pipeline import PackedSequences, concatenate_batches
from earthgpt_jax.input.tokenizer import Tokenizer
from earthgpt_jax.models import earthgpt
from earthgpt_jax.models import model_dir as io
from earthgpt_jax.models.llama import PLAIN
from earthgpt_jax.sharding.mesh import data_parallel
from earthgpt_jax.synthetic import SyntheticSource
from earthgpt_jax.training.prefetch import device_batch
from earthgpt_jax.training.stages import trainable_paths
from earthgpt_jax.training.step import encode_images, hidden
from tests.support import nano
from tests.support.in_memory import packed_sequences

KINDS = {"caption": 1.0, "classification": 1.0, "grounding": 1.0, "hbb": 1.0, "vqa": 1.0}
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model none of whose leaves is at its starting value, and packed rows of its data."""
    config = nano.config("instruct", "model.adapter.kind='scale+bias'")
    path = nano.model_dir(tmp_path_factory.mktemp("world") / "model", config.model)
    description, arrays = io.read(path)
    rng = np.random.default_rng(0)
    arrays = {key: value + 0.05 * rng.standard_normal(value.shape).astype(np.float32) for key, value in arrays.items()}
    source = SyntheticSource("train", 6, size=64)
    made = {
        context: packed_sequences(
            [source[i] for i in range(6)], Tokenizer(description.tokenizer), weights=KINDS, seq_len=420,
            max_images=4, image_size=64, visual_tokens=config.model.visual_tokens, max_questions=4,
            question_context=context,
        )
        for context in QuestionContext
    }  # fmt: skip
    return config, {key: jnp.asarray(value) for key, value in arrays.items()}, made


def _functions(config, params):
    """`losses(batch) -> f32[B, T]`, each token's as a target, and `gradients(batch)` of their sum."""
    graphdef, _ = earthgpt.abstract(config.model)
    trainable, frozen = params_lib.split(params, trainable_paths(config, params))

    def losses(trainable, batch):
        model = params_lib.merge_module(graphdef, params_lib.merge(trainable, frozen))
        features = encode_images(model.encode, batch.images, used=jnp.max(batch.segments, axis=1))
        x = hidden(model, jax.lax.stop_gradient(features), batch, execution=PLAIN)
        logits = model.llm.logits(x)[:, :-1]
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), batch.tokens[:, 1:, None], axis=-1)[..., 0]
        return jnp.pad(-picked, ((0, 0), (1, 0))) * batch.loss_weights

    each = jax.jit(losses)
    summed = jax.jit(jax.grad(lambda trainable, batch: losses(trainable, batch).sum()))
    place = data_parallel(1).batch
    return (lambda batch: np.asarray(each(trainable, device_batch(batch, place)))), (
        lambda batch: summed(trainable, device_batch(batch, place))
    )


def _alone(made: PackedSequences, row: int, *, questions: bool) -> list[Batch]:
    """Each sample of a row, or each of its questions with the image, in a row of its own."""
    return [
        made.assemble([part])
        for sample in made.schedule[row]
        for part in (
            [dataclasses.replace(sample, questions=(question,)) for question in sample.questions]
            if questions
            else [sample]
        )
    ]


def _sample_losses(batch: Batch, losses: np.ndarray) -> list[float]:
    """The loss of each sample of a row, in order."""
    return [float(losses[0][batch.segments[0] == segment].sum()) for segment in range(1, int(batch.segments.max()) + 1)]


@pytest.mark.parametrize("context", list(QuestionContext))
def test_packed_samples_have_the_losses_and_gradients_of_samples_alone(world, context):
    config, params, made = world[0], world[1], world[2][context]
    losses, gradients = _functions(config, params)
    chosen = sorted(range(made.schedule.rows), key=lambda row: -len(made.schedule[row]))[:3]
    assert len(made.schedule[chosen[0]]) >= 2
    packed = [made[row] for row in chosen]
    alone = [part for row in chosen for part in _alone(made, row, questions=False)]
    one = [loss for batch in packed for loss in _sample_losses(batch, losses(batch))]
    two = [float(losses(batch).sum()) for batch in alone]
    tokens = [float(batch.loss_weights.sum()) for batch in alone]
    np.testing.assert_allclose(np.array(one) / tokens, np.array(two) / tokens, atol=TOLERANCE, rtol=0)
    _same_gradients(gradients, packed, alone)


def test_independent_questions_have_the_losses_and_gradients_of_rows_of_their_own(world):
    config, params, made = world[0], world[1], world[2][QuestionContext.INDEPENDENT]
    losses, gradients = _functions(config, params)
    chosen = range(3)
    packed = [made[row] for row in chosen]
    alone = [part for row in chosen for part in _alone(made, row, questions=True)]
    one, two = [], []
    for batch in packed:
        found = losses(batch)[0]
        for segment in range(1, int(batch.segments.max()) + 1):
            inside = batch.segments[0] == segment
            for branch in range(1, int(batch.question_index[0][inside].max()) + 1):
                one.append(found[inside & (batch.question_index[0] == branch)].sum())
    for batch in alone:
        two.append(losses(batch).sum())
    assert len(one) == len(two) > len(packed) * 2
    tokens = np.array([batch.loss_weights.sum() for batch in alone])
    np.testing.assert_allclose(np.array(one) / tokens, np.array(two) / tokens, atol=TOLERANCE, rtol=0)
    _same_gradients(gradients, packed, alone)


def test_a_dialogue_is_not_independent_questions(world):
    """The other way round: what must see the turns before it does."""
    config, params, made = world[0], world[1], world[2][QuestionContext.DIALOGUE]
    losses, _ = _functions(config, params)
    row = next(row for row in range(made.schedule.rows) if len(made.schedule[row][0].questions) > 1)
    whole = _sample_losses(made[row], losses(made[row]))[0]
    first = PackedSample(source=0, record=made.schedule[row][0].record, questions=made.schedule[row][0].questions)
    parts = [made.assemble([dataclasses.replace(first, questions=(question,))]) for question in first.questions]
    assert abs(whole - sum(float(losses(part).sum()) for part in parts)) > 1e-3


def _same_gradients(gradients, packed: list[Batch], alone: list[Batch]) -> None:
    """Summed over all rows, relative to the largest entry of each path."""
    one, two = (
        jax.tree.map(lambda *parts: sum(np.asarray(part, np.float64) for part in parts), *map(gradients, batches))
        for batches in (packed, alone)
    )
    for path, value in two.items():
        scale = float(np.abs(value).max())
        assert scale > 0, path
        np.testing.assert_allclose(one[path] / scale, value / scale, atol=TOLERANCE, rtol=0, err_msg=path)


def test_images_of_padding_change_nothing(world):
    """Whatever stands where no image is."""
    config, params, made = world[0], world[1], world[2][QuestionContext.INDEPENDENT]
    losses, _ = _functions(config, params)
    batch = concatenate_batches([made[row] for row in range(4)])
    noise = np.random.default_rng(0).integers(0, 255, batch.images.shape, np.uint8)
    real = np.arange(batch.images.shape[1]) < batch.segments.max(axis=1)[:, None]
    assert not real.all()
    noisy = batch._replace(images=np.where(real[..., None, None, None], batch.images, noise))
    np.testing.assert_array_equal(losses(batch), losses(noisy))
