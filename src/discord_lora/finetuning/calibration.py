"""Times real micro-batches of the run to come, so that the night's length is known before it."""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import psutil
import torch

from discord_lora.analysis.plan.estimates import time_model_of
from discord_lora.analysis.plan.time_model import TimeModel, Work, fit
from discord_lora.analysis.plan.timings import Timing, add_timing, deciding, newest_timing
from discord_lora.base_model import shape_of
from discord_lora.conversations.examples import TokenizedExample
from discord_lora.conversations.packing import collate, pack
from discord_lora.finetuning.checkpoints import save_checkpoint
from discord_lora.finetuning.fast_paths import random_example
from discord_lora.finetuning.out_of_memory import try_largest
from discord_lora.finetuning.training_state import TrainingState, snapshot
from discord_lora.hardware import Hardware, release_freed_memory, release_freed_ram
from discord_lora.settings import Settings

Row = Sequence[TokenizedExample]

QUANTILES = (0.0, 0.5, 0.95, 1.0)
"""Of the micro-batches by length: the shortest, the median, a long one, the longest."""

LEAST_TIMES, LONG_ENOUGH = 5, 120.0
"""Rounds of them, and seconds. A processor that is shared with other machines keeps one pace for a
minute at times, and a card is faster as long as it is cold: what a few rounds see may be nothing
like a night."""

FIRST_ROWS = 20
"""Micro-batches that pass before the timing. How much one holds at most hangs on what lies free in
the heap, and four that take turns meet the same heap each time. With them goes the one that
predicts the most: a computer's memory keeps the place for as many logits from then on, and a
held-out one may need more still."""

BEFORE_TIMING = 0.25
"""Of a calibration's time, on two cores with the sample model: for its progress alone."""

FEW_TOKENS, FEW_TIMES = 4, 5
STEPS_LOOKED_AT = 400

LEAST_STEPS_TIMED = 20
"""Of a run: fewer say little about the next one."""


def calibrate(
    state: TrainingState,
    settings: Settings,
    hardware: Hardware,
    progress: Callable[[float], None] = lambda _share: None,
    *,
    fetching_seconds: float = 0.0,
) -> Timing:
    """Run the first micro-batches forth and back as the run would, and those with the most targets;
    then some, for two minutes, or five times each where that takes longer; an optimizer step; a
    checkpoint.

    Gradients and optimizer states are nonsense afterwards: throw the state away.

    Args:
        state: as it would begin to train.
        settings: of the run.
        hardware: where it runs.
        progress: is called with the share that is done, 0 to 1.
        fetching_seconds: of the time since the start, what the next start will not need.
    """
    loading_bytes = hardware.peak_bytes()
    try_largest(state, lambda _what, _sentence: None)  # also makes thread pools, fills caches
    release_freed_memory()  # as a run does it
    start_up = seconds_since_start() - fetching_seconds  # as a run counts it
    looked_at = list(rows_of(state, islice(state.plan.walk(), STEPS_LOOKED_AT)))
    rows = chosen_rows(looked_at)
    step_seconds = statistics.median(_optimizer_seconds(state, hardware) for _ in range(3))
    spent: list[list[float]] = [[] for _ in rows]
    if state.validation:
        _forward(state, most_targets(rows_of(state, [state.validation])), hardware)
        release_freed_memory()  # as a run does it
    hardware.forget_peak()
    untimed = [most_targets(looked_at), *looked_at[:FIRST_ROWS]]
    for number, row in enumerate(untimed):
        progress(BEFORE_TIMING * number / len(untimed))
        _timed(state, row, hardware)
    began, rounds, share = hardware.now(), 0, 0.0
    while share < 1:
        for number, (row, seconds) in enumerate(zip(rows, spent, strict=True), start=1):
            seconds.append(_timed(state, row, hardware))
            share = share_timed(rounds + number / len(rows), hardware.now() - began)
            progress(BEFORE_TIMING + (1 - BEFORE_TIMING) * min(1.0, share))
        rounds += 1
    peak_bytes = hardware.peak_bytes()
    samples = [(Work.of([row]), usual(seconds)) for row, seconds in zip(rows, spent, strict=True)]
    before, forward = modelled_time(state, settings, hardware), _pass_seconds(state, hardware)
    return timing_of(
        state,
        settings,
        hardware,
        fit(samples, step_seconds, before, forward),
        # Of the row that the peak is of; the run may hold a larger one.
        largest_row=sum(map(len, rows[-1])),
        peak_bytes=peak_bytes,
        loading_bytes=loading_bytes,
        start_up_seconds=start_up,
        save_seconds=_save_seconds(state),
    )


def share_timed(rounds: float, seconds: float) -> float:
    """How much of the timing is done."""
    return min(rounds / LEAST_TIMES, seconds / LONG_ENOUGH)


