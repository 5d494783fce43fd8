"""Metrics of a run: fetching them from the devices, metrics.jsonl, TensorBoard and the progress bar."""

from __future__ import annotations

import collections
import dataclasses
import queue
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from earthgpt_jax.common import json_lines
from earthgpt_jax.common.json_lines import JsonLines
from earthgpt_jax.common.progress import Bar
from earthgpt_jax.config import Config
from earthgpt_jax.input.batch import Batch
from earthgpt_jax.input.packing.schedule import PackingSchedule
from earthgpt_jax.training.event_files import EventFiles
from earthgpt_jax.training.optim import lr_schedule
from earthgpt_jax.training.throughput import INPUT, START, FlopsReference, Startup, StepTimer, ThroughputLog

NAME = "metrics.jsonl"
_SPEED = {"step_seconds", "tokens_per_second", "images_per_second", "mfu", "goodput"}
_NOTABLE_WAIT = 0.05  # share of the time spent waiting for input from which the progress bar shows it


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinishedStep:
    """A step that the devices have finished.

    Attributes:
        step: index of the step, from 0.
        dispatched, finished: when the step was dispatched and when its metrics arrived (`time.monotonic`).
    """

    step: int
    batch: Batch
    metrics: dict[str, float]
    dispatched: float
    finished: float


class MetricsFetcher:
    """Fetch the metrics of dispatched steps, and lag the devices by one step.

    A background thread waits for each step, so its end time is exact whatever the main thread is doing. The thread is
    a daemon: devices that never answer must not keep the interpreter from exiting.
    """

    def __init__(self) -> None:
        self._dispatched: collections.deque[tuple[int, Batch, float, Future]] = collections.deque()
        self._queue: queue.SimpleQueue[tuple[dict[str, jax.Array], Future] | None] = queue.SimpleQueue()
        threading.Thread(target=self._fetch, name="metrics", daemon=True).start()

    def __enter__(self) -> MetricsFetcher:
        return self

    def __exit__(self, *_: object) -> None:
        self._queue.put(None)

    def put(self, step: int, batch: Batch, metrics: dict[str, jax.Array], *, dispatched: float) -> None:
        """Add a step that was just dispatched."""
        future: Future = Future()
        self._dispatched.append((step, batch, dispatched, future))
        self._queue.put((metrics, future))

    def finished(self, *, include_newest: bool) -> Iterator[FinishedStep]:
        """Wait for the dispatched steps and yield them in order; the newest one only if `include_newest`."""
        while len(self._dispatched) > (0 if include_newest else 1):
            step, batch, dispatched, future = self._dispatched.popleft()
            metrics, finished = future.result()
            yield FinishedStep(step=step, batch=batch, metrics=metrics, dispatched=dispatched, finished=finished)

    def _fetch(self) -> None:
        while (item := self._queue.get()) is not None:
            metrics, future = item
            try:
                values = {name: float(value) for name, value in jax.device_get(metrics).items()}
                future.set_result((values, time.monotonic()))
            except BaseException as error:  # re-raised in the main thread by `future.result`
                future.set_exception(error)


