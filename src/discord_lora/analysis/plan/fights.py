"""Settings that fight each other, each rule a function: problems stop a run, doubts do not.

A rule gets the settings and what is known of the run, and returns one sentence that says what to
do, or nothing.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from discord_lora.analysis.plan.night import RunTime, ends_of
from discord_lora.analysis.plan.strategies import learning_rate_for, rate_factor_for
from discord_lora.console import duration
from discord_lora.settings import Settings

UNUSUAL_RATE = 4.0
"""Factor between LEARNING_RATE and the usual one from which it is doubted."""

USUAL_ALPHA = (0.5, 4.0)
"""LORA_ALPHA / LORA_R: 1 and 2 are the usual ones (Hu et al. 2021; Dettmers et al. 2023)."""

LEAST_HELD_OUT = 30
"""Messages below which the held-out loss is mostly chance."""

MOST_HELD_OUT_SHARE, MOST_WARMUP, MOST_CONTEXT = 0.3, 0.3, 0.25
MOST_BESIDE = 0.2
LEAST_SECONDS_BESIDE = 60.0
"""Share of the time, and seconds, that measuring, saving and answering may take."""

MOST_LOST_SECONDS = 3600.0
"""Of work between two checkpoints."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a run before its model is loaded."""

    is_cuda: bool
    steps: int
    """Of this run."""
    steps_per_epoch: int
    messages: int
    """That are trained on in one epoch."""
    held_out: int
    """Messages whose loss is measured."""
    longest: int
    """Tokens of the longest example."""
    weights: float | None = None
    """Of the model; None if they cannot be counted beforehand."""
    positions: int | None = None
    """Tokens that the model can read at once; None if it does not say."""


Rule = Callable[[Settings, Facts], str | None]


def problems_of(settings: Settings, facts: Facts) -> list[str]:
    """What keeps the run from starting."""
    return [said for rule in PROBLEMS if (said := rule(settings, facts))]


def doubts_of(settings: Settings, facts: Facts) -> list[str]:
    """What is most likely not meant, and does no harm."""
    return [said for rule in DOUBTS if (said := rule(settings, facts))]


# Problems --------------------------------------------------------------------------------------


def eight_bit_without_a_card(settings: Settings, facts: Facts) -> str | None:
    if facts.is_cuda or "8bit" not in settings.optimizer:
        return None
    return f"OPTIMIZER: {settings.optimizer} needs a CUDA card; set OPTIMIZER=adamw or auto."


def nothing_to_stop_by(settings: Settings, facts: Facts) -> str | None:
    if not settings.early_stopping_patience or facts.held_out:
        return None
    return (
        f"EARLY_STOPPING_PATIENCE={settings.early_stopping_patience}: nothing is held out, so "
        "nothing tells when to stop; set VALIDATION_FRACTION=0.05, or EARLY_STOPPING_PATIENCE=0."
    )


def longer_than_the_model_reads(settings: Settings, facts: Facts) -> str | None:
    if facts.positions is None or facts.longest <= facts.positions:
        return None
    return (
        f"MAX_SEQ_LENGTH={settings.max_seq_length}: the longest example has {facts.longest:,} "
        f"tokens and this model reads {facts.positions:,} at once; set "
        f"MAX_SEQ_LENGTH={facts.positions}."
    )


PROBLEMS: tuple[Rule, ...] = (
    eight_bit_without_a_card,
    nothing_to_stop_by,
    longer_than_the_model_reads,
)


# Doubts ----------------------------------------------------------------------------------------


def steps_beyond_the_epochs(settings: Settings, facts: Facts) -> str | None:
    if settings.max_steps <= facts.steps:
        return None
    enough = math.ceil(settings.max_steps / facts.steps_per_epoch)
    return (
        f"MAX_STEPS={settings.max_steps} is never reached: EPOCHS={settings.epochs:g} ends after "
        f"{facts.steps:,} steps. Set EPOCHS={enough} if you want them all, or MAX_STEPS=0."
    )


def epochs_beyond_the_steps(settings: Settings, facts: Facts) -> str | None:
    if settings.epochs <= 1 or not 0 < settings.max_steps < facts.steps_per_epoch:
        return None
    return (
        f"EPOCHS={settings.epochs:g} does nothing: MAX_STEPS={settings.max_steps} ends the run "
        f"within the first epoch of {facts.steps_per_epoch:,} steps. Set MAX_STEPS=0 for all."
    )


