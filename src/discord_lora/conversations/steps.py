"""The arithmetic of optimizer steps that everybody does by hand."""

import math


def steps_per_epoch(messages: int, messages_per_step: int) -> int:
    """Optimizer steps in one pass over `messages` target messages: 63,000 at 16 are 3,938."""
    return max(1, math.ceil(messages / messages_per_step))


def steps_of_run(messages: int, messages_per_step: int, epochs: float, max_steps: int = 0) -> int:
    """Of `epochs` passes, which may be a fraction; `max_steps` > 0 ends it earlier."""
    steps = steps_per_epoch(messages, messages_per_step) * epochs
    whole = max(1, math.ceil(round(steps, 6)))
    return min(whole, max_steps) if max_steps else whole