class MetricsLogger:
    """Write metrics.jsonl, throughput.jsonl, TensorBoard events and the progress bar.

    Opening it removes the lines of metrics.jsonl about steps that a resumed run repeats.

    Args:
        start_step: number of steps completed before this start.
        timer: the run's timer; its seconds go to throughput.jsonl.
    """

    def __init__(
        self,
        config: Config,
        workdir: Path,
        *,
        packing: PackingSchedule,
        start_step: int,
        timer: StepTimer,
        flops_reference: FlopsReference | None,
    ) -> None:
        self._config, self._packing = config, packing
        self._schedule = lr_schedule(config.optim)
        self._log = JsonLines(workdir / NAME, keep=lambda line: line["step"] <= start_step)
        self._board = EventFiles(workdir / "tb", purge_step=start_step)
        self._bar = Bar(total=config.optim.steps, initial=start_step, desc=config.stage.value, unit="step")
        self._timer = timer
        self._sums: collections.Counter[str] = collections.Counter()
        self._startup: Startup | None = None
        self._postfix: dict[str, str] = {}  # figures of the progress bar
        self._throughput = ThroughputLog(
            workdir,
            start_step=start_step,
            positions_per_step=config.data.batch_size * config.data.seq_len,
            flops_reference=flops_reference,
            metadata={
                "processes": jax.process_count(),
                "devices": jax.device_count(),
                "device_kind": jax.devices()[0].device_kind,
            },
        )

    def __enter__(self) -> MetricsLogger:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        self._board.close()
        self._log.close()
        self._throughput.close()

    def flush(self) -> None:
        """Wait until everything logged is stored: the lines of steps in a checkpoint must survive a kill."""
        self._log.flush()
        self._throughput.flush()
        self._board.flush()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log one finished step; TensorBoard, throughput and the progress bar's figures every `log_every` steps.

        metrics.jsonl gets a line for every step, so that a resumed run can be compared with an uninterrupted one.
        """
        batch_size = self._config.data.batch_size
        done = step + 1
        line: dict[str, object] = {
            "step": done,
            **metrics,
            "lr": float(self._schedule(jnp.asarray(step - int(metrics["skipped"])))),
            "epoch": self._packing.epoch(done * batch_size),
            "data_digest": self._packing.digest(range(step * batch_size, done * batch_size)),
        }
        self._sums.update({"steps": 1, "tokens": metrics["tokens"], "images": metrics["images"]})
        self._bar.update()
        summarize = done % self._config.log_every == 0 or done == self._config.optim.steps
        if summarize:
            line["epochs_per_source"] = self._packing.epochs_per_source(done * batch_size)
        self._log.write(line)
        if summarize:
            self._summarize(done, line)

    def log_startup(self, startup: Startup) -> None:
        """Log what this start cost; call it after its first step, before that is logged."""
        self._throughput.record_startup(startup)
        self._startup = startup

    def report(self) -> None:
        """Print what the run's end is to say: what this start cost."""
        if self._startup is not None:
            self._bar.write(f"start: {self._startup}", file=sys.stderr)

    def log_validation(self, step: int, validation: Mapping[str, Any], *, figures: Mapping[str, float]) -> None:
        """Log a validation after `step` steps: a line of metrics.jsonl, TensorBoard and the progress bar.

        Args:
            validation: the object of the line, plain JSON with `loss`, `accuracy` and `exact`.
            figures: scalars for TensorBoard by name.
        """
        self._log.write({"step": step, "validation": validation})
        for name, value in figures.items():
            self._board.add_scalar(name, value, step)
        self._postfix |= {"val_loss": f"{validation['loss']:.3f}", "val_acc": f"{validation['accuracy']:.1%}",
                          "val_exact": f"{validation['exact']:.1%}"}  # fmt: skip
        self._bar.set_postfix(self._postfix)

    def _summarize(self, step: int, line: Mapping[str, object]) -> None:
        """Write the throughput since the last summary, and update TensorBoard and the progress bar."""
        speed = self._throughput.record(step, **self._sums, seconds=self._timer.collect())
        self._sums.clear()
        postfix = {"loss": f"{line['loss']:.3f}", "tok_s": f"{speed['tokens_per_second']:,.0f}"}
        if "mfu" in speed:
            postfix["mfu"] = f"{speed['mfu']:.1%}"
        waited = speed["seconds"][INPUT] / max(sum(speed["seconds"].values()) - speed["seconds"][START], 1e-9)
        if waited > _NOTABLE_WAIT:
            postfix["input_wait"] = f"{waited:.0%}"
        validation = {name: text for name, text in self._postfix.items() if name.startswith("val_")}
        self._postfix = postfix | validation
        self._bar.set_postfix(self._postfix)
        for name in ("loss", "grad_norm", "lr", "epoch", "skipped"):
            self._board.add_scalar(name, line[name], step)
        for name in _SPEED & speed.keys():
            self._board.add_scalar(f"speed/{name}", speed[name], step)


def read_losses(workdir: Path) -> list[tuple[int, float]]:
    """Return `(step, loss)` of every logged step of a run."""
    return [(line["step"], line["loss"]) for line in json_lines.read(workdir / NAME) if "loss" in line]


def read_validations(workdir: Path, *, up_to: int) -> list[tuple[int, dict[str, Any]]]:
    """Return `(step, validation)` of every validation of a run up to a step."""
    lines = json_lines.read(workdir / NAME)
    return [(line["step"], line["validation"]) for line in lines if "validation" in line and line["step"] <= up_to]
