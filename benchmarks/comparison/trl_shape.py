"""How TRL is to lay out its rows in each of its configurations."""

import math
from dataclasses import dataclass

from comparison.data import Selection, count_messages
from comparison.job import Job
from discord_lora.conversations.packing import pack

SHORTEST_ROW, ROW_STEP = 64, 32


@dataclass(frozen=True, slots=True)
class Shape:
    """Rows, passes and steps."""

    row_tokens: int
    rows_per_pass: int
    passes_per_step: int
    checkpointing: bool

    def __str__(self) -> str:
        accumulated = f" x {self.passes_per_step}" if self.passes_per_step > 1 else ""
        checkpointing = ", checkpointing" if self.checkpointing else ""
        return f"{self.rows_per_pass} x {self.row_tokens:,} tokens{accumulated}{checkpointing}"


def choose_shape(job: Job, selection: Selection) -> Shape:
    """The fastest rows, or the rows whose steps hold most nearly as many messages as everyone's."""
    wanted = selection.settings.messages_per_step
    if job.task == "trl-best":
        a_pass = messages_per_row(selection, job.row_tokens) * job.rows_per_pass
        passes = max(1, round(wanted / a_pass))
        return Shape(job.row_tokens, job.rows_per_pass, passes, checkpointing=False)
    longest = selection.settings.max_seq_length
    passes = max(1, math.ceil(wanted / messages_per_row(selection, longest)))

    def distance(row_tokens: int) -> float:
        return abs(messages_per_row(selection, row_tokens) * passes - wanted)

    row_tokens = min(range(longest, SHORTEST_ROW - 1, -ROW_STEP), key=distance)
    return Shape(row_tokens, 1, passes, checkpointing=job.task.endswith("checkpointing"))


def messages_per_row(selection: Selection, row_tokens: int) -> float:
    """Messages in a packed row. Rows of whole conversations are never quite full."""
    examples = selection.whole_conversations(row_tokens)
    return count_messages(examples) / len(pack(examples, row_tokens))
