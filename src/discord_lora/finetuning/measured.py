"""Held-out losses of a run: which adapter is the best one, and whether to go on at all."""

import math
from dataclasses import dataclass, field


@dataclass(slots=True)
class Measured:
    """What was measured after training had begun."""

    last_step: int = 0
    """0: nothing was."""
    last: dict[str, float] = field(default_factory=dict)
    """`nats_per_token` and `bits_per_character`."""
    best_step: int = 0
    best: dict[str, float] = field(default_factory=dict)
    worse: int = 0
    """Measurements since the best one."""
    messages: int = 0
    """That were measured."""

    def note(self, step: int, figures: dict[str, float], messages: int) -> None:
        """A measurement after `step`: `figures` as in `last`, over so many messages."""
        if messages != self.messages:  # some were set aside: what was before compares no more
            self.messages, self.best_step, self.best, self.worse = messages, 0, {}, 0
        self.last_step, self.last = step, figures
        if figures["nats_per_token"] < self.best.get("nats_per_token", math.inf):
            self.best_step, self.best, self.worse = step, figures, 0
        else:
            self.worse += 1

    def lose_best(self, saved: "Measured") -> None:
        """No checkpoint could be written here: the best one is as it was `saved` the last time.

        What counts for patience stays: the loss did get better.
        """
        comparable = saved.messages == self.messages
        self.best_step, self.best = (saved.best_step, saved.best) if comparable else (0, {})

    def is_out_of_patience(self, patience: int) -> bool:
        """EARLY_STOPPING_PATIENCE measurements without a better one; 0 never is."""
        return 0 < patience <= self.worse