def a_step_larger_than_the_data(settings: Settings, facts: Facts) -> str | None:
    if settings.messages_per_step <= facts.messages:
        return None
    return (
        f"BATCH_SIZE x GRADIENT_ACCUMULATION_STEPS = {settings.messages_per_step:,} is more than "
        f"the {facts.messages:,} messages there are: a whole epoch is one step. Set them to 1 x 16."
    )


def an_odd_learning_rate(settings: Settings, facts: Facts) -> str | None:
    if facts.weights is None:
        return None
    passes = facts.steps / facts.steps_per_epoch
    usual = learning_rate_for(facts.weights) * rate_factor_for(passes)
    if 1 / UNUSUAL_RATE <= settings.learning_rate / usual <= UNUSUAL_RATE:
        return None
    how = "low" if settings.learning_rate < usual else "high"
    return (
        f"LEARNING_RATE={settings.learning_rate:g} is {how} for a model of "
        f"{facts.weights / 1e9:.1f} billion weights: about {usual:.1g} is usual."
    )


def an_odd_alpha(settings: Settings, _facts: Facts) -> str | None:
    low, high = USUAL_ALPHA
    if low <= settings.lora_alpha / settings.lora_r <= high:
        return None
    return (
        f"LORA_ALPHA={settings.lora_alpha} is far from LORA_R={settings.lora_r}: updates are "
        f"multiplied by {settings.lora_alpha / settings.lora_r:.3g}. Usual is "
        f"LORA_ALPHA={2 * settings.lora_r}."
    )


def warmup_without_effect(settings: Settings, _facts: Facts) -> str | None:
    said = "warmup_ratio" in settings.model_fields_set and settings.warmup_ratio > 0
    if settings.lr_scheduler != "constant" or not said:
        return None
    return (
        f"WARMUP_RATIO={settings.warmup_ratio:g} does nothing with LR_SCHEDULER=constant; set "
        "LR_SCHEDULER=constant_with_warmup if the rate shall rise first."
    )


def warmup_of_no_step(settings: Settings, facts: Facts) -> str | None:
    said = "warmup_ratio" in settings.model_fields_set and settings.warmup_ratio > 0
    if (
        not said
        or settings.lr_scheduler == "constant"
        or round(settings.warmup_ratio * facts.steps)
    ):
        return None
    # Of a single step none is left to rise in.
    one = f"WARMUP_RATIO={1 / facts.steps:.2g} for one step, or 0" if facts.steps > 1 else "it to 0"
    return (
        f"WARMUP_RATIO={settings.warmup_ratio:g} of {facts.steps:,} steps is no step: the first "
        f"one has the full rate. Set {one}."
    )


def warmup_that_lasts(settings: Settings, facts: Facts) -> str | None:
    if settings.warmup_ratio <= MOST_WARMUP or settings.lr_scheduler == "constant":
        return None
    return (
        f"WARMUP_RATIO={settings.warmup_ratio:g}: the learning rate still rises for "
        f"{settings.warmup_ratio * facts.steps:,.0f} of {facts.steps:,} steps. Usual is 0.03."
    )


