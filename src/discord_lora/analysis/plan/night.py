"""The night before it begins: how long each choice takes, whether it fits, what ends in time."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from discord_lora.analysis.plan.estimates import Fit, time_model_of
from discord_lora.analysis.plan.memory import RESERVE_BYTES
from discord_lora.analysis.plan.strategies import (
    Recommendation,
    Strategy,
    classic_seconds,
    learning_rate_for,
    recommend,
    strategies,
)
from discord_lora.analysis.plan.time_model import (
    BANDS,
    UNMEASURED_BAND,
    Source,
    TimeModel,
    Work,
)
from discord_lora.analysis.plan.timings import Timing
from discord_lora.settings import Settings

START_UP_SECONDS, DISK_BYTES_PER_SECOND = 20.0, 300e6
"""Modelled start-up: libraries and proofs, then 16-bit weights from the disk."""

ANSWER_TOKENS, QUESTION_TOKENS = 16, 128
"""Of a sample answer: the most that it may have, and a usual question. A small term of the sum:
three answers of up to 24 tokens were modelled as 3.7 s (sample model, two cores); measured were 3.4
to 4.3."""

Row = Sequence[Any]
"""A micro-batch: examples, as `Work.of` takes them."""


@dataclass(frozen=True, slots=True)
class Prices:
    """What everything costs on one machine, with one model and its settings."""

    time: TimeModel
    start_up_seconds: float
    save_seconds: float

    checkpointed_share: float = 0.0
    """Of the layers, which are run forward twice in training and once in evaluation."""
    unmeasured: bool = False
    """Modelled for a card: nothing has been measured on any."""

    @property
    def source(self) -> Source:
        return self.time.source


@dataclass(frozen=True, slots=True)
class RunTime:
    """Seconds of one run, from the start of the program to its end."""

    start_up: float
    training: float
    validation: float
    saving: float
    source: Source
    answers: float = 0.0
    """To the same questions at each checkpoint."""
    unmeasured: bool = False
    """As `Prices` has it."""

    @property
    def band(self) -> float:
        """Within which factor the truth is expected."""
        return UNMEASURED_BAND if self.unmeasured else BANDS[self.source]

    @property
    def label(self) -> str:
        """Where the figures come from, in words."""
        return f"{self.source}, not measured on any card" if self.unmeasured else self.source

    @property
    def total(self) -> float:
        return self.start_up + self.training + self.validation + self.saving + self.answers

    @property
    def low(self) -> float:
        return self.total / self.band

    @property
    def high(self) -> float:
        return self.total * self.band


@dataclass(frozen=True, slots=True)
class Workday:
    """One epoch's work and what is measured beside it."""

    epoch: Work
    validation: Work
    steps_per_epoch: int
    save_every_steps: int
    eval_every_steps: int = 0
    """0: after each epoch."""
    answers: Work = field(default_factory=Work)
    """Of the sample answers, once."""

    def run_time(
        self,
        prices: Prices,
        steps: int,
        *,
        work: Work | None = None,
        epochs: float | None = None,
        first_step: int = 0,
    ) -> RunTime:
        """Of a run of so many steps.

        `work` if it is known to the token, else steps as usual; `epochs` if one pass is not over
        all the messages; `first_step` if so many steps are done already.
        """
        an_epoch = steps / epochs if epochs else self.steps_per_epoch
        measured = ends_of(self.eval_every_steps or an_epoch, steps)
        # What was measured is saved, too: it may be the best of all.
        saved = measured | ends_of(self.save_every_steps, steps)
        measurements, saves = (
            sum(step > first_step for step in moments) for moments in (measured, saved)
        )
        before = int(first_step == 0)  # the base model is measured and asked as well

        def forward(work: Work) -> float:
            return prices.time.evaluation_seconds(work, prices.checkpointed_share)

        work = work or self.epoch.times((steps - first_step) / self.steps_per_epoch)
        return RunTime(
            start_up=prices.start_up_seconds,
            training=prices.time.seconds(work),
            validation=(before + measurements) * forward(self.validation),
            saving=saves * prices.save_seconds,
            answers=(before + saves) * forward(self.answers),
            source=prices.source,
            unmeasured=prices.unmeasured,
        )


def ends_of(period: float, steps: int) -> set[int]:
    """The steps of a run at which a period ends, and the last step."""
    whole = math.ceil(round(steps / period, 6))
    return {round(period * count) for count in range(1, whole)} | {steps}


def workday(
    steps: Iterable[Sequence[Row]],
    validation: Sequence[Row],
    save_every_steps: int,
    *,
    eval_every_steps: int = 0,
    sample_answers: int = 0,
) -> Workday:
    """Of the micro-batches of each step of one epoch, and of the held-out examples."""
    count = 0
    rows: list[Row] = []
    for step in steps:
        count += 1
        rows += step
    return Workday(
        Work.of(rows, steps=count),
        Work.of(validation),
        count,
        save_every_steps,
        eval_every_steps,
        answering(sample_answers if validation else 0),
    )