def chosen_rows(rows: Sequence[Row]) -> list[Row]:
    """Some of the run's micro-batches, by rising length."""
    rows = sorted(rows, key=lambda row: sum(map(len, row)))
    return [rows[round(share * (len(rows) - 1))] for share in QUANTILES]


def most_targets(rows: Iterable[Row]) -> Row:
    """The micro-batch that predicts the most tokens."""
    return max(rows, key=lambda row: sum(example.trained_tokens for example in row))


def rows_of(state: TrainingState, steps: Iterable[Row]) -> Iterator[Row]:
    """Micro-batches of the examples of these steps, in the run's order."""
    for examples in steps:
        yield from pack(examples, state.token_budget, packing=state.packing)


def usual(seconds: Sequence[float]) -> float:
    """The mean without the fastest and the slowest.

    A night takes the mean of all its rows, and not the median: a processor that is shared with
    other machines has two paces, and the median of five is one of them. One hiccup of five would
    count too much.
    """
    return statistics.fmean(sorted(seconds)[1:-1])


def seconds_since_start() -> float:
    """Of this program."""
    return float(time.time() - psutil.Process().create_time())


def keep_timing(
    state: TrainingState,
    settings: Settings,
    hardware: Hardware,
    *,
    seconds: float,
    first_step: int,
    largest_row: int,
    start_up_seconds: float,
    save_seconds: float,
) -> None:
    """What `seconds` of training since `first_step` say to the next estimate: everything as much
    slower or faster.

    How micro-batches, tokens and targets share the time is taken from what was known before.
    """
    steps = list(state.plan.walk(first_step))
    if state.accelerator.num_processes > 1 or len(steps) < LEAST_STEPS_TIMED:
        return
    before = newest_timing(settings.logs_dir, hardware.description, settings)
    prices = before.time if before else modelled_time(state, settings, hardware)
    factor = seconds / prices.seconds(Work.of(rows_of(state, steps), steps=len(steps)))
    timing = timing_of(
        state,
        settings,
        hardware,
        prices.scaled(factor, "measured here"),
        largest_row=largest_row,
        peak_bytes=hardware.peak_bytes(),
        start_up_seconds=start_up_seconds,
        save_seconds=save_seconds,
    )
    add_timing(settings.logs_dir, timing)


def timing_of(
    state: TrainingState,
    settings: Settings,
    hardware: Hardware,
    made: TimeModel,
    *,
    largest_row: int,
    peak_bytes: int,
    start_up_seconds: float,
    save_seconds: float,
    loading_bytes: float = 0.0,
) -> Timing:
    """A record of what was found; `peak_bytes` is what the process held at the largest row."""
    memory = state.memory
    needed = memory.activations.needed(largest_row, memory.checkpointed)
    return Timing(
        machine=hardware.description,
        settings=deciding(settings),
        time=made,
        activations=memory.activations,
        checkpointed=memory.checkpointed,
        base_bytes=peak_bytes - needed,
        loading_bytes=loading_bytes,
        start_up_seconds=start_up_seconds,
        save_seconds=save_seconds,
    )


def modelled_time(state: TrainingState, settings: Settings, hardware: Hardware) -> TimeModel:
    """What each part of the work should cost here, from the model's sizes."""
    return time_model_of(
        shape_of(state.training_model.causal_model, settings.base_model),
        hardware.machine(),
        lora_r=settings.lora_r,
        lora_targets=settings.lora_target_modules,
        checkpointed_share=state.memory.checkpointed_share,
        quantized=settings.quantization == "nf4",
    )


def _timed(state: TrainingState, row: Row, hardware: Hardware) -> float:
    state.model.train()
    began = hardware.now()
    loss = state.model(collate(row).to(state.accelerator.device))
    state.accelerator.backward(loss / sum(example.trained_tokens for example in row))
    seconds = hardware.now() - began
    release_freed_ram()  # as a run does it after each step
    return seconds


def _pass_seconds(state: TrainingState, hardware: Hardware) -> float:
    """Of a pass forward over next to no tokens, as each token of an answer is one.

    The fastest of a few: so short a pass suffers most from what else the machine does.
    """
    row = [random_example(state.training_model, FEW_TOKENS)]
    return min(_forward(state, row, hardware) for _ in range(FEW_TIMES))


def _forward(state: TrainingState, row: Row, hardware: Hardware) -> float:
    state.model.eval()
    with torch.no_grad():
        began = hardware.now()
        state.model(collate(row).to(state.accelerator.device))
        return hardware.now() - began


def _optimizer_seconds(state: TrainingState, hardware: Hardware) -> float:
    began = hardware.now()
    state.accelerator.clip_grad_norm_(state.trainable().values(), state.max_grad_norm or 1.0)
    state.optimizer.step()
    return hardware.now() - began


def _save_seconds(state: TrainingState) -> float:
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        save_checkpoint(Path(folder), snapshot(state, 1, {}), keep=1)
        return time.perf_counter() - began
