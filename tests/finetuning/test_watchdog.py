import sys
import threading
import time
from types import SimpleNamespace

import pytest

from discord_lora.finetuning import watchdog
from discord_lora.finetuning.watchdog import (
    LEAST_SECONDS,
    POLL_SECONDS,
    Watchdog,
    clock_that_counts_sleep,
    in_words,
)


class Watched:
    """A watchdog with a clock that the test moves; `pass_time` looks as its thread would."""

    def __init__(self, **options):
        self.now = 1000.0
        self.incidents, self.written, self.slept = [], [], []
        self.dog = Watchdog(
            incident=lambda what, sentence: self.incidents.append((what, sentence)),
            write=self.written.append,
            slept=self.slept.append,
            counter=time.perf_counter,
            clock=lambda: self.now,
            **options,
        )

    def pass_time(self, seconds):
        for _ in range(round(seconds / POLL_SECONDS)):
            self.now += POLL_SECONDS
            self.dog.look(POLL_SECONDS, POLL_SECONDS)

    def step(self, number, seconds):
        self.now += seconds
        self.dog.stepped(number)

    @property
    def kinds(self):
        return [what for what, _ in self.incidents]


def test_a_hung_step_is_reported_once_and_once_more_when_it_goes_on():
    watched = Watched(first_step=1200)
    for number in range(1201, 1234):
        watched.step(number, 3.0)
    watched.pass_time(LEAST_SECONDS)
    assert watched.kinds == []
    watched.pass_time(600)
    assert watched.kinds == ["hung"]
    sentence = watched.incidents[0][1]
    assert sentence.startswith("step 1,234 has been running for 5 minutes")
    assert "a usual step takes 3.0 s" in sentence and "nvidia-smi" in sentence
    watched.dog.stepped(1234)
    watched.pass_time(60)
    assert watched.kinds == ["hung", "went_on"]
    assert "after 15 minutes" in watched.incidents[1][1]
    watched.pass_time(900)
    assert watched.kinds == ["hung", "went_on", "hung"], "the next hang is another one"


def test_what_ends_before_the_next_look_has_gone_on_too():
    watched = Watched()
    with watched.dog:
        watched.pass_time(2 * LEAST_SECONDS)
        watched.dog.stepped(1)
    assert watched.kinds == ["hung", "went_on"]


def test_slow_steps_are_given_ten_times_what_is_usual():
    watched = Watched()
    for number in range(1, 6):
        watched.step(number, 100.0)
    watched.pass_time(1000)
    assert watched.kinds == []
    watched.pass_time(10)
    assert watched.kinds == ["hung"]


def test_signs_of_life_within_a_step_keep_it_quiet():
    watched = Watched()
    for _ in range(20):
        watched.pass_time(250)
        watched.dog.beat()
    assert watched.kinds == []


def test_a_save_is_called_by_its_name_and_no_part_of_a_step():
    watched = Watched()
    watched.step(1, 3.0)
    with watched.dog.beside("the save"):
        watched.pass_time(LEAST_SECONDS + 10)
    assert watched.incidents[0][1].startswith("the save has been running")
    watched.step(2, 3.0)
    watched.step(3, 3.0)
    watched.pass_time(LEAST_SECONDS + 10)
    assert watched.incidents[-1][1].startswith("step 4 has been")
    assert "usual step takes 3.0 s" in watched.incidents[-1][1]


@pytest.mark.parametrize("counted_too", [True, False], ids=["windows", "linux"])
def test_a_computer_that_slept_does_not_hang(counted_too):
    watched = Watched()
    watched.pass_time(200)
    hours = 7.2 * 3600
    watched.now += hours
    watched.dog.look(hours, hours if counted_too else POLL_SECONDS)
    assert watched.kinds == ["slept"]
    assert "the computer slept for 7.2 hours" in watched.incidents[0][1]
    assert "step 1" in watched.incidents[0][1]
    assert watched.slept == [hours - POLL_SECONDS if counted_too else 0.0]
    watched.pass_time(95)
    assert watched.kinds == ["slept"], "what went before and after counts, what was slept does not"
    watched.pass_time(20)
    assert watched.kinds == ["slept", "hung"]
    assert "5 minutes" in watched.incidents[1][1]


def test_sleep_in_the_middle_of_a_hang_is_not_going_on():
    watched = Watched()
    watched.pass_time(400)
    watched.now += 3600
    watched.dog.look(3600, 3600)
    watched.pass_time(400)
    assert watched.kinds == ["hung", "slept"]
    watched.dog.beat()
    watched.pass_time(10)
    assert watched.kinds == ["hung", "slept", "went_on"]


def stand_here_until(reported):
    return reported.wait(20)


def test_the_real_thread_names_the_line_where_the_program_stands(monkeypatch):
    monkeypatch.setattr(watchdog, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(watchdog, "LEAST_SECONDS", 0.3)
    reported, went_on = threading.Event(), threading.Event()
    seen = SimpleNamespace(written=[], kinds=[])

    def incident(what, _sentence):
        seen.kinds.append(what)
        (reported if what == "hung" else went_on).set()

    with Watchdog(
        incident=incident,
        write=seen.written.append,
        slept=lambda _seconds: None,
        counter=time.perf_counter,
    ) as dog:
        assert stand_here_until(reported)
        dog.beat()
        assert went_on.wait(20)
    assert seen.kinds == ["hung", "went_on"]
    assert "stand_here_until" in seen.written[0]
    assert not [it for it in threading.enumerate() if it.name == "watchdog"]


def test_the_clock_runs_and_is_the_one_that_counts_sleep():
    began = clock_that_counts_sleep()
    time.sleep(0.02)
    assert 0.015 < clock_that_counts_sleep() - began < 5
    if sys.platform == "linux":
        assert abs(began - time.clock_gettime(time.CLOCK_BOOTTIME)) < 5


def test_times_in_words():
    assert [in_words(s) for s in (3.21, 45, 360, 25_920)] == [
        "3.2 s",
        "45 s",
        "6 minutes",
        "7.2 hours",
    ]
