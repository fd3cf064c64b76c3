"""What may go wrong in a night without ending it: counted, bounded, and kept in checkpoints.

An example that cannot be read, or that does not fit into memory even alone, is set aside. A step
whose loss or gradient is not finite changes nothing; several in a row send the run back to the
last checkpoint with a lower rate; several such returns end it with a diagnosis. So whatever
happens, the run learns, or it stops after a bounded number of steps.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from discord_lora.console import UserError
from discord_lora.conversations.examples import TokenizedExample

Incident = Callable[[str, str], None]
"""Is told what happened: one word for the kind, and a sentence."""

TRIES_ALONE = 8
"""Of an example for which memory runs out: something else may have taken it for a moment."""
LONGEST_PAUSE = 5.0
"""Seconds between two of these tries; they begin with a tenth of a second and double."""

BAD_STEPS_IN_A_ROW = 3
RETURNS = 3
LOWER_RATE = 0.5
"""The learning rate after a return, as a share of the one before."""
LOWER_SCALE = 1 / 16
"""The same for the scale of fp16."""
OVERFLOWS_IN_A_ROW = 5
"""Steps whose gradients fp16 cannot hold are worth a word then: one or two find its scale."""

FEW_SET_ASIDE = 10
SHARE_SET_ASIDE = 0.01
EXAMPLES_NAMED = 3

UNREADABLE = (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError)
"""How a torn cache or a foreign line shows when it is used."""


@dataclass(slots=True)
class Mishaps:
    """Of one run so far."""

    set_aside: dict[str, str] = field(default_factory=dict)
    """Examples that are not trained on, by name, and why."""
    skipped_steps: int = 0
    """Steps whose loss or gradient was not finite."""
    bad_steps_in_a_row: int = 0
    last_bad_step: int = 0
    last_bad_examples: list[str] = field(default_factory=list)
    returns: int = 0
    """To one and the same stretch of steps."""
    overflowed_steps: int = 0
    """Steps whose gradient was too large for fp16 at its scale, which halves then."""
    overflows_in_a_row: int = 0

    @classmethod
    def of(cls, progress: dict[str, Any]) -> "Mishaps":
        """As a checkpoint's progress holds them."""
        return cls(**progress.get("mishaps", {}))

    def as_progress(self) -> dict[str, Any]:
        return {"mishaps": asdict(self)}

    @property
    def left_out(self) -> dict[str, int]:
        """Steps that taught nothing, by the names that the history has for them."""
        return {"not_finite": self.skipped_steps, "overflowed": self.overflowed_steps}

    def put_aside(
        self, example: TokenizedExample, reason: str, examples: int, incident: Incident
    ) -> None:
        """Train without this one.

        Args:
            example: is not trained on any more.
            reason: why, as the end of a sentence.
            examples: how many there are in all.
            incident: is told.

        Raises:
            UserError: too many for chance.
        """
        self.set_aside[name_of(example)] = reason
        most = max(1, min(examples // 2, max(FEW_SET_ASIDE, int(SHARE_SET_ASIDE * examples))))
        sentence = f"{name_of(example)} is set aside: {reason}"
        if len(self.set_aside) > most:
            raise UserError(
                f"{len(self.set_aside)} of {examples:,} examples had to be set aside; the last: "
                f"{reason}. For memory lower MAX_SEQ_LENGTH, set GRADIENT_CHECKPOINTING=true or "
                "choose a smaller BASE_MODEL; for data prepare it anew."
            )
        incident("set_aside", sentence)

    def note_bad_step(
        self, step: int, examples: Sequence[TokenizedExample], what: str, incident: Incident
    ) -> None:
        """A step was left out because `what` was not finite."""
        self.skipped_steps += 1
        self.bad_steps_in_a_row += 1
        self.last_bad_step = step
        self.last_bad_examples = [name_of(example) for example in examples[:EXAMPLES_NAMED]]
        incident("not_finite", f"step {step:,}: {what}; the step is left out")

    def note_overflow(self, step: int, incident: Incident) -> None:
        """fp16 left a step out: its gradient was infinite, and the scale is lower now."""
        self.bad_steps_in_a_row = 0
        self.overflowed_steps += 1
        self.overflows_in_a_row += 1
        if self.overflows_in_a_row == OVERFLOWS_IN_A_ROW:
            incident(
                "fp16_overflow",
                f"step {step:,}: the gradients of {OVERFLOWS_IN_A_ROW} steps in a row were too "
                "large for fp16; these steps taught nothing, and its scale goes on falling",
            )

    def note_good_step(self) -> None:
        self.bad_steps_in_a_row = self.overflows_in_a_row = 0

    def note_checkpoint(self, step: int) -> None:
        """A checkpoint beyond the trouble: from there on a return is a first one again."""
        if step > self.last_bad_step and not self.bad_steps_in_a_row:
            self.returns = 0

    def note_return(self, learning_rate: float, dtype: str) -> None:
        """The run is about to go back.

        Raises:
            UserError: it has gone back too often; says what was seen and what to try.
        """
        self.bad_steps_in_a_row = 0
        self.returns += 1
        if self.returns <= RETURNS:
            return
        raise UserError(
            f"{BAD_STEPS_IN_A_ROW} steps in a row, the last of them step {self.last_bad_step:,}, "
            f"gave a loss or gradient that is not finite, also after {RETURNS} returns to the last "
            f"checkpoint, at last with a learning rate of {learning_rate:.1e}; training in {dtype}."
            f" Step {self.last_bad_step:,} begins with {', '.join(self.last_bad_examples)}. If the "
            "loss rose before it, start over with a lower LEARNING_RATE (--fresh, or another "
            "RUN_NAME). If it was not finite from the first step, BASE_MODEL does not stand "
            f"{dtype} or is damaged: try another one."
        )


def name_of(example: TokenizedExample) -> str:
    """By which people can find it and a resumed run knows it again."""
    try:
        first, *more = example.message_ids
        until = f" to {more[-1]}" if more else ""
    except UNREADABLE:
        return "an example whose messages cannot be read"
    return f"the example of messages {first}{until}"


def why_unreadable(example: TokenizedExample, vocabulary: int) -> str:
    """What is wrong with an example, as the end of a sentence; empty if nothing is."""
    try:
        ids, trained = np.asarray(example.input_ids), np.asarray(example.trained)
        if not 0 < len(ids) == len(trained):
            return "its tokens and its labels are not as many"
        if int(ids.min()) < 0 or int(ids.max()) >= vocabulary:
            return "it holds tokens that the model does not know"
    except UNREADABLE as error:
        return f"it cannot be read ({type(error).__name__}: {error})"
    return ""
