"""What the history of a night comes to: outcome, breaks, figures, whatever is missing in it."""

import math
import os

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from discord_lora.analysis.morning.curves import MOST_POINTS
from discord_lora.analysis.morning.history import HISTORY_FILE, append_event
from discord_lora.analysis.morning.morning_html import as_html
from morning_events import (
    COMMAND,
    EVENING,
    end,
    event,
    held_out,
    page_of,
    plan,
    report_of,
    shown,
    start,
    steps,
)


@pytest.fixture
def finished():
    return report_of(
        plan(),
        start(5),
        held_out(6, 0, 3.5),
        *steps(1, 40, 10),
        held_out(60, 20, 2.5),
        event("saved", 90, step=40, seconds=0.5, bytes=100),
        held_out(95, 40, 2.75),
        end(110, step=40, seconds=125.0, peak_bytes=3e9, next_command="python scripts/chat.py"),
    )


def test_a_finished_run_says_what_it_came_to(finished):
    assert finished.state == "finished"
    assert "40 steps in 2 min, held-out loss from 3.500 to 2.750 (lowest: 2.500)" in (
        finished.sentence
    )
    assert finished.next_command == "python scripts/chat.py"
    assert finished.best.step == 20
    assert (finished.seconds.predicted, finished.seconds.real) == (100.0, 125.0)
    assert finished.seconds.ratio == 1.25
    assert finished.memory.ratio == 1.5
    assert finished.medians["messages_per_second"] == 4.0
    assert (finished.steps_done, finished.steps) == (40, 40)
    assert finished.incidents == []


def test_the_time_of_all_steps_is_not_compared_with_that_of_some():
    report = report_of(start(0), plan(), *steps(1, 20, 10), end(60, sentence="stopping early"))
    assert (report.state, report.steps_done) == ("finished", 20)
    assert (report.seconds.predicted, report.seconds.real) == (100.0, None)


def test_both_pages_show_its_figures(finished):
    for page in (page_of(finished), as_html(finished).decode()):
        for word in ("ada-tiny", "modelled", "1.25", "1.50", "2.5000", "lowest", "3.0 GB"):
            assert word in page
    assert "python scripts/chat.py" in page_of(finished)


def test_a_power_cut_is_seen_from_outside_and_says_how_to_go_on():
    report = report_of(plan(), start(5), *steps(1, 18, 10))
    assert report.state == "silent"
    assert "step 18 of 40" in report.sentence
    assert report.sentence.startswith("No sign of life since ")
    assert report.next_command == COMMAND
    assert [(it.what, it.step) for it in report.incidents] == [("cut off", 18)]
    assert report.seconds.real is None
    assert COMMAND in page_of(report)


def test_a_break_lasts_from_the_last_sign_of_life_to_the_next_start():
    report = report_of(
        plan(), start(5), *steps(1, 18, 10), plan(1000), start(1005, step=10),
        *steps(11, 40, 1010), end(1080, step=40, seconds=80.0),
    )  # fmt: skip
    assert report.state == "finished"
    (cut,) = report.incidents
    assert (cut.what, cut.step, cut.time) == ("cut off", 18, EVENING + 46)
    assert "16 min later" in cut.sentence
    assert "8 steps were done again" in cut.sentence
    assert report.idle_seconds == 954.0
    assert report.working_seconds == 46.0 + 80.0
    assert [x for x, _ in report.loss] == list(range(1, 41)), "each step once"


@pytest.mark.parametrize("plan_first", [True, False])
@pytest.mark.parametrize("processes", [(None, None), (1, 2), (7, 7)])
def test_plan_and_start_come_in_any_order(plan_first, processes):
    def opening(at, step, process):
        by = {} if process is None else {"process": process, "computer": "another one"}
        both = [plan(at, **by), start(at, step=step, **by)]
        return both if plan_first else both[::-1]

    first, second = processes
    report = report_of(
        *opening(0, 0, first), *steps(1, 9, 1), *opening(100, 5, second), *steps(6, 12, 101)
    )
    assert report.starts == 2
    assert [it.what for it in report.incidents] == ["cut off", "cut off"]


@pytest.mark.parametrize(
    "said", ["Everything is saved.", "left at once; the last checkpoint is whole"]
)
def test_a_stop_says_what_was_saved_and_nothing_else(said):
    events = [plan(), start(5), *steps(1, 7, 10), end(30, "stopped", step=7, sentence=said)]
    stopped = report_of(*events)
    assert stopped.sentence.endswith(f"after step 7 of 40: {said}")
    going_on = report_of(*events, plan(100), start(110, step=5), *steps(6, 9, 120))
    sentence = going_on.incidents[0].sentence
    assert sentence.startswith(f"{said.rstrip('.')}. Started again")
    assert "2 steps were done again" in sentence
    assert ("is saved" in shown(going_on)) == ("is saved" in said)


def test_a_stop_loses_nothing_and_is_no_failure():
    events = [plan(), start(5), *steps(1, 7, 10), end(30, "stopped", step=7, seconds=30.0)]
    report = report_of(*events)
    assert "Stopped at" in report.sentence and "after step 7 of 40" in report.sentence
    assert report.next_command == COMMAND
    going_on = report_of(*events, plan(100), start(110, step=7), *steps(8, 9, 120))
    assert going_on.incidents[0].what == "stopped"
    assert "done again" not in going_on.incidents[0].sentence


