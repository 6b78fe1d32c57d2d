"""Signals ask a run to stop: at once where nothing can be lost, and in the end in any case."""

import _signal
import signal
import subprocess
import sys

import pytest

from jaxtl.cli import _show_messages
from jaxtl.errors import Interrupted, UserError
from jaxtl.training.stopping import stop_signals

SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_while_an_item_is_made_raises_at_once(number, code):
    made = []

    def items():
        made.append("begun")
        signal.raise_signal(number)
        made.append("ended")
        yield 1

    with stop_signals() as stop, pytest.raises(Interrupted) as stopped:
        list(stop.interruptible(items()))
    assert made == ["begun"]
    assert (stopped.value.signal, stopped.value.exit_code) == (number, code)


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_between_two_items_waits_for_the_next(number, code):
    with stop_signals() as stop:
        items = stop.interruptible(range(3))
        assert next(items) == 0
        signal.raise_signal(number)
        with pytest.raises(Interrupted) as stopped:
            next(items)
    assert stopped.value.exit_code == code


def test_the_handlers_before_are_back_afterwards():
    before = [signal.getsignal(number) for number, _ in SIGNALS]
    with stop_signals():
        assert signal.getsignal(signal.SIGTERM) not in before
    assert [signal.getsignal(number) for number, _ in SIGNALS] == before


def test_a_signal_between_the_two_handlers_is_not_lost():
    """It comes as soon as the first of them is there."""

    def raise_at_once(frame, event, function):
        if event == "c_return" and function is _signal.signal:
            sys.setprofile(None)
            signal.raise_signal(signal.SIGINT)

    sys.setprofile(raise_at_once)
    with stop_signals() as stop:
        assert stop.is_set()


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_an_error_after_a_signal_is_printed_and_does_not_hide_it(number, code, capsys):
    _show_messages()

    def fails_after_it():
        with stop_signals():
            signal.raise_signal(number)
            raise UserError("the disk is full")

    with pytest.raises(Interrupted) as stopped:
        fails_after_it()
    assert stopped.value.exit_code == code
    assert capsys.readouterr().err.splitlines()[-1] == "error: the disk is full"


def test_an_error_before_a_signal_stays_what_it_is():
    with pytest.raises(UserError), stop_signals():
        raise UserError("the disk is full")


BUSY = """
import time
from jaxtl.training.stopping import stop_signals

with stop_signals():
    print("ready", flush=True)
    while True:
        time.sleep(60)
"""


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_the_process_whatever_it_does(second):
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert "once more stops at once" in process.stderr.readline()
    process.send_signal(second)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (-second, "", "")
