from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from hpo.core.interrupts import STALLED, StopRequest, handling_signals, watchdog

SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_asks_for_an_end_and_the_second_ends(number, capfd):
    halt, before = StopRequest(), signal.getsignal(number)
    with handling_signals(halt):
        signal.raise_signal(number)
        assert halt.is_set()
        assert "once more to stop at once" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_two_different_signals_are_two():
    with handling_signals(StopRequest()):
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_is_ignored_stays_ignored(number):
    halt, before = StopRequest(), signal.signal(number, signal.SIG_IGN)
    try:
        with handling_signals(halt):
            signal.raise_signal(number)
            signal.raise_signal(number)
            assert signal.getsignal(number) is signal.SIG_IGN
        assert not halt.is_set()
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_in_another_thread_nothing_changes():
    before, inside = [signal.getsignal(number) for number in SIGNALS], []

    def work():
        with handling_signals(StopRequest()):
            inside.extend(signal.getsignal(number) for number in SIGNALS)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == before


def test_without_a_limit_nobody_watches():
    before = threading.active_count()
    with watchdog(StopRequest(), None):
        assert threading.active_count() == before


def test_the_watch_ends_with_what_it_watches():
    before = threading.active_count()
    with watchdog(StopRequest(), 100.0):
        assert threading.active_count() == before + 1
    end = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.01)
    assert threading.active_count() == before


WATCHED = """
import sys, time
import hpo.core.interrupts
from hpo.core.interrupts import StopRequest, watchdog
hpo.core.interrupts.TICK = 0.02
halt = StopRequest()

def a_step_that_hangs():
    time.sleep(60)

with watchdog(halt, {limit}):
    print("began", flush=True)
    {then}
print("ended", flush=True)
"""
LOOKING = "end = time.monotonic() + 1.5\n    while time.monotonic() < end: time.sleep(0.01); halt.is_set()"


def start(then, limit):
    code = WATCHED.format(then=then, limit=limit)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "began\n"
    return process


def test_a_process_in_which_nothing_progresses_ends_and_says_where_it_was():
    process = start("a_step_that_hangs()", 0.3)
    said, error = process.communicate(timeout=30)
    assert (process.returncode, said) == (STALLED, "")
    assert "nothing has progressed for 0.3 s: this process ends" in error
    assert "a_step_that_hangs" in error


def test_a_process_that_looks_at_the_halt_goes_on():
    process = start(LOOKING, 0.5)
    assert process.communicate(timeout=30) == ("ended\n", "")
    assert process.returncode == 0


def test_time_in_which_the_process_is_stopped_does_not_count():
    process = start(LOOKING, 0.5)
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(1.2)
    os.kill(process.pid, signal.SIGCONT)
    assert process.communicate(timeout=30) == ("ended\n", "")
    assert process.returncode == 0


def test_a_halt_that_was_asked_for_before_is_seen():
    halt = StopRequest()
    assert not halt.is_set()
    halt.silent = 9
    halt.set()
    assert halt.silent == 9  # who asks is not who works
    assert halt.is_set()
    assert halt.silent == 0
