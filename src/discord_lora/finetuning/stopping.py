"""How a run is asked to stop: a key, a signal, a window that closes, or a file named STOP.

It then finishes its step, saves and leaves. Where Windows ends the program within seconds, the step
is given up instead and what was done before it is saved. A second Ctrl+C leaves at once; the last
checkpoint is whole at any moment.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from discord_lora.finetuning.windows_end import ends_of_windows, kept_from_ending

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


class StopRequest:
    """Whether somebody wants the run to stop."""

    def __init__(self, folder: Path | None, say: Callable[[str], None]) -> None:
        """Look for STOP in `folder`, if there is one; `say` gets a line for the log."""
        self._files = [folder / name for name in STOP_FILES] if folder else []
        self._say = say
        self.in_a_hurry = False
        """The system ends the program within seconds."""
        self._reasons: list[str] = []
        self._said = False
        self._looked = -LOOK_EVERY_SECONDS
        self._clear()

    def ask(self, reason: str) -> None:
        """From a signal handler or another thread: only takes a note."""
        self._reasons.append(reason)

    def ask_in_a_hurry(self, reason: str) -> None:
        """The same, when the rest of a step may be more time than there is."""
        self.in_a_hurry = True
        self.ask(reason)

    def asked_by(self, reason: str) -> bool:
        return reason in self._reasons

    def made(self) -> bool:
        """True once the run has to stop."""
        now = time.monotonic()
        if not self._reasons and self._files and now - self._looked >= LOOK_EVERY_SECONDS:
            self._looked = now
            for file in self._files:
                if _is_there(file):
                    self.ask(f"the file {file}")
                    _remove(file)
        if self._reasons and not self._said:
            self._said = True
            self._say(f"asked to stop ({self._reasons[0]})")
        return bool(self._reasons)

    def _clear(self) -> None:
        """A file from before the start was meant for another run."""
        for file in list(self._files):
            if not _is_there(file):
                continue
            if _remove(file):
                self._say(f"{file} was there before the start and is removed")
            else:
                self._files.remove(file)
                self._say(f"{file} was there before the start and cannot be removed: not obeyed")


def _is_there(file: Path) -> bool:
    """False also where a drive does not answer for a moment: that must not end the night."""
    try:
        return file.exists()
    except OSError:
        return False


def _remove(file: Path) -> bool:
    with suppress(OSError):
        file.unlink()
    return not _is_there(file)


@contextmanager
def stop_on_signal(
    folder: Path | None = None, say: Callable[[str], None] = lambda _line: None
) -> Iterator[StopRequest]:
    """Gives what knows whether the run is to stop.

    `folder` is where a file named STOP asks for it. The context has to enclose everything that
    must be done before the program may end: a closed window, log-off and shutdown wait for that.
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
        with kept_from_ending(request.ask_in_a_hurry, *ends_of_windows()):
            yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
