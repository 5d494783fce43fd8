"""The batch: shapes and dtypes as annotated, a pytree whose leaves are its arrays."""

from __future__ import annotations

import typing

import jax
import jaxtyping
import numpy as np
import pytest

import earthgpt_jax.models.earthgpt  # noqa: F401, registers the batch as a pytree
from earthgpt_jax.common.resources import assets_path
from earthgpt_jax.input.batch import ARRAY_FIELDS, Batch, concatenate_batches
from earthgpt_jax.input.tokenizer import Tokenizer
from earthgpt_jax.synthetic import SyntheticSource
from tests.support.in_memory import packed_sequences


@pytest.fixture(scope="module")
def sequences():
    source = SyntheticSource("train", 6, size=48)
    tokenizer = Tokenizer(assets_path("tiny", "tokenizer.model"))
    return packed_sequences([source[i] for i in range(6)], tokenizer, weights={"caption": 1.0, "vqa": 1.0}, seq_len=300)


def _check_shapes(batch: Batch) -> None:
    annotations = typing.get_type_hints(Batch)
    with jaxtyping.jaxtyped("context"):  # one B, T, I and S for all arrays
        for name in ARRAY_FIELDS:
            assert isinstance(getattr(batch, name), annotations[name]), name


def test_shapes_and_dtypes_are_those_of_the_annotations(sequences):
    batch = concatenate_batches([sequences[number] for number in range(4)])
    _check_shapes(batch)
    assert batch.tokens.shape == (4, 300) and batch.images.shape == (4, 3, 32, 32, 3)
    assert len(batch.ids) == 4


def test_a_wrong_shape_is_found(sequences):
    values = {name: getattr(sequences[0], name) for name in ARRAY_FIELDS}
    with pytest.raises(AssertionError, match="positions"):
        _check_shapes(Batch(**{**values, "positions": values["positions"][:, 1:]}))


def test_a_batch_is_a_pytree_of_its_arrays_and_ids_stay_on_the_host(sequences):
    batch = sequences[0]
    assert [leaf is getattr(batch, name) for leaf, name in zip(jax.tree.leaves(batch), ARRAY_FIELDS, strict=True)]
    doubled = jax.jit(lambda batch: jax.tree.map(lambda x: x + x, batch))(batch)
    assert isinstance(doubled, Batch) and isinstance(doubled.tokens, jax.Array) and doubled.ids == ()
    np.testing.assert_array_equal(doubled.tokens, 2 * batch.tokens)
    _check_shapes(doubled)


def test_concatenation_pads_images_to_the_largest_number(sequences):
    one = sequences[0]
    fewer = Batch(**{name: getattr(one, name) for name in ARRAY_FIELDS if name != "images"}, images=one.images[:, :1])
    both = concatenate_batches([fewer, one])
    assert both.images.shape[:2] == (2, 3) and not both.images[0, 1:].any()
    np.testing.assert_array_equal(both.images[1], one.images[0])
    assert concatenate_batches([fewer], max_images=2).images.shape[:2] == (1, 2)
