import io
import os
import sys
import time
from types import SimpleNamespace

import pytest
from rich.console import Console

from discord_lora.analysis.morning.history import read_events
from discord_lora.console import Interrupted, UserError, make_console
from discord_lora.finetuning import watchdog
from discord_lora.finetuning.loop import HeldOutLoss, StepResult
from discord_lora.finetuning.run_log import RECENT_LINES, RunLog
from discord_lora.finetuning.telemetry import Reading
from discord_lora.hardware import detect_hardware

HARDWARE = detect_hardware()


class Tracker:
    """accelerate's part of it."""

    def __init__(self, is_main_process=True):
        self.is_main_process = is_main_process
        self.logged = []

    def log(self, values, step):
        self.logged.append((step, values))


def make_log(tmp_path, *, main=True, first_step=0, console=None, **options):
    return RunLog(
        logs=tmp_path / "a-run",
        console=console or Console(file=io.StringIO()),
        hardware=HARDWARE,
        accelerator=Tracker(main),
        steps=4,
        first_step=first_step,
        log_every_steps=2,
        go_on="python again.py",
        talk="python talk.py",
        **options,
    )


def do_steps(log, *numbers):
    for number in numbers:
        log.stepped(StepResult(number, 2.0, 1e-3, 4, 100))


def events(tmp_path):
    return read_events(tmp_path / "a-run")


def test_the_history_holds_what_it_says_it_holds(tmp_path):
    with make_log(tmp_path) as log:
        log.held_out(0, HeldOutLoss(3.0, 1.5, 7))
        do_steps(log, 1, 2)
        log.incident("out_of_memory", "out of memory: going on with 512 tokens a micro-batch")
        checkpoint = tmp_path / "step-2"
        checkpoint.mkdir()
        (checkpoint / "weights").write_bytes(b"x" * 1234)
        log.saved(2, 0.25, checkpoint)
        do_steps(log, 3, 4)
        log.held_out(4, HeldOutLoss(3.5, 1.7, 7))
    found = events(tmp_path)
    for event in found:
        assert event.pop("time") > 1e9
    start, base, step, memory, saved, last, trained, end = found
    assert start.pop("process") == os.getpid() and start.pop("computer")
    assert start == {"kind": "start", "step": 0}
    assert base == {
        "kind": "held_out",
        "step": 0,
        "nats_per_token": 3.0,
        "bits_per_character": 1.5,
        "messages": 7,
    }
    assert set(step) == {
        *("kind", "step", "loss", "learning_rate"),
        *("messages_per_second", "tokens_per_second", "memory_bytes", "peak_bytes"),
    }
    assert step["peak_bytes"] > 1e6
    assert (step["step"], step["loss"], last["step"]) == (2, 2.0, 4)
    assert memory["what"] == "out_of_memory" and memory["step"] == 2
    assert "512 tokens" in memory["sentence"]
    assert saved == {"kind": "saved", "step": 2, "seconds": 0.25, "bytes": 1234}
    assert trained["nats_per_token"] == 3.5
    assert end["outcome"] == "finished" and end["next_command"] == "python talk.py"
    assert end["seconds"] > 0 and end["peak_bytes"] > 1e6 and end["step"] == 4
    text = (tmp_path / "training.log").read_text(encoding="utf-8")
    assert "out of memory: going on with 512" in text and "step 4 of 4" in text


def test_what_was_done_again_counts_once(tmp_path):
    with make_log(tmp_path) as log:
        log.held_out(2, HeldOutLoss(3.0, 1.5, 7))
        log.held_out(4, HeldOutLoss(2.0, 1.0, 7))
    with make_log(tmp_path, first_step=2) as log:
        log.held_out(4, HeldOutLoss(2.5, 1.2, 7))
    measured = [it["nats_per_token"] for it in events(tmp_path) if it["kind"] == "held_out"]
    assert measured == [3.0, 2.5]


def test_after_going_back_rates_are_those_of_the_steps_that_were_taken(tmp_path):
    with make_log(tmp_path, first_step=2) as log:
        do_steps(log, 3, 4)
        log.went_back(1, "going back")
        do_steps(log, 2, 3)
    found = [it for it in events(tmp_path) if it["kind"] in ("step", "incident")]
    assert [it["step"] for it in found] == [4, 2], "step 4 was given up"
    assert found[0]["back_to"] == 1
    assert log.steps_taken == 4


