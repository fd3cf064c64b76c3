"""Each rule of settings that fight: what it is said of, and what it is silent about."""

from dataclasses import replace
from pathlib import Path

import pytest

from discord_lora.analysis.plan import fights
from discord_lora.analysis.plan.fights import Facts, doubts_of, doubts_of_time, problems_of
from discord_lora.analysis.plan.night import RunTime
from discord_lora.settings import load_settings

NIGHT = Facts(
    is_cuda=True, steps=3_938, steps_per_epoch=3_938, messages=63_000, held_out=500, longest=1_000,
    weights=7.2e9, positions=32_768,
)  # fmt: skip
SHORT = replace(NIGHT, steps=100)
NOTHING_HELD_OUT = replace(NIGHT, held_out=0)
SMALL_MODEL = replace(NIGHT, weights=0.135e9)

PROBLEMS = [
    ("eight_bit_without_a_card", {"optimizer": "adamw_8bit"}, replace(NIGHT, is_cuda=False)),
    ("nothing_to_stop_by", {"early_stopping_patience": 3}, NOTHING_HELD_OUT),
    ("longer_than_the_model_reads", {}, replace(NIGHT, positions=512)),
]
DOUBTS = [
    ("steps_beyond_the_epochs", {"max_steps": 5_000}, NIGHT),
    ("epochs_beyond_the_steps", {"epochs": 3, "max_steps": 100}, SHORT),
    ("a_step_larger_than_the_data", {"batch_size": 8}, replace(NIGHT, messages=100)),
    ("an_odd_learning_rate", {"learning_rate": 2e-4}, SMALL_MODEL),
    ("an_odd_learning_rate", {"learning_rate": 2e-3}, NIGHT),
    ("an_odd_learning_rate", {"learning_rate": 2e-5}, NIGHT),
    ("an_odd_alpha", {"lora_alpha": 128}, NIGHT),
    ("an_odd_alpha", {"lora_alpha": 4}, NIGHT),
    ("warmup_without_effect", {"warmup_ratio": 0.1, "lr_scheduler": "constant"}, NIGHT),
    ("warmup_of_no_step", {"warmup_ratio": 0.03}, replace(NIGHT, steps=10)),
    ("warmup_that_lasts", {"warmup_ratio": 0.5}, NIGHT),
    ("patience_longer_than_the_run", {"early_stopping_patience": 1}, NIGHT),
    (
        "patience_longer_than_the_run",
        {"early_stopping_patience": 4, "eval_every_steps": 1_000},
        NIGHT,
    ),
    (
        "chance_decides",
        {"early_stopping_patience": 2, "eval_every_steps": 100},
        replace(NIGHT, held_out=12),
    ),
    ("measured_at_the_end_only", {"eval_every_steps": 4_000}, NIGHT),
    ("nothing_to_measure", {"eval_every_steps": 100}, NOTHING_HELD_OUT),
    ("much_held_out", {"validation_fraction": 0.5}, NIGHT),
    ("budget_below_an_example", {"max_tokens_per_microbatch": 512}, NIGHT),
    ("budget_without_packing", {"max_tokens_per_microbatch": 2_048, "packing": False}, NIGHT),
    ("much_context", {"context_tokens": 400}, NIGHT),
]


def names(rules, settings, facts):
    return [rule.__name__ for rule in rules if rule(settings, facts)]


@pytest.mark.parametrize(("rule", "changes", "facts"), PROBLEMS, ids=lambda it: str(it)[:40])
def test_a_problem_is_said_alone_and_with_what_to_do(rule, changes, facts):
    settings = load_settings(changes, env_file=None)
    assert names(fights.PROBLEMS, settings, facts) == [rule]
    (said,) = problems_of(settings, facts)
    assert "set " in said and said.endswith(".")


@pytest.mark.parametrize(("rule", "changes", "facts"), DOUBTS, ids=lambda it: str(it)[:40])
def test_a_doubt_is_said_alone_and_stops_nothing(rule, changes, facts):
    settings = load_settings(changes, env_file=None)
    assert names(fights.DOUBTS, settings, facts) == [rule]
    assert problems_of(settings, facts) == []
    (said,) = doubts_of(settings, facts)
    assert said.endswith(".")
    assert said.isascii()


