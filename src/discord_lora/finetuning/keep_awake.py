"""Keep the computer from sleeping while it trains, on Windows, macOS and Linux desktops (wakepy).

What it prevents is the sleep that comes by itself. The screen may switch off; a closed lid, an
empty battery and a press of the power button are obeyed.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from wakepy import keep

WAIT_SECONDS = 1.0
"""For the system's answer. A desktop answers within milliseconds, a broken one (a D-Bus that hangs)
after several seconds, for which a run does not wait."""

AWAKE = "The computer is kept awake until this ends (the screen may switch off; leave a lid open)."
NOT_AWAKE = (
    "The computer cannot be kept awake from here; if it goes to sleep by itself, switch that off "
    "in the system's power settings for tonight."
)


@contextmanager
def kept_awake(say: Callable[[str], None], *, wanted: bool = True) -> Iterator[None]:
    """Within this the computer does not go to sleep, if it can be had; `say` gets one sentence."""
    if not wanted:
        yield
        return
    known, over = threading.Event(), threading.Event()
    outcome: list[bool] = []
    # In a thread of its own, which alone enters and leaves: it may hang as long as it likes.
    holder = threading.Thread(target=_hold, args=(outcome, known, over), daemon=True)
    holder.start()
    known.wait(WAIT_SECONDS)
    say(AWAKE if any(outcome) else NOT_AWAKE)
    try:
        yield
    finally:
        over.set()
        holder.join(WAIT_SECONDS)


def _hold(outcome: list[bool], known: threading.Event, over: threading.Event) -> None:
    try:
        with keep.running(on_fail="pass") as mode:
            outcome.append(mode.active)
            known.set()
            over.wait()
    except Exception:  # whatever goes wrong between wakepy and the system must not cost a run
        outcome.append(False)
    finally:
        known.set()