def patience_longer_than_the_run(settings: Settings, facts: Facts) -> str | None:
    patience = settings.early_stopping_patience
    if not patience or not facts.held_out:
        return None
    measured = ends_of(settings.eval_every_steps or facts.steps_per_epoch, facts.steps)
    if len(measured) > patience:
        return None
    often = max(1, facts.steps // (4 * (patience + 1)))
    return (
        f"EARLY_STOPPING_PATIENCE={patience} cannot end this run early: the held-out loss is "
        f"measured {len(measured)} times, the last one at its end. Set EVAL_EVERY_STEPS={often}."
    )


def chance_decides(settings: Settings, facts: Facts) -> str | None:
    if not settings.early_stopping_patience or not 0 < facts.held_out < LEAST_HELD_OUT:
        return None
    return (
        f"EARLY_STOPPING_PATIENCE goes by the loss of {facts.held_out} held-out messages, which is "
        "mostly chance. Raise VALIDATION_FRACTION or MAX_VALIDATION_MESSAGES."
    )


def measured_at_the_end_only(settings: Settings, facts: Facts) -> str | None:
    if not settings.eval_every_steps or not facts.held_out:
        return None
    if settings.eval_every_steps < facts.steps:
        return None
    return (
        f"EVAL_EVERY_STEPS={settings.eval_every_steps} is not less than the {facts.steps:,} steps "
        f"of this run, so nothing is measured in between. Set it to {max(1, facts.steps // 4)}."
    )


def nothing_to_measure(settings: Settings, facts: Facts) -> str | None:
    if not settings.eval_every_steps or facts.held_out:
        return None
    return (
        f"EVAL_EVERY_STEPS={settings.eval_every_steps} does nothing: nothing is held out. Set "
        "VALIDATION_FRACTION=0.05."
    )


def much_held_out(settings: Settings, _facts: Facts) -> str | None:
    if settings.validation_fraction <= MOST_HELD_OUT_SHARE:
        return None
    return (
        f"VALIDATION_FRACTION={settings.validation_fraction:g}: that share of the messages is "
        "never learned from. Usual is 0.05."
    )


def budget_below_an_example(settings: Settings, facts: Facts) -> str | None:
    budget = settings.max_tokens_per_microbatch
    if budget == "auto" or budget >= facts.longest or not settings.packing:
        return None
    return (
        f"MAX_TOKENS_PER_MICROBATCH={budget} does not hold the longest example, and examples are "
        f"never cut for it: {facts.longest:,} tokens go through at once. Lower MAX_SEQ_LENGTH to "
        "take less memory."
    )


def budget_without_packing(settings: Settings, _facts: Facts) -> str | None:
    if settings.packing or settings.max_tokens_per_microbatch == "auto":
        return None
    return (
        f"MAX_TOKENS_PER_MICROBATCH={settings.max_tokens_per_microbatch} does nothing with "
        "PACKING=false, where each example goes alone."
    )


def much_context(settings: Settings, _facts: Facts) -> str | None:
    if settings.context_tokens <= MOST_CONTEXT * settings.max_seq_length:
        return None
    return (
        f"CONTEXT_TOKENS={settings.context_tokens} is over a quarter of "
        f"MAX_SEQ_LENGTH={settings.max_seq_length}: much of each cut conversation is read twice. "
        "Usual is 32 of 1024."
    )


DOUBTS: tuple[Rule, ...] = (
    steps_beyond_the_epochs,
    epochs_beyond_the_steps,
    a_step_larger_than_the_data,
    an_odd_learning_rate,
    an_odd_alpha,
    warmup_without_effect,
    warmup_of_no_step,
    warmup_that_lasts,
    patience_longer_than_the_run,
    chance_decides,
    measured_at_the_end_only,
    nothing_to_measure,
    much_held_out,
    budget_below_an_example,
    budget_without_packing,
    much_context,
)


# Doubts that need the predicted time -----------------------------------------------------------


def doubts_of_time(settings: Settings, taken: RunTime, steps: int) -> list[str]:
    """Of a run of so many steps: what takes long beside training, and what a power cut costs."""
    all_or_many = not 0 < settings.max_validation_messages <= 500
    fewer = "set MAX_VALIDATION_MESSAGES=500" if all_or_many else "raise EVAL_EVERY_STEPS"
    beside = (
        ("Measuring the held-out loss", taken.validation, fewer),
        ("Saving checkpoints", taken.saving, "raise SAVE_EVERY_STEPS"),
        (
            "Answering sample questions",
            taken.answers,
            "raise SAVE_EVERY_STEPS or lower SAMPLE_ANSWERS",
        ),
    )
    doubts = [
        f"{what} takes {seconds / taken.total:.0%} of the time; {remedy}."
        for what, seconds, remedy in beside
        if seconds > max(LEAST_SECONDS_BESIDE, MOST_BESIDE * taken.total)
    ]
    between = taken.training * min(1.0, settings.save_every_steps / max(1, steps))
    if between > MOST_LOST_SECONDS:
        wanted = max(1, round(steps * MOST_LOST_SECONDS / 4 / taken.training))
        doubts.append(
            f"SAVE_EVERY_STEPS={settings.save_every_steps}: a power cut would cost up to "
            f"{duration(between)} of work. Set SAVE_EVERY_STEPS={wanted}."
        )
    return doubts