def answering(count: int) -> Work:
    """Of so many answers in one batch: all questions in one pass, then a pass for each token."""
    if not count:
        return Work()
    return Work(
        micro_batches=1 + ANSWER_TOKENS,
        tokens=count * (QUESTION_TOKENS + ANSWER_TOKENS),
        squared_tokens=count * QUESTION_TOKENS**2,
        targets=count * ANSWER_TOKENS,
    )


@dataclass(frozen=True, slots=True)
class Choice:
    """A strategy with its time."""

    strategy: Strategy
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class NightPlan:
    """All that is known before the start."""

    fit: Fit
    prices: Prices
    peak_bytes: float
    peak_source: Source
    choices: list[Choice]
    recommendation: Recommendation
    workday: Workday
    messages: int
    as_set: Work
    """Of the run that the settings describe now, without the steps that are done."""
    first_step: int = 0
    """Steps that are done."""
    is_to_be_fetched: bool = False
    """True while the model's weights are not on this computer."""
    unfinished: str = ""
    """What to know of an earlier run that other settings would keep from going on."""

    @property
    def as_set_time(self) -> RunTime:
        return self.workday.run_time(
            self.prices,
            self.first_step + round(self.as_set.steps),
            work=self.as_set,
            first_step=self.first_step,
        )

    @property
    def learning_rate(self) -> float:
        """For one epoch."""
        return learning_rate_for(self.fit.shape.weights)

    @property
    def fits(self) -> bool:
        """By what was measured, if anything was."""
        return self.left >= 0

    def choice(self, name: str) -> Choice:
        return next(choice for choice in self.choices if choice.strategy.name == name)

    @property
    def margin(self) -> float:
        """Bytes of memory that stay free."""
        return self.fit.machine.memory_bytes - self.peak_bytes

    @property
    def left(self) -> float:
        """Bytes of them beside the reserve; below zero they are missing."""
        return self.margin - RESERVE_BYTES[self.fit.machine.kind]


def plan_night(
    settings: Settings,
    day: Workday,
    made: Fit,
    *,
    messages: int,
    as_set: Work,
    largest_row: int,
    first_step: int = 0,
    timing: Timing | None = None,
    seconds_per_step: float | None = None,
    looks_filtered: bool = False,
) -> NightPlan:
    """Choices, times and memory.

    Args:
        settings: of the run.
        day: the work of one epoch.
        made: how the model fits the machine.
        messages: that are trained on in one epoch.
        as_set: the work of the run that the settings describe.
        largest_row: tokens of the largest micro-batch.
        first_step: steps that are done already, and not in `as_set`.
        timing: found on this machine, with this model and these settings.
        seconds_per_step: what the user knows of another trainer; the classic arithmetic then.
        looks_filtered: the data has been filtered already.
    """
    prices = prices_of(made, settings, timing)
    choices = []
    for strategy in strategies(messages, settings.messages_per_step):
        if seconds_per_step:
            low, high = classic_seconds(strategy.steps, seconds_per_step)
        else:
            taken = day.run_time(prices, strategy.steps, epochs=strategy.epochs)
            low, high = taken.low, taken.high
        choices.append(Choice(strategy, low, high))
    known = timing is not None and timing.checkpointed == made.plan.checkpointed
    return NightPlan(
        fit=made,
        prices=prices,
        peak_bytes=timing.peak_bytes(largest_row) if timing and known else made.use.total,
        peak_source=timing.time.source if timing and known else "modelled",
        choices=choices,
        recommendation=recommend(
            [c.strategy for c in choices],
            looks_filtered=looks_filtered,
            is_measured=day.validation.targets > 0,
        ),
        workday=day,
        messages=messages,
        as_set=as_set,
        first_step=first_step,
    )


def prices_of(made: Fit, settings: Settings, timing: Timing | None) -> Prices:
    """As they were timed here, or modelled."""
    share = made.plan.checkpointed_share
    if timing is not None:
        # With more layers checkpointed than when it was timed, each pass repeats more of itself.
        factor = (2 + share) / (2 + timing.checkpointed / timing.activations.layers)
        time = timing.time
        if factor != 1:  # what goes forward alone, and the optimizer, know nothing of it
            other = time.scaled(factor, "calibrated")
            time = replace(other, step=time.step, forward=time.forward)
        return Prices(time, timing.start_up_seconds, timing.save_seconds, share)
    time = time_model_of(
        made.shape,
        made.machine,
        lora_r=settings.lora_r,
        lora_targets=settings.lora_target_modules,
        checkpointed_share=share,
        quantized=settings.quantization == "nf4",
    )
    stored = 2 * made.shape.weights
    return Prices(
        time,
        start_up_seconds=START_UP_SECONDS + stored / DISK_BYTES_PER_SECOND,
        save_seconds=made.use.adapter / DISK_BYTES_PER_SECOND,
        checkpointed_share=share,
        unmeasured=made.machine.kind == "cuda",
    )
