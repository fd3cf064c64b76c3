import ctypes
import errno
import queue
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from discord_lora.finetuning import stopping, windows_end
from discord_lora.finetuning.stopping import stop_on_signal
from discord_lora.finetuning.windows_end import kept_from_ending
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
    with stop_on_signal(None, said.append) as request:
        assert not request.made()
        send(number)
        assert request.made() and request.made() and not request.in_a_hurry
    assert signal.getsignal(number) == before
    assert len(said) == 1 and said[0].startswith("asked to stop (")
    assert "Stopping after this step" in capfd.readouterr().err


def test_a_second_ctrl_c_leaves_at_once():
    with stop_on_signal() as request:
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        assert request.made()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_what_comes_twice_by_itself_does_not_leave_at_once(number):
    """A closing terminal and a shutdown send more than one."""
    as_in_a_terminal(number)
    with stop_on_signal() as request:
        send(number)
        send(number)
        send(signal.SIGINT)  # the first key that somebody presses
        assert request.made()
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_nohup_is_obeyed(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signal() as request:
            send(signal.SIGHUP)
            assert not request.made()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("name", ["STOP", "STOP.txt"])
def test_a_file_named_stop_asks_and_is_removed(tmp_path, name):
    said = []
    with stop_on_signal(tmp_path, said.append) as request:
        assert not request.made()
        (tmp_path / name).touch()
        assert request.made()
        assert list(tmp_path.iterdir()) == []
        assert request.made()
    assert said == [f"asked to stop (the file {tmp_path / name})"]


def test_a_drive_that_does_not_answer_for_a_moment_ends_no_night(tmp_path, monkeypatch):
    exists, failures = Path.exists, [1, 1, 1]

    def not_at_once(path):
        if failures:
            failures.pop()
            raise OSError(errno.EIO, "planted")
        return exists(path)

    with stop_on_signal(tmp_path) as request:
        monkeypatch.setattr(Path, "exists", not_at_once)
        assert not request.made()
        (tmp_path / "STOP").touch()
        assert not request.made(), "the first of both names is not known yet"
        assert request.made()


def test_a_stop_from_before_the_start_is_removed_and_said(tmp_path):
    (tmp_path / "STOP").touch()
    said = []
    with stop_on_signal(tmp_path, said.append) as request:
        assert not request.made()
    assert said == [f"{tmp_path / 'STOP'} was there before the start and is removed"]
    assert not (tmp_path / "STOP").exists()


def test_a_stop_that_cannot_be_removed_does_not_stop_every_start(tmp_path):
    (tmp_path / "STOP").mkdir()  # unlink fails on it
    said = []
    with stop_on_signal(tmp_path, said.append) as request:
        assert not request.made()
    assert "cannot be removed" in said[0]


def test_the_file_is_looked_for_once_a_second_at_most(tmp_path, monkeypatch):
    monkeypatch.setattr(stopping, "LOOK_EVERY_SECONDS", 0.2)
    with stop_on_signal(tmp_path) as request:
        request.made()
        (tmp_path / "STOP").touch()
        assert not request.made()
        time.sleep(0.25)
        assert request.made()


class FakeKernel32:
    """Windows' list of handlers; `tell` calls the newest first, each event in its own thread."""

    def __init__(self):
        self.handlers = []

    def SetConsoleCtrlHandler(self, handler, add):  # noqa: N802
        (self.handlers.append if add else self.handlers.remove)(handler)
        return 1

    def GetModuleHandleW(self, _name):  # noqa: N802
        return 4711

    def tell(self, event):
        answers = []
        thread = threading.Thread(
            target=lambda: answers.append(any(it(event) for it in reversed(self.handlers)))
        )
        thread.start()
        return thread, answers


class FakeUser32:
    """One window. As on Windows, its procedure runs in its own thread, in the wait for messages;
    `send` waits for the answer as the system does."""

    HANDLE = 99

    def __init__(self, refuses=False):
        self.refuses, self.queue, self.reasons = refuses, queue.Queue(), []
        self.procedure = self.thread = None

    def RegisterClassW(self, kind):  # noqa: N802
        self.procedure, self.thread = kind._obj.lpfnWndProc, threading.current_thread()
        assert kind._obj.hInstance == 4711
        return not self.refuses

    def CreateWindowExW(self, *_arguments):  # noqa: N802
        assert threading.current_thread() is self.thread
        return self.HANDLE

    def GetMessageW(self, _message, _window, _first, _last):  # noqa: N802
        while True:
            message, answers = self.queue.get(timeout=10)
            if message == "quit":
                return 0
            answers.put(self.procedure(self.HANDLE, *message))

    def DefWindowProcW(self, _window, message, _first, _second):  # noqa: N802
        if message == windows_end.WM_CLOSE:  # it destroys the window
            self.procedure(self.HANDLE, windows_end.WM_DESTROY, 0, 0)
        return 7

    def PostQuitMessage(self, _code):  # noqa: N802
        self.queue.put(("quit", None))

    def PostMessageW(self, _window, message, first, second):  # noqa: N802
        self.queue.put(((message, first, second), queue.Queue()))

    def ShutdownBlockReasonCreate(self, _window, reason):  # noqa: N802
        self.reasons.append(reason)

    def ShutdownBlockReasonDestroy(self, _window):  # noqa: N802
        self.reasons.append(None)

    def send(self, message, first=0, second=0):
        answers = queue.Queue()
        self.queue.put(((message, first, second), answers))
        return answers


@pytest.mark.parametrize("event", [2, 5, 6])
def test_a_closing_window_waits_until_all_is_saved(event):
    kernel32, asked = FakeKernel32(), []
    with kept_from_ending(asked.append, kernel32, FakeUser32()):
        assert isinstance(kernel32.handlers[0], ctypes._CFuncPtr)
        thread, answers = kernel32.tell(event)
        thread.join(0.2)
        assert thread.is_alive(), "Windows ends the program when this returns"
        assert asked == [windows_end.CONSOLE_EVENTS[event]]
    thread.join(5)
    assert answers == [True]
    assert kernel32.handlers == []


@pytest.mark.parametrize("event", [0, 1])
def test_keys_go_on_to_python(event):
    kernel32, asked = FakeKernel32(), []
    with kept_from_ending(asked.append, kernel32, FakeUser32()):
        thread, answers = kernel32.tell(event)
        thread.join(5)
    assert (answers, asked) == ([False], [])


@pytest.mark.parametrize(("flags", "reason"), [(0, "shutdown"), (-0x80000000, "log-off")])
def test_shutdown_and_log_off_wait_until_all_is_saved(flags, reason):
    user32, asked = FakeUser32(), []
    with kept_from_ending(asked.append, FakeKernel32(), user32):
        assert user32.send(windows_end.WM_QUERYENDSESSION, 0, flags).get(timeout=5) == 1
        assert asked == [], "another program may still object"
        ended = user32.send(windows_end.WM_ENDSESSION, 1, flags)
        with pytest.raises(queue.Empty):
            ended.get(timeout=0.2)
        assert (asked, user32.reasons) == ([reason], [windows_end.WHY_IT_WAITS])
    assert ended.get(timeout=5) == 0
    assert user32.reasons[-1] is None
    assert not user32.thread.is_alive()


def test_a_shutdown_that_is_called_off_stops_nothing():
    user32, asked = FakeUser32(), []
    with kept_from_ending(asked.append, FakeKernel32(), user32):
        assert user32.send(windows_end.WM_QUERYENDSESSION).get(timeout=5) == 1
        assert user32.send(windows_end.WM_ENDSESSION, 0).get(timeout=5) == 0
        assert user32.send(0x400).get(timeout=5) == 7, "other messages are Windows' own business"
    assert (asked, user32.reasons[-1]) == ([], None)


def test_without_a_window_the_console_is_still_listened_to():
    kernel32, user32, asked = FakeKernel32(), FakeUser32(refuses=True), []
    with kept_from_ending(asked.append, kernel32, user32):
        thread, _ = kernel32.tell(2)
    thread.join(5)
    assert asked == ["its window was closed"]
    user32.thread.join(5)
    assert not user32.thread.is_alive()


def test_a_closing_window_is_a_request_in_a_hurry(monkeypatch):
    kernel32, said = FakeKernel32(), []
    monkeypatch.setattr(stopping, "ends_of_windows", lambda: (kernel32, FakeUser32()))
    with stop_on_signal(None, said.append) as request:
        assert not request.in_a_hurry
        thread, _ = kernel32.tell(2)
        while not request.made():
            time.sleep(0.01)
        assert request.in_a_hurry
    thread.join(5)
    assert said == ["asked to stop (its window was closed)"]
