"""Generation matches recomputation without a cache token by token, for any batching and mesh."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from earthgpt_jax import config as config_lib
from earthgpt_jax import params as params_lib
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.config import MeshConfig
from earthgpt_jax.inference.decode import StateShape, StopCondition, has_ended
from earthgpt_jax.inference.engine import Engine
from earthgpt_jax.inference.mesh import build_mesh, smallest_tensor_axis
from earthgpt_jax.inference.programs import placement
from earthgpt_jax.inference.reference import Prompts, generate
from earthgpt_jax.inference.requests import ImageRequests, Request
from earthgpt_jax.inference.sampling import Sampling, nucleus, sample_tokens
from earthgpt_jax.input.images import load_square
from earthgpt_jax.input.sequences import generation_prompt
from earthgpt_jax.models import earthgpt
from earthgpt_jax.params import merge_module
from tests.support import nano

NEW = 10


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    path = nano.model_dir(tmp_path_factory.mktemp("model") / "nano", nano.config("align").model)
    return Engine.from_model_dir(path, batch_size=3, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def items():
    images = np.random.default_rng(0).integers(0, 255, (3, 64, 64, 3)).astype(np.uint8)
    questions = ["What?", "Where is the small ship in the upper left of this long image?", "How many trucks?"]
    return list(zip(images, questions, strict=True))


@pytest.fixture(scope="module")
def uncached(engine):
    """Return `(question, image) -> greedy tokens and log-probabilities`, which reruns the sequence for every token."""
    config, longest = engine.model.model, 192

    @jax.jit
    def forward(params, tokens, slots, image, length):
        model = merge_module(earthgpt.abstract(config)[0], params)
        # Attention is causal: the tokens after `length` change nothing before it.
        return jax.nn.log_softmax(model(tokens, image_slots=slots, images=image).logits[0, length - 1])

    def continued(question: str, image: np.ndarray) -> tuple[list[int], list[float]]:
        ids, at = generation_prompt(
            engine.tokenizer, engine.chat_template, question, visual_tokens=config.visual_tokens
        )
        tokens, slots = np.zeros((1, longest), np.int32), np.full((1, longest), -1, np.int32)
        tokens[0, : len(ids)], slots[0, : len(at)] = ids, at
        logprobs = []
        for length in range(len(ids), len(ids) + NEW):
            logits = np.asarray(forward(engine.params, tokens, slots, image[None], length))
            tokens[0, length] = logits.argmax()
            logprobs.append(float(logits.max()))
        return tokens[0, len(ids) : len(ids) + NEW].tolist(), logprobs

    return continued


def test_the_reference_loop_matches_uncached_decoding_for_prompts_of_different_lengths(engine, items, uncached):
    rows = [
        generation_prompt(engine.tokenizer, engine.chat_template, q, visual_tokens=engine.model.model.visual_tokens)
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
    never = StopCondition(eos_id=-1, separators=())
    got = np.asarray(
        generate(graphdef, engine.params, prompts, config=engine.model.model, max_new_tokens=NEW, stop=never)
    )
    for (image, question), answer in zip(items, got, strict=True):
        assert answer.tolist() == uncached(question, image)[0]
    # Stop at a pair of tokens that the first answer contains: the pair is kept, zeros follow.
    pair = tuple(got[0, 3:5].tolist())
    first = next(i for i in range(NEW) if tuple(got[0, i : i + 2].tolist()) == pair)
    stopped = np.asarray(
        generate(
            graphdef, engine.params, prompts, config=engine.model.model, max_new_tokens=NEW,
            stop=StopCondition(eos_id=-1, separators=((-7,), pair)),
        )
    )  # fmt: skip
    assert stopped[0].tolist() == [*got[0, : first + 2], *([0] * (NEW - first - 2))]


def test_an_answer_does_not_depend_on_its_batch(engine, items):
    together = engine.answer(items, max_new_tokens=NEW)
    assert together == [engine.answer([item], max_new_tokens=NEW)[0] for item in items]
    assert together == list(reversed(engine.answer(items[::-1], max_new_tokens=NEW)))


def _scenes(images, questions, *, shared: bool = True, order: int = 1) -> list[ImageRequests]:
    """Return a request for every question about every image, with different lengths of answers."""
    scenes = []
    for i, image in enumerate(images):
        asks = [Request(id=f"{i}/{j}", text=q, max_new_tokens=3 + 2 * ((i + j) % 4)) for j, q in enumerate(questions)]
        parts = [asks[::order]] if shared else [[ask] for ask in asks]
        scenes += [ImageRequests(image=lambda image=image: image, requests=part) for part in parts]
    return scenes[::order]


def _with(engine: Engine, *, batch_size: int, devices: int = 1, sampling: Sampling | None = None) -> Engine:
    return Engine(
        engine.model, engine.params, batch_size=batch_size, sampling=sampling or Sampling(),
        mesh=build_mesh(MeshConfig(), batch_size=batch_size, devices=jax.devices()[:devices]),
    )  # fmt: skip


def test_answers_match_uncached_decoding_for_any_batch_size_order_and_devices(engine, uncached):
    images = np.random.default_rng(1).integers(0, 255, (3, 64, 64, 3)).astype(np.uint8)
    questions = ["What?", "Where is the small ship in the upper left of this long image?", "How many trucks? " * 9]
    expected = {}
    for scene in _scenes(images, questions):
        for ask in scene.requests:
            tokens, logprobs = uncached(ask.text, scene.image())
            expected[ask.id] = tokens[: ask.max_new_tokens], logprobs[: ask.max_new_tokens]
    ways = {
        "shared": (_with(engine, batch_size=3), _scenes(images, questions)),
        "shared, backwards": (_with(engine, batch_size=3), _scenes(images, questions, order=-1)),
        "separate": (_with(engine, batch_size=3), _scenes(images, questions, shared=False)),
        "alone": (_with(engine, batch_size=1), _scenes(images, questions)),
        "two devices": (_with(engine, batch_size=6, devices=2), _scenes(images, questions)),
        "eight devices": (_with(engine, batch_size=16, devices=8), _scenes(images, questions)),
    }
    for name, (with_engine, scenes) in ways.items():
        with_engine.stop = StopCondition(eos_id=-1, separators=())
        answers = {answer.id: answer for answer in with_engine.stream(scenes)}
        assert answers.keys() == expected.keys(), name
        for key, (tokens, logprobs) in expected.items():
            assert answers[key].tokens.tolist() == tokens, (name, key)
            np.testing.assert_allclose(answers[key].logprobs, logprobs, atol=2e-5, err_msg=f"{name} {key}")
        counts = with_engine.counts
        assert counts.requests == 9 and counts.images == (9 if name == "separate" else 3)
        assert counts.unshared - counts.prefill == (9 - counts.images) * len(engine.prefix.tokens)
        assert counts.generated == sum(len(tokens) for tokens, _ in expected.values())


MESHES = ((8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 1, 8), (1, 1, 2))


@pytest.fixture(scope="module")
def dividing(tmp_path_factory):
    """Return a model whose heads divide over eight devices, and its answers on one device."""
    config = nano.config("align", "model.llm.heads=8", "model.llm.kv_heads=8")
    path = nano.model_dir(tmp_path_factory.mktemp("dividing") / "nano", config.model)
    images = np.random.default_rng(5).integers(0, 255, (3, 64, 64, 3)).astype(np.uint8)
    questions = ["What?", "Where is the small ship in the upper left of this long image?", "How many trucks? " * 9]
    scenes = _scenes(images, questions)

    def answers(mesh: tuple[int, int, int]) -> tuple[Engine, dict]:
        data, fsdp, tensor = mesh
        chosen = Engine.from_model_dir(
            path, batch_size=4, mesh=MeshConfig(data=data, fsdp=fsdp, tensor=tensor),
            devices=jax.devices()[: data * fsdp * tensor],
        )  # fmt: skip
        chosen.stop = StopCondition(eos_id=-1, separators=())
        return chosen, {answer.id: answer for answer in chosen.stream(scenes)}

    return answers, answers((1, 1, 1))[1]


# Each mesh compiles everything, so only the one with all axes runs by default.
@pytest.mark.parametrize(
    "mesh", [mesh if min(mesh) > 1 else pytest.param(mesh, marks=pytest.mark.slow) for mesh in MESHES], ids=str
)
def test_answers_on_a_mesh_match_one_device(dividing, mesh):
    answers, expected = dividing
    engine, found = answers(mesh)
    assert found.keys() == expected.keys() and len({a.tokens.tobytes() for a in expected.values()}) > 3
    for key, answer in expected.items():
        assert found[key].tokens.tolist() == answer.tokens.tolist(), key
        np.testing.assert_allclose(found[key].logprobs, answer.logprobs, atol=2e-5, err_msg=key)
    # Every device holds its own shard only.
    down = engine.params["llm/blocks/mlp/down/kernel"]
    assert down.addressable_shards[0].data.size * mesh[1] * mesh[2] == down.size


def test_a_subset_of_the_requests_in_the_shape_of_all_gets_bit_identical_answers(engine):
    images = np.random.default_rng(2).integers(0, 255, (4, 64, 64, 3)).astype(np.uint8)
    scenes = _scenes(images, ["What?", "Where?"])
    layout = engine.state_shape(scenes)
    everything = {answer.id: answer for answer in engine.stream(scenes, state_shape=layout)}
    for answer in engine.stream(scenes[2:], state_shape=layout):
        np.testing.assert_array_equal(answer.logprobs, everything[answer.id].logprobs)


def test_slots_are_refilled_without_recompilation(engine):
    images = np.random.default_rng(3).integers(0, 255, (9, 64, 64, 3)).astype(np.uint8)
    scenes = _scenes(images, ["What?", "Where?", "Why?"])
    list(engine.stream(scenes[:3], state_shape=engine.state_shape(scenes)))
    with jax.log_compiles(False), _no_compilation():
        assert len(list(engine.stream(scenes, state_shape=engine.state_shape(scenes)))) == 27


def _no_compilation():
    """Fail if XLA compiles anything."""
    import contextlib

    from jax import monitoring

    @contextlib.contextmanager
    def watch():
        seen: list[str] = []
        monitoring.register_event_duration_secs_listener(
            lambda event, _seconds, **_: seen.append(event) if "backend_compile" in event else None
        )
        yield
        assert not seen

    return watch()


def test_an_answer_stops_at_its_stop_sequence_and_keeps_it(engine, items):
    free = next(
        iter(
            engine.stream(
                [ImageRequests(image=lambda: items[0][0], requests=[Request(id="0", text="?", max_new_tokens=9)])]
            )
        )
    )
    pair = tuple(free.tokens[3:5].tolist())
    first = next(i for i in range(8) if tuple(free.tokens[i : i + 2].tolist()) == pair)
    for stop, expected in (
        (StopCondition(eos_id=-1, separators=((-7,), pair)), free.tokens[: first + 2]),
        (StopCondition(eos_id=int(free.tokens[0]), separators=()), free.tokens[:1]),
    ):
        stopping = _with(engine, batch_size=3)
        stopping.stop = stop
        scenes = [
            ImageRequests(image=lambda: items[0][0], requests=[Request(id="0", text="?", max_new_tokens=9)]),
            ImageRequests(image=lambda: items[1][0], requests=[Request(id="1", text="What?", max_new_tokens=9)]),
        ]
        answers = {answer.id: answer.tokens.tolist() for answer in stopping.stream(scenes)}
        assert answers["0"] == expected.tolist()


def test_samples_depend_on_seed_and_request_id_only(engine):
    images = np.random.default_rng(4).integers(0, 255, (3, 64, 64, 3)).astype(np.uint8)
    questions = ["What?", "Where?"]
    sampling = Sampling(temperature=2.0, top_p=0.9, seed=1)

    def drawn(sampling: Sampling, batch_size: int, scenes: list[ImageRequests]) -> dict[str, list[int]]:
        chosen = _with(engine, batch_size=batch_size, sampling=sampling)
        return {answer.id: answer.tokens.tolist() for answer in chosen.stream(scenes)}

    first = drawn(sampling, 3, _scenes(images, questions))
    assert drawn(sampling, 2, _scenes(images, questions, order=-1)) == first
    assert drawn(sampling, 3, _scenes(images, questions, shared=False)) == first
    assert drawn(dataclasses.replace(sampling, seed=2), 3, _scenes(images, questions)) != first
    assert drawn(Sampling(temperature=1e-4), 3, _scenes(images, questions)) == drawn(
        Sampling(), 3, _scenes(images, questions)
    )


def test_the_header_describes_everything_that_answers_depend_on(engine):
    described = engine.describe()
    assert described["decode"] == "greedy" and described["prompt"].startswith("plain ")
    drawn = _with(engine, batch_size=5, devices=2, sampling=Sampling(temperature=0.5, top_p=0.9, seed=3)).describe()
    assert drawn == described | {"decode": "temperature 0.5, top_p 0.9, seed 3"}
    for changed in ({"chat_template": "v1"}, {"decimals": 3}):
        other = Engine(dataclasses.replace(engine.model, **changed), engine.params, batch_size=1)
        assert {key for key, value in other.describe().items() if value != described[key]} == {"prompt"}


def test_samples_follow_the_distribution_of_the_nucleus():
    probabilities = np.array([0.5, 0.3, 0.15, 0.05])
    logits = jnp.log(jnp.asarray(probabilities, jnp.float32))
    kept = np.exp(np.asarray(nucleus(logits[None], top_p=0.7))[0])
    np.testing.assert_allclose(kept, [0.5, 0.3, 0, 0], rtol=1e-6)  # the first alone does not reach 0.7
    number = 4000
    tokens, logprobs = sample_tokens(
        jnp.broadcast_to(logits, (number, 4)), sampling=Sampling(temperature=0.5, top_p=0.99),
        seeds=jnp.arange(number, dtype=jnp.uint32), steps=jnp.zeros(number, jnp.int32),
    )  # fmt: skip
    sharpened = probabilities**2 / (probabilities**2).sum()
    seen = np.bincount(np.asarray(tokens), minlength=4) / number
    np.testing.assert_allclose(seen, sharpened * (np.arange(4) < 3) / sharpened[:3].sum(), atol=0.03)
    np.testing.assert_allclose(logprobs, np.log(probabilities)[np.asarray(tokens)], atol=1e-5)
    for wrong in ({"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.1}, {"seed": -1}):
        with pytest.raises(EarthGPTError, match="expected temperature >= 0"):
            Sampling(**wrong)


@pytest.mark.parametrize(
    ("questions", "batch_size", "devices", "images", "share"),
    [
        ([1] * 100, 64, 1, 64, 1),  # one slot per image
        ([3] * 100, 64, 1, 64, 1),
        ([100] * 50, 64, 1, 4, 16),
        ([100], 64, 1, 1, 64),  # too few images to fill the slots otherwise
        ([100, 1, 1, 1], 64, 8, 1, 8),
        ([2], 64, 1, 32, 2),  # never more slots per image than it has questions
    ],
)
def test_slots_per_image_follow_the_questions_per_image(questions, batch_size, devices, images, share):
    layout = StateShape.of(questions, longest_question=20, longest_answer=16, batch_size=batch_size, groups=devices)
    assert (layout.images, layout.slots_per_image) == (images, share)
    assert layout.slots * devices >= batch_size


@pytest.mark.realdata
def test_answers_of_the_embedded_model_on_real_images_match_the_reference_loop(realdata):
    """Ask five questions about optical and infrared images, and compare with `reference.generate` on whole prompts."""
    folders = {"optical/RSVQA-LR": "*.tif", "ir/HIT-UAV": "*.jpg", "optical/RSSCN7": "*.jpg"}
    files = [path for name, glob in folders.items() for path in sorted((realdata / name).rglob(glob))[:2]]
    assert len(files) == 6
    questions = [
        "What is the category of this remote sensing image?", "How many cars are there?",
        "Describe the image in one sentence, please.", "Is there a road?",
        "Detect all objects shown in this remote sensing image and describe them using horizontal bounding boxes.",
    ]  # fmt: skip
    engine = Engine.from_model_dir("tiny", batch_size=8, devices=jax.devices()[:1])
    squares = [load_square(Path(file).read_bytes(), engine.image_size) for file in files]
    asked = [(i, j) for i in range(len(squares)) for j in range(len(questions))]
    visual = engine.model.model.visual_tokens
    rows = [
        generation_prompt(engine.tokenizer, engine.chat_template, questions[j], visual_tokens=visual) for _, j in asked
    ]
    length = max(len(tokens) for tokens, _ in rows)

    def padded(part: int, fill: int) -> jax.Array:
        return jnp.asarray(
            np.stack([np.pad(row[part], (0, length - len(row[part])), constant_values=fill) for row in rows])
        )

    plain = np.asarray(
        generate(
            engine.graphdef, engine.params,
            Prompts(
                tokens=padded(0, 0), image_slots=padded(1, -1), lengths=jnp.asarray([len(t) for t, _ in rows]),
                images=jnp.asarray(np.stack([squares[i] for i, _ in asked])),
            ),
            config=engine.model.model, max_new_tokens=32, stop=engine.stop,
        )
    )  # fmt: skip
    for batch_size, devices in ((8, 1), (16, 8)):
        scenes = [
            ImageRequests(
                image=lambda square=square: square,
                requests=[Request(id=f"{i}/{j}", text=text, max_new_tokens=32) for j, text in enumerate(questions)],
            )
            for i, square in enumerate(squares)
        ]
        answers = {a.id: a for a in _with(engine, batch_size=batch_size, devices=devices).stream(scenes)}
        for (i, j), expected in zip(asked, plain, strict=True):
            got = answers[f"{i}/{j}"].tokens
            assert got.tolist() == expected[: len(got)].tolist() and not expected[len(got) :].any()


def test_weights_are_sharded_over_as_few_devices_as_they_fit_on():
    config = config_lib.load("earthgpt_13b:instruct").model
    weights = 2 * params_lib.count(earthgpt.abstract(config)[1])
    assert weights > 26e9
    for gib, expected in ((95.7, 1), (31.2, 2), (15.7, 4), (7.9, 8)):  # v5p, v6e, v5e
        assert smallest_tensor_axis(config, weights=weights, limit=int(gib * 2**30), devices=8) == expected
    with pytest.raises(EarthGPTError, match=r"25\.\d GiB and a device has 4\.0 GiB: they fit on none of 1, 2, 4, 8"):
        smallest_tensor_axis(config, weights=weights, limit=4 * 2**30, devices=8)


def test_a_mesh_uses_no_more_devices_than_slots():
    def sizes(batch_size: int, **axes: int) -> tuple[int, ...]:
        return tuple(build_mesh(MeshConfig(**axes), batch_size=batch_size).shape.values())

    assert sizes(32) == (8, 1, 1)
    assert sizes(3) == (3, 1, 1)
    assert sizes(1, tensor=4) == (1, 1, 4)
    assert sizes(32, tensor=4) == (2, 1, 4)
    for wrong in ({"tensor": 3, "data": 2}, {"tensor": 16}, {"data": 0}, {"tensor": -1}):
        with pytest.raises(EarthGPTError, match="mesh: "):
            sizes(32, **wrong)
    with pytest.raises(EarthGPTError, match=r"llm\.kv_heads: 2 heads do not divide over tensor=4"):
        placement(nano.config("align").model, build_mesh(MeshConfig(tensor=4), batch_size=1))


def test_the_end_of_an_answer_is_recognized():
    stop = StopCondition(eos_id=2, separators=((7, 8, 9), (5,)))
    assert stop.window == 3
    tails = jnp.asarray([[-1, -1, 2], [7, 8, 9], [8, 7, 9], [1, 1, 5], [5, 1, 1], [2, 1, 1], [-1, 8, 9]])
    assert has_ended(tails, stop).tolist() == [True, True, False, True, False, False, False]
    assert not has_ended(tails, StopCondition(eos_id=-2, separators=())).any()
