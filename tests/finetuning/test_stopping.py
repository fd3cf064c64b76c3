import ctypes
import signal
import sys
import threading
import time

import pytest

from discord_lora.finetuning import stopping
from discord_lora.finetuning.stopping import console_kept_open, stop_on_signal
from run_scripts import as_in_a_terminal

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sends signals the POSIX way")


@pytest.fixture(autouse=True)
def look_often(monkeypatch):
    monkeypatch.setattr(stopping, "LOOK_EVERY_SECONDS", 0.0)


def send(number):
    signal.raise_signal(number)  # in this thread: os.kill may choose another, and be late


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_only_asks_and_the_log_says_why(number, capfd):
    before, said = as_in_a_terminal(number), []
    with stop_on_signal(None, said.append) as requested:
        assert not requested()
        send(number)
        assert requested() and requested()
    assert signal.getsignal(number) == before
    assert len(said) == 1 and said[0].startswith("asked to stop (")
    assert "Stopping after this step" in capfd.readouterr().err


def test_a_second_ctrl_c_leaves_at_once():
    with stop_on_signal() as requested:
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        assert requested()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_what_comes_twice_by_itself_does_not_leave_at_once(number):
    """A closing terminal and a shutdown send more than one."""
    as_in_a_terminal(number)
    with stop_on_signal() as requested:
        send(number)
        send(number)
        send(signal.SIGINT)  # the first key that somebody presses
        assert requested()
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_nohup_is_obeyed(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signal() as requested:
            send(signal.SIGHUP)
            assert not requested()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("name", ["STOP", "STOP.txt"])
def test_a_file_named_stop_asks_and_is_removed(tmp_path, name):
    said = []
    with stop_on_signal(tmp_path, said.append) as requested:
        assert not requested()
        (tmp_path / name).touch()
        assert requested()
        assert list(tmp_path.iterdir()) == []
        assert requested()
    assert said == [f"asked to stop (the file {tmp_path / name})"]


def test_a_stop_from_before_the_start_is_removed_and_said(tmp_path):
    (tmp_path / "STOP").touch()
    said = []
    with stop_on_signal(tmp_path, said.append) as requested:
        assert not requested()
    assert said == [f"{tmp_path / 'STOP'} was there before the start and is removed"]
    assert not (tmp_path / "STOP").exists()


def test_a_stop_that_cannot_be_removed_does_not_stop_every_start(tmp_path):
    (tmp_path / "STOP").mkdir()  # unlink fails on it
    said = []
    with stop_on_signal(tmp_path, said.append) as requested:
        assert not requested()
    assert "cannot be removed" in said[0]


def test_the_file_is_looked_for_once_a_second_at_most(tmp_path, monkeypatch):
    monkeypatch.setattr(stopping, "LOOK_EVERY_SECONDS", 0.2)
    with stop_on_signal(tmp_path) as requested:
        requested()
        (tmp_path / "STOP").touch()
        assert not requested()
        time.sleep(0.25)
        assert requested()


class FakeKernel32:
    """Windows' list of handlers; `tell` calls the newest first, each event in its own thread."""

    def __init__(self):
        self.handlers = []

    def SetConsoleCtrlHandler(self, handler, add):  # noqa: N802
        (self.handlers.append if add else self.handlers.remove)(handler)
        return 1

    def tell(self, event):
        answers = []
        thread = threading.Thread(
            target=lambda: answers.append(any(it(event) for it in reversed(self.handlers)))
        )
        thread.start()
        return thread, answers


@pytest.mark.parametrize("event", [2, 5, 6])
def test_a_closing_window_waits_until_all_is_saved(event):
    kernel32, asked = FakeKernel32(), []
    with console_kept_open(asked.append, kernel32):
        assert isinstance(kernel32.handlers[0], ctypes._CFuncPtr)
        thread, answers = kernel32.tell(event)
        thread.join(0.2)
        assert thread.is_alive(), "Windows ends the program when this returns"
        assert asked == [stopping.CONSOLE_EVENTS[event]]
    thread.join(5)
    assert answers == [True]
    assert kernel32.handlers == []


@pytest.mark.parametrize("event", [0, 1])
def test_keys_go_on_to_python(event):
    kernel32, asked = FakeKernel32(), []
    with console_kept_open(asked.append, kernel32):
        thread, answers = kernel32.tell(event)
        thread.join(5)
    assert (answers, asked) == ([False], [])


def test_a_closing_window_is_a_request_like_any_other(monkeypatch):
    kernel32, said = FakeKernel32(), []
    monkeypatch.setattr(stopping, "windows_console", lambda: kernel32)
    with stop_on_signal(None, said.append) as requested:
        thread, _ = kernel32.tell(2)
        while not requested():
            time.sleep(0.01)
    thread.join(5)
    assert said == ["asked to stop (its window was closed)"]
