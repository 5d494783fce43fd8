"""Generate answers with random weights: the step next to the memory roofline, and shared image prefixes."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from earthgpt_jax.aot import gpus
from earthgpt_jax.aot.program import GIB
from earthgpt_jax.config import FrozenDType, MeshConfig
from earthgpt_jax.inference.decode import ImagePrefix, StateShape, StopCondition
from earthgpt_jax.inference.mesh import build_mesh
from earthgpt_jax.inference.programs import Programs, build_programs
from earthgpt_jax.inference.requests import Answer, ImageRequests, Request
from earthgpt_jax.inference.sampling import GREEDY
from earthgpt_jax.inference.scheduler import Counts, Scheduler
from earthgpt_jax.input.batch import END_SLOT, START_SLOT, TEXT_SLOT
from earthgpt_jax.models import earthgpt
from earthgpt_jax.models.quantized import cast_frozen
from gpu_checks.cases import DecodeCase
from gpu_checks.results import Recorder
from gpu_checks.timing import peak_bytes
from gpu_checks.weights import random_params, size_in_bytes

_SYSTEM_TOKENS = 32  # of the prefix, after the image


def run(case: DecodeCase, recorder: Recorder) -> None:
    """Record one case.

    Raises:
        RuntimeError: an answer is missing or shorter than requested.
    """
    model = case.config.model
    graphdef, shapes = earthgpt.abstract(model)
    started = time.perf_counter()
    params = random_params(jax.eval_shape(lambda p: cast_frozen(p, FrozenDType.BFLOAT16), shapes))
    jax.block_until_ready(params)
    recorder.say(f"{case.name}: {size_in_bytes(params) / GIB:.1f} GiB in {time.perf_counter() - started:.0f} s")
    mesh = build_mesh(MeshConfig(data=1), batch_size=case.slots, devices=jax.devices()[:1])
    params = jax.device_put(params, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    prefix = image_prefix(model.visual_tokens)
    stop = StopCondition(eos_id=model.llm.vocab_size, separators=())  # no token: answers have their full length
    answers: dict[int, float] = {}
    for per_image in case.per_image:
        name = f"{case.name}, {case.slots} slots, {per_image} questions per image"
        shape = StateShape.of(
            [per_image] * (case.questions // per_image), longest_question=case.question_tokens,
            longest_answer=case.answer_tokens, batch_size=case.slots,
        )  # fmt: skip
        programs = build_programs(
            graphdef, config=model, prefix=prefix, shape=shape, stop=stop, sampling=GREEDY, mesh=mesh
        )
        runner = _Runner(case=case, programs=programs, params=params, shape=shape, prefix_length=len(prefix.tokens))
        started = time.perf_counter()
        runner.answer(shape.slots, shape.slots_per_image)
        recorder.add(name, "first answers, compilation included", time.perf_counter() - started, "s")
        _record_step(name, runner, recorder)
        seconds, counts, _ = runner.answer(case.questions, per_image)
        answers[per_image] = case.questions / seconds
        recorder.add(name, "answers, with encoding and prefill", answers[per_image], "answers/s")
        recorder.add(name, "generated, with encoding and prefill", counts.generated / seconds, "tokens/s")
        recorder.add(
            name, "tokens prefilled", counts.prefill, compared_with="without shared prefixes",
            reference=counts.unshared,
        )  # fmt: skip
    first, *_, last = case.per_image
    recorder.add(
        f"{case.name}, {case.slots} slots", f"answers/s with {last} questions per image", answers[last], "answers/s",
        compared_with=f"{first} per image", reference=answers[first],
    )  # fmt: skip
    used = peak_bytes(jax.devices()[0])
    if used is not None:
        recorder.add(
            case.name, "HBM in use, peak", used / GIB, "GiB", compared_with="weights",
            reference=size_in_bytes(params) / GIB,
        )  # fmt: skip


def image_prefix(visual_tokens: int) -> ImagePrefix:
    """Return the prefix of every question: BOS, start_img, the visual tokens, end_img and a system text."""
    slots = (TEXT_SLOT, START_SLOT, *range(visual_tokens), END_SLOT, *[TEXT_SLOT] * _SYSTEM_TOKENS)
    tokens = (1, *[0] * (visual_tokens + 2), *range(3, 3 + _SYSTEM_TOKENS))
    return ImagePrefix(tokens, slots)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Runner:
    """Answers questions about random images with compiled programs."""

    case: DecodeCase
    programs: Programs
    params: dict[str, Any]
    shape: StateShape
    prefix_length: int

    def answer(self, questions: int, per_image: int) -> tuple[float, Counts, list[float]]:
        """Answer questions, `per_image` about each image.

        Returns:
            The time in seconds, the work done, and the time of each call of `generate`.

        Raises:
            RuntimeError: an answer is missing or shorter than requested.
        """
        generate_seconds: list[float] = []
        programs = dataclasses.replace(self.programs, generate=_timed(self.programs.generate, generate_seconds))
        scheduler = Scheduler(
            programs, self.params, shape=self.shape, prefix_length=self.prefix_length, tokenize=self._tokenize,
            to_answer=lambda request, tokens, logprobs: Answer(
                id=request.id, text="", tokens=tokens, logprobs=logprobs
            ),
        )  # fmt: skip
        side = self.case.config.model.image_size
        image = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
        work = []
        for start in range(0, questions, per_image):
            numbers = range(start, min(start + per_image, questions))
            asked = [Request(id=str(i), text="", max_new_tokens=self.case.answer_tokens) for i in numbers]
            work.append(ImageRequests(image=lambda: image, requests=asked))
        started = time.perf_counter()
        answers = list(scheduler.run(work))
        seconds = time.perf_counter() - started
        lengths = {len(answer.tokens) for answer in answers}
        if len(answers) != questions or lengths != {self.case.answer_tokens}:
            raise RuntimeError(
                f"{self.case.name}: expected {questions} answers of {self.case.answer_tokens} tokens, "
                f"got {len(answers)} of {sorted(lengths)}"
            )
        if not all(np.all(np.isfinite(answer.logprobs)) for answer in answers):
            raise RuntimeError(f"{self.case.name}: log-probabilities are not finite")
        return seconds, scheduler.counts, generate_seconds

    def _tokenize(self, request: Request) -> list[int]:
        vocabulary = self.case.config.model.llm.vocab_size
        return np.random.default_rng(int(request.id)).integers(3, vocabulary, self.case.question_tokens).tolist()


def _timed(function: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    """Return `function`, which also appends the time of each call to `seconds`."""

    def timed(*arguments: Any) -> Any:
        jax.block_until_ready(arguments)
        started = time.perf_counter()
        result = jax.block_until_ready(function(*arguments))
        seconds.append(time.perf_counter() - started)
        return result

    return timed


def _record_step(name: str, runner: _Runner, recorder: Recorder) -> None:
    """Record the time of one generated token in all slots, next to the time to read what it needs from memory."""
    case, model = runner.case, runner.case.config.model
    # A question for each slot, all of equal length: one call of `generate` takes exactly `answer_tokens - 1` steps.
    questions = runner.shape.slots
    _, _, calls = runner.answer(questions, runner.shape.slots_per_image)
    if len(calls) != 1:
        raise RuntimeError(f"{name}: expected one call of generate for {questions} questions, got {len(calls)}")
    seconds = calls[0] / (case.answer_tokens - 1)
    gpu = gpus.find(jax.devices()[0].device_kind)
    bandwidth = gpu.hbm_gb_per_second * 1e9 if gpu else None
    read = [value for path, value in runner.params.items() if path.startswith("llm/") and path != "llm/embed"]
    weights = size_in_bytes(read)
    per_token = 2 * 2 * model.llm.depth * model.llm.kv_heads * model.llm.head_dim  # keys and values in bfloat16
    own = runner.shape.question_tokens + runner.shape.answer_tokens
    caches = per_token * (runner.shape.images * runner.prefix_length + runner.shape.slots * own)
    recorder.add(
        name, "time per generated token of all slots", 1e3 * seconds, "ms",
        compared_with=f"reading {weights / 1e9:.3g} GB of weights",
        reference=1e3 * weights / bandwidth if bandwidth else None,
    )  # fmt: skip
    recorder.add(
        name, "generated, without prefill", questions / seconds, "tokens/s",
        compared_with=f"reading weights and {caches / 1e9:.3g} GB of caches",
        reference=questions * bandwidth / (weights + caches) if bandwidth else None,
    )  # fmt: skip
