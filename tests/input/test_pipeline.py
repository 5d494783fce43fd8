"""What a batch holds is what the plan says, and comes from the plan and the position alone."""

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
from earthgpt_jax.input.batch import END_SLOT, START_SLOT, TEXT_SLOT
from earthgpt_jax.input.images import load_square
from earthgpt_jax.input.pipeline import concatenate_batches, train_batches
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


def _batches(made, count, **options):
    return [batch for _, batch in itertools.islice(train_batches(made, **options), count)]


def _same(one, two) -> bool:
    return one.ids == two.ids and all(np.array_equal(a, b) for a, b in zip(one[:-1], two[:-1], strict=True))


def _asked(plan, row):
    return [[f"{kind}#{index}" for kind, index in sample.questions] for sample in plan[row]]


def _question(made, sample, kind, index):
    source = made.assemble.sources[sample.source]
    return made.assemble.prompt_config.question(source[sample.record], kind, index, annotated=source.annotated)


# ------------------------------------------------------------------------------------- what rows hold
def test_rows_hold_what_the_plan_says(records, tokenizer):
    made = packed_sequences(records, tokenizer, weights=WEIGHTS)
    (batch,) = _batches(made, 1)
    for number, held in enumerate(batch.ids):
        placed = made.schedule[number]
        assert [name.rpartition(":")[0] for name in held] == [records[sample.record].id for sample in placed]
        assert [name.rpartition(":")[2].split(",") for name in held] == _asked(made.schedule, number)


@given(
    seed=st.integers(0, 5),
    seq_len=st.sampled_from([150, 260, 500]),
    max_images=st.integers(1, 4),
    question_context=st.sampled_from(list(QuestionContext)),
    number=st.integers(0, 200),
)
@settings(max_examples=40, deadline=None)
def test_a_row_is_whole_samples_and_its_slots_point_at_their_images(
    records, tokenizer, seed, seq_len, max_images, question_context, number
):
    made = packed_sequences(
        records, tokenizer, weights=WEIGHTS, seed=seed, seq_len=seq_len, max_images=max_images,
        question_context=question_context,
    )  # fmt: skip
    template, shared = chat_template("plain"), made.schedule.room.shared
    prefix, prefix_slots = image_prefix(tokenizer, template, visual_tokens=VISUAL)
    placed, batch = made.schedule[number], made[number]
    tokens, segments, slots = batch.tokens[0], batch.segments[0], batch.image_slots[0]
    assert 1 <= len(placed) <= max_images
    assert batch.tokens.shape == (1, seq_len)
    # Segments are 1, 2, ... one behind the other, then padding.
    used = int((segments > 0).sum())
    assert segments[:used].tolist() == sorted(segments[:used].tolist()) and not segments[used:].any()
    assert sorted({*segments[:used].tolist()}) == [*range(1, len(placed) + 1)]
    for name, fill in (
        ("tokens", 0),
        ("positions", 0),
        ("question_index", 0),
        ("loss_weights", 0),
        ("image_slots", TEXT_SLOT),
    ):
        assert (getattr(batch, name)[0, used:] == fill).all(), name
    for place, sample in enumerate(placed):
        inside = segments == place + 1
        record = records[sample.record]
        np.testing.assert_array_equal(batch.images[0, place], load_square(record.image, 32))
        own = slots[inside][:shared]
        assert own[own >= 0].tolist() == [*range(place * VISUAL, (place + 1) * VISUAL)]
        np.testing.assert_array_equal(np.where(own >= 0, 0, own), np.where(prefix_slots >= 0, 0, prefix_slots))
        assert (slots[inside][shared:] == TEXT_SLOT).all()
        assert tokens[inside][:shared].tolist() == prefix.tolist()
        # Behind it the turns: branches of their own, or one text.
        questions = sorted(sample.questions) if question_context is QuestionContext.DIALOGUE else sample.questions
        start = shared
        for branch, (kind, index) in enumerate(questions, start=1):
            said = _question(made, sample, kind, index)
            ids, loss = turn_ids(tokenizer, template, said.text, said.answer)
            span = slice(start, start + len(ids))
            assert tokens[inside][span].tolist() == ids
            assert batch.loss_weights[0][inside][span].tolist() == loss
            begins = start if question_context is QuestionContext.DIALOGUE else shared
            assert batch.positions[0][inside][span].tolist() == [*range(begins, begins + len(ids))]
            assert set(batch.question_index[0][inside][span].tolist()) == {
                0 if question_context is QuestionContext.DIALOGUE else branch
            }
            start += len(ids)
        assert start == int(inside.sum())
        assert batch.positions[0][inside][:shared].tolist() == [*range(shared)]
        assert not batch.question_index[0][inside][:shared].any() and not batch.loss_weights[0][inside][:shared].any()
    assert not batch.images[0, len(placed) :].any()
    assert (slots == START_SLOT).sum() == (slots == END_SLOT).sum() == len(placed)


