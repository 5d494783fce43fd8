"""The parts of `scripts/make_small.py`: the cut vocabulary, and the training of the ConvNeXt."""

from __future__ import annotations

import collections
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer as HfTokenizer
from tokenizers import models, pre_tokenizers, trainers

from earthgpt_jax.datasets.store import RecordSource
from earthgpt_jax.input.tokenizer import Tokenizer
from earthgpt_jax.models import earthgpt
from earthgpt_jax.sharding.mesh import data_parallel
from earthgpt_jax.training.features import compute_missing, tower_features
from tests.support import nano

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def _scripts():
    sys.path.insert(0, str(ROOT / "scripts"))
    yield
    sys.path.remove(str(ROOT / "scripts"))


@pytest.fixture(scope="module")
def whole():
    """A byte-level BPE of 900 tokens, trained on the synthetic source and on this file."""
    from small_model.language_model import Vocabulary

    trained = HfTokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=special, initial_alphabet=alphabet)
    trained.train_from_iterator([*nano.dialogues(), Path(__file__).read_text()], trainer)
    tokens = sorted(trained.get_vocab(), key=trained.token_to_id)
    state = trained.to_str()
    import json

    merges = tuple((left, right) for left, right in json.loads(state)["model"]["merges"])
    return Vocabulary(tokens=tuple(tokens), merges=merges, special=tuple(special), bos=special[1], eos=special[2])


def test_a_cut_vocabulary_keeps_the_tokens_of_the_texts(whole, tmp_path):
    tokenizer, counts = whole.tokenizer(), collections.Counter()
    texts = nano.dialogues()[:40]
    for text in texts:
        counts.update(tokenizer.encode(text, add_special_tokens=False).tokens)
    cut, ids = whole.cut(counts, size=600)
    assert len(cut.tokens) == len(ids) == 600 and [whole.tokens[i] for i in ids] == list(cut.tokens)
    loaded = Tokenizer(cut.save(tmp_path))
    for text in texts:
        expected = tokenizer.encode(text, add_special_tokens=False).ids
        assert [ids[token] for token in loaded.encode(text)] == expected  # the same tokens, so the same embeddings
    for text in ("Ünï ☃ zyxxwq\n\n  <|im_end|> 0.123", "and words that no text has: xylophone"):
        assert loaded.decode(loaded.encode(text)) == text
    assert loaded.vocab_size == 600 and not loaded.start_ids
    smaller, _ = whole.cut(counts, size=300)
    assert len(smaller.tokens) == 300


@pytest.mark.slow
def test_training_the_convnext_lowers_the_losses_and_resumes_exactly(tmp_path, monkeypatch):
    from small_model import convnext

    config = nano.config("align")
    data = nano.dataset(tmp_path / "synthetic", train=24)
    _, params = earthgpt.init(config.model, seed=0)
    teacher = tower_features(
        "vit", tmp_path / "features", config.model, params, replicated=data_parallel(1).replicated
    )  # fmt: skip
    compute_missing([teacher], config.model, params, sources=[RecordSource(data, "train")])
    examples = convnext.Examples.open(
        data, ["synthetic"], teacher, dim=config.model.vit.dim, size=config.model.convnext.image_size
    )  # fmt: skip
    assert examples.scenes and examples.objects
    run = {"model": config.model, "examples": examples, "batch_size": 4, "save_every": 2}
    whole = dict(np.load(convnext.train_convnext(tmp_path / "whole.npz", steps=6, **run)))
    assert whole.keys() == {name for name in params if name.startswith("convnext/")}
    assert any(np.any(value != params[name]) for name, value in whole.items())
    save, saved = convnext._save, []

    def save_then_stop(path, step, *state):
        save(path, step, *state)
        saved.append(step)
        if len(saved) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(convnext, "_save", save_then_stop)
    with pytest.raises(KeyboardInterrupt):
        convnext.train_convnext(tmp_path / "killed.npz", steps=6, **run)
    resumed = dict(np.load(convnext.train_convnext(tmp_path / "killed.npz", steps=6, **run)))
    assert saved == [2, 4, 6]
    assert all(np.array_equal(value, resumed[name]) for name, value in whole.items())


def test_a_scene_with_boxes_gives_the_targets_of_its_cells(tmp_path):
    from small_model.convnext import STRIDE, Examples

    data = nano.dataset(tmp_path / "synthetic", train=2)
    source = RecordSource(data, "train")
    record = source[0]
    objects = tuple(sorted({item.label for item in record.objects}))
    examples = Examples(sources=(), teacher=None, scenes=(), objects=objects, dim=8, size=128)
    found = examples._objects(record)
    for item in record.objects:
        centre = item.polygon.reshape(4, 2)
        x, y = (centre.min(0) + centre.max(0)) / 2 * 128 / record.width / STRIDE
        assert found["centres"][int(y), int(x), objects.index(item.label)] == 1
    assert found["centres"].sum() <= len(record.objects) and found["known"] == 1
    assert jnp.isfinite(found["sizes"]).all()
