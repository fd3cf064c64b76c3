"""Notices a run that hangs, and a computer that slept. It reports and never interferes."""

import statistics
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

TIMES_THE_USUAL = 10
LEAST_SECONDS = 300.0
POLL_SECONDS = 5.0
SLEPT_SECONDS = 60.0
"""The watchdog's own short wait took so much longer: nothing ran in between."""
STEPS_REMEMBERED = 21

_COUNTS_SLEEP: int | None = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", None))

WHAT_TO_LOOK_AT = (
    "Nothing is lost so far. Look whether text is selected in this window (on Windows that holds "
    "the program: press Esc), at nvidia-smi (is the card still there and busy?) and at free memory "
    "and disk. Where the program stands is in training.log. If it stays so, end it and run the "
    "same command again: it goes on from the last checkpoint"
)


def clock_that_counts_sleep() -> float:
    """Seconds from a fixed moment, a suspended computer's included.

    `time.monotonic` counts them on Windows (GetTickCount64, from Python 3.13 on
    QueryPerformanceCounter), and neither on Linux (CLOCK_MONOTONIC) nor on macOS
    (mach_absolute_time), which have CLOCK_BOOTTIME and CLOCK_MONOTONIC for it.
    """
    if _COUNTS_SLEEP is None:
        return time.monotonic()
    return time.clock_gettime(_COUNTS_SLEEP)


class Watchdog:
    """A daemon thread that wants a sign of life for each piece of work.

    Without one for ten usual steps and five minutes at least, it reports once, with the main
    thread's stack, and once more when the work goes on. (A hang that never releases Python's
    interpreter lock stops the watchdog as well.)

    `incident(what, sentence)` gets the reports, `write(text)` the stack, and `slept(seconds)` how
    much of a suspended computer's time `counter` counted. They are called in this thread.
    """

    def __init__(
        self,
        *,
        incident: Callable[[str, str], None],
        write: Callable[[str], None],
        slept: Callable[[float], None],
        counter: Callable[[], float],
        first_step: int = 0,
        clock: Callable[[], float] = clock_that_counts_sleep,
    ) -> None:
        self._incident = incident
        self._write = write
        self._slept = slept
        self._counter = counter
        self._clock = clock
        self._work = _step_after(first_step)
        self._step_began = self._last = clock()
        self._steps: deque[float] = deque(maxlen=STEPS_REMEMBERED)
        self._hung_since: float | None = None
        self._over = threading.Event()
        self._watched = threading.main_thread().ident
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        self._step_began = self._last = self._clock()
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        self._thread.join(1.0)  # it may hang itself, on a window that takes no output
        if not self._thread.is_alive():
            self._say_that_it_went_on()  # what came to its end between two looks

    def beat(self) -> None:
        """A sign of life in the middle of a piece of work."""
        self._last = self._clock()

    def stepped(self, step: int) -> None:
        """An optimizer step is done."""
        now = self._clock()
        self._steps.append(now - self._step_began)
        self._step_began = self._last = now
        self._work = _step_after(step)

    @contextmanager
    def beside(self, work: str) -> Iterator[None]:
        """What is done in here is called `work` and is no part of a step."""
        before, self._work = self._work, work
        self.beat()
        try:
            yield
        finally:
            self._work = before
            self._step_began = self._last = self._clock()

    def look(self, elapsed: float, counted: float) -> None:
        """One look, `elapsed` seconds after the one before and `counted` of the counter's."""
        gone = elapsed - POLL_SECONDS
        if gone > SLEPT_SECONDS:
            self._step_began += gone
            self._last += gone
            if self._hung_since is not None:
                self._hung_since += gone
            self._slept(max(0.0, counted - POLL_SECONDS))
            self._incident(
                "slept",
                f"the computer slept for {in_words(gone)}, or the program was held: nothing was "
                f"done in that time. In the middle of {self._work} it goes on",
            )
            return
        last = self._last
        idle = self._clock() - last
        usual = statistics.median(self._steps) if self._steps else 0.0
        if self._hung_since is None and idle > max(TIMES_THE_USUAL * usual, LEAST_SECONDS):
            self._hung_since = last
            self._report(idle, usual)
        else:
            self._say_that_it_went_on()

    def _say_that_it_went_on(self) -> None:
        last = self._last
        if self._hung_since is None or last == self._hung_since:
            return
        # From its last sign of life before to the newest one: when it went on is not known.
        stood, self._hung_since = last - self._hung_since, None
        self._incident("went_on", f"it goes on, after {in_words(stood)} without a sign of life")

    def _report(self, idle: float, usual: float) -> None:
        frame = sys._current_frames().get(self._watched or 0)
        stack = "".join(traceback.format_stack(frame)) if frame is not None else "unknown\n"
        self._write(f"no sign of life; the program stands at\n{stack.rstrip()}")
        compare = f"; a usual step takes {in_words(usual)}" if usual else ""
        self._incident(
            "hung",
            f"{self._work} has been running for {in_words(idle)} without a sign of life{compare}. "
            + WHAT_TO_LOOK_AT,
        )

    def _watch(self) -> None:
        while True:
            began, counted = self._clock(), self._counter()
            if self._over.wait(POLL_SECONDS):
                return
            self.look(self._clock() - began, self._counter() - counted)


def _step_after(step: int) -> str:
    return f"step {step + 1:,}"


def in_words(seconds: float) -> str:
    """`3.2 s`, `45 s`, `6 minutes`, `7.2 hours`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 100 * 60 else f"{seconds / 3600:.1f} hours"
