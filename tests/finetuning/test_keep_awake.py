"""Staying awake: the real wakepy, told to succeed or to fail, and a system that hangs."""

import threading
import time

import pytest
from wakepy import keep, modecount

from discord_lora.finetuning import keep_awake
from discord_lora.finetuning.keep_awake import AWAKE, NOT_AWAKE, kept_awake


def test_it_says_that_it_does_and_lets_go_afterwards(monkeypatch):
    monkeypatch.setenv("WAKEPY_FAKE_SUCCESS", "1")
    said = []
    with kept_awake(said.append):
        assert said == [AWAKE]
        assert modecount() == 1
    assert modecount() == 0


def test_it_lets_go_when_the_run_fails(monkeypatch):
    monkeypatch.setenv("WAKEPY_FAKE_SUCCESS", "1")
    with pytest.raises(KeyError), kept_awake(lambda _: None):
        raise KeyError
    assert modecount() == 0


def test_that_it_could_not_is_a_line_and_no_error(monkeypatch):
    monkeypatch.setenv("WAKEPY_FORCE_FAILURE", "1")
    said = []
    began = time.perf_counter()
    with kept_awake(said.append):
        pass
    assert said == [NOT_AWAKE]
    assert time.perf_counter() - began < keep_awake.WAIT_SECONDS


def test_whatever_breaks_in_wakepy_costs_nothing(monkeypatch):
    def broken(**_options):
        raise OSError("no such bus")

    monkeypatch.setattr(keep, "running", broken)
    said = []
    with kept_awake(said.append):
        pass
    assert said == [NOT_AWAKE]


def test_a_system_that_does_not_answer_is_not_waited_for(monkeypatch):
    answer = threading.Event()

    def hanging(**_options):
        answer.wait(20)
        raise OSError("at last")

    monkeypatch.setattr(keep, "running", hanging)
    monkeypatch.setattr(keep_awake, "WAIT_SECONDS", 0.05)
    said = []
    began = time.perf_counter()
    with kept_awake(said.append):
        pass
    assert time.perf_counter() - began < 2
    assert said == [NOT_AWAKE]
    answer.set()


def test_who_does_not_want_it_hears_nothing_of_it(monkeypatch):
    monkeypatch.setenv("WAKEPY_FAKE_SUCCESS", "1")
    said = []
    with kept_awake(said.append, wanted=False):
        assert modecount() == 0
    assert said == []
