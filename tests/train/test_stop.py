"""Signals: the run ends wherever it is, and never in the middle of what must be whole."""

import os
import signal
import subprocess
import sys
import time

import pytest

from qkv.train.stop import AGAIN, SIGNALS, Signals, Stopped


def stalled(number):
    """The signal arrives in the middle of it."""
    os.kill(os.getpid(), number)
    time.sleep(5)


def whole(signals, done):
    """A signal inside what is whole, twice."""
    with signals.whole():
        with signals.whole():
            os.kill(os.getpid(), signal.SIGTERM)
        done.append("inner")
        time.sleep(0.01)
        done.append("outer")
    done.append("not this")


def failing(signals):
    """A signal, and an error after it."""
    with signals.whole():
        os.kill(os.getpid(), signal.SIGTERM)
        _ = 1 / 0


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_raises_where_the_run_is(number):
    with Signals() as signals:
        with pytest.raises(Stopped) as stopped:
            stalled(number)
        assert stopped.value.number == number == signals.got
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_what_is_whole_ends_first():
    done = []
    with Signals() as signals, pytest.raises(Stopped):
        whole(signals, done)
    assert done == ["inner", "outer"]


def test_an_error_inside_is_not_hidden_by_the_signal():
    with Signals() as signals, pytest.raises(ZeroDivisionError):
        failing(signals)


def test_saving_after_the_signal_is_not_stopped_by_it_again():
    with Signals() as signals:
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGINT)
        with signals.whole():
            pass


def test_what_may_be_given_up_inside_what_is_whole():
    done = []

    def evaluated(signals):
        with signals.whole():
            with signals.interruptible():
                os.kill(os.getpid(), signal.SIGTERM)
                done.append("not this")
            done.append("nor this")

    with Signals() as signals:
        with pytest.raises(Stopped):
            evaluated(signals)
        with signals.whole():
            done.append("saved")
    assert done == ["saved"]


def test_several_processes_give_up_what_they_may():
    stopped = signal.SIGUSR1
    with Signals(raises=False) as signals:
        with pytest.raises(Stopped), signals.interruptible():
            os.kill(os.getpid(), stopped)
        with pytest.raises(Stopped), signals.interruptible():
            raise AssertionError("it was noted before")
        assert signals.got == stopped


def test_only_a_later_second_signal_ends_the_process(monkeypatch):
    ended = []
    with Signals(exit_now=ended.append) as signals:
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert not ended
        signals._at -= AGAIN
        os.kill(os.getpid(), signal.SIGTERM)
    assert ended == [128 + signal.SIGTERM]


def test_several_processes_only_note_it():
    with Signals(raises=False) as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.got == signal.SIGTERM


def test_a_stalled_wait_is_stopped():
    code = (
        "import queue\nfrom qkv.train.stop import Signals, Stopped\n"
        "with Signals():\n    try:\n        print('waiting', flush=True)\n"
        "        queue.Queue().get()\n    except Stopped as stopped:\n        print(stopped)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "SIGTERM" in out
