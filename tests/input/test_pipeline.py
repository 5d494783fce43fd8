"""Batches hold what the packing schedule says, and depend on the schedule and the step alone."""

import collections
import dataclasses
import itertools
import multiprocessing
import os
import signal
import time

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.config import Augment, OnDamaged, QuestionContext
from earthgpt_jax.input.augment import Symmetry
from earthgpt_jax.input.batch import ARRAY_FIELDS, END_SLOT, START_SLOT, TEXT_SLOT, concatenate_batches
from earthgpt_jax.input.images import load_square
from earthgpt_jax.input.pipeline import train_batches
from earthgpt_jax.input.prompts.chat_template import chat_template
from earthgpt_jax.input.sequences import image_prefix, turn_ids
from earthgpt_jax.input.tokenizer import Tokenizer, train_tokenizer
from earthgpt_jax.records import Task
from earthgpt_jax.synthetic import SyntheticSource
from tests.support import nano
from tests.support.in_memory import packed_sequences

WEIGHTS = {"caption": 0.5, "classification": 1.0, "grounding": 1.0, "obb": 1.0, "vqa": 1.0}
VISUAL = 17


@pytest.fixture(scope="module")
def records():
    source = SyntheticSource("train", 24, size=48)
    return [source[i] for i in range(24)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_tokenizer(nano.dialogues(), vocab_size=640, path=path)
    return Tokenizer(path)


def _take(sequences, count, **options):
    return [batch for _, batch in itertools.islice(train_batches(sequences, **options), count)]


def _same(one, two) -> bool:
    return one.ids == two.ids and all(np.array_equal(getattr(one, name), getattr(two, name)) for name in ARRAY_FIELDS)


def _cycle(sequences) -> range:
    return range(sequences.schedule.sequences_per_cycle)


def _question(sequences, sample, task, index):
    source = sequences.build.sources[sample.source]
    return sequences.build.prompt_config.question(source[sample.record], task, index, annotated=source.annotated)


# ------------------------------------------------------------------------------- what packed sequences hold
def test_batches_hold_what_the_schedule_says(records, tokenizer):
    sequences = packed_sequences(records, tokenizer, weights=WEIGHTS)
    (batch,) = _take(sequences, 1)
    for number, ids in enumerate(batch.ids):
        samples = sequences.schedule[number]
        assert [name.rpartition(":")[0] for name in ids] == [records[sample.record].id for sample in samples]
        keys = [[f"{task}#{index}" for task, index in sample.questions] for sample in samples]
        assert [name.rpartition(":")[2].split(",") for name in ids] == keys


@given(
    seed=st.integers(0, 5),
    seq_len=st.sampled_from([150, 260, 500]),
    max_images=st.integers(1, 4),
    question_context=st.sampled_from(list(QuestionContext)),
    number=st.integers(0, 200),
)
@settings(max_examples=40, deadline=None)
def test_a_sequence_is_complete_samples_whose_slots_point_to_their_images(
    records, tokenizer, seed, seq_len, max_images, question_context, number
):
    sequences = packed_sequences(
        records, tokenizer, weights=WEIGHTS, seed=seed, seq_len=seq_len, max_images=max_images,
        question_context=question_context,
    )  # fmt: skip
    dialogue = question_context is QuestionContext.DIALOGUE
    template, shared = chat_template("plain"), sequences.schedule.budget.prefix_tokens
    prefix, prefix_slots = image_prefix(tokenizer, template, visual_tokens=VISUAL)
    samples, batch = sequences.schedule[number], sequences[number]
    tokens, segments, slots = batch.tokens[0], batch.segments[0], batch.image_slots[0]
    assert 1 <= len(samples) <= max_images
    assert batch.tokens.shape == (1, seq_len)
    # Segments are 1, 2, ... in order, then padding.
    used = int((segments > 0).sum())
    assert segments[:used].tolist() == sorted(segments[:used].tolist()) and not segments[used:].any()
    assert sorted({*segments[:used].tolist()}) == [*range(1, len(samples) + 1)]
    fills = {"tokens": 0, "positions": 0, "question_index": 0, "loss_weights": 0, "image_slots": TEXT_SLOT}
    for name, fill in fills.items():
        assert (getattr(batch, name)[0, used:] == fill).all(), name
    for place, sample in enumerate(samples):
        inside = segments == place + 1
        record = records[sample.record]
        np.testing.assert_array_equal(batch.images[0, place], load_square(record.image, 32))
        image_slots = slots[inside][:shared]
        assert image_slots[image_slots >= 0].tolist() == [*range(place * VISUAL, (place + 1) * VISUAL)]
        np.testing.assert_array_equal(np.minimum(image_slots, 0), np.minimum(prefix_slots, 0))
        assert (slots[inside][shared:] == TEXT_SLOT).all()
        assert tokens[inside][:shared].tolist() == prefix.tolist()
        # The turns follow: each with a question index of its own, or all as one text.
        keys = sorted(sample.questions) if dialogue else sample.questions
        start = shared
        for question_index, (task, index) in enumerate(keys, start=1):
            question = _question(sequences, sample, task, index)
            ids, weights = turn_ids(tokenizer, template, question.text, question.answer)
            span = slice(start, start + len(ids))
            assert tokens[inside][span].tolist() == ids
            assert batch.loss_weights[0][inside][span].tolist() == weights
            begins = start if dialogue else shared
            assert batch.positions[0][inside][span].tolist() == [*range(begins, begins + len(ids))]
            assert set(batch.question_index[0][inside][span].tolist()) == {0 if dialogue else question_index}
            start += len(ids)
        assert start == int(inside.sum())
        assert batch.positions[0][inside][:shared].tolist() == [*range(shared)]
        assert not batch.question_index[0][inside][:shared].any() and not batch.loss_weights[0][inside][:shared].any()
    assert not batch.images[0, len(samples) :].any()
    assert (slots == START_SLOT).sum() == (slots == END_SLOT).sum() == len(samples)


def test_a_dialogue_is_tokenized_as_one_text(records, tokenizer):
    sequences = packed_sequences(
        records, tokenizer, weights={"vqa": 1.0}, question_context=QuestionContext.DIALOGUE, seq_len=400
    )
    template = chat_template("plain")
    for number in range(4):
        batch = sequences[number]
        for place, sample in enumerate(sequences.schedule[number], start=1):
            turns = [_question(sequences, sample, *question) for question in sorted(sample.questions)]
            text, spans = template.dialogue([(turn.text, turn.answer) for turn in turns])
            inside = batch.segments[0] == place
            words = inside & (batch.image_slots[0] == TEXT_SLOT)
            assert batch.tokens[0][words].tolist() == [tokenizer.bos_id, *tokenizer.encode(text)]
            supervised = tokenizer.decode(batch.tokens[0][words & (batch.loss_weights[0] > 0)].tolist())
            assert supervised.replace(" ", "") == "".join(text[a:b] for a, b in spans).replace(" ", "")


def test_a_cycle_asks_every_question_by_its_weight(records, tokenizer):
    sequences = packed_sequences(records, tokenizer, weights=WEIGHTS)
    assert sequences.schedule.cycle.epochs == 2
    asked = collections.Counter(
        name.rpartition(":")[0] + "#" + question
        for number in _cycle(sequences)
        for name in sequences[number].ids[0]
        for question in name.rpartition(":")[2].split(",")
    )
    times = {"caption": 1, "classification": 2, "grounding": 2, "obb": 2, "vqa": 2}
    index = sequences.schedule.sources[0].index
    assert len(asked) == len(index) - sum(sequences.schedule.too_long.values())
    assert all(count == times[name.split("#")[1]] for name, count in asked.items())


# ------------------------------------------------------------------------------------------ augmentation
def test_images_and_boxes_are_transformed_together_and_the_schedule_stays(records, tokenizer):
    """Exactly one symmetry explains both the pixels and the text of each sample."""
    options = {"weights": {"hbb": 1.0, "obb": 1.0}, "seq_len": 400, "image_size": 48, "max_images": 2}
    plain, augmented = (
        packed_sequences(records, tokenizer, augment=augment, **options)
        for augment in (Augment.NONE, Augment.FLIPS_AND_ROTATIONS)
    )
    drawn = collections.Counter()
    for number in _cycle(plain):
        one, two = plain[number], augmented[number]
        for name in ("segments", "positions", "question_index", "loss_weights", "image_slots"):
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
        assert one.ids == two.ids
        for place, sample in enumerate(plain.schedule[number]):
            record = records[sample.record]
            inside = one.segments[0] == place + 1
            matching = [
                symmetry
                for symmetry in Symmetry
                if np.array_equal(symmetry.pixels(one.images[0, place]), two.images[0, place])
                and _tokens(plain, sample, symmetry.record(record)) == two.tokens[0][inside].tolist()
            ]
            assert len(matching) == 1, record.id
            drawn[matching[0]] += 1
    assert len(drawn) >= 6
    again = packed_sequences(records, tokenizer, augment=Augment.FLIPS_AND_ROTATIONS, **options)
    assert _same(again[3], augmented[3])
    next_cycle = again[3 + plain.schedule.sequences_per_cycle]
    assert not _same(next_cycle, augmented[3])


def _tokens(sequences, sample, record) -> list[int]:
    prompts, template = sequences.build.prompt_config, chat_template("plain")
    tokens = image_prefix(prompts.tokenizer, template, visual_tokens=VISUAL)[0].tolist()
    for task, index in sample.questions:
        question = prompts.question(record, task, index, annotated=sequences.build.sources[0].annotated)
        tokens += turn_ids(prompts.tokenizer, template, question.text, question.answer)[0]
    return tokens


def test_texts_that_mention_a_direction_are_not_augmented(records, tokenizer):
    directed = [
        dataclasses.replace(record, references=("The ship is on the left.",), tasks=(Task.CAPTION,))
        for record in records
    ]
    augmented = packed_sequences(directed, tokenizer, weights={"caption": 1.0}, augment=Augment.FLIPS)
    plain = packed_sequences(directed, tokenizer, weights={"caption": 1.0})
    assert all(_same(augmented[number], plain[number]) for number in _cycle(plain))


# ------------------------------------------------------------------------- position, threads, workers
def test_a_batch_depends_on_schedule_and_step_alone(records, tokenizer):
    straight = _take(packed_sequences(records, tokenizer, weights=WEIGHTS), 9)
    resumed = itertools.islice(train_batches(packed_sequences(records, tokenizer, weights=WEIGHTS), start_step=7), 2)
    steps, late = zip(*resumed, strict=True)
    assert steps == (7, 8)
    assert all(_same(a, b) for a, b in zip(straight[7:], late, strict=True))
    assert not _same(straight[0], _take(packed_sequences(records, tokenizer, weights=WEIGHTS, seed=1), 1)[0])


@pytest.mark.parametrize("options", [{"threads": 0}, {"threads": 1}, {"workers": 1}, {"workers": 2}])
def test_threads_and_workers_change_nothing(records, tokenizer, options):
    sequences = packed_sequences(records, tokenizer, weights=WEIGHTS)
    for start in (0, 1000):
        expected = _take(sequences, 2, start_step=start)
        actual = _take(sequences, 2, start_step=start, **options)
        assert all(_same(a, b) for a, b in zip(expected, actual, strict=True))


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_together_build_the_batches_of_one(records, tokenizer, hosts):
    sequences = packed_sequences(records, tokenizer, weights=WEIGHTS, batch_size=8)
    for start in (0, 1, 1000):
        (expected,) = _take(sequences, 1, start_step=start)
        size = 8 // hosts
        parts = [
            _take(sequences, 1, start_step=start, local=range(host * size, (host + 1) * size))[0]
            for host in range(hosts)
        ]
        assert _same(expected, concatenate_batches(parts))


# ------------------------------------------------------------------------------------------- failures
def _broken(records):
    return [dataclasses.replace(records[0], image=b"no image"), *records[1:]]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_decoded_names_its_record(records, tokenizer, workers):
    sequences = packed_sequences(_broken(records), tokenizer, weights=WEIGHTS)
    with pytest.raises(
        EarthGPTError, match=rf"record {records[0].id}: .*not a format that Pillow or rasterio reads.*damaged=skip"
    ):
        _take(sequences, sequences.schedule.sequences_per_cycle // 4, workers=workers)


def test_damaged_samples_can_be_skipped_and_are_counted(records, tokenizer, caplog):
    intact = packed_sequences(records, tokenizer, weights=WEIGHTS)
    broken = packed_sequences(_broken(records), tokenizer, weights=WEIGHTS, on_damaged=OnDamaged.SKIP)
    total = 0
    for number in _cycle(broken):
        samples, batch = broken.schedule[number], broken[number]
        damaged = sum(sample.record == 0 for sample in samples)
        total += damaged
        assert batch.damaged.tolist() == [damaged]
        assert len(batch.ids[0]) == int(batch.segments.max()) == len(samples) - damaged
        if not damaged:
            assert _same(batch, intact[number])
    assert total > 0
    assert f"record {records[0].id}" in caplog.text and "left out" in caplog.text


def test_a_sequence_of_damaged_samples_only_is_padding(records, tokenizer):
    sequences = packed_sequences(
        _broken(records)[:1], tokenizer, weights={"obb": 1.0}, on_damaged=OnDamaged.SKIP, seq_len=400
    )
    batch = sequences[0]
    assert not batch.segments.any() and not batch.loss_weights.any() and not batch.images.any()
    assert batch.damaged.tolist() == [1] and batch.ids == ((),)


@pytest.mark.parametrize("idle", [False, True], ids=["working", "waiting"])
def test_a_killed_worker_is_an_error_instead_of_a_hang(records, tokenizer, idle):
    """Also a worker whose buffer is full and that waits until its pipe is read."""
    sequences = packed_sequences(records, tokenizer, weights=WEIGHTS)
    batches = train_batches(sequences, workers=2)
    next(batches)
    children = multiprocessing.active_children()
    assert len(children) >= 2
    while idle and _works(children[0].pid):
        pass
    os.kill(children[0].pid, signal.SIGKILL)
    with pytest.raises(EarthGPTError, match="one of 2 worker processes was killed, most likely because memory ran out"):
        collections.deque(itertools.islice(batches, 500), maxlen=0)  # batches built before may still arrive
    assert not multiprocessing.active_children()


def _works(pid: int, *, seconds: float = 2) -> bool:
    """Return whether a process uses the processor during the next seconds."""
    process = psutil.Process(pid)
    before = sum(process.cpu_times()[:2])
    time.sleep(seconds)
    return sum(process.cpu_times()[:2]) - before > 0.05 * seconds


def test_no_worker_has_a_device(records, tokenizer):
    """Grain imports jax for its trees if it is installed; no backend is ever initialized."""
    sequences = packed_sequences(records, tokenizer, weights=WEIGHTS)
    spying = dataclasses.replace(sequences, build=_Spy(sequences.build))
    (batch,) = _take(spying, 1, workers=1)
    assert {name for ids in batch.ids for name in ids} == {"no backend"}


@dataclasses.dataclass(frozen=True)
class _Spy:
    """A sequence builder that reports in `ids` whether jax has initialized a backend in its process."""

    inner: object

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.__dict__["inner"], name)

    def __call__(self, samples, *, number):
        import sys

        bridge = sys.modules.get("jax._src.xla_bridge")
        initialized = bridge is not None and bridge.backends_are_initialized()
        ids = (("a backend" if initialized else "no backend",),)
        return dataclasses.replace(self.inner(samples, number=number), ids=ids)
