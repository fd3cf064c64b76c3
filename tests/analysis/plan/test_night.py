"""The plan of a night: the arithmetic that everybody knows, times, deadlines."""

import re
import time
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discord_lora.analysis.plan.deadline import DEADLINE_SHARE, Deadline, plan_for
from discord_lora.analysis.plan.night import Prices, RunTime, plan_night, workday
from discord_lora.analysis.plan.plan_options import Asked, seconds_allowed
from discord_lora.analysis.plan.plan_page import show_deadline, show_lines, show_plan
from discord_lora.analysis.plan.strategies import (
    ONE_EPOCH,
    classic_seconds,
    recommend,
    strategies,
)
from discord_lora.analysis.plan.time_model import TimeModel, Work
from discord_lora.console import UserError, duration, make_console
from discord_lora.settings import load_settings
from planned_night import SETTINGS, Example, night, timing


def by_name(messages, per_step=16):
    return {choice.name: choice for choice in strategies(messages, per_step)}


# The arithmetic -------------------------------------------------------------------------------


def test_the_classic_figures_come_out():
    choices = by_name(63_000)
    assert choices[ONE_EPOCH].steps == 3_938
    assert choices["half an epoch, higher rate"].steps == 1_969
    assert choices["three epochs"].steps == 11_814
    three, with_overhead = classic_seconds(11_814, 30)
    assert three == 354_420
    assert three / 3600 == pytest.approx(98.45)
    assert 100 <= with_overhead / 3600 <= 105
    one, one_with_overhead = classic_seconds(3_938, 30)
    assert round(one / 3600) == 33
    assert one_with_overhead - one == pytest.approx(2 * 3600, rel=0.02)
    assert choices["the best 10,000, three epochs"].steps == 1_875
    assert choices["a test"].steps == 500


def test_a_given_price_of_a_step_is_what_the_table_shows():
    plan = night(63_000, seconds_per_step=30)
    choice = plan.choice(ONE_EPOCH)
    assert (choice.low, choice.high) == classic_seconds(3_938, 30)


def test_a_large_set_is_seen_once_and_a_small_one_more_often():
    large = recommend(strategies(63_000, 16))
    assert large.strategy.name == ONE_EPOCH
    assert "189,000" in large.warning
    assert recommend(strategies(2_000, 16)).strategy.epochs == 3
    assert recommend(strategies(10_000, 16)).strategy.epochs == 2


def test_the_lines_for_env_give_the_same_steps():
    for choice in strategies(63_000, 16):
        lines = {k.lower(): v for k, v in choice.env(2e-4).items()}
        settings = load_settings(lines, env_file=None)
        if not choice.chosen:
            whole = by_name(63_000)[ONE_EPOCH].steps * settings.epochs
            assert min(whole, settings.max_steps or whole) == choice.steps
    rates = {name: it.env(2e-4)["LEARNING_RATE"] for name, it in by_name(63_000).items()}
    assert rates["half an epoch, higher rate"] == "0.0003"
    assert rates["a test"] == rates[ONE_EPOCH] == "0.0002"
    assert rates["two epochs"] == "0.00015"
    assert rates["three epochs"] == "0.0001"


def test_nobody_is_told_to_watch_a_loss_that_is_not_measured(capsys):
    plan = night(2_000)
    assert "watch the held-out loss" in plan.recommendation.reason
    without = plan_night(
        SETTINGS, replace(plan.workday, validation=Work()), plan.fit, messages=2_000,
        as_set=plan.as_set, largest_row=320,
    )  # fmt: skip
    assert "Nothing is held out" in without.recommendation.reason
    assert without.recommendation.strategy == plan.recommendation.strategy


@given(messages=st.integers(1, 10**6), per_step=st.integers(1, 64))
def test_every_size_of_data_has_a_recommendation(messages, per_step):
    choices = strategies(messages, per_step)
    assert all(choice.steps >= 1 and choice.messages <= messages for choice in choices)
    assert recommend(choices).strategy in choices