@pytest.mark.parametrize(
    ("error", "outcome", "sentence"),
    [
        (Interrupted("Stopped and saved.\nRun again:\n  x"), "stopped", "Stopped and saved."),
        (KeyboardInterrupt(), "stopped", "left at once; the last checkpoint is whole"),
        (UserError("No room."), "failed", "No room."),
        (ValueError("a bug"), "failed", "a bug"),
        (AssertionError(), "failed", "AssertionError"),
    ],
)
def test_the_morning_finds_why_it_ended(tmp_path, error, outcome, sentence):
    with pytest.raises(type(error)), make_log(tmp_path) as log:
        do_steps(log, 1)
        raise error
    end = events(tmp_path)[-1]
    assert (end["kind"], end["outcome"], end["sentence"]) == ("end", outcome, sentence)
    assert (end["step"], end["next_command"]) == (1, "python again.py")
    text = (tmp_path / "training.log").read_text(encoding="utf-8")
    assert f"{outcome}: {sentence}" in text
    assert ("Traceback" in text) == isinstance(error, ValueError | AssertionError)


def test_an_end_that_was_told_is_not_told_twice(tmp_path):
    with make_log(tmp_path) as log:
        log.ended("finished", "stopped early, after step 3")
    ends = [event["sentence"] for event in events(tmp_path) if event["kind"] == "end"]
    assert ends == ["stopped early, after step 3"]


def test_what_ends_a_run_that_was_asked_to_stop_says_the_command_that_goes_on(tmp_path):
    with pytest.raises(Interrupted) as stopped, make_log(tmp_path) as log:
        raise log.interrupted("Half of it is saved.")
    assert events(tmp_path)[-1]["sentence"] == "Half of it is saved."
    assert str(stopped.value).endswith("to go on:\n  python again.py")


@pytest.fixture
def clock(monkeypatch):
    """Seconds of training, set by the test."""
    it = SimpleNamespace(now=0.0)
    monkeypatch.setattr(RunLog, "training_seconds", property(lambda _log: it.now))
    return it


def rates_and_time_left(log, clock, tmp_path, *pairs_of_steps):
    """Of lines over two steps each, which take so many seconds together."""
    first = log.step
    for n, seconds in enumerate(pairs_of_steps):
        clock.now += seconds
        do_steps(log, first + 2 * n + 1, first + 2 * n + 2)
    text = (tmp_path / "training.log").read_text(encoding="utf-8")
    rates = [it["messages_per_second"] for it in events(tmp_path) if it["kind"] == "step"]
    return rates, [line.split("left ")[1] for line in text.splitlines() if "left " in line]


def test_rates_are_those_since_the_line_before(tmp_path, clock):
    with make_log(tmp_path) as log:
        log.steps = 1000
        rates, left = rates_and_time_left(log, clock, tmp_path, 80, 8, 4)
    assert rates == [0.1, 1.0, 2.0]
    assert left[0] == "11:05:20", "998 steps of 40 s"


def test_the_time_left_forgets_how_slow_the_start_was(tmp_path, clock):
    with make_log(tmp_path) as log:
        log.steps = 100 + 2 * RECENT_LINES
        _, left = rates_and_time_left(log, clock, tmp_path, 10_000, *[2] * RECENT_LINES)
    assert left[-1] == "0:01:38", "98 steps of a second"


def test_sleep_that_is_found_out_after_a_line_spoils_that_line_only(tmp_path, clock):
    with make_log(tmp_path) as log:
        log.steps = 1000
        rates_and_time_left(log, clock, tmp_path, 8, 8 + 30_000)
        clock.now -= 30_000
        rates, left = rates_and_time_left(log, clock, tmp_path, 8)
    assert (rates[0], rates[2]) == (1.0, 1.0), "since the line before the sleep"
    assert left[2] == "1:06:16", "994 steps of 4 s"


def test_steps_that_taught_nothing_are_counted_in_the_history(tmp_path):
    counts = {"not_finite": 1, "overflowed": 0}
    with make_log(tmp_path, left_out=lambda: counts) as log:
        do_steps(log, 1, 2)
        counts["overflowed"] = 3
    _, step, end = events(tmp_path)
    assert (step["not_finite"], step["overflowed"]) == (1, 0)
    assert (end["not_finite"], end["overflowed"]) == (1, 3)


