"""What a run says of itself: metrics.jsonl, throughput.jsonl, TensorBoard, the progress bar."""

from __future__ import annotations

import collections
import contextlib
import json
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import tensorboardX
from tqdm import tqdm

from earthgpt_jax.config import Config
from earthgpt_jax.input.packing.schedule import PackingSchedule
from earthgpt_jax.training.optim import lr_schedule
from earthgpt_jax.training.step_timer import INPUT, START, StepTimer
from earthgpt_jax.training.throughput import FlopsReference, Throughput

_SPEED = {"step_seconds", "tokens_per_second", "images_per_second", "mfu", "goodput"}
_WORTH_SAYING = 0.05  # of the time, waited for batches


class MetricsLogger:
    """Of the steps from `first` on; lines of metrics.jsonl about steps that are done again are dropped."""

    def __init__(
        self,
        config: Config,
        workdir: Path,
        *,
        packing: PackingSchedule,
        first: int,
        clock: StepTimer,
        flops_reference: FlopsReference | None,
    ):
        _truncate(workdir / "metrics.jsonl", first)
        self._config, self._packing = config, packing
        self._schedule = lr_schedule(config.optim)
        # Line by line: what a checkpoint is behind of must not be lost with a killed process.
        self._file = (workdir / "metrics.jsonl").open("a", buffering=1)
        self._board = tensorboardX.SummaryWriter(str(workdir / "tb"), purge_step=first)
        self._bar = tqdm(total=config.optim.steps, initial=first, desc=config.stage.value, unit="step")
        self._clock = clock
        self._sums: collections.Counter[str] = collections.Counter()
        self._throughput = Throughput(
            workdir,
            first=first,
            positions=config.data.batch_size * config.data.seq_len,
            flops_reference=flops_reference,
            about={
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
        self._file.close()
        self._throughput.close()

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        """Every step is a line: a run that was killed can be compared with one that was not."""
        size = self._config.data.batch_size
        line: dict[str, object] = {
            "step": step + 1,
            **metrics,
            "lr": float(self._schedule(jnp.asarray(step - int(metrics["skipped"])))),
            "epoch": self._packing.epoch((step + 1) * size),
            "data": self._packing.digest(range(step * size, (step + 1) * size)),
        }
        self._sums.update({"steps": 1, "tokens": metrics["tokens"], "images": metrics["images"]})
        self._bar.update()
        shown = (step + 1) % self._config.log_every == 0 or step + 1 == self._config.optim.steps
        if shown:
            line["epochs"] = self._packing.epochs_per_source((step + 1) * size)
        self._file.write(json.dumps(line) + "\n")
        if shown:
            speed = self._throughput(step + 1, **self._sums, seconds=self._clock.take())
            self._sums.clear()
            shown_speed = {"tok_s": f"{speed['tokens_per_second']:,.0f}"}
            if "mfu" in speed:
                shown_speed["mfu"] = f"{speed['mfu']:.1%}"
            waited = speed["seconds"][INPUT] / max(sum(speed["seconds"].values()) - speed["seconds"][START], 1e-9)
            if waited > _WORTH_SAYING:
                shown_speed["input_wait"] = f"{waited:.0%}"
            self._bar.set_postfix(loss=f"{metrics['loss']:.3f}", **shown_speed)
            for name in ("loss", "grad_norm", "lr", "epoch", "skipped"):
                self._board.add_scalar(name, line[name], step + 1)
            for name in _SPEED & speed.keys():
                self._board.add_scalar(f"speed/{name}", speed[name], step + 1)


def read_losses(workdir: Path) -> list[tuple[int, float]]:
    """`(step, loss)` of every step of a run so far."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [(values["step"], values["loss"]) for values in map(json.loads, lines)]


def _truncate(path: Path, step: int) -> None:
    """Drops the lines of steps that a resumed run will do again."""
    if path.exists():
        kept = []
        for line in path.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # a line cut off by a kill
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
        partial = path.with_suffix(".partial")
        partial.write_text("".join(kept))
        partial.replace(path)
