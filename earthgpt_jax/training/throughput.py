"""throughput.jsonl: how fast a run goes, and how much of its time was of use.

Apart from metrics.jsonl, which is the same to the bit for a run that was stopped and resumed; this file cannot be, and
it must not forget: what was done twice, or waited for, is what goodput is about. Lines are only ever added:

    {"first": 0, "time": ..., ...}       a process started, and goes on behind step `first`
    {"step": 10, "steps": 10, ...}       the steps up to `step`; see docs/guides/running.md for the fields
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from earthgpt_jax.training.step_timer import COMPILE, START, STEP

NAME = "throughput.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlopsReference:
    """What a step must do and what the devices could, for MFU.

    Attributes:
        token, image: FLOPs of a token (padding is none) and of an image, forward and backward, nothing recomputed.
        peak: FLOP/s of all devices together.
    """

    token: float
    image: float
    peak: float

    def mfu(self, *, tokens: float, images: float, seconds: float) -> float:
        return (self.token * tokens + self.image * images) / (self.peak * seconds)


class Throughput:
    """Adds to `throughput.jsonl` of `workdir`.

    Args:
        first: updates done before this start.
        positions: of a batch, padding included.
        yardstick: None where the peak of the devices is not known: then there is no MFU.
        about: of this start, for its line.
        now: unix time.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        first: int,
        positions: int,
        flops_reference: FlopsReference | None,
        about: Mapping[str, Any],
        now: Callable[[], float] = time.time,
    ):
        path = workdir / NAME
        self._history = _read(path)
        self._positions, self._flops_reference, self._now = positions, flops_reference, now
        self._file = path.open("a")
        if path.stat().st_size and not path.read_bytes().endswith(b"\n"):
            self._file.write("\n")  # behind a line that a kill cut off
        self._add({"first": first, "time": now(), **about})

    def close(self) -> None:
        self._file.close()

    def __call__(
        self, step: int, *, steps: int, tokens: float, images: float, seconds: Mapping[str, float]
    ) -> dict[str, Any]:
        """Adds the line of the `steps` steps up to `step`, and returns it.

        Args:
            tokens, images: of those steps, without padding.
            seconds: by cause, from `Clock.take`.
        """
        running = max(sum(seconds.values()) - seconds[START] - seconds[COMPILE], 1e-9)
        line: dict[str, Any] = {
            "step": step,
            "steps": steps,
            "time": self._now(),
            "seconds": dict(seconds),
            "step_seconds": seconds[STEP] / steps,
            "tokens_per_second": tokens / running,
            "positions_per_second": steps * self._positions / running,
            "images_per_second": images / running,
        }
        if self._flops_reference:
            line["mfu"] = self._flops_reference.mfu(tokens=tokens, images=images, seconds=running)
        line["goodput"] = goodput([*self._history, line])
        self._add(line)
        return line

    def _add(self, line: dict[str, Any]) -> None:
        self._history.append(line)
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


def goodput(lines: Iterable[Mapping[str, Any]]) -> float:
    """Seconds that devices worked on steps which still count / seconds since the first start.

    Steps that a later start did again count once; a start, a compilation, a save that is waited for, a batch that is
    waited for, and the time between two starts count as time alone.
    """
    useful: list[tuple[int, int, float]] = []  # last step, steps, seconds of work
    began = ended = None
    for line in lines:
        began, ended = line["time"] if began is None else began, line["time"]
        if "first" in line:
            useful = [kept for each in useful if (kept := _up_to(line["first"], *each))]
        else:
            useful.append((line["step"], line["steps"], line["seconds"][STEP]))
    if began is None or ended is None:
        return 0.0
    return sum(seconds for _, _, seconds in useful) / max(ended - began, 1e-9)


def _up_to(first: int, last: int, steps: int, seconds: float) -> tuple[int, int, float] | None:
    kept = min(steps, first - (last - steps))
    return (min(last, first), kept, seconds * kept / steps) if kept > 0 else None


def _read(path: Path) -> list[dict[str, Any]]:
    lines = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:  # cut off by a kill
            continue
    return lines
