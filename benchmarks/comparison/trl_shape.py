"""How TRL is to lay out its rows in each of its configurations."""

import math
from dataclasses import dataclass

from comparison.data import Selection, count_messages, count_tokens
from comparison.job import Job


@dataclass(frozen=True, slots=True)
class Shape:
    """Rows, passes and steps."""

    row_tokens: int
    rows_per_pass: int
    passes_per_step: int
    checkpointing: bool

    @property
    def step_tokens(self) -> int:
        """Tokens of an optimizer step whose rows are full."""
        return self.row_tokens * self.rows_per_pass * self.passes_per_step

    def __str__(self) -> str:
        accumulated = f" x {self.passes_per_step}" if self.passes_per_step > 1 else ""
        checkpointing = ", checkpointing" if self.checkpointing else ""
        return f"{self.rows_per_pass} x {self.row_tokens:,} tokens{accumulated}{checkpointing}"


def choose_shape(job: Job, selection: Selection) -> Shape:
    """Steps of about as many messages as everyone's, in the longest rows or in the fastest ones."""
    is_best = job.task == "trl-best"
    row_tokens = job.row_tokens if is_best else selection.settings.max_seq_length
    examples = selection.whole_conversations(row_tokens)
    a_message = count_tokens(examples) / count_messages(examples)
    step_tokens = a_message * selection.settings.messages_per_step
    if is_best:
        passes = max(1, round(step_tokens / (row_tokens * job.rows_per_pass)))
        return Shape(row_tokens, job.rows_per_pass, passes, checkpointing=False)
    return even_shape(step_tokens, row_tokens, checkpointing=job.task.endswith("checkpointing"))


def even_shape(step_tokens: float, longest: int, *, checkpointing: bool) -> Shape:
    """One row a pass, and rows of one length that together hold about `step_tokens`."""
    passes = max(1, math.ceil(step_tokens / longest))
    row_tokens = min(longest, 32 * round(step_tokens / passes / 32))
    return Shape(row_tokens, 1, passes, checkpointing)
