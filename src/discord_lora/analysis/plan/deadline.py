"""What of a night ends in time."""

import bisect
from dataclasses import dataclass, replace

from discord_lora.analysis.plan.night import NightPlan, RunTime
from discord_lora.analysis.plan.strategies import Strategy

DEADLINE_SHARE = 0.9
"""Of the time until a deadline that a plan uses: a night that is a tenth slower still ends in
time. Of what is modelled for a card, only what its band leaves."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """What ends in time."""

    strategy: Strategy
    time: RunTime
    allowed_seconds: float
    is_whole: bool
    """True if there is time for all that is recommended."""


def plan_for(plan: NightPlan, seconds: float, learning_messages_per_step: int) -> Deadline | None:
    """The recommended run, or as many of its steps as end in time; None if there is none.

    Args:
        plan: the night.
        seconds: until it has to be over.
        learning_messages_per_step: BATCH_SIZE x GRADIENT_ACCUMULATION_STEPS.
    """
    recommended = plan.recommendation.strategy
    whole = plan.workday.run_time(plan.prices, recommended.steps)
    usable = (1 / whole.band if whole.unmeasured else DEADLINE_SHARE) * seconds
    if whole.total <= usable:
        return Deadline(recommended, whole, seconds, is_whole=True)
    steps = bisect.bisect_right(
        range(1, recommended.steps + 1),
        usable,
        key=lambda count: plan.workday.run_time(plan.prices, count).total,
    )
    if steps < 1:
        return None
    epochs = steps / plan.workday.steps_per_epoch
    shortened = replace(
        recommended,
        name=f"{steps:,} steps",
        messages=min(plan.messages, steps * learning_messages_per_step),
        epochs=epochs,
        steps=steps,
        max_steps=steps,
    )
    return Deadline(shortened, plan.workday.run_time(plan.prices, steps), seconds, is_whole=False)
