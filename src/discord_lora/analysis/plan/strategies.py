"""How often to see the data: the choices, their steps and risks, and one recommendation.

The rule behind it: a large set is seen once, because more passes memorise phrases; a small one
needs more passes to be learned at all.
"""

import math
from dataclasses import dataclass

from discord_lora.conversations.steps import steps_of_run

ONE_EPOCH_FROM, TWO_EPOCHS_FROM = 1_500, 500
"""Steps an epoch from which one pass is enough, and two."""

ONE_EPOCH, TEST = "one epoch", "a test"
TEST_STEPS = 500
LARGEST_SHARE_KEPT = 0.8
"""A subset larger than this is no choice of its own."""

RISKS = {1.0: "low", 2.0: "some", math.inf: "high"}
"""Of reciting messages, by the times that each is seen."""

RATE_FACTORS = {0.5: 1.5, 1.0: 1.0, 2.0: 0.75, math.inf: 0.5}
"""Of the learning rate, by the times that each message is seen: 3e-4, 2e-4, 1.5e-4, 1e-4."""

LEARNING_RATES = {1e9: 1e-3, math.inf: 2e-4}
"""For one epoch, by the model's weights: 2e-4 is QLoRA's for 7B (Dettmers et al. 2023, table 9); a
model of 0.1B wants five times as much (benchmarks/LOG.md)."""

CLASSIC_OVERHEAD_SECONDS, CLASSIC_OVERHEAD_SHARE = 2 * 3600, 0.06
"""Checkpoints and validation of the classic recipe: about 2 hours, less for a short run."""


@dataclass(frozen=True, slots=True)
class Strategy:
    """One way to spend the night."""

    name: str
    messages: int
    """That are trained on."""
    epochs: float
    steps: int
    chosen: tuple[str, ...] = ()
    """How the messages are chosen: an option of filter_training_data.py; empty: all."""
    max_steps: int = 0

    @property
    def risk(self) -> str:
        """Of reciting messages."""
        return next(risk for most, risk in RISKS.items() if self.epochs <= most)

    @property
    def rate_factor(self) -> float:
        """The less is seen, the higher. A test has that of the run it tests."""
        if self.name == TEST:
            return 1.0
        return rate_factor_for(self.epochs)

    def env(self, learning_rate: float) -> dict[str, str]:
        """Lines for `.env`."""
        lines = {"EPOCHS": f"{math.ceil(self.epochs):g}", "MAX_STEPS": str(self.max_steps)}
        if self.max_steps == 0:
            lines["EPOCHS"] = f"{self.epochs:g}"
        return lines | {"LEARNING_RATE": f"{learning_rate * self.rate_factor:.3g}"}


def learning_rate_for(weights: float) -> float:
    """Of one epoch. What LEARNING_RATE says now is no base: it may be an earlier plan's."""
    return next(rate for most, rate in LEARNING_RATES.items() if weights <= most)


def rate_factor_for(epochs: float) -> float:
    """Of the learning rate: the less is seen, the higher."""
    return next(factor for most, factor in RATE_FACTORS.items() if epochs <= most)


def strategies(messages: int, messages_per_step: int) -> list[Strategy]:
    """The choices for so many messages."""

    def make(name: str, count: int, epochs: float, *chosen: str) -> Strategy:
        steps = steps_of_run(count, messages_per_step, epochs)
        return Strategy(name, count, epochs, steps, chosen)

    choices = [
        make("half an epoch, higher rate", messages, 0.5),
        make(ONE_EPOCH, messages, 1),
        make("two epochs", messages, 2),
        make("three epochs", messages, 3),
    ]
    an_epoch = choices[1].steps
    if an_epoch > TEST_STEPS:
        share = TEST_STEPS / an_epoch
        choices.append(Strategy(TEST, messages, share, TEST_STEPS, max_steps=TEST_STEPS))
    for count, how in ((10_000, "best"), (5_000, "best"), (2_000, "hand-pick")):
        if count <= LARGEST_SHARE_KEPT * messages:
            name = f"{'hand-picked' if how == 'hand-pick' else 'the best'} {count:,}, three epochs"
            choices.append(make(name, count, 3, f"--{how}", str(count)))
    return choices


@dataclass(frozen=True, slots=True)
class Recommendation:
    """What to do, and why."""

    strategy: Strategy
    reason: str
    warning: str = ""


def recommend(
    choices: list[Strategy], *, looks_filtered: bool = False, is_measured: bool = True
) -> Recommendation:
    """One of the choices over all the messages. `is_measured`: there is a held-out loss."""
    once = next(it for it in choices if it.name == ONE_EPOCH)
    epochs = 1 if once.steps >= ONE_EPOCH_FROM else 2 if once.steps >= TWO_EPOCHS_FROM else 3
    chosen = next(it for it in choices if it.epochs == epochs and not it.chosen)
    trained = f"{once.messages:,} messages are {once.steps:,} steps an epoch"
    if epochs == 1:
        filtered = (
            " The data looks filtered already: use all of it and filter no further."
            if looks_filtered
            else ""
        )
        return Recommendation(
            chosen,
            f"{trained}: enough to learn from in one pass.{filtered}",
            f"Three epochs would show each message three times ({3 * once.messages:,} "
            "repetitions): the bot may recite them.",
        )
    tells = (
        " and watch the held-out loss, which tells when it gets too much."
        if is_measured
        else ". Nothing is held out that would tell when it gets too much (VALIDATION_FRACTION)."
    )
    return Recommendation(
        chosen,
        f"{trained}, too few to learn a voice in one pass: see them {epochs} times{tells}",
    )


def classic_seconds(steps: int, seconds_per_step: float) -> tuple[float, float]:
    """Of a recipe that takes so long a step: without and with checkpoints and validation."""
    training = steps * seconds_per_step
    overhead = min(CLASSIC_OVERHEAD_SECONDS, CLASSIC_OVERHEAD_SHARE * training)
    return training, training + overhead