def test_a_card_is_in_the_line_and_in_the_history(tmp_path):
    with make_log(tmp_path) as log:
        log.card = SimpleNamespace(
            read=lambda: Reading(71, 214.6, 9_000_000_000, ("heat",)),
            too_hot_for_long=lambda reading: "it is hot" * (reading.celsius == 71),
        )
        do_steps(log, 1, 2)
    step, heat = events(tmp_path)[1:3]
    assert (step["celsius"], step["watts"], step["throttled"]) == (71, 214.6, "heat")
    assert step["memory_bytes"] == 9_000_000_000
    assert (heat["what"], heat["sentence"]) == ("heat", "it is hot")
    text = (tmp_path / "training.log").read_text(encoding="utf-8")
    assert "memory 9.0 of" in text and "71 °C  215 W  slowed by heat  left" in text
    assert log.accelerator.logged[0][1]["celsius"] == 71


def test_only_the_main_process_writes(tmp_path):
    with make_log(tmp_path, main=False) as log:
        do_steps(log, 1, 2)
        log.incident("x", "something")
    assert list(tmp_path.iterdir()) == []


class Terminal(io.StringIO):
    """One that can be hung up."""

    gone = False

    def isatty(self):
        return True

    def write(self, text):
        if self.gone:
            raise OSError(5, "Input/output error")
        return super().write(text)


@pytest.mark.parametrize("gone_at_start", [False, True])
def test_a_terminal_that_is_gone_costs_its_lines_and_not_the_run(
    tmp_path, monkeypatch, gone_at_start
):
    monkeypatch.setattr("threading.excepthook", lambda _arguments: None)  # rich's own thread
    terminal = Terminal()
    terminal.gone = gone_at_start
    console = Console(file=terminal, force_terminal=True)
    with make_log(tmp_path, console=console) as log:
        do_steps(log, 1)
        terminal.gone = True
        with pytest.raises(OSError, match="Input/output"):
            console.print("the console fails")
        do_steps(log, 2)
        log.progress.add_task("measuring", total=3)
        log.incident("x", "something")
    assert [event["kind"] for event in events(tmp_path)] == ["start", "step", "incident", "end"]


def test_a_pipe_that_nobody_reads_any_more_does_not_end_the_run(tmp_path, monkeypatch):
    """`train_lora.py | head` in the middle of a night."""
    reader, writer = os.pipe()
    os.close(reader)
    stdout = os.fdopen(writer, "w")
    monkeypatch.setattr(sys, "stdout", stdout)
    with make_log(tmp_path, console=make_console()) as log:
        log.incident("x", "something")
        do_steps(log, 1, 2)
    assert [event["kind"] for event in events(tmp_path)] == ["start", "incident", "step", "end"]
    with pytest.raises(BrokenPipeError):
        stdout.close()


def test_time_that_was_slept_is_no_training_time(tmp_path):
    with make_log(tmp_path) as log:
        before = log.training_seconds
        log._slept(1000.0)
        assert log.training_seconds < before - 900


@pytest.mark.parametrize("noticed", ["within", "after"])
def test_sleep_in_the_middle_of_work_aside_is_taken_off_once(tmp_path, monkeypatch, noticed):
    """On Windows `perf_counter` counts it, and the watchdog hears of it up to a look later."""
    monkeypatch.setattr(watchdog, "POLL_SECONDS", 0.3)
    awake, slept = time.perf_counter, []
    monkeypatch.setattr(time, "perf_counter", lambda: awake() + sum(slept))
    log = make_log(tmp_path)
    log.watchdog._clock = time.perf_counter

    def until_noticed():
        until = awake() + 5.0
        while "slept" not in [it.get("what") for it in events(tmp_path)]:
            assert awake() < until
            time.sleep(0.02)

    with log:
        time.sleep(0.1)  # the watchdog is between two looks
        with log.aside("the measurement"):
            slept.append(7200.0)
            if noticed == "within":
                until_noticed()
        until_noticed()
        assert 0 < log.training_seconds < 60


def test_a_place_that_cannot_be_written_is_said_in_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="LOGS_DIR: cannot write"):
        make_log(tmp_path / "file")
