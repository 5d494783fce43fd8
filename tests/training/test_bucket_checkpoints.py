"""Checkpoints in buckets: complete or absent, damaged ones refused, and what failures of the service do."""

from __future__ import annotations

import logging

import jax
import numpy as np
import pytest

from earthgpt_jax.cli.main import main
from earthgpt_jax.common.buckets import BucketError, BucketPath
from earthgpt_jax.common.errors import EarthGPTError, RetryableError
from earthgpt_jax.config import CheckpointConfig
from earthgpt_jax.training import inspection
from earthgpt_jax.training.checkpoints import Checkpoints
from tests.support.buckets import RESET, FaultyBucket, few_times
from tests.training.test_checkpoints import DAMAGES, METADATA, _same, _save, _state

# TensorStore raises these for reads that fail half-way.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
WRITES = {"gs": "POST", "s3": "PUT"}


def _restored(workdir: BucketPath, step: int, *, devices: int = 8) -> tuple[int | None, object]:
    checkpoints = Checkpoints(workdir, CheckpointConfig())
    state, extra = checkpoints.restore(step, _state(0, devices=devices))
    assert extra["identity"] == METADATA["identity"]
    return checkpoints.latest(), state


def test_a_checkpoint_is_restored_onto_any_devices(bucket: BucketPath, capsys: pytest.CaptureFixture[str]) -> None:
    workdir = bucket / "run"
    _save(workdir, 2, 4, 6, 8, keep=2, keep_every_steps=4)
    for devices in (8, 2, 1):
        latest, state = _restored(workdir, 8, devices=devices)
        assert latest == 8 and _same(state, _state(8))
    assert _same(_restored(workdir, 4)[1], _state(4))
    assert inspection.checkpoint_steps(workdir / "checkpoints") == [4, 6, 8]
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {"4", "6", "8"}, "removed as a whole"
    assert main(["inspect", str(workdir / "checkpoints")]) == 0
    assert f"{workdir}/checkpoints/8: checkpoint of step 8" in capsys.readouterr().out


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused_or_restored_exactly(bucket: BucketPath, damage: str) -> None:
    workdir, change, refused = bucket / "run", DAMAGES[damage], 0
    _save(workdir, 4, 6)
    checkpoints = Checkpoints(workdir, CheckpointConfig())
    paths = sorted((workdir / "checkpoints" / "6").rglob("*"))
    chosen = [path for path in paths if path.parent.name != "a" or path.name in (".zarray", "3.0")]  # one of 8 shards
    for path in chosen:
        data = path.read_bytes()
        path.write_bytes(change(data)) if change else path.unlink()
        try:
            state, extra = checkpoints.restore(6, _state(0))
        except EarthGPTError as error:
            text = str(error)
            assert "/run/checkpoints/6: damaged" in text and "step 4" in text and " mv " in text
            refused += 1
        else:
            assert _same(state, _state(6)) and extra["identity"] == METADATA["identity"], path
        path.write_bytes(data)
    assert refused >= len(chosen) - 2


def test_an_unfinished_checkpoint_is_reported_and_never_restored(
    bucket: BucketPath, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = bucket / "run"
    _save(workdir, 6, 8)
    unfinished = workdir / "checkpoints" / "8"
    (unfinished / inspection.METADATA).unlink()  # as after a kill: it is written last, and deleted first
    assert main(["inspect", str(workdir / "checkpoints")]) == 1
    assert f"{unfinished}: UNFINISHED" in capsys.readouterr().out
    with caplog.at_level(logging.WARNING):
        checkpoints = Checkpoints(workdir, CheckpointConfig())
    assert "checkpoints/8: removed" in caplog.text and not unfinished.exists()
    assert checkpoints.latest() == 6
    checkpoints.save(8, _state(8), METADATA)
    checkpoints.close()
    assert _same(_restored(workdir, 8)[1], _state(8))


def test_a_process_believed_dead_completes_no_checkpoint(bucket: BucketPath) -> None:
    workdir = bucket / "run"
    first = Checkpoints(workdir, CheckpointConfig())
    first.save(2, _state(2), METADATA)
    first.wait()
    second = Checkpoints(workdir, CheckpointConfig())
    with pytest.raises(EarthGPTError, match=r"another run, started on .* now uses this work directory"):
        first.save(4, _state(5), METADATA)
    assert second.latest() == 2 and inspection.checkpoint_steps(workdir / "checkpoints") == [2]
    second.save(4, _state(4), METADATA)
    second.close()
    assert _same(_restored(workdir, 4)[1], _state(4))


def test_a_save_may_be_followed_at_once_by_a_step_that_overwrites_the_state(bucket: BucketPath) -> None:
    expected = _state(2, rows=4096)
    state = jax.tree.map(lambda x: jax.device_put(np.array(x), x.sharding), expected)  # no array twice
    checkpoints = Checkpoints(bucket / "run", CheckpointConfig())
    checkpoints.save(2, state, METADATA)
    overwritten = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 + 7, tree), donate_argnums=0)(state)
    assert all(np.all(np.asarray(x) == 7) for x in jax.tree.leaves(overwritten)) and state.step.is_deleted()
    checkpoints.wait()
    assert _same(checkpoints.restore(2, expected)[0], expected)


SLOW = [pytest.param(status, marks=pytest.mark.slow) for status in (503, 429)]  # they wait longer after each failure


@pytest.mark.parametrize("fault", [RESET, *SLOW])
def test_requests_that_fail_for_a_while_are_repeated(faulty_bucket: FaultyBucket, fault: int) -> None:
    workdir, proxy = faulty_bucket.path / "run", faulty_bucket.proxy
    checkpoints = Checkpoints(workdir, CheckpointConfig())
    proxy.rule = few_times(fault, 2, method=WRITES[workdir.scheme])
    checkpoints.save(2, _state(2), METADATA)
    checkpoints.wait()
    proxy.rule = few_times(fault, 2, method="GET")
    state, _ = checkpoints.restore(2, _state(0))
    assert _same(state, _state(2))


def test_a_missing_permission_is_one_clear_error(faulty_bucket: FaultyBucket) -> None:
    workdir, proxy = faulty_bucket.path / "run", faulty_bucket.proxy
    _save(workdir, 2)
    checkpoints = Checkpoints(workdir, CheckpointConfig())
    proxy.rule = lambda method, path: 403 if method == WRITES[workdir.scheme] else None
    with pytest.raises(BucketError, match=r"writing .*checkpoints.* permission (storage.objects|s3:Put)") as failure:
        checkpoints.save(4, _state(4), METADATA)
    assert not isinstance(failure.value, RetryableError), "launchers must not repeat it"
    assert "\n" not in str(failure.value) and "dummy-secret" not in str(failure.value)
    proxy.rule = lambda method, path: 403 if "trainable" in path else None
    with pytest.raises(BucketError, match=r"reading .* denied access"):
        checkpoints.restore(2, _state(0))
    proxy.rule = lambda method, path: None
    assert _same(checkpoints.restore(2, _state(0))[0], _state(2)), "the earlier checkpoint is intact"