def test_a_dialogue_is_tokenised_as_one_text(records, tokenizer):
    made = packed_sequences(
        records, tokenizer, weights={"vqa": 1.0}, question_context=QuestionContext.DIALOGUE, seq_len=400
    )
    template = chat_template("plain")
    for number in range(4):
        batch = made[number]
        for place, sample in enumerate(made.schedule[number], start=1):
            turns = [_question(made, sample, *question) for question in sorted(sample.questions)]
            text, spans = template.dialogue([(turn.text, turn.answer) for turn in turns])
            inside = batch.segments[0] == place
            words = inside & (batch.image_slots[0] == TEXT_SLOT)
            assert batch.tokens[0][words].tolist() == [tokenizer.bos_id, *tokenizer.encode(text)]
            supervised = tokenizer.decode(batch.tokens[0][words & (batch.loss_weights[0] > 0)].tolist())
            assert supervised.replace(" ", "") == "".join(text[a:b] for a, b in spans).replace(" ", "")


def test_an_epoch_asks_every_question_by_its_weight(records, tokenizer):
    made = packed_sequences(records, tokenizer, weights=WEIGHTS)
    assert made.schedule.cycle.epochs == 2
    seen = collections.Counter(
        name.rpartition(":")[0] + "#" + question
        for number in range(made.schedule.rows)
        for name in made[number].ids[0]
        for question in name.rpartition(":")[2].split(",")
    )
    times = {"caption": 1, "classification": 2, "grounding": 2, "obb": 2, "vqa": 2}
    left_out = made.schedule.left_out
    index = made.schedule.sources[0].index
    assert len(seen) == len(index) - sum(left_out.values())
    assert all(count == times[name.split("#")[1]] for name, count in seen.items())


def test_shapes_and_dtypes_are_the_contract(records, tokenizer):
    (batch,) = _batches(packed_sequences(records, tokenizer, weights=WEIGHTS), 1)
    for name in ("tokens", "positions", "segments", "question_index", "image_slots"):
        assert getattr(batch, name).shape == (4, 160) and getattr(batch, name).dtype == np.int32, name
    assert batch.loss_weights.dtype == np.float32
    assert batch.images.shape == (4, 3, 32, 32, 3) and batch.images.dtype == np.uint8
    assert batch.unlisted.shape == batch.damaged.shape == (4,) == (len(batch.ids),)


# ------------------------------------------------------------------------------------------ augmentation
def test_images_and_boxes_turn_together_and_the_plan_stays(records, tokenizer):
    """Of every sample exactly one symmetry explains both its pixels and its text."""
    options = {"weights": {"hbb": 1.0, "obb": 1.0}, "seq_len": 400, "image_size": 48, "max_images": 2}
    plain, turned = (
        packed_sequences(records, tokenizer, augment=augment, **options)
        for augment in (Augment.NONE, Augment.FLIPS_AND_ROTATIONS)
    )
    drawn = collections.Counter()
    for number in range(plain.schedule.rows):
        one, two = plain[number], turned[number]
        for name in ("segments", "positions", "question_index", "loss_weights", "image_slots"):
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
        assert one.ids == two.ids
        for place, sample in enumerate(plain.schedule[number]):
            record = records[sample.record]
            inside = one.segments[0] == place + 1
            fits = [
                symmetry
                for symmetry in Symmetry
                if np.array_equal(symmetry.pixels(one.images[0, place]), two.images[0, place])
                and _tokens(plain, sample, symmetry.record(record)) == two.tokens[0][inside].tolist()
            ]
            assert len(fits) == 1, record.id
            drawn[fits[0]] += 1
    assert len(drawn) >= 6
    again = packed_sequences(records, tokenizer, augment=Augment.FLIPS_AND_ROTATIONS, **options)
    assert _same(again[3], turned[3])
    other = packed_sequences(records, tokenizer, augment=Augment.FLIPS_AND_ROTATIONS, **options)[
        3 + plain.schedule.rows
    ]
    assert not _same(other, turned[3])


def _tokens(made, sample, record) -> list[int]:
    template = chat_template("plain")
    tokens = image_prefix(tokenizer_ := made.assemble.prompt_config.tokenizer, template, visual_tokens=VISUAL)[
        0
    ].tolist()
    for kind, index in sample.questions:
        said = made.assemble.prompt_config.question(record, kind, index, annotated=made.assemble.sources[0].annotated)
        tokens += turn_ids(tokenizer_, template, said.text, said.answer)[0]
    return tokens


def test_who_speaks_of_a_direction_is_not_turned(records, tokenizer):
    told = [
        dataclasses.replace(record, references=("The ship is on the left.",), tasks=(Task.CAPTION,))
        for record in records
    ]
    made = packed_sequences(told, tokenizer, weights={"caption": 1.0}, augment=Augment.FLIPS)
    plain = packed_sequences(told, tokenizer, weights={"caption": 1.0})
    assert all(_same(made[number], plain[number]) for number in range(plain.schedule.rows))