def test_a_failure_says_why():
    why = "The loss of step 8 is nan."
    report = report_of(plan(), start(5), *steps(1, 7, 10), end(30, "failed", step=7, sentence=why))
    assert report.sentence.endswith(f"after step 7 of 40: {why}")
    assert report.incidents[-1].sentence == why
    assert report_of(plan(), end(3, "of another version")).state == "failed"


@pytest.mark.parametrize("later_save", [[], [event("saved", 80, step=30, seconds=0.5)]])
def test_a_run_that_goes_on_from_before_its_first_step_is_the_same_run(later_save):
    """The checkpoint at step 0 is all that there is, or all that is whole."""
    first = [plan(), start(5), held_out(6, 0, 3.5), event("saved", 7, step=0, seconds=0.5)]
    trouble = event("incident", 50, step=20, what="out_of_memory", sentence="smaller")
    again = [plan(3000), start(3005), *steps(1, 9, 3010)]
    report = report_of(*first, *steps(1, 40, 10, 1), trouble, *later_save, *again, now=3030)
    assert report.starts == 2
    assert sorted(it.what for it in report.incidents) == ["cut off", "out of memory"]
    assert "40 steps were done again" in next(
        it.sentence for it in report.incidents if "Started again" in it.sentence
    )
    assert [it.nats_per_token for it in report.held_out] == [3.5]
    assert report.seconds.predicted == 100.0


def test_after_a_return_the_run_stands_where_it_went_on():
    back = event("incident", 70, step=23, what="went_back", back_to=10, sentence="NaN")
    events = [plan(), start(5), *steps(1, 20, 10), back, *steps(11, 12, 80)]
    report = report_of(*events)
    assert report.steps_done == 12
    assert "step 12 of 40" in report.sentence
    again = report_of(*events, plan(1000), start(1005, step=10), *steps(11, 13, 1010))
    assert "2 steps were done again" in again.incidents[1].sentence
    further_back = [start(5, step=20), event("step", 9, step=25), back, *steps(11, 12, 70)]
    report = report_of(plan(), *further_back, now=80)
    assert report.sentence.startswith("Running: step 12 of 40") and "to go" not in report.sentence


def test_a_finished_run_says_which_adapter_it_left():
    why = "stopping early: no lower held-out loss in 3 measurements"
    said = f"{why}; the adapter is that of step 20"
    report = report_of(plan(), start(5), *steps(1, 30, 10), end(90, step=30, sentence=said))
    assert report.sentence.endswith(f"; {said}.")
    for page in (page_of(report), as_html(report).decode()):
        assert said in " ".join(page.split())


def test_real_memory_is_that_of_the_process_also_where_nobody_wrote_the_end():
    full = [
        event("step", 10 + n, step=n, loss=2.0, memory_bytes=9e9, peak_bytes=peak)
        for n, peak in ((10, 1.0e9), (20, 2.5e9), (30, 1.2e9))
    ]
    report = report_of(plan(peak_label="calibrated"), start(5), *full)
    assert (report.memory.predicted, report.memory.real) == (2e9, 2.5e9)
    again = report_of(plan(), start(5), *full, plan(100), start(101, step=10), end(105))
    assert again.memory.real == 2.5e9, "steps that were done again took their memory"
    assert report_of(plan(), start(5), *steps(1, 9, 10)).memory.real is None


def test_each_prediction_has_its_own_label():
    report = report_of(plan(label="measured here", peak_label="modelled"), start(5))
    assert (report.seconds.label, report.memory.label) == ("measured here", "modelled")
    page = page_of(report)
    assert "time (measured here)" in page and "memory (modelled)" in page
    later = report_of(plan(label="modelled"), start(5), plan(50, label="measured here"), start(60))
    assert later.seconds.label == "modelled", "as the time before the first start was predicted"


@pytest.mark.parametrize(
    ("throttled", "slowed"),
    [
        ("", False), ("power limit", False), (None, False), (True, False),
        ("heat", True), ("heat, power limit", True), ("power supply", True),
        ("hardware protection", True),
    ],
)  # fmt: skip
def test_a_card_at_its_power_limit_is_not_slowed(throttled, slowed):
    report = report_of(start(5), event("step", 9, step=1, loss=2.0, throttled=throttled))
    assert report.throttled == (int(slowed), 1)
    assert ("slowed itself down in 1 of 1" in page_of(report)) == slowed


def test_steps_that_taught_nothing_are_on_both_pages():
    def count(at, step, kind="step", **counts):
        return event(kind, at, step=step, **counts)

    events = [
        plan(), start(1), count(5, 10, not_finite=1, overflowed=2),
        count(9, 20, not_finite=4, overflowed=9), start(50, step=10),
        count(60, 20, not_finite=1, overflowed=1234),
    ]  # fmt: skip
    report = report_of(*events)
    assert (report.not_finite, report.overflowed) == (1, 1234), "those done again count once"
    for page in (page_of(report), as_html(report).decode()):
        words = " ".join(page.split())
        assert "1 because loss or gradient was not finite" in words
        assert "1,234 because fp16 found its scale too high" in words
    report = report_of(*events, count(70, 20, "end", not_finite=2, overflowed=0))
    assert (report.not_finite, report.overflowed) == (2, 0)
    assert "fp16" not in shown(report)
    assert "left out" not in shown(report_of(plan(), start(1)))