def test_every_rule_is_tried_here():
    tried = {rule for rule, *_ in (*PROBLEMS, *DOUBTS)}
    assert tried == {rule.__name__ for rule in (*fights.PROBLEMS, *fights.DOUBTS)}


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({}, NIGHT),
        ({}, NOTHING_HELD_OUT),
        ({"learning_rate": 1e-3}, SMALL_MODEL),
        ({"epochs": 3, "learning_rate": 1e-4}, replace(NIGHT, steps=11_814)),
        ({"max_steps": 1_969, "learning_rate": 3e-4}, replace(NIGHT, steps=1_969)),
        ({"max_steps": 3_938}, NIGHT),
        ({"early_stopping_patience": 2, "eval_every_steps": 500}, NIGHT),
        ({"early_stopping_patience": 2, "epochs": 3}, replace(NIGHT, steps=11_814)),
        ({"max_tokens_per_microbatch": 1_000}, NIGHT),
        ({"optimizer": "paged_adamw_8bit"}, NIGHT),
        ({"learning_rate": 1e-2}, replace(NIGHT, weights=None, positions=None)),
        ({"lr_scheduler": "constant"}, NIGHT),  # the warm-up of the default was not asked for
    ],
)
def test_usual_settings_are_passed_in_silence(changes, facts):
    settings = load_settings(changes, env_file=None)
    assert problems_of(settings, facts) == []
    assert doubts_of(settings, facts) == []


def test_the_classic_file_is_passed_in_silence():
    settings = load_settings(env_file=Path(__file__).resolve().parents[3] / ".env.example")
    assert problems_of(settings, NIGHT) == doubts_of(settings, NIGHT) == []


def test_the_advice_puts_it_right():
    settings = load_settings({"early_stopping_patience": 3}, env_file=None)
    (said,) = doubts_of(settings, NIGHT)
    advice = int(said.rpartition("=")[2].rstrip("."))
    better = settings.model_copy(update={"eval_every_steps": advice})
    assert doubts_of(better, NIGHT) == []


def test_as_many_epochs_as_the_steps_need_are_advised():
    facts = replace(NIGHT, steps=1_000, steps_per_epoch=1_000)
    (said,) = doubts_of(load_settings({"max_steps": 1_240}, env_file=None), facts)
    assert "Set EPOCHS=2 if" in said


def test_a_run_of_one_step_is_not_advised_what_is_refused():
    settings = load_settings({"warmup_ratio": 0.03}, env_file=None)
    assert fights.warmup_of_no_step(settings, replace(NIGHT, steps=1)).endswith("Set it to 0.")
    assert "Set WARMUP_RATIO=0.1 for one" in fights.warmup_of_no_step(
        settings, replace(NIGHT, steps=10)
    )


# With the predicted time -----------------------------------------------------------------------

USUAL = RunTime(60, 3_600, 60, 30, "modelled", answers=30)


@pytest.mark.parametrize(
    ("changes", "taken", "word"),
    [
        ({}, replace(USUAL, validation=2_000), "EVAL_EVERY_STEPS"),
        ({"max_validation_messages": 0}, replace(USUAL, validation=2_000), "MESSAGES=500"),
        ({}, replace(USUAL, saving=2_000), "SAVE_EVERY_STEPS"),
        ({}, replace(USUAL, answers=2_000), "SAMPLE_ANSWERS"),
        ({"save_every_steps": 1_000}, replace(USUAL, training=8 * 3_600), "SAVE_EVERY_STEPS=62"),
        ({"save_every_steps": 9_999}, replace(USUAL, training=8 * 3_600), "8.0 h of work"),
    ],
)
def test_what_takes_long_beside_training_is_said(changes, taken, word):
    settings = load_settings(changes, env_file=None)
    (said,) = doubts_of_time(settings, taken, 2_000)
    assert word in said


def test_usual_times_are_passed_in_silence():
    settings = load_settings(env_file=None)
    assert doubts_of_time(settings, USUAL, 2_000) == []
    # A minute of a short run is no matter, whatever its share.
    assert doubts_of_time(settings, RunTime(20, 30, 50, 1, "modelled"), 10) == []
