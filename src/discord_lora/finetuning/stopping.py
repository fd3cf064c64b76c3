"""How a run is asked to stop: a key, a signal, a window that closes, or a file named STOP.

It then finishes its step, saves and leaves. A second Ctrl+C leaves at once; the last checkpoint is
whole at any moment.
"""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

STOP_FILES = ("STOP", "STOP.txt")
"""The second is what Notepad makes of the first."""
LOOK_EVERY_SECONDS = 1.0

SIGNALS = {
    "SIGINT": "Ctrl+C",
    "SIGBREAK": "Ctrl+Break",
    "SIGTERM": "SIGTERM",
    "SIGHUP": "SIGHUP: its terminal is gone",
}
KEYS = ("SIGINT", "SIGBREAK")
"""What a person presses. Whatever else stops a program may well come twice by itself."""

CONSOLE_EVENTS = {2: "its window was closed", 5: "log-off", 6: "shutdown"}
"""CTRL_CLOSE_EVENT, CTRL_LOGOFF_EVENT, CTRL_SHUTDOWN_EVENT."""

_callbacks: list[object] = []  # Windows may still be in one when its run is over


class StopRequest:
    """Whether somebody wants the run to stop."""

    def __init__(self, folder: Path | None, say: Callable[[str], None]) -> None:
        """Look for STOP in `folder`, if there is one; `say` gets a line for the log."""
        self._files = [folder / name for name in STOP_FILES] if folder else []
        self._say = say
        self._reasons: list[str] = []
        self._said = False
        self._looked = -LOOK_EVERY_SECONDS
        self._clear()

    def ask(self, reason: str) -> None:
        """From a signal handler or another thread: only takes a note."""
        self._reasons.append(reason)

    def asked_by(self, reason: str) -> bool:
        return reason in self._reasons

    def made(self) -> bool:
        """True once the run has to stop."""
        now = time.monotonic()
        if not self._reasons and self._files and now - self._looked >= LOOK_EVERY_SECONDS:
            self._looked = now
            for file in self._files:
                if file.exists():
                    self.ask(f"the file {file}")
                    _remove(file)
        if self._reasons and not self._said:
            self._said = True
            self._say(f"asked to stop ({self._reasons[0]})")
        return bool(self._reasons)

    def _clear(self) -> None:
        """A file from before the start was meant for another run."""
        for file in list(self._files):
            if not file.exists():
                continue
            if _remove(file):
                self._say(f"{file} was there before the start and is removed")
            else:
                self._files.remove(file)
                self._say(f"{file} was there before the start and cannot be removed: not obeyed")


def _remove(file: Path) -> bool:
    with suppress(OSError):
        file.unlink()
    return not file.exists()


@contextmanager
def stop_on_signal(
    folder: Path | None = None, say: Callable[[str], None] = lambda _line: None
) -> Iterator[Callable[[], bool]]:
    """Gives a function that is true once the run is to stop.

    `folder` is where a file named STOP asks for it. The context has to enclose everything that
    must be done before the program may end: on Windows, a closed window waits for that.
    """
    request = StopRequest(folder, say)

    def handle(number: int, _frame: object) -> None:
        name = signal.Signals(number).name
        if name in KEYS and request.asked_by(SIGNALS[name]):
            raise KeyboardInterrupt
        request.ask(SIGNALS[name])
        # Not through the log or rich: the signal may have come while they were writing.
        with suppress(OSError):  # its terminal may be gone
            os.write(2, b"\nStopping after this step and saving; Ctrl+C again leaves at once.\n")

    before: dict[int, Any] = {}
    for name in SIGNALS:
        number = getattr(signal, name, None)
        # `nohup` lets a program ignore the end of its terminal.
        if number and not (name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN):
            before[number] = signal.signal(number, handle)
    try:
        with console_kept_open(request.ask, windows_console()):
            yield request.made
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def windows_console() -> Any:
    """Windows' library of console functions; None elsewhere."""
    if sys.platform == "win32":
        return ctypes.windll.kernel32
    return None


@contextmanager
def console_kept_open(ask: Callable[[str], None], kernel32: Any) -> Iterator[None]:
    """On Windows, let a closing console wait until this context is left.

    Windows tells a console program of the end in a thread of its own, and ends it as soon as that
    thread returns; Python would make a SIGBREAK of it and return at once. Windows waits for 5
    seconds (SPI_GETHUNGAPPTIMEOUT for a closed window, SPI_GETWAITTOKILLTIMEOUT else) and then ends
    the program all the same: a step and a save that take longer are lost, and the run goes on from
    the checkpoint before. Log-off and shutdown are not told to programs that have loaded user32.dll
    (Microsoft on HandlerRoutine and SetConsoleCtrlHandler), so there that is the rule. Not measured
    on Windows.
    """
    if kernel32 is None:
        yield
        return
    saved = threading.Event()

    def handle(event: int) -> bool:
        if event not in CONSOLE_EVENTS:
            return False  # Ctrl+C and Ctrl+Break go on to Python
        ask(CONSOLE_EVENTS[event])
        saved.wait()
        return True

    # On Windows WINFUNCTYPE; the difference is how the stack is cleaned up, on 32 bits only.
    kind = getattr(ctypes, "WINFUNCTYPE", ctypes.CFUNCTYPE)
    callback = kind(ctypes.c_int, ctypes.c_uint)(handle)
    _callbacks.append(callback)
    kernel32.SetConsoleCtrlHandler(callback, 1)
    try:
        yield
    finally:
        saved.set()
        kernel32.SetConsoleCtrlHandler(callback, 0)
