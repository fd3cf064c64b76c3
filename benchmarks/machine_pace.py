"""What else the machine does while something is measured on it."""

import os
import statistics
import sys
import time
from dataclasses import dataclass
from threading import Event, Thread

import psutil

EVERY_SECONDS, LITTLE_WORK = 2.0, 100_000


class Pace(Thread):
    """Looks now and then how much of a processor's time a little work takes (0.5 % of one)."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.over = Event()
        self.seconds: list[float] = []

    def run(self) -> None:
        while not self.over.wait(EVERY_SECONDS):
            began = time.thread_time()
            sum(number * number for number in range(LITTLE_WORK))
            self.seconds.append(time.thread_time() - began)

    def __enter__(self) -> "Pace":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.join()

    def times_slower_than(self, before: "Pace") -> float:
        """1.0 where nobody can say: Windows counts a processor's time in ticks of 16 ms, and what
        was measured may have been over before the first look."""
        if sys.platform == "win32" or not self.seconds or not before.seconds:
            return 1.0
        return statistics.fmean(self.seconds) / statistics.fmean(before.seconds)


@dataclass(frozen=True, slots=True)
class Busy:
    """Seconds so far: of processors at work, of this program and those it started, of a clock.

    (Windows does not tell what started programs took: all of it is others there.)
    """

    all: float
    own: float
    clock: float

    @classmethod
    def now(cls) -> "Busy":
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        return cls(sum(times[:8]) - idle, sum(os.times()[:4]), time.perf_counter())

    def share_of_others_since(self, before: "Busy") -> float:
        others = (self.all - before.all) - (self.own - before.own)
        return others / (self.clock - before.clock) / (psutil.cpu_count() or 1)