def test_checkpoints_and_the_answers_beside_them_are_told_apart():
    saves = [event("saved", 10 * n, step=n, seconds=2.0) for n in (1, 2, 3)]
    answers = [event("answers", 10 * n + 1, step=n, seconds=7.0, answers=[]) for n in (1, 2, 3)]
    page = " ".join(page_of(report_of(plan(), start(1), *saves, *answers)).split())
    assert "3 checkpoints in 6 s, sample answers beside them in 21 s" in page
    assert "sample answers" not in shown(report_of(plan(), start(1), *saves))


def test_a_running_run_says_when_it_ends():
    report = report_of(plan(), start(10), *steps(1, 20, 10, seconds=60), now=1210)
    assert report.state == "running"
    assert "about 20 min to go" in report.sentence
    assert report.next_command == ""


def test_before_the_first_step():
    assert "no step is done yet" in report_of(plan(), now=30).sentence
    cut = report_of(plan(), start(5))
    assert "before the first step" in cut.sentence
    assert cut.next_command == COMMAND
    assert "No sign of life" in shown(cut)


@pytest.mark.parametrize(
    "events",
    [
        [plan()],
        [start(1)],
        [{"kind": "start"}],
        [{"kind": "end"}],
        [{"kind": "incident"}],
        [{"kind": "step", "step": 3}],
        [event("step", 1, step=1, loss=2.0)],
        [held_out(1, 0, 3.0)],
        [event("answers", 1, step=1, answers=[{}, 3, {"answer": "hi"}])],
        [event("answers", 1, step=1, answers="none")],
        steps(1, 1, 1),
    ],
)
def test_hardly_anything_makes_pages(events):
    assert "folder" in shown(report_of(*events)) or events[0]["kind"] == "plan"


def test_a_loss_that_is_no_number_is_counted_and_left_out():
    bad = [event("step", n, step=n, loss=value) for n, value in ((5, math.nan), (6, math.inf))]
    report = report_of(plan(), start(0), *steps(1, 4, 1), *bad, *steps(7, 9, 10))
    assert report.bad_losses == 2
    assert [x for x, _ in report.loss] == [1, 2, 3, 4, 7, 8, 9]
    assert "nan" not in as_html(report).decode().replace("finance", "")


def test_a_hundred_thousand_steps_make_a_page_of_the_usual_size():
    report = report_of(plan(steps=100_000), start(0), *steps(1, 100_000, 1))
    assert len(report.loss) <= MOST_POINTS and len(report.smooth_loss) <= MOST_POINTS
    assert len(as_html(report)) < 100_000
    assert report.medians["tokens_per_second"] == 100.0


def test_answers_are_by_question_and_the_latest_of_a_step_counts():
    def answers(at, step, *words):
        asked = [{"prompt": f"q{n}", "real": "yes", "answer": word} for n, word in enumerate(words)]
        return event("answers", at, step=step, answers=asked)

    report = report_of(
        plan(), start(1), answers(2, 0, "first", "x"), start(50), answers(60, 0, "again", "x"),
        answers(70, 20, "later", "x"),
    )  # fmt: skip
    assert [question.prompt for question in report.questions] == ["q0", "q1"]
    assert report.questions[0].answers == [(0, "again"), (20, "later")]
    html = as_html(report).decode()
    assert "before training" in html and "step 0 to 20" in html


def test_a_process_number_comes_with_the_start_by_itself(tmp_path):
    append_event(tmp_path, "start", step=0)
    text = (tmp_path / HISTORY_FILE).read_text()
    assert f'"process": {os.getpid()}' in text and '"computer": ' in text


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
KEYS = (
    "run", "steps", "steps_per_epoch", "base_model", "voice", "hardware", "command", "seconds",
    "peak_bytes", "label", "process", "computer", "loss", "learning_rate", "messages_per_second",
    "memory_bytes", "celsius", "throttled", "nats_per_token", "bits_per_character", "messages",
    "bytes", "answers", "what", "sentence", "outcome", "next_command", "time", "peak_label",
    "back_to", "not_finite", "overflowed",
)  # fmt: skip
EVENTS = st.builds(
    lambda kind, step, values: {"kind": kind, "step": step, **values},
    st.sampled_from(
        ("plan", "start", "step", "held_out", "saved", "answers", "incident", "end")
    ),
    st.integers(0, 10**12),
    st.dictionaries(st.sampled_from(KEYS), ANYTHING, max_size=6),
)  # fmt: skip


@given(st.lists(EVENTS, min_size=1, max_size=12))
@hypothesis_settings(max_examples=100, deadline=None)
def test_whatever_the_events_hold_there_are_pages(events):
    shown(report_of(*events))