# ------------------------------------------------------------------------- position, threads, workers
def test_a_batch_depends_on_plan_and_step_alone(records, tokenizer):
    straight = _batches(packed_sequences(records, tokenizer, weights=WEIGHTS), 9)
    late = list(itertools.islice(train_batches(packed_sequences(records, tokenizer, weights=WEIGHTS), start_step=7), 2))
    assert [step for step, _ in late] == [7, 8]
    assert all(_same(a, b) for a, (_, b) in zip(straight[7:], late, strict=True))
    assert not _same(straight[0], _batches(packed_sequences(records, tokenizer, weights=WEIGHTS, seed=1), 1)[0])


@pytest.mark.parametrize("options", [{"threads": 0}, {"threads": 1}, {"workers": 1}, {"workers": 2}])
def test_threads_and_workers_change_nothing(records, tokenizer, options):
    made = packed_sequences(records, tokenizer, weights=WEIGHTS)
    for start in (0, 1000):
        expected = _batches(made, 2, start_step=start)
        got = _batches(made, 2, start_step=start, **options)
        assert all(_same(a, b) for a, b in zip(expected, got, strict=True))


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_make_the_rows_of_one(records, tokenizer, hosts):
    made = packed_sequences(records, tokenizer, weights=WEIGHTS, batch_size=8)
    for start in (0, 1, 1000):
        (whole,) = _batches(made, 1, start_step=start)
        each = 8 // hosts
        parts = [
            _batches(made, 1, start_step=start, local=range(host * each, (host + 1) * each))[0] for host in range(hosts)
        ]
        assert _same(whole, concatenate_batches(parts))


# ------------------------------------------------------------------------------------------- failures
def _broken(records):
    return [dataclasses.replace(records[0], image=b"no image"), *records[1:]]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_does_not_decode_names_its_record(records, tokenizer, workers):
    made = packed_sequences(_broken(records), tokenizer, weights=WEIGHTS)
    with pytest.raises(EarthGPTError, match=rf"record {records[0].id}: .*no format that Pillow knows.*damaged=skip"):
        _batches(made, made.schedule.rows // 4, workers=workers)


def test_damaged_samples_are_skipped_and_counted_if_asked_for(records, tokenizer, caplog):
    sound = packed_sequences(records, tokenizer, weights=WEIGHTS)
    made = packed_sequences(_broken(records), tokenizer, weights=WEIGHTS, on_damaged=OnDamaged.SKIP)
    missing = 0
    for number in range(made.schedule.rows):
        placed, batch = made.schedule[number], made[number]
        gone = sum(sample.record == 0 for sample in placed)
        missing += gone
        assert batch.damaged.tolist() == [gone]
        assert len(batch.ids[0]) == int(batch.segments.max()) == len(placed) - gone
        if not gone:
            assert _same(batch, sound[number])
    assert missing > 0
    assert f"record {records[0].id}" in caplog.text and "left out" in caplog.text


def test_a_row_of_nothing_but_damage_is_padding(records, tokenizer):
    made = packed_sequences(
        _broken(records)[:1], tokenizer, weights={"obb": 1.0}, on_damaged=OnDamaged.SKIP, seq_len=400
    )
    batch = made[0]
    assert not batch.segments.any() and not batch.loss_weights.any() and not batch.images.any()
    assert batch.damaged.tolist() == [1] and batch.ids == ((),)


@pytest.mark.parametrize("idle", [False, True], ids=["working", "waiting"])
def test_a_worker_that_is_killed_is_an_error_not_a_hang(records, tokenizer, idle):
    """Also one that has made all that it may, and waits until somebody reads its pipe."""
    made = packed_sequences(records, tokenizer, weights=WEIGHTS)
    batches = train_batches(made, workers=2)
    next(batches)
    children = multiprocessing.active_children()
    assert len(children) >= 2
    while idle and _works(children[0].pid):
        pass
    os.kill(children[0].pid, signal.SIGKILL)
    with pytest.raises(EarthGPTError, match="one of 2 worker processes was killed, most likely for want of memory"):
        collections.deque(itertools.islice(batches, 500), maxlen=0)  # what was made before may still come
    assert not multiprocessing.active_children()


def _works(pid: int, *, seconds: float = 2) -> bool:
    """Whether a process uses the processor meanwhile."""
    process = psutil.Process(pid)
    before = sum(process.cpu_times()[:2])
    time.sleep(seconds)
    return sum(process.cpu_times()[:2]) - before > 0.05 * seconds


def test_no_worker_has_a_device(records, tokenizer):
    """Grain imports jax for its trees where it is installed; no backend is ever made."""
    made = packed_sequences(records, tokenizer, weights=WEIGHTS)
    spying = dataclasses.replace(made, assemble=_Spy(made.assemble))
    (batch,) = _batches(spying, 1, workers=1)
    assert {name for row in batch.ids for name in row} == {"no backend"}


@dataclasses.dataclass(frozen=True)
class _Spy:
    """An assembler that says in `ids` whether jax holds a device here."""

    inner: object

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.__dict__["inner"], name)

    def __call__(self, placed, *, number):
        import sys

        bridge = sys.modules.get("jax._src.xla_bridge")
        made = bridge is not None and bridge.backends_are_initialized()
        return self.inner(placed, number=number)._replace(ids=(("a backend" if made else "no backend",),))