# Time -----------------------------------------------------------------------------------------


def test_twice_the_steps_take_twice_the_training():
    plan = night(16_000)
    one, two = (plan.workday.run_time(plan.prices, steps) for steps in (1_000, 2_000))
    assert two.training == pytest.approx(2 * one.training)
    assert one.total == one.start_up + one.training + one.validation + one.saving
    assert one.low < one.total < one.high


EACH_A_SECOND = Prices(TimeModel(0.0, 2.0, 0.0, 0.0, 0.0, "calibrated"), 0.0, 1.0)
"""A measurement of one micro-batch and a checkpoint take a second each."""


@pytest.mark.parametrize(
    ("steps", "eval_every", "measured", "saved"),
    [
        (100, 0, 2, 2),  # before and after; checkpoints at 50 and 100
        (120, 0, 3, 3),
        (250, 0, 4, 5),  # epochs end at 100 and 200
        (100, 25, 5, 4),
        (110, 25, 6, 5),
        (100, 500, 2, 2),
        (100, 30, 5, 5),  # 30, 50, 60, 90, 100
    ],
)
def test_measurements_and_checkpoints_are_counted(steps, eval_every, measured, saved):
    day = workday([[[Example(1, 1)]]] * 100, [[Example(1, 1)]], 50, eval_every_steps=eval_every)
    taken = day.run_time(EACH_A_SECOND, steps)
    assert (taken.validation, taken.saving, taken.answers) == (measured, saved, 0)


def test_a_run_that_goes_on_does_only_the_rest():
    day = workday([[[Example(1, 1)]]] * 100, [[Example(1, 1)]], 50, eval_every_steps=25)
    taken = day.run_time(EACH_A_SECOND, 100, first_step=50)
    assert (taken.training, taken.validation, taken.saving) == (100, 2, 2)


def test_sample_answers_count_at_each_checkpoint_and_before():
    rows = [[[Example(1, 1)]]] * 100
    with_them = workday(rows, [[Example(1, 1)]], 50, sample_answers=3)
    passes = with_them.answers.micro_batches
    assert passes == 17  # the questions, then a pass for each of 16 tokens
    taken = with_them.run_time(EACH_A_SECOND, 100)
    assert taken.answers == 3 * passes
    assert taken.total == pytest.approx(taken.training + taken.validation + 2 + taken.answers)
    assert workday(rows, [], 50, sample_answers=3).answers == Work()  # no questions to ask


@given(steps=st.integers(1, 400), save=st.integers(1, 90), evaluate=st.integers(0, 90))
def test_more_steps_never_take_less_time(steps, save, evaluate):
    rows = [[[Example(1, 1)]]] * 60
    day = workday(rows, [[Example(1, 1)]], save, eval_every_steps=evaluate, sample_answers=1)
    less, more = (day.run_time(EACH_A_SECOND, count).total for count in (steps, steps + 1))
    assert less < more


# Deadlines ------------------------------------------------------------------------------------


@given(hours=st.floats(0.05, 24), slow=st.floats(0.1, 30))
def test_what_is_planned_for_a_deadline_ends_in_time(hours, slow):
    plan = night(63_000)
    plan = replace(plan, prices=Prices(plan.prices.time.scaled(slow, "calibrated"), 60, 5))
    deadline = plan_for(plan, hours * 3600, 16)
    if deadline is None:
        assert plan.workday.run_time(plan.prices, 1).total > 0.8 * DEADLINE_SHARE * hours * 3600
    elif deadline.is_whole:
        assert deadline.time.total <= DEADLINE_SHARE * hours * 3600
    else:
        # As near to the aim as one step and one checkpoint let it.
        step = deadline.time.training / deadline.strategy.steps
        assert deadline.time.total <= DEADLINE_SHARE * hours * 3600
        assert deadline.time.total >= DEADLINE_SHARE * hours * 3600 * 0.95 - 2 * step - 10
        assert deadline.strategy.env(2e-4)["MAX_STEPS"] == str(deadline.strategy.steps)


