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
def test_the_first_signal_asks_to_stop_and_the_second_interrupts(number, capfd):
    request, before = StopRequest(), signal.getsignal(number)
    with handling_signals(request):
        signal.raise_signal(number)
        assert request.is_set()
        assert "once more to stop at once" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_two_different_signals_count_as_two():
    with handling_signals(StopRequest()):
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_is_ignored_stays_ignored(number):
    request, before = StopRequest(), signal.signal(number, signal.SIG_IGN)
    try:
        with handling_signals(request):
            signal.raise_signal(number)
            signal.raise_signal(number)
            assert signal.getsignal(number) is signal.SIG_IGN
        assert not request.is_set()
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_outside_the_main_thread_no_handler_is_changed():
    before, inside = [signal.getsignal(number) for number in SIGNALS], []

    def work():
        with handling_signals(StopRequest()):
            inside.extend(signal.getsignal(number) for number in SIGNALS)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == before


def test_without_a_limit_there_is_no_watchdog():
    before = threading.active_count()
    with watchdog(StopRequest(), None):
        assert threading.active_count() == before


def test_the_watchdog_ends_with_its_context():
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
request = StopRequest()

def a_step_that_hangs():
    time.sleep(60)

with watchdog(request, {limit}):
    print("began", flush=True)
    {then}
print("ended", flush=True)
"""
READING = "end = time.monotonic() + 1.5\n    while time.monotonic() < end: time.sleep(0.01); request.is_set()"


def start(then, limit):
    code = WATCHED.format(then=then, limit=limit)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "began\n"
    return process


def test_a_process_without_progress_ends_with_a_traceback():
    process = start("a_step_that_hangs()", 0.3)
    said, error = process.communicate(timeout=30)
    assert (process.returncode, said) == (STALLED, "")
    assert "nothing has progressed for 0.3 s: this process ends" in error
    assert "a_step_that_hangs" in error


def test_a_process_that_reads_the_request_goes_on():
    process = start(READING, 0.5)
    assert process.communicate(timeout=30) == ("ended\n", "")
    assert process.returncode == 0


def test_time_in_which_the_process_is_stopped_does_not_count():
    process = start(READING, 0.5)
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(1.2)
    os.kill(process.pid, signal.SIGCONT)
    assert process.communicate(timeout=30) == ("ended\n", "")
    assert process.returncode == 0


def test_reading_the_request_resets_the_ticks_and_setting_it_does_not():
    request = StopRequest()
    assert not request.is_set()
    request.silent = 9
    request.set()
    assert request.silent == 9  # setting is not reading
    assert request.is_set()
    assert request.silent == 0
