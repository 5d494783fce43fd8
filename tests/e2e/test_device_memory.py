"""Arrays on the devices during a whole run: no device holds more than its share and the largest parameter."""

from __future__ import annotations

import contextlib
import functools
import gc
import math
import threading
from typing import Any

import jax
import pytest

from earthgpt_jax.models import earthgpt, loading, model_writer
from earthgpt_jax.training import loop
from earthgpt_jax.training.checkpoints import Checkpoints
from tests.support import nano

# Sharded over eight devices, the replicated parameters are small compared with the others.
SIZES = (
    "model.llm.heads=8", "model.llm.kv_heads=8", "model.llm.dim=128", "model.llm.ffn_dim=256", "mesh.data=1",
    "mesh.fsdp=8", "data.batch_size=8", "data.seq_len=180", "optim.steps=2", "checkpoint.every_steps=1",
)  # fmt: skip
PIECE = 1 << 14  # bytes; several pieces for each large parameter
SECONDS = 0.05  # between samples of the watching thread


def _bytes_per_device() -> dict[jax.Device, int]:
    """Return the bytes of all arrays on each device; a buffer that a donated argument left to a result counts once."""
    buffers: dict[tuple[jax.Device, int], int] = {}
    for array in jax.live_arrays():
        with contextlib.suppress(RuntimeError):  # deleted meanwhile
            for shard in array.addressable_shards:
                buffers[shard.device, shard.data.unsafe_buffer_pointer()] = shard.data.nbytes
    held = dict.fromkeys(jax.devices(), 0)
    for (device, _), size in buffers.items():
        held[device] += size
    return held


class _Watch:
    """The largest bytes of each device by phase, beyond those at the beginning."""

    def __init__(self) -> None:
        gc.collect()
        self._before, self.phase, self.most = _bytes_per_device(), "start", {}
        self._ended = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while not self._ended.wait(SECONDS):
            self.sample()

    def now(self) -> dict[jax.Device, int]:
        return {device: held - self._before[device] for device, held in _bytes_per_device().items()}

    def sample(self) -> None:
        most = self.most.setdefault(self.phase, dict.fromkeys(self._before, 0))
        for device, held in self.now().items():
            most[device] = max(most[device], held)

    def after(self, patch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        """Sample after each call of a function."""
        function = getattr(owner, name)

        @functools.wraps(function)
        def watched(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            self.sample()
            return result

        patch.setattr(owner, name, watched)

    def end(self) -> None:
        self._ended.set()


@pytest.mark.slow
@pytest.mark.parametrize("words", [("align",), ("instruct", "frozen_dtype=int8")], ids=["align", "int8"])
def test_no_device_ever_holds_more_than_its_share_and_the_largest_parameter(tmp_path, monkeypatch, words):
    stage, *more = words
    base = nano.model_dir(tmp_path / "base", nano.config("align", *SIZES).model)
    settings = (*SIZES, *more, f"init={base}", f"data.source={nano.dataset(tmp_path / 'data')}")
    config = nano.config(stage, *settings, "checkpoint.model=whole")
    monkeypatch.setattr(loading, "PIECE_BYTES", PIECE)
    monkeypatch.setattr(model_writer, "write", functools.partial(model_writer.write, piece_bytes=PIECE))
    watch, share = _Watch(), {}
    for owner, name in (
        (loading, "_put"), (loading, "_quantize"), (loading, "_write"), (loop, "_handle_finished"),
        (Checkpoints, "save"), (model_writer, "_bring"),
    ):  # fmt: skip
        watch.after(monkeypatch, owner, name)
    run_steps, finish = loop._run_steps, loop._finish

    def during_steps(*args: Any, **kwargs: Any) -> Any:
        gc.collect()
        share.update(watch.now())
        watch.phase = "steps and saves"
        return run_steps(*args, **kwargs)

    def during_end(*args: Any, **kwargs: Any) -> None:
        watch.phase = "end"
        finish(*args, **kwargs)

    monkeypatch.setattr(loop, "_run_steps", during_steps)
    monkeypatch.setattr(loop, "_finish", during_end)
    loop.train(config, tmp_path / "run")
    watch.end()

    shapes = earthgpt.abstract(config.model)[1]
    largest = 4 * max(math.prod(leaf.shape) for leaf in shapes.values())
    whole = 4 * sum(math.prod(leaf.shape) for leaf in shapes.values())
    assert watch.most.keys() == {"start", "steps and saves", "end"}
    for phase, most in watch.most.items():
        for device, held in most.items():
            assert 0 < held <= share[device] + largest, (phase, device, held, share[device], largest)
    assert max(share.values()) + largest < whole, "the limit must be below a whole copy"
