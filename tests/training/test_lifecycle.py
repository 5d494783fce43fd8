"""Signals to a single process: which are caught, passed on, or stop the run at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from earthgpt_jax.common import processes
from earthgpt_jax.training.lifecycle import PreemptionSignal


@pytest.fixture
def passed_on() -> Iterator[list[int]]:
    """Signals that reach the handlers installed before."""
    received: list[int] = []
    before = {
        number: signal.signal(number, lambda n, _: received.append(n)) for number in (signal.SIGTERM, signal.SIGINT)
    }
    yield received
    for number, handler in before.items():
        signal.signal(number, handler)


def test_without_a_signal_nothing_is_received(passed_on):
    with PreemptionSignal() as preemption:
        assert not preemption.received(1)
    signal.raise_signal(signal.SIGTERM)
    assert passed_on == [signal.SIGTERM], "the previous handlers are restored"


def test_sigterm_stops_after_the_step_and_more_sigterms_change_nothing(passed_on, capfd):
    with PreemptionSignal() as preemption:
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
        assert preemption.received(5)
        assert preemption.exit_status == 75
        assert preemption.reason().startswith("SIGTERM, 0.")
    assert passed_on == []
    assert capfd.readouterr().err.count("SIGTERM: saving after this step") == 1


def test_ctrl_c_stops_after_the_step_and_a_second_one_at_once(passed_on):
    with PreemptionSignal() as preemption:
        signal.raise_signal(signal.SIGINT)
        assert preemption.received(5) and preemption.exit_status == 130
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_signal_after_the_last_step_is_passed_to_the_previous_handler(passed_on):
    with PreemptionSignal():
        signal.raise_signal(signal.SIGTERM)
        assert passed_on == []
    assert passed_on == [signal.SIGTERM]


def test_a_signal_does_not_hide_an_error(passed_on):
    def run() -> None:
        with PreemptionSignal():
            signal.raise_signal(signal.SIGTERM)
            raise ValueError("loss")

    with pytest.raises(ValueError, match="loss"):
        run()
    assert passed_on == []


def test_outside_the_main_thread_no_signal_is_caught(passed_on):
    def in_a_thread() -> None:
        with PreemptionSignal() as preemption:
            assert not preemption.received(1)
            seen.append(signal.getsignal(signal.SIGTERM))

    seen: list[object] = []
    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=in_a_thread)
    thread.start()
    thread.join()
    assert seen == [before]


def _worker(ready, *ignored) -> None:
    processes.init_worker(*ignored)
    ready.set()
    time.sleep(600)


@pytest.mark.parametrize(("ignored", "ends"), [((), True), ((signal.SIGTERM,), False)])
def test_data_workers_can_ignore_a_sigterm_to_all_processes(ignored, ends):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    worker = context.Process(target=_worker, args=(ready, *ignored))
    worker.start()
    assert ready.wait(120)
    os.kill(worker.pid, signal.SIGTERM)
    worker.join(60 if ends else 0.3)
    assert worker.is_alive() is not ends
    worker.kill()
    worker.join()
