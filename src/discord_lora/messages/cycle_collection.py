"""Work that makes objects by the hundred thousand, without Python looking for cycles in them."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_cycle_collection() -> Iterator[None]:
    """Messages, tokens and libraries that load leave no cycles behind worth the search for them,
    which costs up to a quarter of the time.

    The search starts again and again while objects are made, and each time walks through all that
    are kept. Also a decorator: `@without_cycle_collection()`.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
