"""`src/bot.py`, unchanged, with a watch on its event loop: python tests/watched_bot.py FILE ...

A task on the loop sleeps for ten milliseconds at a time. Where it wakes up late, the loop was busy
or blocked: FILE gets a line with the time (time.monotonic()), the seconds, and what of them was
this thread's own work and what was collecting garbage. A process of its own, because the test's
work would stand in the way of a loop beside it.
"""

import asyncio
import gc
import runpy
import sys
import time
from pathlib import Path
from typing import NamedTuple

STEP_SECONDS = 0.01
WORTH_A_LINE_SECONDS = 0.002
SCRIPT = Path(__file__).resolve().parent.parent / "src" / "bot.py"


class Late(NamedTuple):
    at: float
    seconds: float
    own_seconds: float
    garbage_seconds: float


class Garbage:
    """Seconds that collecting it has taken so far, in whichever thread."""

    def __init__(self):
        self.seconds = self.began = 0.0
        gc.callbacks.append(self)

    def __call__(self, phase, info):
        now = time.monotonic()
        if phase == "stop":
            self.seconds += now - self.began
        self.began = now


async def watch(path):
    garbage = Garbage()
    with path.open("w", encoding="utf-8", buffering=1) as stream:
        before = time.monotonic(), time.thread_time(), garbage.seconds
        while True:
            await asyncio.sleep(STEP_SECONDS)
            now = time.monotonic(), time.thread_time(), garbage.seconds
            passed, own, collecting = (b - a for a, b in zip(before, now, strict=True))
            before = now
            if passed - STEP_SECONDS > WORTH_A_LINE_SECONDS:
                stream.write(f"{now[0]} {passed - STEP_SECONDS} {own} {collecting}\n")


def latest_of(path, since):
    """Where the loop was latest from that time on."""
    lines = path.read_text(encoding="utf-8").splitlines()
    found = (Late(*map(float, line.split())) for line in lines)
    return max((it for it in found if it.at > since), key=lambda it: it.seconds)


if __name__ == "__main__":
    run = asyncio.run

    async def watched(main, path):
        watching = asyncio.create_task(watch(path))
        try:
            await main
        finally:
            watching.cancel()

    path = Path(sys.argv.pop(1))
    asyncio.run = lambda main: run(watched(main, path))
    sys.argv[0] = str(SCRIPT)
    sys.path[0] = str(SCRIPT.parent)
    runpy.run_path(str(SCRIPT), run_name="__main__")