@pytest.mark.parametrize("seconds", range(40, 400, 9))
def test_held_out_losses_between_epochs_count(seconds):
    """Few steps an epoch and much to measure: each epoch more is a measurement more."""
    day = workday([[[Example(160, 100)]]] * 60, [[Example(1000, 900)]] * 24, 50)
    prices = Prices(TimeModel(0.44, 0.0, 1e-3, 0.0, 0.0, "calibrated"), 10, 0.1)
    plan = replace(night(960), workday=day, prices=prices)
    deadline = plan_for(plan, seconds, 16)
    assert deadline is None or deadline.time.total <= DEADLINE_SHARE * seconds


def test_a_plan_of_a_plan_is_the_same():
    for messages in (2_000, 10_000, 63_000):
        first = night(messages)
        lines = first.recommendation.strategy.env(first.learning_rate)
        settings = load_settings({k.lower(): v for k, v in lines.items()}, env_file=None)
        second = night(messages, settings=settings)
        assert second.recommendation.strategy.env(second.learning_rate) == lines


def test_no_time_is_no_plan():
    assert plan_for(night(63_000), 1.0, 16) is None
    assert plan_for(night(63_000), -100.0, 16) is None


@given(hours=st.floats(0.05, 24))
def test_for_a_card_the_latest_end_is_in_time(hours):
    deadline = plan_for(night(63_000), hours * 3600, 16)
    assert deadline is None or deadline.time.high <= hours * 3600


def test_what_no_card_has_shown_is_not_promised(capsys):
    plan = night(63_000)
    taken = plan.workday.run_time(plan.prices, 100)
    assert (taken.low, taken.high) == (taken.total / 2, taken.total * 2)
    show_plan(plan, SETTINGS, make_console())
    said = " ".join(capsys.readouterr().out.split())
    assert "(modelled, not measured on any card: within a factor of 2)" in said
    assert "memory of the card | 11.57" in said
    timed = night(63_000, timing=timing())
    taken = timed.workday.run_time(timed.prices, 100)
    assert (taken.high, taken.label) == (taken.total * 1.1, "calibrated")


NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)


def hints(deadline, capsys, can_calibrate):
    show_deadline(deadline, make_console(), NOON, can_calibrate=can_calibrate)
    return " ".join(capsys.readouterr().out.split())


def test_only_the_machine_at_hand_can_be_calibrated(capsys):
    plan = night(63_000)
    on_a_card = plan_for(plan, 8 * 3600, 16)
    late = Deadline(plan.recommendation.strategy, RunTime(10, 100, 0, 0, "modelled"), 120, True)
    for deadline, remark in (
        (on_a_card, "Planned for the latest end, not for the likeliest"),
        (late, "That would be too late"),
    ):
        assert f"{remark}: --calibrate narrows it down." in hints(deadline, capsys, True)
        assert f"{remark}." in hints(deadline, capsys, False)
    sure = replace(late, time=RunTime(10, 90, 0, 0, "calibrated"))
    assert "--calibrate" not in hints(sure, capsys, True)


def test_a_time_of_day_stays_that_of_the_start():
    """Not tomorrow's, when it has passed while the machine was timed."""
    begun = NOON.timestamp()
    asked = Asked(ready_at=begun + 300)
    assert asked.seconds_left(datetime.fromtimestamp(begun + 100, UTC)) == 200
    assert asked.seconds_left(datetime.fromtimestamp(begun + 400, UTC)) == -100
    assert Asked(hours=2).seconds_left(NOON) == 7200
    assert Asked().seconds_left(NOON) is None


