"""`src/bot.py`, unchanged, with a watch on its event loop: python tests/watched_bot.py FILE ...

A task on the loop sleeps for ten milliseconds at a time. Where it wakes up late, the loop was busy
or blocked: FILE gets a line with the time (time.monotonic()) and the seconds. A process of its own,
because the test's work would stand in the way of a loop beside it.
"""

import asyncio
import runpy
import sys
import time
from pathlib import Path

STEP_SECONDS = 0.01
WORTH_A_LINE_SECONDS = 0.002
SCRIPT = Path(__file__).resolve().parent.parent / "src" / "bot.py"


async def watch(path):
    with path.open("w", encoding="utf-8", buffering=1) as stream:
        before = time.monotonic()
        while True:
            await asyncio.sleep(STEP_SECONDS)
            now = time.monotonic()
            late = now - before - STEP_SECONDS
            before = now
            if late > WORTH_A_LINE_SECONDS:
                stream.write(f"{now} {late}\n")


def delays(path, since):
    """Seconds by which the loop was late, each time from that time on."""
    lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    return [float(late) for at, late in lines if float(at) > since]


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
