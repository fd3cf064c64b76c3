"""What training leaves for the morning: sample answers in the history, and the report.

Neither is worth a night: what goes wrong here is said on the log and costs itself only.
"""

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console

from discord_lora.analysis.morning.morning_html import REPORT_FILE, write_report
from discord_lora.analysis.morning.morning_page import print_outcome
from discord_lora.analysis.morning.morning_report import read_report
from discord_lora.console import UserError, words_of
from discord_lora.finetuning.packed_attention import usual_attention
from discord_lora.finetuning.processes import is_sharded
from discord_lora.finetuning.training_state import TrainingState
from discord_lora.hardware import release_freed_memory

Answering = Callable[[Any], list[dict[str, str]]]
"""A causal language model in; `prompt`, `real` and `answer` of each question out."""

Say = Callable[[str], None]


def note_answers(
    state: TrainingState, answering: Answering, step: int, say: Say, event: Callable[..., None]
) -> None:
    """Let the model as it is now answer the sample questions; an `answers` event of the history.

    `say` and `event` are those of the run's log.

    Training does not notice: no random numbers are drawn, no gradient is kept, and modules return
    to their mode. Of several processes the main one answers and the others wait. Where weights are
    sharded (FSDP) nothing is answered: all processes would have to write each token together.
    """
    if is_sharded(state.accelerator):
        return
    if state.accelerator.is_main_process:
        try:
            began = time.perf_counter()
            model = state.training_model
            with usual_attention(model.causal_model), state.accelerator.autocast():
                answers = answering(model.model)
            if answers:
                seconds = round(time.perf_counter() - began, 3)
                event("answers", step=step, seconds=seconds, answers=answers)
        except Exception as error:
            say(f"no sample answers after step {step:,}: {what_failed(error)}")
        release_freed_memory()  # training finds it as it left it
    state.accelerator.wait_for_everyone()


def write_report_or_say(folder: Path, say: Say) -> None:
    """`report.html` of the run, as its history stands."""
    try:
        write_report(folder)
    except Exception as error:
        say(f"no morning report: {what_failed(error)}")


@contextmanager
def report_at_the_end(folder: Path, console: Console, *, is_main_process: bool) -> Iterator[None]:
    """However what is inside ends, but for a second Ctrl+C: write the report, print its outcome."""
    try:
        yield
    except Exception:
        if is_main_process:
            _report(folder, console)
        raise
    if is_main_process:
        _report(folder, console)


def _report(folder: Path, console: Console) -> None:
    def say(sentence: str) -> None:
        with suppress(OSError):  # the terminal may be gone
            console.print(sentence, markup=False)

    write_report_or_say(folder, say)
    try:
        report = read_report(folder)
        if report is not None:
            print_outcome(console, report)
            say(f"the night in one page: {folder / REPORT_FILE}")
    except Exception as error:
        say(f"no morning report: {what_failed(error)}")


def what_failed(error: Exception) -> str:
    """In one line; a bug with the place where it is."""
    if isinstance(error, UserError | OSError | MemoryError):
        return words_of(error)
    place = traceback.extract_tb(error.__traceback__)[-1]
    reason = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {reason} ({Path(place.filename).name}, line {place.lineno})"
