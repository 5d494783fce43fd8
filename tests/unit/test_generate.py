"""Cached greedy decoding against recomputation without a cache, token by token."""

import jax.numpy as jnp
import numpy as np
import pytest

from earthgpt_jax.inference.engine import Engine
from earthgpt_jax.inference.generate import Prompts, Stop, generate
from earthgpt_jax.models import earthgpt, io
from earthgpt_jax.ops.attention import visible
from earthgpt_jax.params import merge_module
from tests import nano

NEW = 10


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return Engine.from_model_dir(
        nano.model_dir(tmp_path_factory.mktemp("model") / "nano", nano.config("align").model), batch_size=3
    )


@pytest.fixture(scope="module")
def items():
    images = np.random.default_rng(0).integers(0, 255, (3, 64, 64, 3)).astype(np.uint8)
    questions = ["What?", "Where is the small ship in the upper left of this long image?", "How many trucks?"]
    return list(zip(images, questions, strict=True))


def _uncached(model, config, tokens, slots, image):
    """Greedy continuation by running the whole sequence again for every token."""
    tokens, slots = list(tokens), list(slots)
    visual = model.perceive(model.encode(jnp.asarray(image)[None]))
    for _ in range(NEW):
        ids = jnp.asarray([tokens])
        ones = jnp.ones_like(ids)
        hidden, _ = model.llm(
            model.embed(ids, jnp.asarray([slots]), visual), positions=jnp.arange(len(tokens))[None],
            mask=visible(ones, 0 * ones),
        )  # fmt: skip
        tokens.append(int(model.llm.logits(hidden[:, -1:]).argmax()))
        slots.append(-1)
    return tokens[-NEW:]


def test_cached_rows_of_different_lengths_equal_uncached_singles(engine, items):
    from earthgpt_jax.input.rows import prompt

    rows = [
        prompt(engine._tokenizer, engine._conversation, q, visual_tokens=engine.model.model.visual_tokens)
        for _, q in items
    ]
    longest = max(len(tokens) for tokens, _ in rows) + 5
    prompts = Prompts(
        tokens=jnp.asarray(np.stack([np.pad(t, (0, longest - len(t))) for t, _ in rows])),
        image_slots=jnp.asarray(np.stack([np.pad(s, (0, longest - len(s)), constant_values=-1) for _, s in rows])),
        lengths=jnp.asarray([len(t) for t, _ in rows]),
        images=jnp.asarray(np.stack([image for image, _ in items])),
    )
    graphdef, _ = earthgpt.abstract(engine.model.model)
    never = Stop(eos_id=-1, separators=())
    got = np.asarray(
        generate(graphdef, engine._params, prompts, config=engine.model.model, max_new_tokens=NEW, stop=never)
    )
    model = merge_module(graphdef, engine._params)
    for (tokens, slots), (image, _), answer in zip(rows, items, got, strict=True):
        assert answer.tolist() == _uncached(model, engine.model.model, tokens, slots, image)
    # The same, stopping at a pair of tokens that the first row makes: kept, then nothing but zeros.
    pair = tuple(got[0, 3:5].tolist())
    first = next(i for i in range(NEW) if tuple(got[0, i : i + 2].tolist()) == pair)
    stopped = np.asarray(
        generate(
            graphdef, engine._params, prompts, config=engine.model.model, max_new_tokens=NEW,
            stop=Stop(eos_id=-1, separators=((-7,), pair)),
        )
    )  # fmt: skip
    assert stopped[0].tolist() == [*got[0, : first + 2], *([0] * (NEW - first - 2))]


def test_an_answer_does_not_depend_on_its_batch(engine, items):
    together = engine.answer(items, max_new_tokens=NEW)
    assert together == [engine.answer([item], max_new_tokens=NEW)[0] for item in items]
    assert together == list(reversed(engine.answer(items[::-1], max_new_tokens=NEW)))


def test_a_model_directory_that_is_broken_says_so(tmp_path):
    from earthgpt_jax.errors import EarthGPTError

    with pytest.raises(EarthGPTError, match=r"lacks model\.safetensors"):
        io.read(tmp_path)
    path = nano.model_dir(tmp_path / "model", nano.config("align").model)
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(EarthGPTError, match="truncated"):
        io.read(path)
    (path / "config.json").write_text("{")
    with pytest.raises(EarthGPTError, match="not a model's config"):
        io.describe(path)