def test_a_time_of_day_is_the_next_one():
    now = datetime(2026, 3, 2, 22, 30, tzinfo=UTC)
    assert seconds_allowed("07:00", None, now) == 8.5 * 3600
    assert seconds_allowed("7:00", None, now) == 8.5 * 3600
    assert seconds_allowed("23:00", None, now) == 1800
    assert seconds_allowed(None, 8, now) == 8 * 3600
    assert seconds_allowed(None, None, now) is None


@pytest.mark.parametrize(
    ("ready_by", "hours"),
    [("7 o'clock", None), ("25:00", None), ("07:00", 8), (None, 0), (None, -1)],
)
def test_what_is_no_deadline_is_said(ready_by, hours):
    with pytest.raises(UserError, match=r"--ready-by|--hours"):
        seconds_allowed(ready_by, hours, datetime(2026, 3, 2, tzinfo=UTC))


def test_durations_read_like_people_say_them():
    assert [duration(s) for s in (42, 700, 12_345, 354_420, 10**6)] == [
        "42 s",
        "12 min",
        "3.4 h",
        "98.5 h",
        "12 days",
    ]


def test_an_end_beyond_this_week_has_its_date(capsys):
    strategy = night(63_000).recommendation.strategy
    for days, shown in ((2, r"ends at [A-Z][a-z]{2} \d\d:"), (9, r"ends at 2026-03-1\d \d\d:")):
        taken = RunTime(0, days * 86_400, 0, 0, "calibrated")
        assert re.search(shown, hints(Deadline(strategy, taken, 1e7, True), capsys, False))


def test_the_page_fits_an_old_windows_console(capsys):
    console = make_console()
    show_plan(night(63_000), SETTINGS, console)
    show_plan(night(63_000, seconds_per_step=30), SETTINGS, console, classic=30)
    show_lines(night(63_000).recommendation.strategy.env(2e-4), console)
    text = capsys.readouterr().out
    text.encode("cp1252")
    assert "3,938 steps an epoch" in text
    assert "x 30 s = 32.8 h" in text
    assert text.splitlines()[-4:-1] == ["In .env:", "EPOCHS=1", "MAX_STEPS=0"]


def test_a_measured_peak_within_the_reserve_is_said(capsys):
    memory, needed = night(16_000).fit.machine.memory_bytes, timing().activations.needed(320, 0)
    tight = night(16_000, timing=timing(base_bytes=memory - needed - 0.6e9))
    assert (tight.peak_source, tight.fits) == ("calibrated", False)
    show_plan(tight, SETTINGS, make_console())
    said = " ".join(capsys.readouterr().out.split())
    assert "missing | 0.40" in said
    assert "This may not fit." in said
    assert night(16_000, timing=timing(base_bytes=memory - needed - 1.1e9)).fits


@pytest.mark.parametrize(("persona", "whose"), [("", ""), ("Ada", " --authors Ada")])
def test_how_to_choose_fewer_messages_is_said(persona, whose, capsys):
    settings = load_settings({"persona": persona, "training_data_path": "x.jsonl"}, env_file=None)
    plan = night(63_000, settings=settings)
    show_plan(plan, settings, make_console())
    lines = capsys.readouterr().out.splitlines()
    for option in ("--best 10000", "--best 5000", "--hand-pick 2000"):
        command = f"scripts/filter_training_data.py x.jsonl {option}{whose}"
        assert any(line.endswith(command) for line in lines)
    show_plan(plan, settings, make_console(), can_be_filtered=False)
    show_plan(night(500, settings=settings), settings, make_console())
    assert "filter_training_data" not in capsys.readouterr().out


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="Windows knows one time zone")
@pytest.mark.parametrize(("day", "hours"), [("2026-03-28", 7), ("2026-10-24", 9)])
def test_a_deadline_is_what_the_clock_on_the_wall_shows(day, hours, monkeypatch):
    """In these nights the clocks change between 23:00 and 07:00."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        now = datetime.fromisoformat(f"{day}T23:00").astimezone()
        assert seconds_allowed("07:00", None, now) == hours * 3600
    finally:
        monkeypatch.undo()
        time.tzset()
